"""The audit: each attack finds what it looks for where the protection is off."""

from __future__ import annotations

import socket
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import audit, lima, mount, network, settings, vm
from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks.audit import NotTriedError, Scene

from .conftest import VM, git

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Guest, Limactl

CANARY = "c4n4ry"
ATTACKS = {attack.promise: attack.make for attack in audit.ATTACKS}


@pytest.fixture
def scene(limactl: Limactl, guest: Guest, sshfs: None, home: Path, tmp_path: Path) -> Scene:
    """An audit of a VM that is mounted, with nothing laid out yet."""
    (tmp_path / "disk").touch()
    asked = f'[vm]\nimage = "{tmp_path}/disk"\nca_certs = []\n[provision]\nenabled = false\n'
    (home / ".config/agent-vm").mkdir(parents=True)
    (home / ".config/agent-vm/config.toml").write_text(asked)
    chosen = settings.load()
    vm.start(chosen, print)
    (tmp_path / "canary").write_text(CANARY)
    return Scene(chosen, tmp_path, CANARY, 0, {})


def laid_out(scene: Scene, folder: Path) -> None:
    """What audit.sh makes: a link to the canary, and a repository that names a program."""
    trap = scene.folder / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {scene.folder}/ran\n")
    trap.chmod(0o755)
    (folder / audit.FOLDER).mkdir()
    (folder / audit.FOLDER / "link").symlink_to(scene.folder / "canary")
    git(folder / audit.FOLDER, "init", "--quiet", "repository")
    git(folder / audit.FOLDER / "repository", "config", "core.fsmonitor", str(trap))


@pytest.fixture
def unprotected(scene: Scene, home: Path) -> Scene:
    """The same folder by an sshfs with none of our options."""
    chosen, other = scene.settings, home / "bare"
    other.mkdir()
    argv = ["sshfs", "-F", str(ssh_guest.config(VM)), f"{VM}-mount:workspace", str(other),
            "-o", "no_contain_symlinks"]  # fmt: skip
    subprocess.run(argv, check=True)
    return replace(scene, settings=replace(chosen, mount=replace(chosen.mount, path=str(other))))


def test_the_mount_holds(scene: Scene, guest: Guest) -> None:
    laid_out(scene, guest.workspaces)
    assert ATTACKS["git"](scene) == ""
    assert ATTACKS["links"](scene) == ""


def test_a_mount_without_protection_is_found(unprotected: Scene, guest: Guest) -> None:
    laid_out(unprotected, guest.workspaces)
    assert "a program that the VM had named" in ATTACKS["git"](unprotected)
    assert "led to a file of this machine" in ATTACKS["links"](unprotected)
    mount.unmount(unprotected.settings, force=True)


def test_git_that_works_in_the_mount_is_found(
    scene: Scene, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out(scene, guest.workspaces)
    trusting = {"COUNT": "1", "KEY_0": "safe.directory", "VALUE_0": "*"}
    for name, value in trusting.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    assert ATTACKS["git"](scene) != ""


def test_without_a_mount_nothing_is_claimed_of_it(scene: Scene) -> None:
    mount.unmount(scene.settings, force=True)
    for promise in ("git", "links"):
        with pytest.raises(NotTriedError, match="not mounted"):
            ATTACKS[promise](scene)


@pytest.mark.parametrize(
    ("promise", "said", "through"),
    [
        ("mounts", {"mounts": ""}, ""),
        ("mounts", {"mounts": "/mnt/home"}, "mounted in the VM: /mnt/home"),
        ("identity", {"agent": "", "names": "other agent"}, ""),
        ("identity", {"agent": "/tmp/ssh-x/agent"}, "an ssh agent or a display"),
        ("identity", {"names": f"{socket.gethostname()} agent"}, f"knows {socket.gethostname()}"),
        ("network", {"reached": ""}, ""),
        ("network", {"reached": "192.168.5.2 else"}, ""),
        ("network", {"reached": f"192.168.5.2 {CANARY}"}, "loopback at 192.168.5.2"),
    ],
)
def test_what_the_guest_has_is_judged(
    scene: Scene, promise: str, said: dict[str, str], through: str
) -> None:
    found = ATTACKS[promise](replace(scene, said=said))
    assert through in found
    assert bool(found) == bool(through)


def test_an_open_network_is_not_called_a_fault(scene: Scene) -> None:
    network.choose(VM, "open")
    network.note(VM, "open")
    with pytest.raises(NotTriedError, match="open, which allows it"):
        ATTACKS["network"](scene)


def test_mounts_of_limas_own_are_found(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    found = vm.require_exists(VM)
    mixed = replace(found, config={**found.config, "mounts": [{"location": "~"}]})
    monkeypatch.setattr(lima, "find", lambda _: mixed)
    (finding,) = [each for each in audit.findings(scene) if each.promise == "mounts"]
    assert finding.held is False
    assert "other mounts" in finding.detail


def test_another_host_key_is_refused_and_trust_in_any_is_found(scene: Scene) -> None:
    assert ATTACKS["impostor"](scene) == ""
    config = ssh_guest.config(VM)
    text = config.read_text().replace("StrictHostKeyChecking yes", "StrictHostKeyChecking no")
    config.write_text(text)
    (scene.folder / "again").mkdir()
    again = replace(scene, folder=scene.folder / "again")
    assert "another key" in ATTACKS["impostor"](again)


def test_keys_on_disk_and_in_command_lines_are_found(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotTriedError, match="no keys"):
        ATTACKS["keys"](scene)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-0123456789")
    assert ATTACKS["keys"](scene) == ""
    folder = vm.require_exists(VM).dir
    (folder / "left.log").write_text("key=sk-0123456789\n")
    assert "a key is in" in ATTACKS["keys"](scene)
    (folder / "left.log").unlink()
    argv = ["sh", "-c", "read x", f"{folder}/qemu.pid", "sk-0123456789"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as shown:
        assert "a key is in" in ATTACKS["keys"](scene)
        shown.communicate(b"")
    assert ATTACKS["keys"](scene) == ""


def test_a_port_that_shows_up_here_is_found(scene: Scene) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        opened = replace(scene, listening=server.getsockname()[1])
        assert "at 127.0.0.1 here" in ATTACKS["ports"](opened)
    assert ATTACKS["ports"](opened) == ""


def test_an_audit_leaves_nothing_behind(scene: Scene, guest: Guest) -> None:
    found = {each.promise: each for each in audit.run(scene.settings)}
    assert list(found) == list(ATTACKS)
    assert found["git"].held
    assert found["links"].held
    assert found["impostor"].held
    # This guest is a program on this machine: its ports and its names are those of here.
    assert found["ports"].held is False
    assert found["keys"].held is None
    assert not (guest.workspaces / audit.FOLDER).exists()
