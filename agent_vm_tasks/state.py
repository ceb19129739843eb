"""What is kept on the host for a VM: ~/.agent-vm/NAME, its files and its lock."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from . import console
from .errors import AgentVMError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from .console import Say

POLL = 0.1


def home() -> Path:
    """The user's home folder; raises UsageError where HOME, or the account, has none."""
    account = os.path.expanduser("~")  # noqa: PTH111  Path's raises where there is no home
    path = os.environ.get("HOME", account)
    if not (path.startswith("/") and Path(path).is_dir()):
        raise UsageError(f"there is no home folder {path!r:.100}", "set HOME")
    return Path(path)


def folder(name: str) -> Path:
    """The folder of the VM `name`; `write` and `lock` make it.

    Raises AgentVMError where somebody else could put files in our place.
    """
    path = home() / ".agent-vm" / name
    above = path.parent
    if os.path.lexists(path) or (os.path.lexists(above) and not above.is_dir()):
        make(path)
    return path


def make(path: Path) -> None:
    """Make a folder of ours, readable by its owner only, where it is missing.

    Raises AgentVMError where that cannot be.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise AgentVMError(f"{path} is not a folder", "move away what is there") from None
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise AgentVMError(
            f"{path} belongs to another user", "give it to this one (chown), or set HOME"
        )
    if found.st_mode & 0o077:
        path.chmod(0o700)


def read(path: Path) -> str:
    """The text of a file that `write` left; nothing where it cannot be read."""
    try:
        return path.read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""


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
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise


def leftovers(name: str) -> list[Path]:
    """Files that a killed `write` left behind."""
    before = time.time() - console.STILL
    return [path for path in folder(name).glob(".*.*") if _touched(path) < before]


def _touched(path: Path) -> float:
    """When it was last written; now where a `write` at work has just put it in its place."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


@contextlib.contextmanager
def lock(name: str, say: Say, file: str = "lock") -> Iterator[None]:
    """Hold the VM's lock; waits for another command, naming it. The kernel frees it at any end.

    `file`: another lock than that of the VM's life.
    """
    make(folder(name))
    with (folder(name) / file).open("a+", encoding="utf-8", errors="replace") as held:
        _take(held, say)
        held.truncate(0)
        with contextlib.suppress(OSError):  # on a full disk it goes without a name
            os.write(held.fileno(), _ourselves().encode("utf-8", "replace"))
        yield


def owner(name: str, file: str = "lock") -> str:
    """Which command holds the lock, since when; nothing when it is free."""
    path = folder(name) / file
    if not path.exists():
        return ""
    with path.open("a+", encoding="utf-8", errors="replace") as asked:
        return "" if _taken(asked) else _named(asked)


def _take(held: TextIO, say: Say) -> None:
    def tell(waited: float) -> None:
        so_far = f", {waited:.0f} s so far" if waited >= console.STILL else ""
        say(f"waiting for another agent-vm command ({_named(held)}){so_far}")

    look = console.again(tell)
    while not _taken(held):
        look()
        time.sleep(POLL)


def _taken(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a network file system may have no locks
        raise AgentVMError(
            f"{file.name} cannot be locked: {error.strerror}", "set HOME to a local disk"
        ) from None
    return True


def _ourselves() -> str:
    """Name this command; of its words only the verb: others may be nobody's business."""
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return f"process {os.getpid()}, {command}, since {since}"


def _named(file: TextIO) -> str:
    file.seek(0)
    return file.read() or "unknown"


def control_path(name: str) -> Path:
    """Where ssh keeps the socket of the shared connection.

    A socket's path has a limit of 108 bytes (104 on macOS), of which ssh takes 17 for a temporary
    name; a deep home falls back to a private folder under the temporary directory, where each of
    the user's homes has names of its own. Raises AgentVMError where that folder is not ours.
    """
    path = folder(name) / "ssh.sock"
    if len(os.fsencode(path)) + 17 < 104:  # noqa: PLR2004
        return path
    import hashlib
    import tempfile

    private = Path(tempfile.gettempdir()) / f"agent-vm-{os.geteuid()}"
    make(private)
    if private.is_symlink():
        raise AgentVMError(f"{private} is a link", "remove it, or set TMPDIR")
    return private / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
