"""What is installed in the guest, in stages, each once per content.

The stages are rendered here, sent over a Fabric connection as one archive and run by
common/scripts/provision.sh, which keeps a stamp and a log for each in the guest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shlex
import signal
import tarfile
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import data, guest, render
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from fabric import Connection
    from invoke.context import Context

    from .console import Say
    from .settings import Settings

LOGS = "/var/log/agent-vm"
SENTINEL = ".claude.json"
"""The home file whose presence shows that the archive of home files was unpacked."""


@dataclass(frozen=True)
class Stage:
    """A root shell script; `stamp` changes with whatever it installs.

    `beside`: the stage after it does not have to wait for it.
    """

    name: str
    script: str
    stamp: str
    beside: bool = False


def stages(settings: Settings) -> tuple[Stage, ...]:
    """Every stage, in the order they run."""
    versions = _versions()
    apt = (*data.package_list("apt-packages.txt"), *settings.packages.apt)
    npm = (*data.package_list("npm-packages.txt"), *settings.packages.npm)
    python = (*data.package_list("python-packages.txt"), *settings.packages.python)
    tools = (data.root() / "common" / "scripts" / "install-tools.sh").read_bytes()
    return (
        _stage("packages", packages=apt),
        _stage("users"),
        _stage("node", uv=versions["uv"], node=versions["node"]),
        _stage("npm", packages=_pinned(npm, versions, "@"), beside=True),
        _stage("python", packages=_pinned(python, versions, "=="), beside=True),
        _stage("tools", go=versions["go"], extra=tools),
        _stage("home", sentinel=SENTINEL, extra=_home_archive()),
    )


def run(settings: Settings, say: Say, c: Context | None = None) -> bool:
    """Bring the guest to what the settings ask for; True when that took any stage.

    Raises AgentVMError naming the stage that failed, its log and the log's last lines.
    """
    wanted = stages(settings)
    connection = guest.connection(settings.vm.name, c)
    with connection, _ended_by_interrupt(connection):
        folder = connection.run("mktemp -d", hide=True, in_stream=False).stdout.strip()
        target = f"{folder}/provision.tar"
        connection.put(io.BytesIO(_archive(wanted)), target)
        listener = _Listener(say)
        result = connection.run(
            f"tar -xf {shlex.quote(target)} -C {shlex.quote(folder)} && "
            f"sudo bash {shlex.quote(folder)}/provision.sh",
            hide="stderr", warn=True, in_stream=False, out_stream=listener,
        )  # fmt: skip
    if not result.ok:
        log = f"its log is {LOGS}/{listener.stage}.log in the VM; " if listener.stage else ""
        raise AgentVMError(
            f"provisioning failed in stage {listener.stage or 'start'}: "
            f"{listener.complaint or result.stderr.strip() or 'no reason given'}",
            f"{log}`agent-vm start` resumes there",
        )
    return listener.worked


@contextlib.contextmanager
def _ended_by_interrupt(connection: Connection) -> Iterator[None]:
    """Let Ctrl-C end the wait: without a terminal Fabric would wait for the remote command."""
    pressed = False

    def close(*_: object) -> None:
        nonlocal pressed
        pressed = True
        connection.close()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, close)
    try:
        yield
    except Exception:
        if pressed:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt


class _Listener(io.StringIO):
    """Fabric's output stream: the runner's `@` lines become progress, the rest a complaint."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self.say = say
        self.stage = ""
        self.complaint = ""
        self.worked = False
        self.rest = ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self._line(line)
        return len(text)

    def _line(self, line: str) -> None:
        event, _, rest = line.partition(" ")
        if event == "@start":
            self.stage = rest
            self.say(f"  installing: {rest}")
        elif event == "@waiting":
            self.say("  an earlier installation is still at work in the VM; waiting for it")
        elif event == "@still":
            self.say(f"  still installing ({rest} s)")
        elif event == "@done":
            self.worked = True
            self.say(f"  installed: {rest} s")
        elif event == "@failed":
            self.stage = rest
        elif line.strip() and not line.startswith("@"):
            self.complaint = line.strip()


def _stage(name: str, *, beside: bool = False, extra: bytes = b"", **values: object) -> Stage:
    script = render.environment().get_template(f"provision/{name}.sh.j2").render(values)
    stamp = hashlib.sha256(script.encode() + extra).hexdigest()[:16]
    return Stage(name, script, stamp, beside)


def _versions() -> dict[str, str]:
    pairs = (line.partition("=") for line in data.package_list("versions.txt"))
    return {name: version for name, _, version in pairs}


def _pinned(packages: Sequence[str], versions: Mapping[str, str], sign: str) -> list[str]:
    """The packages, each with its version from versions.txt behind `sign` where that has one."""
    return [f"{name}{sign}{versions[name]}" if name in versions else name for name in packages]


def _archive(wanted: tuple[Stage, ...]) -> bytes:
    """One tar with the runner, the list of stages and stamps, their scripts, and the home files."""
    plan = "".join(f"{s.name} {s.stamp}{' beside' if s.beside else ''}\n" for s in wanted)
    runner = data.script("provision.sh").encode()
    files = {"provision.sh": runner, "plan": plan.encode(), "home.tar": _home_archive()}
    files |= {
        "install-tools.sh": data.script("install-tools.sh").encode(),
        "versions.txt": (data.root() / "common" / "packages" / "versions.txt").read_bytes(),
    }
    files |= {f"{stage.name}.sh": stage.script.encode() for stage in wanted}
    return _tar({name: (content, 0o644) for name, content in files.items()})


def _home_archive() -> bytes:
    top = data.root() / "common" / "homedir"
    paths = sorted(path for path in top.rglob("*") if path.is_file())
    return _tar({str(p.relative_to(top)): (p.read_bytes(), _mode(p)) for p in paths})


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & 0o100 else 0o644


def _tar(files: dict[str, tuple[bytes, int]]) -> bytes:
    """A tar that depends on names, modes and contents only, so that its hash does, too."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
