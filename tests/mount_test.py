"""The mount, with a real sshfs."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import host, mount, settings
from agent_vm_tasks.errors import AgentVMError

from .conftest import VM, free_port, leading, mounts, ssh_config, wait_until
from .programs import calls, script

if TYPE_CHECKING:
    from agent_vm_tasks.settings import Settings

    from .conftest import Guest


@pytest.fixture
def chosen(guest: Guest, sshfs: None) -> Settings:
    return settings.load()


@pytest.fixture
def mounted(chosen: Settings) -> Path:
    mount.mount(chosen)
    return mount.point(chosen)


def elsewhere(chosen: Settings, path: Path) -> Settings:
    return replace(chosen, mount=replace(chosen.mount, path=str(path)))


def test_what_lies_in_the_vm_appears_here(guest: Guest, home: Path, mounted: Path) -> None:
    assert mounted == home / ".agent-vm-mounts/workspace"
    assert mounts(home) == [str(mounted)]
    (guest.workspaces / "file").write_text("inside")
    assert (mounted / "file").read_text() == "inside"
    (mounted / "file").write_text("from here")
    assert (guest.workspaces / "file").read_text() == "from here"


def test_a_mount_is_made_once(chosen: Settings, home: Path) -> None:
    mount.mount(chosen)
    first = mount.server(mount.point(chosen))
    mount.mount(chosen)
    assert mount.server(mount.point(chosen)) == first
    assert len(mounts(home)) == 1


def test_the_options_that_keep_this_machine_safe(mounted: Path, home: Path) -> None:
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    line = next(line for line in table if str(mounted) in line)
    assert {"nosuid", "nodev", "noexec"} <= set(line.split()[5].split(","))
    assert "allow_other" not in line
    assert mounted.stat().st_uid == 65534


def test_unmounting_leaves_the_note(chosen: Settings, mounted: Path, home: Path) -> None:
    assert mount.unmount(chosen)
    assert mounts(home) == []
    assert [path.name for path in mounted.iterdir()] == [mount.NOTE]
    assert not mount.unmount(chosen)
    wait_until(lambda: mount.server(mounted) is None, "sshfs still runs")


def test_a_mount_whose_sshfs_died_is_healed(guest: Guest, chosen: Settings, mounted: Path) -> None:
    pid = mount.server(mounted)
    assert pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: mount.server(mounted) is None, "sshfs still runs")
    (guest.workspaces / "file").touch()
    mount.mount(chosen)
    assert [path.name for path in mounted.iterdir()] == ["file"]


def test_a_mount_that_is_in_use_needs_force(chosen: Settings, mounted: Path, home: Path) -> None:
    with subprocess.Popen(["sleep", "100"], cwd=mounted) as child:
        with pytest.raises(AgentVMError, match=r"could not be unmounted: .*busy.*--force"):
            mount.unmount(chosen)
        assert mounts(home)
        assert mount.unmount(chosen, force=True)
        assert not mounts(home)
        child.kill()


def test_a_frozen_server_does_not_stop_force(chosen: Settings, mounted: Path, home: Path) -> None:
    pid = mount.server(mounted)
    assert pid
    os.kill(pid, signal.SIGSTOP)
    assert mount.current(mounted)
    assert mount.unmount(chosen, force=True)
    assert not mounts(home)
    wait_until(lambda: mount.server(mounted) is None, "sshfs still runs")


def test_force_on_macos_does_not_wait_for_a_server_that_hangs(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for umount waits for the server's end, as one may that asks it."""
    chosen = settings.load()
    point, there = mount.point(chosen), tmp_path / "there"
    there.touch()
    with leading("sleep", "100") as child:
        script(tmp_path, "ps", f'echo "{child.pid} sshfs vm:workspace {point}"')
        script(tmp_path, "mount", f'[ ! -e {there} ] || echo "vm on {point} (macfuse, nodev)"')
        alive = f'grep -q ") S" /proc/{child.pid}/stat'
        script(tmp_path, "umount", f"while {alive}; do sleep 0.1; done; rm {there}")
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setattr(host, "is_macos", lambda: True)
        assert mount.unmount(chosen, force=True)
    assert f"umount -f {point}" in calls(tmp_path)


def test_a_server_that_ended_by_itself_is_no_trouble_for_force(
    chosen: Settings, mounted: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    monkeypatch.setattr(mount, "server", lambda _: gone.pid)
    assert mount.unmount(chosen, force=True)
    assert not mounts(home)


def test_files_of_this_machine_are_not_hidden(chosen: Settings, home: Path) -> None:
    point = mount.point(chosen)
    point.mkdir(parents=True)
    (point / "my work").touch()
    with pytest.raises(AgentVMError, match="holds files of this machine"):
        mount.mount(chosen)
    assert not mounts(home)


@pytest.mark.parametrize("name", ["two words", "tab\there", "back\\slash", "it's", "ünï", "a,b:c"])
def test_any_folder_can_be_the_mount(chosen: Settings, home: Path, guest: Guest, name: str) -> None:
    odd = elsewhere(chosen, home / name)
    (guest.workspaces / "file").touch()
    mount.mount(odd)
    assert mount.current(home / name)
    assert mount.server(home / name)
    assert (home / name / "file").exists()
    assert mount.unmount(odd)
    assert mount.current(home / name) is None


def test_a_home_behind_a_link(
    guest: Guest, sshfs: None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "real").mkdir()
    (home / "link").symlink_to("real")
    through = elsewhere(settings.load(), home / "link" / "mount")
    mount.mount(through)
    mount.mount(through)
    assert mounts(home) == [str(home / "real" / "mount")]
    (guest.workspaces / "app-fix").mkdir()
    monkeypatch.chdir(home / "link" / "mount" / "app-fix")
    with pytest.raises(AgentVMError, match="belongs to the VM"):
        mount.refuse_inside(through, Path.cwd())
    assert mount.unmount(through, force=True)


def test_a_mount_of_something_else_is_left_alone(chosen: Settings, home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a tmpfs")
    point = mount.point(chosen)
    point.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", str(point)], check=True)
    try:
        for act in (mount.mount, mount.unmount):
            with pytest.raises(AgentVMError, match="mount of something else"):
                act(chosen)
        assert mounts(home)
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_nothing_is_mounted_where_git_would_trust_it(
    chosen: Settings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the mount has is not looked at before; once it is there, git is not asked again."""
    settings_of_git = home / ".gitconfig"
    before = settings_of_git.read_text()
    settings_of_git.write_text(f"{before}[safe]\n\tdirectory = ~/.agent-vm-mounts/workspace/*\n")
    with pytest.raises(AgentVMError, match=r"has .*/workspace/\*: .*; take that out"):
        mount.mount(chosen)
    assert not mounts(home)
    mount.mount(elsewhere(chosen, home / "elsewhere"))
    settings_of_git.write_text(before)
    mount.mount(chosen)
    monkeypatch.setattr(host, "trusted_by_git", lambda _: pytest.fail("git was asked"))
    mount.mount(chosen)


def test_an_sshfs_that_follows_links_out_is_refused(
    chosen: Settings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = home / "bin" / "sshfs"
    old.parent.mkdir()
    old.write_text(f"#!/bin/sh\necho '-o follow_symlinks'\n[ $1 = --help ] || touch {home}/ran\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{old.parent}:{os.environ['PATH']}")
    with pytest.raises(AgentVMError, match="CVE-2026-47187"):
        mount.mount(chosen)
    assert not (home / "ran").exists()


def test_without_sshfs(chosen: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(AgentVMError, match="sshfs is not installed; run `agent-vm setup`"):
        mount.mount(chosen)


def test_a_vm_that_does_not_answer_is_one_line(guest: Guest, chosen: Settings, home: Path) -> None:
    ssh_guest.config(VM).write_text(ssh_config(guest.sshd, free_port()))
    with pytest.raises(AgentVMError, match="could not be mounted") as caught:
        mount.mount(chosen)
    assert "\n" not in str(caught.value)
    assert not mounts(home)


def test_the_folder_need_not_be_there_in_the_vm(guest: Guest, chosen: Settings) -> None:
    guest.workspaces.rmdir()
    with pytest.raises(AgentVMError, match="No such file or directory"):
        mount.mount(chosen)


@pytest.mark.parametrize("inside", ["", "app-fix", "app-fix/src"])
def test_the_mount_is_no_place_to_work_from(home: Path, inside: str) -> None:
    chosen = settings.load()
    with pytest.raises(AgentVMError, match="belongs to the VM"):
        mount.refuse_inside(chosen, mount.point(chosen) / inside)


def test_other_folders_are(home: Path) -> None:
    chosen = settings.load()
    for folder in (home, home / ".agent-vm-mounts", home / ".agent-vm-mounts/workspace2"):
        mount.refuse_inside(chosen, folder)


def test_the_mount_has_a_connection_of_its_own(chosen: Settings, mounted: Path) -> None:
    assert not ssh_guest.connected(VM)
    ssh_guest.warm_up(VM)
    ssh_guest.disconnect(VM)
    assert list(mounted.iterdir()) == []
