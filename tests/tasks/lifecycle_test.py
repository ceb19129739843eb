"""start, stop, restart, status, destroy, mount and unmount as they are typed."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_vm_tasks import host, mount
from agent_vm_tasks.errors import AgentVMError
from tests.conftest import VM, commit, git, mounts

if TYPE_CHECKING:
    from tests.conftest import Guest, Limactl

    from .conftest import Command

SERVICE_USER = host.service_user  # before a fixture replaces it
VERBS = [
    ["start"], ["stop"], ["restart"], ["status"], ["destroy", "--force"], ["connect"],
    ["clean-all", "--force"], ["provision"], ["logs"], ["ssh-config"], ["mount"],
]  # fmt: skip


def verbs_of(limactl: Limactl) -> list[str]:
    return [call[0] for call in limactl.calls()]


def kept(home: Path) -> bool:
    """Whether something of a VM is on the host."""
    return any(path.name != "lock" for path in (home / ".agent-vm").glob("*/*"))


def test_start_says_what_it_does_and_how_it_ended(limactl: Limactl, agent_vm: Command) -> None:
    said = agent_vm("start")
    assert (said.status, said.out) == (0, "The VM agent-vm is running.\n")
    assert said.err.startswith("creating the VM agent-vm: 4 CPUs, 8 GiB memory, 100 GiB disk\n")
    again = agent_vm("start")
    assert (again.status, again.out, again.err) == (0, "The VM agent-vm is running.\n", "")


def test_sizes_count_when_the_vm_is_created(limactl: Limactl, agent_vm: Command) -> None:
    assert agent_vm("start", "--memory", "2", "--vcpu", "3", "--disk", "20GiB").status == 0
    made = limactl.instance()
    assert made is not None
    config = made["config"]
    assert (config["cpus"], config["memory"], config["disk"]) == (3, "2048MiB", "20480MiB")


def test_sizes_for_a_vm_that_exists_are_answered_with_a_warning(
    limactl: Limactl, agent_vm: Command
) -> None:
    agent_vm("start")
    said = agent_vm("start", "--memory", "2")
    assert said.status == 0
    assert said.err == (
        "warning: the VM has 8 GiB memory, not 2 GiB memory: vm.memory counts when it is created "
        "(destroy, then start)\n"
    )
    assert verbs_of(limactl) == ["create", "start"]


def test_settings_of_the_repository_count(
    limactl: Limactl, agent_vm: Command, repository: Path
) -> None:
    (repository / "agent-vm.toml").write_text('[vm]\ncpus = 2\nname = "ours"\n')
    assert agent_vm("trust", "--force").status == 0
    assert agent_vm("start", "--memory", "1").out == "The VM ours is running.\n"
    made = limactl.instance("ours")
    assert made is not None
    assert (made["config"]["cpus"], made["config"]["memory"]) == (2, "1024MiB")
    agent_vm("destroy", "--force")


@pytest.mark.parametrize("argv", VERBS, ids=lambda argv: argv[0])
def test_without_limactl_every_verb_says_what_to_run(
    home: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    monkeypatch.setattr(host, "_OUR_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tools(home, "git", "ssh", "ssh-keygen")))
    said = agent_vm(*argv)
    assert (said.status, said.out) == (1, "")
    assert said.err == "agent-vm: limactl (Lima) is not installed; run `agent-vm setup`\n"
    assert not kept(home)


def tools(home: Path, *names: str) -> Path:
    folder = home / "tools"
    folder.mkdir()
    for name in names:
        (folder / name).symlink_to(shutil.which(name) or "/nonexistent")
    return folder


def test_a_lima_that_is_too_old_is_refused(home: Path, limactl: Limactl, agent_vm: Command) -> None:
    program = limactl.folder / "bin" / "limactl"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "limactl version 2.1.4"\n')
    said = agent_vm("start")
    assert (said.status, said.out) == (1, "")
    assert said.err == (
        f"agent-vm: Lima 2.1.4 at {program} is older than 2.2.0; "
        "run `agent-vm setup`, or upgrade Lima the way it was installed\n"
    )
    assert not kept(home)


@pytest.mark.parametrize("argv", VERBS, ids=lambda argv: argv[0])
def test_root_without_the_account_for_limactl_says_what_to_run(
    home: Path,
    limactl: Limactl,
    agent_vm: Command,
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
) -> None:
    monkeypatch.setattr(host, "service_user", SERVICE_USER)
    monkeypatch.setattr(host, "SERVICE_USER", "no-such-account")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    said = agent_vm(*argv)
    assert (said.status, said.out) == (1, "")
    assert said.err == (
        "agent-vm: limactl does not run as root, and its account is missing; "
        "run `agent-vm setup`, which creates the system user no-such-account\n"
    )
    assert not (limactl.folder / "calls").exists()
    assert not kept(home)


def test_stop_and_restart(limactl: Limactl, agent_vm: Command) -> None:
    for verb in ("stop", "restart"):
        said = agent_vm(verb)
        assert (said.status, said.out) == (1, "")
        assert said.err == "agent-vm: there is no VM agent-vm; `agent-vm start` creates it\n"
    agent_vm("start")
    assert agent_vm("restart").out == "The VM agent-vm is running.\n"
    assert verbs_of(limactl) == ["create", "start", "stop", "start"]
    assert agent_vm("stop").out == "The VM is stopped.\n"
    assert agent_vm("stop").out == "The VM was not running.\n"
    assert agent_vm("restart").out == "The VM agent-vm is running.\n"


def test_start_status_and_stop_in_one_line(limactl: Limactl, agent_vm: Command) -> None:
    said = agent_vm("start", "status", "stop")
    assert said.status == 0
    lines = said.out.splitlines()
    assert (lines[0], lines[1], lines[-1]) == (
        "The VM agent-vm is running.", "State: Running", "The VM is stopped.",
    )  # fmt: skip


def test_what_fails_ends_the_line(limactl: Limactl, agent_vm: Command) -> None:
    said = agent_vm("stop", "start")
    assert said.status == 1
    assert limactl.calls() == []


def test_status_without_a_vm(home: Path, limactl: Limactl, agent_vm: Command) -> None:
    said = agent_vm("status")
    assert (said.status, said.out, said.err) == (0, "State: Does not exist\n", "")
    assert limactl.calls() == []
    assert not kept(home)


def test_status_of_a_stopped_and_of_a_running_vm(
    home: Path, limactl: Limactl, agent_vm: Command
) -> None:
    agent_vm("start")
    point = home / ".agent-vm-mounts" / "workspace"
    lines = [
        "State: Running", "CPUs: 4", "Memory: 8 GiB", "Disk: 100 GiB",
        f"Mount: {point} (not mounted)",
        "Network: internet: the internet, not the services of this machine's loopback",
        "Workspaces: none",
    ]  # fmt: skip
    assert agent_vm("status").out.splitlines() == lines
    agent_vm("stop")
    assert agent_vm("status").out.splitlines() == ["State: Stopped", *lines[1:5]]


def a_workspace(guest: Guest, folder: str) -> None:
    path = guest.workspaces / folder
    path.mkdir(parents=True)
    git(path, "init", "--quiet")
    commit(path, "README")
    (path / "new").touch()
    (path / ".git" / "agent-vm").write_text("0123456789abcdef\napp\nfix\n")


def test_status_lists_the_workspaces(limactl: Limactl, guest: Guest, agent_vm: Command) -> None:
    limactl.adopt(guest)
    a_workspace(guest, "app-fix")
    assert agent_vm("status").out.splitlines()[-2:] == [
        "WORKSPACE  REPOSITORY  BRANCH  NOT FETCHED  UNCOMMITTED  UNTRACKED",
        "app-fix    app         fix     1            0            1",
    ]


def test_status_as_json(limactl: Limactl, guest: Guest, agent_vm: Command) -> None:
    limactl.adopt(guest)
    a_workspace(guest, "app-fix")
    said = agent_vm("status", "--json")
    now = json.loads(said.out)
    (row,) = now.pop("workspaces")
    assert now == {
        "name": VM, "state": "Running", "cpus": 4, "memory": 8192, "disk": 102400,
        "mount": str(Path.home() / ".agent-vm-mounts" / "workspace"), "mounted": False,
        "network": "open", "trouble": "",
    }  # fmt: skip
    assert row["folder"] == "app-fix"
    assert (row["unfetched"], row["untracked"], row["stashes"]) == (1, 1, 0)
    assert said.err == ""


def test_a_folders_name_cannot_write_to_the_terminal_or_fake_a_row(
    limactl: Limactl, guest: Guest, agent_vm: Command
) -> None:
    limactl.adopt(guest)
    a_workspace(guest, "app\nclean  app  main  0  0  0")
    a_workspace(guest, "b\x1b]0;owned\x07")
    lines = agent_vm("status").out.splitlines()
    first = [line.split()[0] for line in lines[-3:]]
    assert first[0] == "WORKSPACE"
    assert set(first[1:]) == {r"app\nclean", r"b\x1b]0;owned\x07"}


def test_status_tells_why_the_workspaces_are_not_known(
    limactl: Limactl, guest: Guest, agent_vm: Command
) -> None:
    limactl.adopt(guest)
    limactl.change(sshLocalPort=1)
    said = agent_vm("status")
    assert said.status == 0
    assert "Workspaces: unknown (the VM agent-vm runs, but ssh does not get in: " in said.out


def test_destroy_without_a_terminal_needs_force_and_says_what_would_be_lost(
    limactl: Limactl, guest: Guest, agent_vm: Command
) -> None:
    limactl.adopt(guest)
    a_workspace(guest, "app-fix")
    said = agent_vm("destroy")
    assert (said.status, said.out) == (1, "")
    assert said.err == (
        "warning: would be lost: app-fix: 1 commit not fetched (1 on branch main)\n"
        "warning: would be lost: app-fix: 1 file untracked\n"
        "agent-vm: will not destroy the VM without being asked to; add --force\n"
    )
    assert limactl.instance() is not None
    back = "; `agent-vm undo` lists what can be brought back"
    assert agent_vm("destroy", "--force").out == f"The VM is destroyed{back}.\n"
    assert limactl.instance() is None


@pytest.mark.parametrize("state", ["silent", "stopped"])
def test_destroy_says_what_it_could_not_look_at(
    limactl: Limactl, guest: Guest, agent_vm: Command, state: str
) -> None:
    limactl.adopt(guest)
    a_workspace(guest, "app-fix")
    (Path.home() / ".agent-vm" / VM / "ready").unlink()
    limactl.change(**({"sshLocalPort": 1} if state == "silent" else {"status": "Stopped"}))
    why = {"silent": "the VM agent-vm runs, but ssh does not get in: ",
           "stopped": "the VM is not running"}[state]  # fmt: skip
    said = agent_vm("destroy")
    assert said.status == 1
    assert f"would be lost: workspaces that could not be looked at: {why}" in said.err
    assert limactl.instance() is not None
    said = agent_vm("destroy", "--force")
    assert f"workspaces were not looked at and no copy is kept of them: {why}" in said.err
    assert said.out == "The VM is destroyed.\n"


def test_destroy_without_a_vm_has_nothing_to_ask(limactl: Limactl, agent_vm: Command) -> None:
    for argv in (["destroy"], ["destroy", "--force"]):
        said = agent_vm(*argv)
        assert (said.status, said.out, said.err) == (0, "No VM exists.\n", "")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "destroyed"),
    [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False), ("yy\n", False)],
)
def test_destroy_asks_at_a_terminal(
    limactl: Limactl,
    guest: Guest,
    agent_vm: Command,
    monkeypatch: pytest.MonkeyPatch,
    *,
    typed: str,
    destroyed: bool,
) -> None:
    limactl.adopt(guest)
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    said = agent_vm("destroy")
    assert "agent-vm: destroy the VM? [y/N] " in said.err
    assert said.status == (0 if destroyed else 1)
    assert (limactl.instance() is None) is destroyed
    assert destroyed or said.err.endswith("agent-vm: nothing was deleted\n")


def test_mount_without_a_running_vm(limactl: Limactl, agent_vm: Command) -> None:
    assert agent_vm("mount").error == (
        "agent-vm: there is no VM agent-vm; `agent-vm start` creates it"
    )
    agent_vm("start", "stop")
    assert agent_vm("mount").error == "agent-vm: the VM agent-vm is stopped; run `agent-vm start`"
    assert verbs_of(limactl) == ["create", "start", "stop"]


def test_unmount_where_nothing_is_mounted(agent_vm: Command) -> None:
    said = agent_vm("unmount")
    assert (said.status, said.out) == (0, "Was not mounted.\n")


def test_where_git_would_trust_the_mount_everything_else_works(
    home: Path, repository: Path, agent_vm: Command, sshfs: None
) -> None:
    config, git_config = home / ".config/agent-vm/config.toml", home / ".gitconfig"
    config.write_text(config.read_text().replace("[mount]\nenabled = false\n", ""))
    before = git_config.read_text()
    git_config.write_text(f"{before}[safe]\n\tdirectory = *\n")
    why = (
        "git's safe.directory has *: files of the VM could run code here; take that out "
        "(`git config --global --edit`, or --system), then `agent-vm mount`"
    )
    warning = f"warning: the workspaces are not mounted: {why}\n"
    started = agent_vm("start")
    assert (started.status, started.err.count(warning)) == (0, 1)
    connected = agent_vm("connect", "fix", "--", "cat", "README")
    assert (connected.status, connected.out) == (0, "hello\n")
    assert connected.err.count(warning) == 1
    alone = agent_vm("mount")
    assert (alone.status, alone.error) == (1, f"agent-vm: {why}")
    assert not mounts(home)
    git_config.write_text(before)
    assert agent_vm("mount").status == 0
    assert len(mounts(home)) == 1


def test_trouble_with_the_mount_is_a_warning_and_the_vm_runs(
    home: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:  # noqa: ANN401
        raise AgentVMError("sshfs is not installed", "run `agent-vm setup`")

    monkeypatch.setattr(mount, "mount", fail)
    config = home / ".config" / "agent-vm" / "config.toml"
    config.write_text(config.read_text().replace("[mount]\nenabled = false\n", ""))
    said = agent_vm("start")
    assert (said.status, said.out) == (0, "The VM agent-vm is running.\n")
    assert said.error == (
        "warning: the workspaces are not mounted: sshfs is not installed; run `agent-vm setup`"
    )
