"""The one way to run a child process: argv in, result out."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

log = logging.getLogger("agent-vm")

GRACE = 5.0
"""Seconds a program gets between being asked to end and being ended."""
WATCH = 3.0
"""Seconds between two looks at what a program that takes long depends on."""


@dataclass(frozen=True)
class Result:
    argv: tuple[str, ...]
    status: int
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.status == 0

    @property
    def reason(self) -> str:
        """The last line the program said: what usually names the trouble."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit status {self.status}"


class ProcessError(AgentVMError):
    """A program that had to succeed did not."""

    def __init__(self, result: Result) -> None:
        super().__init__(f"{result.argv[0]} failed: {result.reason}")
        self.result = result


def run(
    argv: Sequence[str],
    *,
    check: bool = True,
    stdin: str | bytes | IO[bytes] = b"",
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    timeout: float | None = None,
    user: str | None = None,
    watch: Callable[[], None] | None = None,
) -> Result:
    """Run `argv` to its end, capturing what it says.

    `env` is the whole environment; `timeout` is in seconds; `user` (root only) runs it as that
    account; `watch` is called every few seconds, and ends it by raising. Raises ProcessError on a
    non-zero status unless `check` is false, and AgentVMError when the program is missing or takes
    too long; then its whole process group is gone.
    """
    text = stdin.encode() if isinstance(stdin, str) else stdin if isinstance(stdin, bytes) else None
    source = subprocess.PIPE if isinstance(stdin, str | bytes) else stdin
    child = popen(argv, env=env, cwd=cwd, user=user, stdin=source)
    try:
        out, err = _communicate(child, text, timeout, watch)
    except subprocess.TimeoutExpired:
        kill(child)
        raise AgentVMError(f"{argv[0]} gave no answer within {timeout:g} s") from None
    except BaseException:
        kill(child)
        raise
    result = Result(tuple(argv), child.returncode, _text(out or b""), _text(err))
    if check and not result.ok:
        raise ProcessError(result)
    return result


def _communicate(
    child: subprocess.Popen[bytes], given: bytes | None, timeout: float | None,
    watch: Callable[[], None] | None,
) -> tuple[bytes, bytes]:  # fmt: skip
    end = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if end is None else max(0.0, end - time.monotonic())
        look = left is None or left > WATCH
        try:
            return child.communicate(given, WATCH if watch and look else left)
        except subprocess.TimeoutExpired:
            if not watch or not look:
                raise
            watch()
            given = None  # it goes on with what is left of it


def popen(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    user: str | None = None,
    stdin: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own, so that `kill` ends it with its children."""
    log.debug("run: %s", shlex.join(argv))
    try:
        return subprocess.Popen(
            argv,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=env,
            cwd=cwd,
            start_new_session=True,
            **_identity(user),
        )
    except OSError as error:
        raise _unusable(argv[0], error, user) from None


def save(argv: Sequence[str], stdin: str, into: IO[bytes], largest: int) -> Result:
    """Run `argv`, writing what it prints to a file; raises AgentVMError beyond `largest` bytes."""
    import tempfile

    with tempfile.TemporaryFile() as err:
        child = popen(argv, stderr=err)
        try:
            with contextlib.suppress(BrokenPipeError), _the(child.stdin) as pipe:
                pipe.write(stdin.encode())
            _copy(_the(child.stdout), into, largest)
            status = child.wait()
        except BaseException:
            kill(child)
            raise
        close(child)
        err.seek(0)
        return Result(tuple(argv), status, "", _text(err.read(2**20)))


def _copy(source: IO[bytes], into: IO[bytes], largest: int) -> None:
    while chunk := os.read(source.fileno(), 2**20):
        largest -= into.write(chunk)
        if largest < 0:
            raise AgentVMError("it is too large")


def follow(
    argv: Sequence[str],
    on_line: Callable[[str], None],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    user: str | None = None,
) -> Result:
    """Run `argv`, handing each line (or carriage-returned part) it prints on to `on_line`."""
    child = popen(
        argv, env=env, cwd=cwd, user=user, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT
    )
    said: list[str] = []
    try:
        for line in _parts(child):
            said.append(line)
            on_line(line)
        status = child.wait()
    except BaseException:
        kill(child)
        raise
    close(child)
    return Result(tuple(argv), status, "\n".join(said), "")


def interactive(argv: Sequence[str]) -> int:
    """Run `argv` on this terminal and return its status; Ctrl-C is the program's, not ours.

    It does not outlive us, and it ends first: it may have to put the terminal back.
    """
    log.debug("run: %s", shlex.join(argv))
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(argv, preexec_fn=_foreground())  # noqa: PLW1509  no threads here
        with _ended_with_us(child):
            return child.wait()
    except OSError as error:
        raise _unusable(argv[0], error) from None
    finally:
        signal.signal(signal.SIGINT, previous)


@contextlib.contextmanager
def _ended_with_us(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Have a SIGTERM to us end the child before ourselves."""
    asked = False

    def end(*_: object) -> None:
        nonlocal asked
        asked = True
        child.terminate()

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
        if asked:
            signal.raise_signal(signal.SIGTERM)


def kill(child: subprocess.Popen[bytes]) -> None:
    """End a child started here together with everything it started; it may tidy up first."""
    _signal(child, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    _signal(child, signal.SIGKILL)
    child.wait()
    close(child)


def close(child: subprocess.Popen[bytes]) -> None:
    """Close our ends of its pipes."""
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream:
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, number)


def _unusable(program: str, error: OSError, user: str | None = None) -> AgentVMError:
    """Why a program did not start; "permission denied" may also come from a folder on PATH."""
    if error.filename not in {program, None}:
        return AgentVMError(f"{error.filename}: {error.strerror}")
    if isinstance(error, PermissionError) and ("/" in program or shutil.which(program)):
        return AgentVMError(f"{program} may not be executed by {user or 'this user'}")
    if isinstance(error, FileNotFoundError | PermissionError):
        hint = "run `agent-vm setup`, or `agent-vm doctor` to see why"
        return AgentVMError(f"{program} is not installed", hint)
    return AgentVMError(f"{program} cannot be executed: {error.strerror}")


def _foreground() -> Callable[[], None]:
    """For the child: Ctrl-C ends it, and on Linux so does our end, were it by SIGKILL."""
    import ctypes

    libc = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if libc:
            libc.prctl(1, signal.SIGHUP)  # PR_SET_PDEATHSIG

    return prepare


def _identity(user: str | None) -> dict[str, Any]:
    if user is None:
        return {}
    import pwd

    account = pwd.getpwnam(user)
    groups = os.getgrouplist(user, account.pw_gid)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}


def _the(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # noqa: S101  popen() pipes it unless told otherwise
    return stream


def _parts(child: subprocess.Popen[bytes]) -> Iterator[str]:
    """Lines as they come; a carriage return (progress of git, apt) ends one, too."""
    rest = b""
    while chunk := os.read(_the(child.stdout).fileno(), 65536):
        *whole, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        yield from (_text(part) for part in whole if part.strip())
    if rest.strip():
        yield _text(rest)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
