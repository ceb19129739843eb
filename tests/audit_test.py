"""The audit: each attack finds what it looks for where the protection is off."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import (
    audit,
    audit_scene,
    git,
    host,
    image,
    lima,
    mount,
    network,
    render,
    sync,
    vm,
    walls,
)
from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks.audit_scene import Scene
from agent_vm_tasks.intact import NotTriedError

from . import conftest
from .conftest import VM
from .intact_test import listening

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_vm_tasks.process import Result
    from agent_vm_tasks.settings import Settings
    from agent_vm_tasks.workspaces import Workspace

    from .conftest import Guest

CANARY = "c4n4ry"
KEY = "sk-0123456789"
ATTACKS = {attack.make.__name__.strip("_"): attack.make for attack in audit.ATTACKS}


@pytest.fixture
def scene(started: Settings, tmp_path: Path) -> Scene:
    """An audit of a VM that is mounted, with nothing laid out yet."""
    (tmp_path / "canary").write_text(CANARY)
    return Scene(started, tmp_path, CANARY, 0, {})


def laid_out(scene: Scene, folder: Path) -> None:
    """What audit.sh makes, a link and a repository, in which a hostile guest names a program."""
    trap = scene.folder / "trap"
    trap.write_text(f"#!/bin/sh\ntouch {scene.folder}/ran\n")
    trap.chmod(0o755)
    (folder / audit_scene.FOLDER).mkdir()
    (folder / audit_scene.FOLDER / "link").symlink_to(scene.folder / "canary")
    conftest.git(folder / audit_scene.FOLDER, "init", "--quiet", "repository")
    conftest.git(folder / audit_scene.FOLDER / "repository", "config", "core.fsmonitor", str(trap))


@pytest.fixture
def unprotected(scene: Scene, home: Path) -> Iterator[Scene]:
    """The same folder by an sshfs with none of our options."""
    chosen = scene.settings
    with conftest.bare_mount(home / "bare") as other:
        mounted = replace(chosen.mount, path=str(other))
        yield replace(scene, settings=replace(chosen, mount=mounted))


def test_the_mount_holds(scene: Scene, guest: Guest) -> None:
    laid_out(scene, guest.workspaces)
    assert ATTACKS["git"](scene) == ""
    assert ATTACKS["links"](scene) == ""
    assert ATTACKS["mount_memory"](scene) == ""


def test_a_mount_without_protection_is_found(unprotected: Scene, guest: Guest) -> None:
    laid_out(unprotected, guest.workspaces)
    assert "git here works in the mount" in ATTACKS["git"](unprotected)
    assert not (unprotected.folder / "ran").exists()
    assert "led to a file of this machine" in ATTACKS["links"](unprotected)
    assert "may fill this machine's memory" in ATTACKS["mount_memory"](unprotected)


def test_git_that_works_in_the_mount_is_found(
    scene: Scene, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    laid_out(scene, guest.workspaces)
    trusting = {"COUNT": "1", "KEY_0": "safe.directory", "VALUE_0": "*"}
    for name, value in trusting.items():
        monkeypatch.setenv(f"GIT_CONFIG_{name}", value)
    assert ATTACKS["git"](scene) != ""
    assert not (scene.folder / "ran").exists()


def test_git_and_links_that_were_not_refused_do_not_count_as_held(
    scene: Scene, unprotected: Scene, guest: Guest
) -> None:
    (guest.workspaces / audit_scene.FOLDER).mkdir()
    with pytest.raises(NotTriedError, match="did not come to ask"):
        ATTACKS["git"](scene)
    with pytest.raises(NotTriedError, match="shows no link"):
        ATTACKS["links"](scene)
    (guest.workspaces / audit_scene.FOLDER / "link").symlink_to(scene.folder / "missing")
    assert ATTACKS["links"](scene) == ""
    with pytest.raises(NotTriedError, match=r"was not refused: .*No such file"):
        ATTACKS["links"](unprotected)


def test_of_a_dead_mount_nothing_is_claimed(scene: Scene, guest: Guest) -> None:
    laid_out(scene, guest.workspaces)
    server = mount.server(mount.point(scene.settings))
    assert server
    os.kill(server, signal.SIGKILL)
    conftest.wait_until(lambda: mount.server(mount.point(scene.settings)) is None, "it ends")
    for promise in ("git", "links", "mount_memory"):
        with pytest.raises(NotTriedError):
            ATTACKS[promise](scene)


def test_without_a_mount_nothing_is_claimed_of_it(scene: Scene) -> None:
    mount.unmount(scene.settings, force=True)
    for promise in ("git", "links", "mount_memory"):
        with pytest.raises(NotTriedError, match="not mounted"):
            ATTACKS[promise](scene)


@pytest.mark.parametrize(
    ("promise", "said", "through"),
    [
        ("mounts", {"mounts": ""}, ""),
        ("mounts", {"mounts": "/mnt/home"}, "mounted in the VM: /mnt/home"),
        ("identity", {"names": "other\nagent\n/home/agent"}, ""),
        ("forwarded", {"agent": "/tmp/ssh-x/agent"}, "an ssh agent or a display"),
        ("identity", {"names": f"x\n{socket.gethostname()}"}, f"knows {socket.gethostname()}"),
        ("identity", {"names": "/home/jane"}, "knows /home/jane"),
        ("identity", {"names": "Jane Doe"}, "knows Jane Doe"),
        ("identity", {"names": "Europe/Paris"}, "knows Europe/Paris"),
        ("network", {"reached": "", "tried": "all"}, ""),
        ("network", {"reached": "192.168.5.2"}, "loopback at 192.168.5.2"),
        ("network", {"names_answered": "192.168.5.3", "tried": "all"}, ""),
        ("limits", {"sizes": "1 1000 8192"}, ""),
        ("limits", {"sizes": "2 1000 8192"}, "the VM has 2 CPUs, not 1"),
        ("limits", {"sizes": "1 1025 8192"}, "the VM has 1025 MiB of memory, not 1024"),
        ("limits", {"sizes": "1 1000 8193"}, "the VM has 8193 MiB of disk, not 8192"),
    ],
)
def test_what_the_guest_has_is_judged(
    scene: Scene,
    monkeypatch: pytest.MonkeyPatch,
    promise: str,
    said: dict[str, str],
    through: str,
) -> None:
    jane = pwd.struct_passwd(("jane", "x", 1, 1, "Jane Doe,,,", "/home/jane", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", lambda _: jane)
    monkeypatch.setattr(audit, "_zone", lambda: "Europe/Paris")
    found = ATTACKS[promise](replace(scene, said=said))
    assert through in found
    assert bool(found) == bool(through)


def test_a_uid_of_this_machine_inside_is_found(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "root:0 agent:1000 ws-000000000000:1234"
    monkeypatch.setattr(audit, "_ours", set)
    monkeypatch.setattr(walls, "users", lambda _: ["ws-000000000000"])
    for uid, more, told in (
        (1234, "jane:1234", "jane in the VM has your uid, 1234"),
        (1234, "", ""),
        (1235, "", ""),
        (1000, "", ""),
        (0, "", ""),
    ):
        inside = replace(scene, said={"accounts": f"{said} {more}"})
        with monkeypatch.context() as patched:
            patched.setattr(os, "geteuid", lambda uid=uid: uid)
            assert ATTACKS["identity"](inside) == told


@pytest.mark.parametrize(
    ("line", "instead", "told"),
    [
        ("", "", ""),
        ("IdentityAgent none", "", "ssh goes to the agent of this machine"),
        ("IdentityAgent none\n  PreferredAuthentications publickey\n  BatchMode yes",
         "ForwardAgent yes", "ssh goes to the agent of this machine"),
        ("ForwardX11 no", "ForwardX11 yes", "ssh offers the VM an agent or a display"),
    ],
)  # fmt: skip
def test_an_agent_and_a_display_that_are_offered_are_found(
    scene: Scene, line: str, instead: str, told: str
) -> None:
    config = ssh_guest.config(VM)
    config.write_text(config.read_text().replace(line, instead))
    found = ATTACKS["forwarded"](scene)
    assert told in found
    assert bool(found) == bool(told)


@pytest.mark.parametrize("promise", ["forwarded", "impostor"])
def test_an_ssh_that_gets_nowhere_shows_nothing(scene: Scene, promise: str) -> None:
    config = ssh_guest.config(VM)
    text = config.read_text()
    config.write_text(text.replace(f"Port {ssh_guest.port(VM)}", f"Port {conftest.free_port()}"))
    with pytest.raises(NotTriedError, match="Connection refused"):
        ATTACKS[promise](scene)


def test_what_comes_here_by_udp_is_found(scene: Scene) -> None:
    scene = replace(scene, said={"tried": "all"})
    assert ATTACKS["network"](replace(scene, heard=b"something else")) == ""
    heard = replace(scene, heard=f"x {CANARY}".encode())
    assert "a datagram of the VM came" in ATTACKS["network"](heard)


def test_an_open_network_is_not_called_a_fault(scene: Scene) -> None:
    network.choose(VM, "open")
    network.note(VM, "open")
    with pytest.raises(NotTriedError, match="open, which allows it"):
        ATTACKS["network"](scene)


def test_names_that_are_looked_up_offline_are_found(scene: Scene) -> None:
    scene = replace(scene, said={"tried": "all"})
    answered = replace(scene, said={"names_answered": "192.168.5.3", "tried": "all"})
    assert ATTACKS["names"](answered) == ""
    with pytest.raises(NotTriedError, match="gave no answer"):
        ATTACKS["names"](scene)
    network.choose(VM, "offline")
    network.note(VM, "offline")
    assert ATTACKS["network"](scene) == ""
    assert "is offline, but a name was looked up" in ATTACKS["network"](answered)
    with pytest.raises(NotTriedError, match="the network is offline"):
        ATTACKS["names"](answered)


def test_mounts_of_limas_own_are_found(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    found = vm.require_exists(VM)
    mixed = replace(found, config={**found.config, "mounts": [{"location": "~"}]})
    monkeypatch.setattr(lima, "find", lambda _: mixed)
    (finding,) = [each for each in audit.findings(scene)
                  if each.promise == "mounts" and each.held is False]  # fmt: skip
    assert "other mounts" in finding.detail


def test_an_audit_finds_what_a_quick_look_does_and_says_it_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    folder, config = vm.require_exists(VM).dir, ssh_guest.config(VM)
    (folder / "left.log").write_text(f"key={KEY}\n")
    (folder / "lima.yaml").write_text((folder / "lima.yaml").read_text() + "# more\n")
    config.write_text(config.read_text().replace("ForwardX11 no", "ForwardX11 yes"))
    folder.chmod(0o755)
    port = conftest.free_port()
    with listening(socket.AF_INET, "127.0.0.1", port):
        told = [each.detail for each in audit.findings(scene) if each.held is False]
        assert {each.detail for each in audit.quick(scene.settings) if not each.held} >= {
            f"port {port} is open here and is not listed", f"a key is in {folder}/left.log",
        }  # fmt: skip
    for once in (
        f"{folder}/lima.yaml was changed",
        f"{folder} is open to other users",
        f"{config} has another forwardx11",
        f"port {port} is open here",
        "a key is in",
    ):
        assert len([each for each in told if once in each]) == 1


def test_a_guest_without_python_shows_nothing_of_its_network_and_ports(
    scene: Scene, guest: Guest
) -> None:
    program = guest.home / "bin/python3"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 127\n")
    program.chmod(0o755)
    found = {each.tried: each for each in audit.run(scene.settings)}
    for tried in ("this machine's loopback from the VM", "a port that the VM opens"):
        assert found[tried].held is None


REFUSED = b"HTTP/1.1 403 Forbidden\r\n\r\n"


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ([REFUSED] * 4, ""),
        ([b"HTTP/1.1 503 Service Unavailable\r\n\r\n", *[REFUSED] * 3],
         "does not refuse GET http://unlisted.invalid/: HTTP/1.1 503"),
        ([REFUSED, b"HTTP/1.1 200 OK\r\n\r\n", *[REFUSED] * 2], "refuse GET http://127.0.0.1/:"),
        ([*[REFUSED] * 3, b"HTTP/1.1 200 OK\r\n\r\n"], "refuse CONNECT 127.0.0.1:4711: HTTP"),
        ([*[REFUSED] * 3, b""], None),
        ([b""] * 4, None),
        ([], None),
    ],
)  # fmt: skip
def test_a_proxy_that_hands_on_what_is_not_listed_is_found(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, answers: list[bytes], told: str | None
) -> None:
    network.note(VM, "allowlist")
    asked: list[bytes] = []
    with proxy(answers, asked) as port:
        monkeypatch.setattr(render, "INSIDE", ("127.0.0.1", port))
        if told is None:
            with pytest.raises(NotTriedError, match="gave no answer"):
                ATTACKS["way_out"](replace(scene, port=4711))
        else:
            found = ATTACKS["way_out"](replace(scene, port=4711))
            assert told in found
            assert bool(found) == bool(told)
    wanted = ["GET http://unlisted.invalid/", "GET http://127.0.0.1/", "GET http://127.0.0.1:4711/",
              "CONNECT 127.0.0.1:4711"]  # fmt: skip
    assert asked == [f"{each} HTTP/1.0\r\n\r\n".encode() for each in wanted[: len(answers)]]


@contextlib.contextmanager
def proxy(answers: list[bytes], asked: list[bytes]) -> Iterator[int]:
    """What stands in for the way out, with these answers in turn; its port."""

    def serve() -> None:
        for answer in answers:
            caller, _ = server.accept()
            with caller:
                with caller.makefile("rb") as lines:
                    asked.append(lines.readline() + lines.readline())
                caller.sendall(answer)
        server.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        thread = threading.Thread(target=serve)
        thread.start()
        yield port
        thread.join()


def test_without_an_allowlist_no_proxy_is_asked(scene: Scene) -> None:
    network.note(VM, "internet")
    with pytest.raises(NotTriedError, match="is not allowlist"):
        ATTACKS["way_out"](scene)


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
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    assert ATTACKS["keys"](scene) == ""
    folder = vm.require_exists(VM).dir
    (folder / "left.log").write_text(f"key={KEY}\n")
    with monkeypatch.context() as macos:
        macos.setattr(host, "is_macos", lambda: True)
        assert ATTACKS["keys"](scene) == f"a key is in {folder}"
    (folder / "left.log").unlink()
    argv = ["sh", "-c", "read x", f"{folder}/qemu.pid", KEY]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as shown:
        assert "a key is in" in ATTACKS["keys"](scene)
        shown.communicate(b"")
    assert ATTACKS["keys"](scene) == ""


def test_keys_in_the_vm_are_found(
    scene: Scene, guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest's root is not asked for a password, nor is anybody here."""
    sudo = guest.home / "bin/sudo"
    sudo.parent.mkdir()
    sudo.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    sudo.chmod(0o755)
    assert inside(scene) == (None, "no keys are handed over")
    monkeypatch.setenv("ANTHROPIC_MODEL", "claude-3-5-sonnet-20241022")
    assert inside(scene) == (None, "no keys are handed over")
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    assert inside(scene) == (True, "")
    history = guest.home / ".bash_history"
    history.write_text(f"curl -H 'x-api-key: {KEY}'\n")
    assert inside(scene) == (False, f"a key is in the VM in {history}")
    history.unlink()
    argv = ["sh", "-c", "read x", KEY]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as shown:
        assert inside(scene) == (False, f"a key is in the VM in /proc/{shown.pid}/cmdline")
        shown.communicate(b"")
    sudo.write_text("#!/bin/sh\nexit 1\n")
    held, why = inside(scene)
    assert held is None
    assert "is not root there" in why


def inside(scene: Scene) -> tuple[bool | None, str]:
    """What an audit says of keys in the VM."""
    (found,) = [each for each in audit.run(scene.settings) if "shell histories" in each.tried]
    return found.held, found.detail


def test_keys_in_kept_disks_are_found(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotTriedError, match="no disk is kept"):
        ATTACKS["keys_kept"](scene)
    kept = image.cache().parent / "golden/0123456789abcdef"
    kept.mkdir(parents=True)
    facts = {"base": "", "stamps": {}, "disk": 1, "recipe": "1"}
    (kept / "golden.json").write_text(json.dumps(facts))
    (kept / "disk.qcow2").write_bytes(bytes(2**20))
    with pytest.raises(NotTriedError, match="no keys"):
        ATTACKS["keys_kept"](scene)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    assert ATTACKS["keys_kept"](scene) == ""
    (kept / "disk.qcow2").write_bytes(bytes(2**20) + KEY.encode() + bytes(2**20))
    assert ATTACKS["keys_kept"](scene) == f"a key is in {kept}/disk.qcow2"


def test_a_port_that_shows_up_here_is_found(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SHOWS_UP", 0)
    with pytest.raises(NotTriedError, match="listen in the VM does not"):
        ATTACKS["ports"](replace(scene, said={"listens": "tcp"}))
    scene = replace(scene, said={"listens": "tcp udp"})
    with socket.create_server(("127.0.0.1", 0)) as server:
        opened = replace(scene, listening=server.getsockname()[1])
        assert "at 127.0.0.1 here" in ATTACKS["ports"](opened)
    assert ATTACKS["ports"](opened) == ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", opened.listening))
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        assert "at 127.0.0.1 here" in ATTACKS["ports"](opened)
        thread.join()


def answer(server: socket.socket) -> None:
    server.sendto(b"guest", server.recvfrom(10)[1])


def test_a_port_that_shows_up_late_is_found(scene: Scene) -> None:
    port = conftest.free_port()

    def open_late() -> None:
        with (
            socket.create_server(("127.0.0.1", port)) as server,
            contextlib.suppress(TimeoutError),
        ):
            server.settimeout(10)
            server.accept()[0].close()

    late = threading.Timer(1, open_late)
    late.start()
    opened = replace(scene, listening=port, said={"listens": "tcp udp"})
    assert "at 127.0.0.1 here" in ATTACKS["ports"](opened)
    late.join()


def test_a_log_without_bounds_is_found(scene: Scene) -> None:
    said = replace(scene, said={"sizes": "1 900 8192"})
    assert ATTACKS["limits"](said) == ""
    log = vm.require_exists(VM).dir / "left.log"
    log.touch()
    os.truncate(log, audit.LARGEST_SAID + 2**20)  # a hole, as Lima's own logs have: no room taken
    assert ATTACKS["limits"](said) == ""
    log.write_bytes(bytes(audit.LARGEST_SAID + 2**20))
    assert ATTACKS["limits"](said) == f"{log} takes 65 MiB"


# A guest that lies about a branch: its lies are told to commands of ours, in processes of their own


OFF = {
    "hooks": ("sync", "from agent_vm_tasks import git; git._CALM = ()"),
    "tags": (
        "sync",
        "from agent_vm_tasks import git, sync; apart = sync._bring\n"
        "def bring(ws, say):\n"
        "    refs = f'+refs/heads/{ws.branch}:{ws.ref}'\n"
        "    git.transfer(ws.repository.path, ws.vm, 'fetch', ws.url, refs)\n"
        "    return apart(ws, say)\n"
        "sync._bring = bring",
    ),
    "terminal": ("terminal", "from agent_vm_tasks import console; console._escape = str"),
    "trust": ("trust", "from agent_vm_tasks import trust; trust.require = lambda _: None"),
}
"""What takes a protection away, by what it is; the promise that this breaks."""
THROUGH = {
    "hooks": "a hook that the VM had committed ran here",
    "tags": "names that nobody asked for came in: refs/tags/main, refs/tags/v1",
    "terminal": "reaches the terminal as it is",
    "trust": "counts without your approval",
}


def test_the_lies_of_a_guest_do_no_harm(scene: Scene) -> None:
    lies = [each for each in audit.run(scene.settings) if each.promise in LIES]
    assert [(each.promise, each.held, each.detail) for each in lies] == [
        ("sync", True, ""), ("sync", True, ""), ("terminal", True, ""), ("trust", True, ""),
    ]  # fmt: skip


LIES = {"sync", "terminal", "trust"}


@pytest.mark.parametrize("off", OFF)
def test_a_lie_that_does_harm_is_found(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, off: str
) -> None:
    promise, code = OFF[off]
    here = f"from agent_vm_tasks import host, network\nhost.service_user = lambda: None\n{code}\n"
    (tmp_path / "python").mkdir()
    (tmp_path / "python/sitecustomize.py").write_text(here)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "python"))
    broken = {each.promise: each.detail for each in audit.run(scene.settings) if each.held is False}
    assert THROUGH[off] in broken.pop(promise)
    assert not LIES & set(broken)


def test_a_branch_that_was_not_named_is_found_in_the_vm(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_all(ws: Workspace, *_: object) -> Result:
        refs = "+refs/heads/*:refs/agent-vm/in/*"
        return git.transfer(ws.repository.path, ws.vm, "push", "--", ws.url, refs)

    monkeypatch.setattr(sync, "_send", send_all)
    broken = [each.detail for each in audit.run(scene.settings) if each.held is False]
    assert "commits of a branch that was not named are in the VM" in broken


def test_what_could_not_be_sent_is_not_called_safe(scene: Scene, guest: Guest) -> None:
    receive = guest.home / "bin/git-receive-pack"
    receive.parent.mkdir()
    receive.write_text("#!/bin/sh\nexit 1\n")
    receive.chmod(0o755)
    lies = [each for each in audit.run(scene.settings) if each.promise in LIES]
    assert {each.held for each in lies} == {None}
    assert "pushing audit failed" in lies[0].detail


def test_an_audit_leaves_nothing_behind(
    scene: Scene, guest: Guest, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, port = files(home), host.free_port()
    monkeypatch.setattr(host, "free_port", lambda: port)
    found = audit.run(scene.settings)
    held = {each.make: (each.promise, each.tried) for each in audit.ATTACKS}
    told = {(each.promise, each.tried): each.held for each in found}
    assert [told[held[make]] for make in (audit._git, audit._links, audit._impostor)] == [True] * 3
    assert told[held[audit._network]] is True
    # This guest is a program on this machine: its ports are those of here.
    assert told[held[audit._ports]] is False
    assert told[held[audit._keys]] is None
    assert not [line for line in Path("/proc/net/tcp").read_text().splitlines()
                if f":{port:04X} 00000000:0000 0A" in line]  # fmt: skip
    assert not (guest.workspaces / audit_scene.FOLDER).exists()
    assert not list((guest.home / ".agent-vm/workspaces").iterdir())
    assert files(home) == before


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
