"""The isolation, attacked on the user's own machine and VM: with canaries, over loopback only.

A promise counts as kept only where an attack on it was made and failed.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets as random
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import creation, guest, lima, mount, network, process, secrets, vm, walls
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .settings import Settings

LARGEST_LOG = 64 * 2**20
"""Bytes of a file of Lima's in which keys are looked for: larger ones are disks."""
SHORTEST_KEY = 8
LISTENS = 3.0
"""Seconds for a port that the guest opens to show up here."""
FOLDER = ".agent-vm-audit"


class NotTriedError(Exception):
    """Why an attack could not be made."""


@dataclass(frozen=True)
class Finding:
    """`held`: None where nothing was tried; `detail` says what got through, or why not."""

    promise: str
    tried: str
    held: bool | None
    detail: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Scene:
    """What an audit has laid out: `folder` on this machine, and what the guest reported."""

    settings: Settings
    folder: Path
    canary: str
    listening: int
    said: dict[str, str]

    @property
    def name(self) -> str:
        return self.settings.vm.name

    @property
    def mounted(self) -> Path:
        """The guest's folder of the audit as this machine shows it."""
        path = mount.point(self.settings)
        there = mount.current(path)
        if there is None or not there.ours:
            raise NotTriedError("the workspaces are not mounted")
        return path / FOLDER


@dataclass(frozen=True)
class Attack:
    """`make` gives what got through, or nothing; raises NotTriedError where it cannot be made."""

    promise: str
    tried: str
    make: Callable[[Scene], str]
    fix: str


def run(settings: Settings) -> list[Finding]:
    """Make every attack on the running VM; raises AgentVMError where it cannot be entered."""
    vm.require_running(settings.vm.name)
    with _scene(settings) as scene:
        return findings(scene)


def findings(scene: Scene) -> list[Finding]:
    """Make every attack, in the order in which they are listed."""
    return [_made(attack, scene) for attack in ATTACKS]


def _made(attack: Attack, scene: Scene) -> Finding:
    try:
        through = attack.make(scene)
    except (NotTriedError, AgentVMError) as error:
        return Finding(attack.promise, attack.tried, None, str(error))
    fix = attack.fix if through else ""
    return Finding(attack.promise, attack.tried, not through, through, fix)


@contextlib.contextmanager
def _scene(settings: Settings) -> Iterator[Scene]:
    """Lay out the canaries, here and in the guest, and take them away again."""
    canary = random.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="agent-vm-audit-") as made, _service(canary) as port:
        folder, listening = Path(made), _free_port()
        (folder / "canary").write_text(canary)
        trap = folder / "trap"
        trap.write_text(f"#!/bin/sh\ntouch '{folder}/ran'\n")
        trap.chmod(0o755)
        argv = [str(folder / "canary"), str(trap), str(port), str(listening)]
        said = guest.script(settings.vm.name, "audit.sh", *argv)
        try:
            yield Scene(settings, folder, canary, listening, _fields(said))
        finally:
            guest.feed(settings.vm.name, "audit-end.sh", b"")


def _fields(said: list[str]) -> dict[str, str]:
    with guest.understood():
        fields = dict(each.partition("=")[::2] for each in said)
        if "done" not in fields:
            raise ValueError(said)
        return fields


@contextlib.contextmanager
def _service(canary: str) -> Iterator[int]:
    """A service on this machine's loopback that gives the canary away; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_serve, args=(server, canary.encode()), daemon=True).start()
        yield server.getsockname()[1]


def _serve(server: socket.socket, canary: bytes) -> None:
    with contextlib.suppress(OSError):  # the end of the audit
        while True:
            caller, _ = server.accept()
            with caller:
                caller.sendall(canary)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


# The attacks


def _mounts(scene: Scene) -> str:
    found = vm.require_exists(scene.name)
    try:
        creation.refuse_strange(found, lima.asked(found))
    except AgentVMError as error:
        return error.message
    inside = scene.said.get("mounts", "")
    return f"mounted in the VM: {', '.join(inside.split())}" if inside else ""


def _git(scene: Scene) -> str:
    argv = ["git", "-C", str(scene.mounted / "repository"), "status"]
    done = process.run(argv, check=False, timeout=10)
    if (scene.folder / "ran").exists():
        return "git here ran a program that the VM had named"
    return "" if not done.ok else "git here works in the mount"


def _links(scene: Scene) -> str:
    argv = ["head", "-c", "100", str(scene.mounted / "link")]
    read = process.run(argv, check=False, timeout=10)
    if scene.canary in read.stdout:
        return "a link in the workspace led to a file of this machine"
    return ""


def _identity(scene: Scene) -> str:
    if scene.said.get("agent"):
        return "an ssh agent or a display of this machine is in the VM"
    names = {socket.gethostname(), getpass.getuser()} - {"agent", "root", "localhost"}
    words = set(scene.said.get("names", "").replace("/", " ").replace(":", " ").split())
    return f"the VM knows {', '.join(sorted(names & words))}" if names & words else ""


def _impostor(scene: Scene) -> str:
    key = scene.folder / "impostor"
    process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    kind, public, *_ = key.with_suffix(".pub").read_text().split()
    (scene.folder / "known_hosts").write_text(f"{scene.name} {kind} {public}\n")
    own = ("-o", "ControlPath=none", "-o", f"UserKnownHostsFile={scene.folder}/known_hosts")
    argv = [*guest.ssh(scene.name, *own), "true"]
    done = process.run(argv, check=False, timeout=20)
    return "ssh went to a host with another key" if done.ok else ""


def _keys(scene: Scene) -> str:
    values = _values(scene.settings)
    if not values:
        raise NotTriedError("no keys are handed over")
    folder = vm.require_exists(scene.name).dir
    marks = (str(folder).encode(), str(guest.config(scene.name)).encode())
    files = [path for path in folder.iterdir() if path.is_file()]
    told = [path.read_bytes() for path in files if path.stat().st_size < LARGEST_LOG]
    commands = [argv for argv in _commands() if any(mark in argv for mark in marks)]
    leaks = any(value in text for value in values for text in (*told, *commands))
    return f"a key is in a command line of the VM, or in {folder}" if leaks else ""


def _values(settings: Settings) -> list[bytes]:
    """What is handed over from this machine and is long enough to be recognized."""
    given = secrets.collect(settings)
    pairs = given.variables.items()
    ours = [value for name, value in pairs if os.environb.get(name.encode()) == value]
    return [value for value in (*ours, *given.files.values()) if len(value) >= SHORTEST_KEY]


def _commands() -> Iterator[bytes]:
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            yield path.read_bytes()


def _ports(scene: Scene) -> str:
    for address in ("127.0.0.1", "::1"):
        with (
            contextlib.suppress(OSError),
            socket.create_connection((address, scene.listening), LISTENS),
        ):
            return f"a port that the VM opened is at {address} here"
    return ""


def _network(scene: Scene) -> str:
    mode = network.in_force(scene.name)
    if mode == "open" and network.wanted(scene.settings) == "open":
        raise NotTriedError("network.mode is open, which allows it")
    reached = scene.said.get("reached", "")
    if scene.canary in reached:
        return f"the VM reached a service of this machine's loopback at {reached.split()[0]}"
    return ""


def _walls(scene: Scene) -> str:
    if not (users := walls.users(scene.name)):
        raise NotTriedError("no workspace has walls")
    for user in users:
        if got := guest.script(scene.name, "audit-walls.sh", user=user):
            return f"{user} gets at {', '.join(got)[:200]}"
    return ""


ATTACKS = (
    Attack("mounts", "a folder of this machine in the VM", _mounts,
           "see $LIMA_HOME/_config; `agent-vm destroy`, then start"),
    Attack("git", "settings of a workspace's git that name a program", _git,
           "take the safe.directory out that covers the mount (git config --global --edit)"),
    Attack("links", "a link in a workspace to a file here", _links, "run `agent-vm setup`"),
    Attack("identity", "names, agent and display of this machine", _identity,
           "set vm.name and the VM's user apart from yours"),
    Attack("impostor", "a VM with another host key", _impostor, "run `agent-vm doctor --fix`"),
    Attack("keys", "keys in process lists and Lima's files", _keys, "change those keys"),
    Attack("ports", "a port that the VM opens", _ports, "`agent-vm destroy`, then start"),
    Attack("network", "this machine's loopback from the VM", _network,
           "run `agent-vm setup`, then `agent-vm restart`"),
    Attack("walls", "what is not its own, by the user of a walled workspace", _walls,
           "run `agent-vm provision`, then `agent-vm restart`"),
)  # fmt: skip
