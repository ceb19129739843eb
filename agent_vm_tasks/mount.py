"""The host's view of ~/workspace in the guest, by sshfs. The guest sees nothing of the host.

The tree is hostile: its git configuration would run as the user, its links would lead to the
user's files. uid=65534 makes git on the host refuse to work in it, contain_symlinks
(CVE-2026-47187) keeps links from leaving it, sftp_watch.py ends the wait for a silent server.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import guest, host, process, state
from .errors import AgentVMError
from .settings import in_mount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .settings import Settings

NOTE = "NOT-MOUNTED.txt"
MEMORY_LIMIT = 2_000_000_000
"""Bytes: a server that lists a folder without end would otherwise fill the host's memory."""

ANSWER = 5.0
"""Seconds for the mount to tell its size."""

UNTRUST = "take that out (`git config --global --edit`, or --system), then `agent-vm mount`"

_OPTIONS = (
    "uid=65534", "gid=65534", "nosuid", "nodev", "noexec", "contain_symlinks", "reconnect",
    "ServerAliveInterval=5", "ServerAliveCountMax=2", "ConnectTimeout=5",
    'ssh_command=sh -c eval\t"$AGENT_VM_WATCH" ssh',
)  # fmt: skip
_ESCAPES = {r"\040": " ", r"\011": "\t", r"\012": "\n", r"\134": "\\"}


@dataclass(frozen=True)
class Mounted:
    source: str
    kind: str

    @property
    def ours(self) -> bool:
        return "sshfs" in self.kind or "macfuse" in self.kind


def point(settings: Settings) -> Path:
    """Where the mount goes, named as the kernel names it; the folder itself is not looked at."""
    path = Path(settings.mount.path).expanduser()
    return Path(os.path.realpath(path.parent)) / path.name


def current(path: Path) -> Mounted | None:
    """What is mounted at `path`, from the kernel's table: a look at the path itself may hang."""
    if host.is_macos():
        return _current_macos(path)
    found = None
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        where = fields.split()[4]
        for escape, char in _ESCAPES.items():
            where = where.replace(escape, char)
        if where == str(path):
            kind, source, *_ = rest.split()
            found = Mounted(source, kind)
    return found


def server(path: Path) -> int | None:
    """The process id of the sshfs that serves `path`; a mount without one is dead."""
    for pid, argv in _processes():
        if argv[0].endswith("sshfs") and str(path) in argv:
            return pid
    return None


def lacking(path: Path) -> list[str] | None:
    """Those of our options that the sshfs at `path` was not given; None without one."""
    for _, argv in _processes():
        if argv[0].endswith("sshfs") and str(path) in argv:
            given = ",".join(argv).split(",")
            return [option for option in _OPTIONS if option not in given]
    return None


def mount(settings: Settings) -> None:
    """Mount the workspaces; does nothing when they are, and heals a mount whose sshfs died.

    Raises AgentVMError where it is not safe or not possible.
    """
    if not _is_there(point(settings)):
        with state.lock(settings.vm.name, lambda _: None, "mount.lock"):
            _mount(settings)


def _is_there(path: Path) -> bool:
    there = current(path)
    if there and not there.ours:
        raise AgentVMError(f"{path} is a mount of something else ({there.source})", "unmount it")
    return bool(there and server(path))


def _mount(settings: Settings) -> None:
    path = point(settings)
    if _is_there(path):
        return
    if current(path):
        unmount(settings, force=True)
    _require_sshfs()
    if found := trust(path):
        raise AgentVMError(found, UNTRUST)
    _prepare(path)
    name = settings.vm.name
    argv = ["sshfs", "-F", str(guest.config(name)), f"{name}-mount:workspace", str(path),
            "-o", ",".join(_OPTIONS)]  # fmt: skip
    if shutil.which("prlimit"):
        argv = ["prlimit", f"--as={MEMORY_LIMIT}", *argv]
    result = process.run(argv, check=False, timeout=60, env=_watched(name))
    if not result.ok:
        raise AgentVMError(f"{path} could not be mounted: {result.reason}")


def _watched(name: str) -> dict[str, str]:
    """The environment that has `ssh_command` of _OPTIONS run sftp_watch.py.

    sshfs splits that option at each space, and a path may have one.
    """
    from . import sftp_watch

    note = state.folder(name) / "mount.silent"
    note.unlink(missing_ok=True)
    watch = shlex.join([sys.executable, "-I", "-S", sftp_watch.__file__, str(note), "ssh"])
    return {**os.environ, "AGENT_VM_WATCH": f'exec {watch} "$@"'}


def trust(path: Path) -> str:
    """Why git on this machine would obey the guest in the mount; empty when it does not."""
    if not (found := host.trusted_by_git(path)):
        return ""
    return f"git's safe.directory has {', '.join(found)}: files of the VM could run code here"


def answers(path: Path) -> bool:
    """Whether the mount tells its size soon. A child asks it: who asks a dead one may hang."""
    child = process.popen(["df", "-P", str(path)], stdin=subprocess.DEVNULL)
    try:
        return child.wait(ANSWER) == 0
    except subprocess.TimeoutExpired:
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1)  # longer only where the kernel waits for the mount's end
        return False
    finally:
        process.close(child)


def unmount(settings: Settings, *, force: bool = False) -> bool:
    """Unmount; with `force` also when it is busy or its server hangs. False: was not mounted."""
    path = point(settings)
    there = current(path)
    if there is None:
        return False
    if not there.ours:
        raise AgentVMError(f"{path} is a mount of something else ({there.source})")
    if force and (pid := server(path)):  # first: what unmounts may wait for it
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    result = process.run([*_unmounting(force=force), str(path)], check=False, timeout=30)
    if current(path):
        raise AgentVMError(
            f"{path} could not be unmounted: {result.reason}",
            "close what is open there, or use `agent-vm unmount --force`",
        )
    return True


def _unmounting(*, force: bool) -> list[str]:
    if host.is_macos():
        return ["umount", "-f"] if force else ["umount"]
    return ["fusermount3", "-uz" if force else "-u"]


def refuse_inside(settings: Settings, folder: Path) -> None:
    """Raise AgentVMError when `folder` lies in the mount: git of the host must not run there."""
    if in_mount(settings, folder):
        raise AgentVMError(
            f"{folder} belongs to the VM", "run agent-vm in your own repository on this machine"
        )


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Every process with its command line; macOS has no /proc, and there words are only guessed."""
    if host.is_macos():
        for line in process.run(["ps", "-A", "-ww", "-o", "pid=,args="]).stdout.splitlines():
            pid, *argv = line.split()
            yield int(pid), argv
        return
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield int(entry.parent.name), os.fsdecode(entry.read_bytes()).split("\0")


def _require_sshfs() -> None:
    host.require("sshfs")
    if not host.has_contain_symlinks():
        raise AgentVMError(
            "this sshfs lets links in a workspace lead to files of this machine (CVE-2026-47187)",
            "update sshfs to 3.7.6 or a patched build",
        )


def _prepare(path: Path) -> None:
    """An empty folder with a note in it, so that nobody edits files in a missing mount."""
    if path.is_symlink():
        raise AgentVMError(f"{path} is a link", "remove it, or set mount.path to where it leads")
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        others = [entry.name for entry in path.iterdir() if entry.name != NOTE]
        if not others and not (path / NOTE).exists():
            (path / NOTE).write_text("The VM's workspaces appear here: agent-vm mount\n")
    except OSError as error:
        raise AgentVMError(
            f"{error.filename or path} cannot be mounted on: {error.strerror}",
            "move away what is there, or set mount.path",
        ) from None
    if others:
        raise AgentVMError(f"{path} holds files of this machine ({others[0]}, …)", "move them away")


def _current_macos(path: Path) -> Mounted | None:
    for line in process.run(["mount"], timeout=10).stdout.splitlines():
        source, _, rest = line.partition(" on ")
        where, _, options = rest.rpartition(" (")
        if where == str(path):
            return Mounted(source, options.split(",")[0])
    return None
