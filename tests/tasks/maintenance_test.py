"""provision, render, logs and ssh-config as they are typed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from agent_vm_tasks import provision, stages, tools
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.settings import Settings
from agent_vm_tasks.stages import Stage
from tests.conftest import VM

if TYPE_CHECKING:
    from agent_vm_tasks.console import Say
    from tests.conftest import Guest, Limactl

    from .conftest import Command


def test_render_prints_every_file_and_makes_nothing(
    home: Path, limactl: Limactl, agent_vm: Command
) -> None:
    said = agent_vm("render")
    assert (said.status, said.err) == (0, "")
    heads = [line for line in said.out.splitlines() if line.startswith("# ---- ")]
    assert heads[0] == "# ---- lima.yaml"
    assert set(heads[1:]) == {
        f"# ---- provision/{stage.name}.sh" for stage in stages.stages(Settings())
    }
    assert "PRIVATE KEY" not in said.out
    assert not (limactl.folder / "calls").exists()
    assert not (home / ".agent-vm").exists()


def test_render_writes_files(home: Path, agent_vm: Command, repository: Path) -> None:
    (repository / "agent-vm.toml").write_text("[vm]\ncpus = 2\n")
    said = agent_vm("render", "--output", "out/deep")
    written = sorted(str(path) for path in Path("out/deep").rglob("*") if path.is_file())
    assert sorted(said.out.splitlines()) == written
    config = yaml.safe_load(Path("out/deep/lima.yaml").read_text())
    assert (config["cpus"], config["plain"]) == (2, True)


def test_render_to_where_nothing_can_be_written(home: Path, agent_vm: Command) -> None:
    (home / "file").touch()
    said = agent_vm("render", "--output", "file")
    assert (said.status, said.out) == (1, "")
    assert said.err == "agent-vm: file/lima.yaml cannot be written: File exists\n"


def test_render_refuses_what_a_creation_would(agent_vm: Command, repository: Path) -> None:
    (repository / "agent-vm.toml").write_text("[vm]\ncpus = 64\n")
    assert agent_vm("trust", "--force").status == 0
    said = agent_vm("render")
    assert (said.status, said.out) == (2, "")
    assert said.err == (
        f"agent-vm: {repository}/agent-vm.toml: vm.cpus asks for 64 CPUs, this host has 8 CPUs; "
        "ask for at most 8 CPUs\n"
    )


@pytest.fixture
def logs(limactl: Limactl, guest: Guest) -> Path:
    """The folder of a VM that has booted."""
    limactl.adopt(guest)
    folder = limactl.folder / "lima" / VM
    (folder / "serial.log").write_text("".join(f"line {n}\n" for n in range(1, 101)))
    (folder / "ha.stderr.log").write_bytes(b"QEMU \x1b[31m says \xff\n")
    return folder


def test_logs_shows_the_end_of_the_console(logs: Path, agent_vm: Command) -> None:
    said = agent_vm("logs")
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines() == [f"line {n}" for n in range(51, 101)]
    assert agent_vm("logs", "--lines", "2").out == "line 99\nline 100\n"
    assert len(agent_vm("logs", "--lines", "1000").out.splitlines()) == 100


def test_logs_cannot_write_to_the_terminal(logs: Path, agent_vm: Command) -> None:
    said = agent_vm("logs", "--name", "ha.stderr")
    assert said.out == "QEMU \\x1b[31m says \ufffd\n"


@pytest.mark.parametrize("name", ["qemu", "../serial", "/etc/passwd", "serial.log", ""])
def test_a_log_that_does_not_exist_names_those_that_do(
    logs: Path, agent_vm: Command, name: str
) -> None:
    said = agent_vm("logs", f"--name={name}")
    assert (said.status, said.out) == (1, "")
    assert said.err == f"agent-vm: the VM has no log {name}; its logs: ha.stderr, serial\n"


def test_logs_of_a_vm_that_never_started(limactl: Limactl, agent_vm: Command) -> None:
    assert (
        agent_vm("logs").error == "agent-vm: there is no VM agent-vm; `agent-vm start` creates it"
    )


def test_ssh_config_is_one_that_ssh_takes(
    limactl: Limactl, guest: Guest, home: Path, agent_vm: Command
) -> None:
    limactl.adopt(guest)
    said = agent_vm("ssh-config")
    assert (said.status, said.err) == (0, "")
    (home / "config").write_text(said.out)
    ssh = ["ssh", "-F", str(home / "config"), VM, "pwd"]
    done = subprocess.run(ssh, capture_output=True, text=True, check=True)
    assert done.stdout == f"{guest.home}\n"


@pytest.mark.parametrize("verb", ["ssh-config", "provision", "tools", "refresh-home"])
def test_what_needs_a_running_vm_starts_none(
    limactl: Limactl, agent_vm: Command, verb: str
) -> None:
    said = agent_vm(verb)
    assert (said.status, said.out) == (1, "")
    assert said.err == "agent-vm: there is no VM agent-vm; `agent-vm start` creates it\n"
    agent_vm("start", "stop")
    said = agent_vm(verb)
    assert (said.status, said.out) == (1, "")
    assert said.err == "agent-vm: the VM agent-vm is stopped; run `agent-vm start`\n"
    assert [call[0] for call in limactl.calls()] == ["create", "start", "stop"]


def test_provision_in_a_running_vm(
    limactl: Limactl, guest: Guest, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    limactl.adopt(guest)
    troubles = [None, AgentVMError("provisioning failed in stage npm")]

    def run(_settings: Settings, _stages: object, say: Say, _c: object, *, upgrade: bool) -> bool:
        assert not upgrade
        if trouble := troubles.pop(0):
            raise trouble
        say("  installing: packages")
        return True

    monkeypatch.setattr(provision, "run", run)
    done = agent_vm("provision")
    assert (done.status, done.out) == (0, "The VM is provisioned.\n")
    assert done.err == "  installing: packages\n"
    failed = agent_vm("provision")
    assert (failed.status, failed.out) == (1, "")
    assert failed.err == "agent-vm: provisioning failed in stage npm\n"


def test_an_upgrade_shows_what_changed(
    limactl: Limactl, guest: Guest, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    limactl.adopt(guest)
    versions = [{("npm", "prettier"): "3.0"}, {("npm", "prettier"): "3.1", ("apt", "new"): "1"}]
    asked: list[bool] = []
    monkeypatch.setattr(tools, "installed", lambda _: versions.pop(0))
    monkeypatch.setattr(provision, "run", lambda *_, upgrade: asked.append(upgrade))
    said = agent_vm("provision", "--upgrade")
    assert said.status == 0
    lines = [line.split() for line in said.out.splitlines()]
    assert lines == [["NAME", "BEFORE", "NOW"], ["new", "-", "1"], ["prettier", "3.0", "3.1"]]
    assert asked == [True]
    versions = [{("npm", "prettier"): "3.1"}] * 2
    assert agent_vm("provision", "--upgrade").out == "Everything is as new as it may be.\n"


def test_tools_is_a_table_and_one_json_list(
    limactl: Limactl, guest: Guest, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    limactl.adopt(guest)
    there = {("npm", "@anthropic-ai/claude-code"): "2.0\x1b[31m"}
    monkeypatch.setattr(tools, "installed", lambda _: there)
    wanted = stages.pins()["@anthropic-ai/claude-code"]
    said = agent_vm("tools")
    assert (said.status, said.err) == (0, "")
    lines = [line.split() for line in said.out.splitlines()]
    assert lines[0] == ["NAME", "WANTED", "INSTALLED", "KIND"]
    assert lines[1] == ["claude", wanted, r"2.0\x1b[31m", "agent"]
    assert ["git", "any", "-", "tool"] in lines
    first = json.loads(agent_vm("tools", "--json").out)[0]
    assert first == {
        "name": "claude", "package": "@anthropic-ai/claude-code", "source": "npm",
        "kind": "agent", "wanted": wanted, "installed": "2.0\x1b[31m",
    }  # fmt: skip


def test_refresh_home_tells_of_each_file_what_it_did(
    limactl: Limactl, guest: Guest, agent_vm: Command
) -> None:
    limactl.adopt(guest)
    (guest.home / ".gitconfig").write_text("mine\n")
    said = agent_vm("refresh-home")
    assert said.status == 0
    assert ".claude.json: added\n" in said.out
    assert ".gitconfig: left: changed inside (--force replaces it, after a copy)\n" in said.out
    assert said.out.endswith("0 files are up to date.\n")
    forced = agent_vm("refresh-home", "--force").out
    assert ".gitconfig: replaced; a copy is in ~/.agent-vm/home-before of the VM\n" in forced
    (copy,) = (guest.home / ".agent-vm" / "home-before").rglob(".gitconfig")
    assert copy.read_text() == "mine\n"


def test_provision_shows_a_failure_of_the_real_thing_escaped(
    limactl: Limactl, guest: Guest, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    limactl.adopt(guest)
    (guest.home / "bin").mkdir()
    sudo = guest.home / "bin" / "sudo"
    sudo.write_text(
        "#!/bin/sh\nprintf '@start npm\\nE: \\033[31mred\\n'\nrm -rf \"${2%/*}\"\nexit 1\n"
    )
    sudo.chmod(0o755)
    monkeypatch.setattr(stages, "stages", lambda _: (Stage("npm", "true", "1"),))
    said = agent_vm("provision")
    assert (said.status, said.out) == (1, "")
    assert said.error == (
        r"agent-vm: provisioning failed in stage npm: E: \x1b[31mred; "
        "its log is /var/log/agent-vm/npm.log in the VM; `agent-vm start` resumes there"
    )
