"""Links, programs, devices and pipes in a workspace, looked at through the mount."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import mount, settings
from tests.conftest import leading, mounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Guest

OFF = {"contain_symlinks": "no_contain_symlinks", "noexec": "exec", "nodev": "dev"}


@pytest.fixture
def mounted(on: bool, guest: Guest, sshfs: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mount, with its protections on or off."""
    if not on:
        options = tuple(OFF.get(option, option) for option in mount._OPTIONS)
        monkeypatch.setattr(mount, "_OPTIONS", options)
    chosen = settings.load()
    mount.mount(chosen)
    return mount.point(chosen)


@pytest.mark.parametrize("way", ["absolute", "relative", "through a folder"])
def test_links_do_not_lead_out(
    guest: Guest, home: Path, mounted: Path, way: str, *, on: bool
) -> None:
    secret = home / "secret"
    secret.write_text("of the host")
    folder = guest.workspaces / "app"
    folder.mkdir()
    if way == "through a folder":
        (folder / "link").symlink_to(home)
    else:
        (folder / "link").symlink_to(secret if way == "absolute" else "../../../secret")
    path = mounted / "app/link"
    path = path / "secret" if way == "through a folder" else path
    if not on:
        assert path.read_text() == "of the host"
        path.write_text("overwritten")
        assert secret.read_text() == "overwritten"
        return
    for act in (path.read_text, lambda: path.write_text("overwritten"), path.stat):
        with pytest.raises(OSError, match="Operation not permitted") as caught:
            act()
        assert caught.value.errno == errno.EPERM
    assert secret.read_text() == "of the host"


def test_programs_in_the_mount_do_not_start(guest: Guest, mounted: Path, *, on: bool) -> None:
    (guest.workspaces / "tool").write_text("#!/bin/sh\n")
    (guest.workspaces / "tool").chmod(0o6755)
    if not on:
        subprocess.run([mounted / "tool"], check=True)
        return
    with pytest.raises(PermissionError):
        subprocess.run([mounted / "tool"], check=False)


def test_a_device_in_the_mount_is_none(guest: Guest, mounted: Path, *, on: bool) -> None:
    """No attack, so without a twin that succeeds: SFTP tells no number; nodev stands behind."""
    if os.geteuid() != 0:
        pytest.skip("only root can make a device")
    os.mknod(guest.workspaces / "null", 0o20666, os.makedev(1, 3))
    assert (mounted / "null").stat().st_rdev == 0
    with pytest.raises(OSError, match="null") as caught:
        (mounted / "null").read_bytes()
    assert caught.value.errno == (errno.EACCES if on else errno.ENXIO)


def test_a_pipe_in_the_mount_holds_up_who_opens_it_until_a_signal(
    guest: Guest, sshfs: None, home: Path
) -> None:
    """The limit as it is: the kernel waits here for a partner in the pipe, and asks no server."""
    chosen = settings.load()
    mount.mount(chosen)
    os.mkfifo(guest.workspaces / "pipe")
    (guest.workspaces / "text").write_text("word\n")
    point = mount.point(chosen)
    for number in (signal.SIGINT, signal.SIGKILL):
        with waiting("cat", str(point / "pipe")) as child:
            child.send_signal(number)
            assert child.wait(10) == -number
    for argv in (["grep", "-r", "word"], ["find"], ["tar", "-cf", "/dev/null"]):
        subprocess.run([*argv, "."], cwd=point, check=True, capture_output=True, timeout=10)
    with waiting("cat", str(point / "pipe")) as child:
        assert mount.unmount(chosen, force=True)
        assert not mounts(home)
        child.kill()
        child.wait(10)


@contextlib.contextmanager
def waiting(*argv: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that does not end by itself."""
    with leading(*argv) as child:
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(1)
        yield child
