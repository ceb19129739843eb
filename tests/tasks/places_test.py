"""What is where our folders should be: told in one line, left alone, and good again when moved."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import mount
from agent_vm_tasks import settings as configuration
from tests.conftest import VM, mounts, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Guest, Limactl

    from .conftest import Command

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do that")


def a_file(path: Path) -> None:
    path.write_text("mine")


def a_folder_with_files(path: Path) -> None:
    path.mkdir()
    (path / "mine").touch()


def a_dangling_link(path: Path) -> None:
    path.symlink_to(path.parent / "gone")


def a_link_to_a_file(path: Path) -> None:
    (path.parent / "theirs").touch()
    path.symlink_to("theirs")


def a_link_to_a_folder(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_folder_of_somebody_else(path: Path) -> None:
    path.mkdir()
    os.chown(path, 65534, 65534)


def nothing(_: Path) -> None:
    pass


def look(path: Path) -> list[str]:
    """What is there, without following it."""
    shown = subprocess.run(["ls", "-lAn", str(path)], capture_output=True, text=True, check=False)
    return shown.stdout.splitlines()


# The folder of the state


@pytest.mark.parametrize("below", ["", VM])
@pytest.mark.parametrize(
    "spoil", [a_file, a_dangling_link, a_link_to_a_file, a_link_to_itself],
    ids=lambda spoil: spoil.__name__,
)  # fmt: skip
def test_a_state_that_is_no_folder(
    limactl: Limactl, home: Path, agent_vm: Command, spoil: Callable[[Path], None], below: str
) -> None:
    path = home / ".agent-vm" / below
    path.parent.mkdir(exist_ok=True)
    spoil(path)
    before = look(path)
    for argv in (["start"], ["status"], ["connect"], ["destroy", "--force"], ["undo"]):
        said = agent_vm(*argv)
        assert said.status == 1, argv
        assert str(home / ".agent-vm") in said.error
        assert len(said.err.splitlines()) == 1
    assert limactl.calls() == []
    assert look(path) == before
    path.unlink()
    assert agent_vm("start").status == 0


@AS_ROOT
def test_a_state_of_somebody_else(limactl: Limactl, home: Path, agent_vm: Command) -> None:
    path = home / ".agent-vm" / VM
    path.parent.mkdir()
    a_folder_of_somebody_else(path)
    for argv in (["start"], ["status"], ["connect"]):
        assert agent_vm(*argv).error == (
            f"agent-vm: {path} belongs to another user; give it to this one (chown), or set HOME"
        )
    assert limactl.calls() == []
    os.chown(path, 0, 0)
    assert agent_vm("start").status == 0


@pytest.mark.parametrize("below", ["", VM])
def test_a_state_behind_a_link_is_used(
    limactl: Limactl, home: Path, agent_vm: Command, below: str
) -> None:
    path = home / ".agent-vm" / below
    path.parent.mkdir(exist_ok=True)
    a_link_to_a_folder(path)
    for argv in (["start"], ["status"], ["connect", "--", "true"], ["stop"]):
        assert agent_vm(*argv).status == 0
    assert path.is_symlink()
    assert list((path.parent / "elsewhere").rglob("known_hosts"))


def test_a_state_that_others_may_look_into_is_closed(home: Path, agent_vm: Command) -> None:
    agent_vm("start")
    (home / ".agent-vm" / VM).chmod(0o777)
    agent_vm("status")
    assert (home / ".agent-vm" / VM).stat().st_mode & 0o777 == 0o700


# The folder of the mounts


@pytest.fixture
def point(vm: Guest, home: Path, agent_vm: Command, sshfs: None) -> Path:
    """Where the mount goes, with settings that want one."""
    config = home / ".config/agent-vm/config.toml"
    config.write_text(config.read_text().replace("[mount]\nenabled = false\n", ""))
    return home / ".agent-vm-mounts" / "workspace"


BAD = [
    (a_file, ".agent-vm-mounts", "Not a directory"),
    (a_link_to_a_file, ".agent-vm-mounts", "Not a directory"),
    (a_link_to_itself, ".agent-vm-mounts", "Too many levels of symbolic links"),
    (a_file, ".agent-vm-mounts/workspace", "File exists"),
    (a_dangling_link, ".agent-vm-mounts/workspace", "is a link"),
    (a_link_to_a_folder, ".agent-vm-mounts/workspace", "is a link"),
    (a_link_to_itself, ".agent-vm-mounts/workspace", "is a link"),
    (a_folder_with_files, ".agent-vm-mounts/workspace", "holds files of this machine (mine"),
]


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad[0].__name__} {bad[1]}")
def test_a_place_that_cannot_be_mounted_on(
    point: Path, agent_vm: Command, home: Path, bad: tuple[Callable[[Path], None], str, str]
) -> None:
    spoil, where, why = bad
    path = home / where
    path.parent.mkdir(exist_ok=True)
    spoil(path)
    before = look(path)
    said = agent_vm("connect", "fix", "--", "cat", "README")
    assert (said.status, said.out) == (0, "hello\n")
    assert "warning: the workspaces are not mounted: " in said.err
    assert why in said.err
    assert "Traceback" not in said.err
    alone = agent_vm("mount")
    assert (alone.status, len(alone.err.splitlines())) == (1, 1)
    assert (mounts(home), look(path)) == ([], before)
    for argv in (["status"], ["unmount"], ["unmount", "--force"], ["doctor"]):
        assert "Traceback" not in agent_vm(*argv).err
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert agent_vm("mount").status == 0
    assert (point / "app-fix" / "README").read_text() == "hello\n"


@pytest.mark.parametrize(
    "spoil", [nothing, a_link_to_a_folder, a_dangling_link], ids=lambda spoil: spoil.__name__
)
def test_a_folder_of_mounts_that_is_missing_or_elsewhere(
    point: Path, agent_vm: Command, home: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(point.parent)
    for _ in range(2):
        assert agent_vm("mount").status == 0
    (there,) = mounts(home)
    assert there == str(point.parent.resolve() / "workspace")
    assert agent_vm("unmount").status == 0
    assert mounts(home) == []


@AS_ROOT
def test_a_foreign_mount_is_left_alone_and_keeps_no_vm_running(
    point: Path, home: Path, agent_vm: Command
) -> None:
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(point)], check=True)
    try:
        (point / "theirs").touch()
        said = agent_vm("connect", "--", "echo", "in")
        assert (said.status, said.out) == (0, "in\n")
        assert "is a mount of something else (none); unmount it" in said.err
        for argv in (["mount"], ["unmount", "--force"]):
            assert "is a mount of something else" in agent_vm(*argv).error
        stopped = agent_vm("stop")
        assert (stopped.status, stopped.out) == (0, "The VM is stopped.\n")
        assert "is a mount of something else" in stopped.err
        assert (point / "theirs").exists()
    finally:
        subprocess.run(["umount", str(point)], check=True)


@pytest.fixture(params=[signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def dead(
    point: Path, agent_vm: Command, repository: Path, request: pytest.FixtureRequest
) -> Iterator[bool]:
    """A mount whose sshfs does not answer; whether it died."""
    assert agent_vm("connect", "fix", "--", "true").status == 0
    pid = mount.server(point)
    assert pid
    os.kill(pid, request.param)
    if request.param == signal.SIGKILL:
        wait_until(lambda: mount.server(point) is None, "sshfs still runs")
    yield request.param == signal.SIGKILL
    mount.unmount(configuration.load(), force=True)


def test_no_command_hangs_at_a_dead_mount(
    point: Path, home: Path, agent_vm: Command, *, dead: bool
) -> None:
    for argv in (["status"], ["push", "fix"], ["fetch", "fix"], ["clean", "fix", "--force"]):
        assert agent_vm(*argv).status == 0
    assert agent_vm("connect", "fix", "--", "cat", "README").out == "hello\n"
    assert not dead or (point / "app-fix" / "README").exists()
    assert agent_vm("unmount", "--force").status == 0
    assert mounts(home) == []
