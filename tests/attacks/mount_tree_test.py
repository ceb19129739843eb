"""A workspace that was made to harm whoever looks at it through the mount."""

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


@pytest.fixture
def mounted(guest: Guest, sshfs: None) -> Path:
    chosen = settings.load()
    mount.mount(chosen)
    return mount.point(chosen)


@pytest.mark.parametrize("owner", [None, "65533", "0"])
def test_git_refuses_to_work_in_the_mount(
    guest: Guest, home: Path, mounted: Path, owner: str | None
) -> None:
    """Each of these settings runs a program as soon as git obeys them."""
    run = f"touch {home}/ran; false"
    guest.run("git init -q app && cd app && echo a > a && git add . && git commit -q -m a")
    for key in ("core.fsmonitor", "core.sshCommand", "core.pager", "diff.external", "gpg.program"):
        guest.run(f"git -C app config {key} '{run}'")
    guest.run("git -C app config log.showSignature true && echo b > app/a && mv app workspace")
    if owner and os.geteuid() == 0:
        guest.run(f"chown -R {owner} workspace/app")
    for args in ("status", "log -1", "diff", "fetch", "add -A", "checkout -- .", "gc"):
        argv = ["git", "-C", str(mounted / "app"), *args.split()]
        env = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env=env)
        assert done.returncode, args
        assert args == "diff" or "dubious ownership" in done.stderr
    assert not (home / "ran").exists()


@pytest.mark.parametrize("way", ["absolute", "relative", "through a folder"])
def test_links_do_not_lead_out(guest: Guest, home: Path, mounted: Path, way: str) -> None:
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
    for act in (path.read_text, lambda: path.write_text("overwritten"), path.stat):
        with pytest.raises(OSError, match="Operation not permitted") as caught:
            act()
        assert caught.value.errno == errno.EPERM
    assert secret.read_text() == "of the host"


def test_programs_in_the_mount_do_not_start(guest: Guest, mounted: Path) -> None:
    (guest.workspaces / "tool").write_text("#!/bin/sh\n")
    (guest.workspaces / "tool").chmod(0o6755)
    with pytest.raises(PermissionError):
        subprocess.run([mounted / "tool"], check=False)


def test_devices_in_the_mount_do_not_open(guest: Guest, mounted: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a device")
    os.mknod(guest.workspaces / "null", 0o20666, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        (mounted / "null").read_bytes()
