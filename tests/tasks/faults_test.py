"""What breaks around the tool: each command says so in one line, and works again afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import host, lima, mount, process, state
from agent_vm_tasks import vm as life
from tests import forked
from tests.conftest import VM, git, mounts, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def test_a_disk_that_was_worked_on_is_never_touched(limactl: Limactl, agent_vm: Command) -> None:
    agent_vm("start")
    agent_vm("stop")
    (limactl.lima / VM / "disk").write_text("work")
    assert agent_vm("start").status == 0
    assert (limactl.lima / VM / "disk").read_text() == "work"


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
    for text in ("", "5", "provision: [", "provision: [5]", "{}"):
        (limactl.lima / VM / "lima.yaml").write_text(text)
        assert "makes no sense" in one_line(agent_vm("start"))
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


def as_file(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.write_text("mine")


def as_link(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.symlink_to("/nonexistent")


def of_somebody_else(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, 65534, 65534)


@pytest.mark.parametrize("below", ["", VM])
@pytest.mark.parametrize("spoil", [as_file, as_link, of_somebody_else])
def test_a_state_folder_that_is_none_of_ours(
    limactl: Limactl, home: Path, agent_vm: Command, spoil: Callable[[Path], None], below: str
) -> None:
    if spoil is of_somebody_else and (os.geteuid() != 0 or not below):
        pytest.skip("only root can give folders away; what lies above is not looked at")
    path = home / ".agent-vm" / below
    path.parent.mkdir(exist_ok=True)
    spoil(path)
    for argv in (["start"], ["status"], ["connect"]):
        assert str(home / ".agent-vm") in one_line(agent_vm(*argv))
    assert limactl.calls() == []
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert agent_vm("start").status == 0


def test_a_state_folder_that_others_may_look_into_is_closed(home: Path, agent_vm: Command) -> None:
    agent_vm("start")
    (home / ".agent-vm" / VM).chmod(0o777)
    agent_vm("status")
    assert (home / ".agent-vm" / VM).stat().st_mode & 0o777 == 0o700


@pytest.fixture
def tmpfs() -> Iterator[Callable[..., None]]:
    """Mount a small file system of its own; what was mounted is taken away at the end."""
    done: list[Path] = []

    def mounted(path: Path, options: str) -> None:
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(path)], check=True)
        done.append(path)

    yield mounted
    for path in done:
        subprocess.run(["umount", "-l", str(path)], check=True)


@AS_ROOT
def test_a_full_disk_of_this_machine(
    limactl: Limactl, home: Path, agent_vm: Command, tmpfs: Callable[..., None]
) -> None:
    tmpfs(home / ".agent-vm", "size=40k,mode=700")
    (home / ".agent-vm" / VM).mkdir(mode=0o700)
    filler = home / ".agent-vm" / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False)
    said = agent_vm("start")
    assert one_line(said).endswith("No space left on device")
    filler.unlink()
    assert agent_vm("start").status == 0
    agent_vm("destroy", "--force")


@AS_ROOT
def test_a_home_that_is_read_only(
    limactl: Limactl, home: Path, agent_vm: Command, tmpfs: Callable[..., None]
) -> None:
    tmpfs(home / ".agent-vm", "ro")
    for argv in (["start"], ["status"], ["connect"], ["destroy", "--force"]):
        assert "Read-only file system" in one_line(agent_vm(*argv))
    assert limactl.calls() == []


@AS_ROOT
def test_a_full_disk_of_the_guest(
    vm: Guest, repository: Path, agent_vm: Command, tmpfs: Callable[..., None]
) -> None:
    tmpfs(vm.workspaces, "size=400k")
    (repository / "large").write_bytes(os.urandom(2**20))
    git(repository, "add", "large")
    git(repository, "commit", "--quiet", "--message", "large")
    before = git(repository, "for-each-ref", "refs/heads")
    for verb in (["push", "main"], ["connect", "main", "--", "true"]):
        said = agent_vm(*verb)
        assert said.status == 1
        assert "No space left on device" in said.err or "unpack" in said.err, said.err
        assert "Traceback" not in said.err
    assert agent_vm("connect", "--", "pwd").status == 0
    subprocess.run(["mount", "-o", "remount,size=20m", str(vm.workspaces)], check=True)
    assert agent_vm("push", "main").status == 0
    assert agent_vm("connect", "main", "--", "git", "status", "--short").out == ""
    assert git(repository, "for-each-ref", "refs/heads") == before


@pytest.fixture
def mounting(vm: Guest, home: Path, agent_vm: Command, sshfs: None) -> Path:
    """Settings with a mount, and where it goes."""
    config = home / ".config/agent-vm/config.toml"
    config.write_text(config.read_text().replace("[mount]\nenabled = false\n", ""))
    return home / ".agent-vm-mounts" / "workspace"


def outer_file(path: Path) -> None:
    path.parent.write_text("mine")


def inner_file(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("mine")


def inner_link(path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to(path.parent)


def dangling(path: Path) -> None:
    path.parent.mkdir()
    path.symlink_to("/nonexistent")


def holding_files(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "mine").touch()


@pytest.mark.parametrize("spoil", [outer_file, inner_file, inner_link, dangling, holding_files])
def test_a_place_that_cannot_be_mounted_on(
    mounting: Path, repository: Path, agent_vm: Command, home: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(mounting)
    said = agent_vm("connect", "fix", "--", "cat", "README")
    assert (said.status, said.out) == (0, "hello\n")
    assert "warning: the workspaces are not mounted: " in said.err
    assert str(mounting.parent) in said.err
    assert one_line(agent_vm("mount"))
    assert mounts(home) == []
    shutil.rmtree(mounting.parent) if mounting.parent.is_dir() else mounting.parent.unlink()
    assert agent_vm("mount").status == 0
    assert (mounting / "app-fix" / "README").read_text() == "hello\n"


def test_a_folder_of_mounts_behind_a_link(mounting: Path, agent_vm: Command, home: Path) -> None:
    (home / "elsewhere").mkdir()
    mounting.parent.symlink_to("elsewhere")
    for _ in range(2):
        assert agent_vm("mount").status == 0
    assert mounts(home) == [str(home / "elsewhere" / "workspace")]


@AS_ROOT
def test_a_foreign_mount_keeps_no_vm_running(
    mounting: Path, limactl: Limactl, agent_vm: Command, tmpfs: Callable[..., None]
) -> None:
    tmpfs(mounting, "size=40k")
    said = agent_vm("connect", "--", "true")
    assert "is a mount of something else" in said.err
    assert said.status == 0
    stopped = agent_vm("stop")
    assert (stopped.status, stopped.out) == (0, "The VM is stopped.\n")
    assert "is a mount of something else" in stopped.err
    assert mount.current(mounting)


def test_a_state_of_a_newer_version(limactl: Limactl, home: Path, agent_vm: Command) -> None:
    agent_vm("start")
    ready = state.folder(VM) / "ready"
    ready.write_bytes(ready.read_bytes() + b"\nof-a-later-version {} \xff\n")
    (state.folder(VM) / "later.json").write_text("{}")
    assert life.ready(VM)
    assert agent_vm("connect", "--", "echo", "in").out == "in\n"
    for argv in (["stop"], ["start"], ["destroy", "--force"]):
        assert agent_vm(*argv).status == 0
