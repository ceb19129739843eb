"""What is kept on the host for a VM: ~/.agent-vm/NAME, its files and its lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .console import Say


def folder(name: str) -> Path:
    """The folder of the VM `name`; `write` and `lock` make it."""
    return Path.home() / ".agent-vm" / name


def make(path: Path) -> None:
    """Make a folder of ours, readable by its owner only, where it is missing."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def write(path: Path, text: str) -> None:
    """Replace a file whole: a reader sees the old text or the new, never half of it."""
    import tempfile

    make(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def lock(name: str, say: Say) -> Iterator[None]:
    """Hold the VM's lock; waits for another command, naming it. The kernel frees it at any end."""
    path = folder(name) / "lock"
    make(path.parent)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say(f"waiting for another agent-vm command ({_owner(path)})")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()}")
        file.flush()
        yield


def _owner(path: Path) -> str:
    try:
        return path.read_text("utf-8") or "unknown"
    except OSError:
        return "unknown"


def control_path(name: str) -> Path:
    """Where ssh keeps the socket of the shared connection.

    A socket's path has a limit of 108 bytes (104 on macOS), of which ssh takes 17 for a temporary
    name; a deep home falls back to a private folder under the temporary directory.
    """
    path = folder(name) / "ssh.sock"
    if len(os.fsencode(path)) + 17 < 104:  # noqa: PLR2004
        return path
    import tempfile

    private = Path(tempfile.gettempdir()) / f"agent-vm-{os.getuid()}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != os.getuid():
        raise AgentVMError(f"{private} belongs to somebody else", "remove it, or set TMPDIR")
    return private / f"{name}.sock"
