"""What an audit lays out, here and in the guest, and what comes of it before anything is judged."""

from __future__ import annotations

import contextlib
import re
import secrets as random
import socket
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import git, guest, host, intact, mount, process, sync, vm, workspaces
from .errors import AgentVMError
from .intact import NotTriedError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .lima import Instance
    from .settings import Settings
    from .workspaces import Workspace

FOLDER = ".agent-vm-audit"
BRANCH = "audit"
PRIVATE = "private"
KEYS = "KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL|^[a-z_.0-9-]+$"
"""Names of variables that hold keys, and of files."""
_PROGRAM = (
    "import sys; from agent_vm_tasks.main import program; program.run(['agent-vm', *sys.argv[1:]])"
)
_V6 = socket.AF_INET6


@dataclass(frozen=True)
class Told:
    """How a fetch from a guest that lies and then a push ended, what they printed and changed.

    `private`: the guest has commits that were not sent. `refs`: names that nobody asked for.
    """

    fetched: int
    pushed: int
    text: str
    private: bool
    refs: tuple[str, ...]


@dataclass(frozen=True)
class Scene:
    """What an audit has laid out: `folder` on this machine, and what the guest reported.

    `port`: of a service on this machine's loopback.
    """

    settings: Settings
    folder: Path
    canary: str
    listening: int
    said: dict[str, str]
    heard: bytes = b""
    told: Told | str = "no branch was sent"
    port: int = 22
    began: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return self.settings.vm.name

    @property
    def repository(self) -> Path:
        """The throw-away repository whose branch goes in and comes back."""
        return self.folder / "repository"

    @property
    def instance(self) -> Instance:
        return vm.require_exists(self.name)

    @property
    def mounted(self) -> Path:
        """The guest's folder of the audit as this machine shows it."""
        path = mount.point(self.settings)
        there = mount.current(path)
        if there is None or not there.ours:
            raise NotTriedError("the workspaces are not mounted")
        return path / FOLDER


@contextlib.contextmanager
def laid_out(settings: Settings) -> Iterator[Scene]:
    """Lay out the canaries, here and in the guest, and take them away again.

    Raises AgentVMError.
    """
    canary, name = random.token_hex(16), settings.vm.name
    with tempfile.TemporaryDirectory(prefix="agent-vm-audit-") as made, _service(canary) as service:
        folder, listening = Path(made).resolve(), host.free_port()
        file = folder / "canary"
        file.write_text(canary)
        ws = _throw_away(folder / "repository", name)
        argv = map(str, (canary, file, service.port, listening, ws.key))
        said = guest.feed(name, "audit.sh", b"\n".join(marks(settings)), *argv)
        try:
            fields = _fields(said.split("\0")[:-1])
            heard, told = service.heard(), _lied_to(ws)
            yield Scene(settings, folder, canary, listening, fields, heard, told, service.port)
        finally:
            guest.feed(name, "audit-end.sh", b"", ws.key)
            workspaces.forget(ws)


def _fields(said: list[str]) -> dict[str, str]:
    with guest.understood():
        fields = dict(each.partition("=")[::2] for each in said)
        if "done" not in fields:
            raise ValueError(said)
        return fields


@dataclass(frozen=True)
class _Service:
    """What the guest may find on this machine's loopback: `udp` keeps what it is told."""

    port: int
    udp: tuple[socket.socket, ...]

    def heard(self) -> bytes:
        said = []
        for each in self.udp:
            with contextlib.suppress(OSError):
                said.append(each.recv(100))
        return b" ".join(said)


@contextlib.contextmanager
def _service(canary: str) -> Iterator[_Service]:
    """A service on this machine's loopback that gives the canary away."""
    with contextlib.ExitStack() as kept:
        tcp = [kept.enter_context(socket.create_server(("127.0.0.1", 0)))]
        port = tcp[0].getsockname()[1]
        with contextlib.suppress(OSError):  # no IPv6 here, or somebody else's port
            tcp.append(kept.enter_context(socket.create_server(("::1", port), family=_V6)))
        udp = []
        for family, address in ((socket.AF_INET, "127.0.0.1"), (_V6, "::1")):
            with contextlib.suppress(OSError):
                made = kept.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                made.setblocking(False)
                made.bind((address, port))
                udp.append(made)
        for server in tcp:
            threading.Thread(target=_serve, args=(server, canary.encode()), daemon=True).start()
        yield _Service(port, tuple(udp))


def _serve(server: socket.socket, canary: bytes) -> None:
    with contextlib.suppress(OSError):  # the end of the audit
        while True:
            caller, _ = server.accept()
            with caller:
                caller.sendall(canary)


@contextlib.contextmanager
def agent(scene: Scene) -> Iterator[tuple[Path, list[bool]]]:
    """An ssh agent that knows no key: its socket, and a list that gets longer as it is asked."""
    path, asked = scene.folder / "agent", list[bool]()

    def serve() -> None:
        with contextlib.suppress(OSError):  # the end
            while True:
                server.accept()[0].close()
                asked.append(True)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        threading.Thread(target=serve, daemon=True).start()
        yield path, asked


def _throw_away(top: Path, name: str) -> Workspace:
    """A repository with a branch to be sent, which is checked out, and one that is private.

    Its own settings have hooks run that lie in the tree.
    """
    who = ("-c", "user.name=audit", "-c", "user.email=audit@localhost")
    commit = (*who, "-c", "commit.gpgSign=false", "commit", "--quiet", "--no-verify", "--message=x")
    top.mkdir()
    git.run(top, "init", "--quiet", "--template=", f"--initial-branch={BRANCH}")
    (top / "agent-vm.toml").write_text(f'[vm]\nname = "{name}"\n')
    git.run(top, "add", "--force", "agent-vm.toml")
    git.run(top, *commit)
    git.run(top, "checkout", "--quiet", "-b", PRIVATE)
    git.run(top, *commit, "--allow-empty")
    git.run(top, "checkout", "--quiet", BRANCH)
    git.run(top, "config", "core.hooksPath", ".hooks")
    return workspaces.workspace(name, workspaces.repository(top), BRANCH)


def _lied_to(ws: Workspace) -> Told | str:
    """Send the branch, have the guest lie about it, and let commands of ours hear that."""
    top = ws.repository.path
    try:
        sync.push(ws, lambda _line: None)
        (private,) = guest.script(
            ws.vm, "audit-lie.sh", ws.key, git.commit(top, PRIVATE), str(top.parent)
        )
        fetched, pushed = _command(top, "fetch"), _command(top, "push")
    except (AgentVMError, ValueError) as error:
        return str(error)
    known = {f"refs/heads/{BRANCH}", f"refs/heads/{PRIVATE}", ws.ref}
    refs = git.output(top, "for-each-ref", "--format=%(refname)").splitlines()
    said = f"{fetched.stdout}{fetched.stderr}{pushed.stdout}{pushed.stderr}"
    strange = tuple(ref for ref in refs if ref not in known)
    return Told(fetched.status, pushed.status, said, private == "yes", strange)


def _command(top: Path, verb: str) -> process.Result:
    """What a person would run there; -P: no module of that folder is Python's."""
    argv = [sys.executable, "-P", "-c", _PROGRAM, verb, "--branch", BRANCH]
    return process.run(argv, check=False, cwd=top, timeout=60)


def marks(settings: Settings) -> list[bytes]:
    """What tells each key apart, by its longest line: names of models and the like are no keys."""
    given = intact.handed_over(settings).items()
    secret = [value for name, value in given if re.search(KEYS, name)]
    lines = [max(value.split(b"\n"), key=len) for value in secret]
    return [line for line in lines if len(line) >= intact.SHORTEST_KEY]
