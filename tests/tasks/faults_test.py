"""What breaks around the tool: each command says so in one line, and works again afterwards."""

from __future__ import annotations

import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import host, lima, process
from tests import forked
from tests.conftest import VM, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.cli import Said
    from tests.conftest import Guest, Limactl

    from .conftest import Command

ASKING = [
    ["start"], ["stop"], ["restart"], ["status"], ["destroy", "--force"], ["connect", "--", "true"],
    ["push", "fix"], ["fetch", "fix"], ["clean", "fix", "--force"], ["clean-all", "--force"],
    ["provision"], ["logs"], ["ssh-config"], ["mount"], ["secrets"], ["tools"], ["refresh-home"],
    ["undo", "app-fix"],
]  # fmt: skip
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")


def one_line(said: Said) -> str:
    """The error of a command that failed as it should."""
    assert said.status == 1, said
    assert said.error.startswith("agent-vm: ")
    return said.error


@pytest.fixture
def gentle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the limits of time to what a test can wait for."""
    monkeypatch.setattr(lima, "PATIENCE", 0.5)
    monkeypatch.setattr(ssh_guest, "GREETING", 0.3)
    monkeypatch.setattr(ssh_guest, "RESPONSE", 1.0)
    monkeypatch.setattr(process, "WATCH", 0.3)


ENTRY = (
    '{"name": "agent-vm", "status": "Running", "dir": "/nonexistent", "sshLocalPort": 1, '
    '"config": {}'
)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "exit 1",
        "echo 'not json'",
        "echo null",
        "echo '[[1]]'",
        f"echo '{ENTRY}, \"config\": 5}}'",
        f'echo \'{ENTRY}, "status": 5, "cpus": []}}\'',
        f'echo \'{ENTRY}, "name": "other"}}\'',
        "head -c 30000000 /dev/zero | tr '\\0' '['",
        "printf '\\377\\376'",
        "sleep 60",
    ],
)
@pytest.mark.usefixtures("gentle")
def test_a_limactl_that_answers_nothing_of_use(
    vm: Guest, limactl: Limactl, repository: Path, agent_vm: Command, answer: str
) -> None:
    agent_vm("push", "fix")
    (vm.workspaces / "app-fix" / "mine").touch()
    ssh_guest.disconnect(VM)
    (limactl.folder / "calls").unlink()
    limactl.does("list", answer)
    for argv in ASKING:
        assert "limactl" in one_line(agent_vm(*argv)) or argv[0] == "undo"
    assert limactl.calls() == []
    limactl.repair("list")
    assert agent_vm("connect", "fix", "--", "ls").out == "README\nmine\n"


def test_limits_of_time_leave_ten_seconds_to_say_so() -> None:
    assert lima.PATIENCE < 10
    assert host.PATIENCE < 10
    assert process.WATCH + 2 * ssh_guest.GREETING < 10
    assert process.WATCH + ssh_guest.RESPONSE < 10


@pytest.mark.usefixtures("gentle")
def test_a_version_that_is_not_told(
    limactl: Limactl, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "PATIENCE", 0.3)
    for answer in ("sleep 60", "echo garbage", "exit 3"):
        limactl.does("--version", answer)
        assert "limactl" in one_line(agent_vm("start"))
    limactl.repair("--version")
    assert agent_vm("start").status == 0


@pytest.mark.parametrize("verb", ["create", "start"])
def test_an_interrupt_ends_a_limactl_that_hangs(
    limactl: Limactl, home: Path, agent_vm: Command, verb: str
) -> None:
    limactl.does(verb, "echo there > $0.there; sleep 600")
    started = forked.start(home / "ran", "start")
    there = limactl.folder / f"script-{verb}.there"
    wait_until(there.exists, "limactl does not start")
    os.kill(started.pid, signal.SIGINT)
    ended = started.end()
    assert (ended.status, ended.err.splitlines()[-1]) == (130, "agent-vm: interrupted")
    forked.no_orphans(home)
    limactl.repair(verb)
    assert agent_vm("start").status == 0


def test_a_creation_that_takes_long_is_told(
    limactl: Limactl, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WATCH", 0.1)
    limactl.does("create", "sleep 0.5; exit 1")
    assert "limactl create is still at work" in agent_vm("start").err


def test_a_port_that_was_taken_meanwhile(limactl: Limactl, home: Path, agent_vm: Command) -> None:
    log = limactl.lima / VM / "ha.stderr.log"
    taken = "Could not set up host forwarding rule 'tcp:127.0.0.1:1-:22'"
    limactl.does("start", f'echo "{taken}" > {log}; exit 1')
    assert "the VM's ssh port was taken; try again" in one_line(agent_vm("start"))
    limactl.repair("start")
    assert agent_vm("start").status == 0


def test_a_disk_whose_copy_was_cut_off_is_copied_again(
    limactl: Limactl, home: Path, agent_vm: Command
) -> None:
    limactl.does("start", f"touch {limactl.lima / VM}/disk {limactl.lima / VM}/image; kill -9 $$")
    assert agent_vm("start").status == 1
    limactl.repair("start")
    assert agent_vm("start").status == 0
    assert (limactl.lima / VM / "disk").read_text() == "whole"


def test_an_instance_made_by_somebody_else_after_ours_was_deleted_by_hand(
    limactl: Limactl, agent_vm: Command
) -> None:
    agent_vm("start")
    limactl.signal(signal.SIGKILL)
    shutil.rmtree(limactl.lima / VM)
    theirs = {"plain": True, "provision": [{"script": "true"}]}
    limactl.change(status="Stopped", cpus=1, config=theirs)
    before = limactl.calls()
    for argv in (["destroy", "--force"], ["start"], ["stop"], ["status"]):
        assert "agent-vm did not make for this user" in one_line(agent_vm(*argv))
    assert limactl.calls() == before
    assert limactl.instance()


def test_a_configuration_that_was_cut_off_is_refused_and_kept(
    limactl: Limactl, agent_vm: Command
) -> None:
    agent_vm("start")
    agent_vm("stop")
    for text in ("", "5", "provision: ["):
        (limactl.lima / VM / "lima.yaml").write_text(text)
        assert "makes no sense" in one_line(agent_vm("start"))
    for text in ("provision: [5]", "{}"):
        (limactl.lima / VM / "lima.yaml").write_text(text)
        assert "than asked for" in one_line(agent_vm("start"))
    assert (limactl.lima / VM / "disk").exists()


@pytest.fixture
def frozen(limactl: Limactl, repository: Path, agent_vm: Command) -> Iterator[None]:
    """A VM with a workspace and a warm connection, stopped by a signal."""
    assert agent_vm("connect", "fix", "--command", "echo mine > uncommitted").status == 0
    limactl.signal(signal.SIGSTOP)
    yield
    limactl.signal(signal.SIGCONT)


@pytest.mark.parametrize("verb", ["push", "fetch", "clean", "status", "undo"])
@pytest.mark.usefixtures("gentle", "frozen")
def test_a_frozen_vm_is_told(limactl: Limactl, agent_vm: Command, verb: str) -> None:
    argv = {"status": [], "undo": ["app-fix"]}.get(verb, ["fix"])
    said = agent_vm(verb, *argv)
    if verb == "undo":
        assert "nothing is kept" in said.error
        return
    assert "does not answer: it is frozen, or too busy" in said.out + said.err
    limactl.signal(signal.SIGCONT)
    assert agent_vm("connect", "fix", "--", "cat", "uncommitted").out == "mine\n"


@pytest.mark.usefixtures("gentle", "frozen")
def test_a_connection_into_a_frozen_vm_says_so_and_goes_on_when_that_does(
    limactl: Limactl, home: Path
) -> None:
    started = forked.start(home / "ran", "connect", "fix", "--", "cat", "uncommitted")
    said = "warning: the VM agent-vm does not answer: it is frozen, or too busy; "
    wait_until(lambda: said in (home / "ran" / "err").read_text(), "nothing is said")
    limactl.signal(signal.SIGCONT)
    ended = started.end()
    assert (ended.status, ended.out) == (0, "mine\n")


@pytest.mark.parametrize("argv", [["start"], ["stop"], ["restart"], ["doctor", "--fix"]])
@pytest.mark.usefixtures("gentle", "frozen")
def test_what_heals_a_frozen_vm(
    limactl: Limactl, agent_vm: Command, argv: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent_vm_tasks.install.setup", lambda *_: [])
    said = agent_vm(*argv)
    assert said.status == 0, said
    assert agent_vm("connect", "fix", "--", "cat", "uncommitted").out == "mine\n"


@pytest.mark.parametrize("value", [None, "", "relative", "gone"])
def test_a_home_that_is_none(
    limactl: Limactl, repository: Path, agent_vm: Command, home: Path, value: str | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        if value is None:
            patch.delenv("HOME")
            patch.setattr("pwd.getpwuid", no_entry)
        else:
            patch.setenv("HOME", str(home / value) if value == "gone" else value)
        for argv in (["start"], ["connect", "fix"], ["status"], ["destroy", "--force"]):
            said = agent_vm(*argv)
            assert said.status in {1, 2}
            assert "there is no home folder" in said.error
            assert said.error.endswith("; set HOME")
    assert limactl.calls() == []
    assert not (home / "gone").exists()
    assert sorted(path.name for path in repository.iterdir()) == [".git", "README"]


def no_entry(_: int) -> None:
    raise KeyError
