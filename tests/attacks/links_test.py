"""Links, programs and devices in a workspace, looked at through the mount."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import mount, settings

if TYPE_CHECKING:
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


def test_devices_in_the_mount_do_not_open(guest: Guest, mounted: Path, *, on: bool) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a device")
    os.mknod(guest.workspaces / "null", 0o20666, os.makedev(1, 3))
    with pytest.raises(OSError, match="null") as caught:
        (mounted / "null").read_bytes()
    # Off, the kernel looks for a device; it finds none, as SFTP tells no device's number.
    assert caught.value.errno == (errno.EACCES if on else errno.ENXIO)
