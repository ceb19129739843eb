"""The one way to run a child process: argv in, result out."""

from __future__ import annotations

import codecs
import contextlib
import logging
import math
import os
import select
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger("agent-vm")

GRACE = 5.0
"""Seconds a program gets between being asked to end and being ended."""
WATCH = 2.0
"""Seconds between two looks at what a program that takes long depends on."""
MOST = 256 * 2**20
"""Bytes that a program may print: what it says is kept in memory, and may come from the guest."""
LONGEST_REASON = 500
_given_up = threading.Event()
"""Set while other threads than the main one are to end what they run."""


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
        return lines[-1].strip()[:LONGEST_REASON] if lines else f"exit status {self.status}"


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
    watch: Callable[[str], None] | None = None,
    mortal: bool = False,
    most: int = MOST,
) -> Result:
    """Run `argv` to its end, capturing what it says.

    `env` is the whole environment; `timeout` is in seconds; `user` (root only) runs it as that
    account; `watch` is called every few seconds with what it has said on stderr, and ends it by
    raising; a `mortal` one ends when this process is killed. Raises ProcessError on a non-zero
    status unless `check` is false, and AgentVMError when the program is missing, takes too long or
    prints more than `most` bytes; then its whole process group is gone.
    """
    text = stdin.encode() if isinstance(stdin, str) else stdin if isinstance(stdin, bytes) else None
    source = subprocess.PIPE if isinstance(stdin, str | bytes) else stdin
    child = popen(argv, env=env, cwd=cwd, user=user, stdin=source, mortal=mortal)
    try:
        out, err = _communicate(child, memoryview(text or b""), timeout, watch, most)
    except subprocess.TimeoutExpired:
        kill(child)
        raise AgentVMError(f"{argv[0]} gave no answer within {timeout:g} s") from None
    except OverflowError:
        kill(child)
        raise AgentVMError(f"{argv[0]} was ended: it printed more than {most >> 20} MiB") from None
    except BaseException:
        kill(child)
        raise
    result = Result(tuple(argv), child.returncode, _text(out), _text(err))
    if check and not result.ok:
        raise ProcessError(result)
    return result


def _communicate(
    child: subprocess.Popen[bytes], given: memoryview, timeout: float | None,
    watch: Callable[[str], None] | None, most: int,
) -> tuple[bytes, bytes]:  # fmt: skip
    """Popen.communicate() with a watch, and a limit to what is taken in."""
    end = math.inf if timeout is None else time.monotonic() + timeout
    out, err, looked = bytearray(), bytearray(), time.monotonic()
    with selectors.DefaultSelector() as ends:
        ends.register(_the(child.stdout), selectors.EVENT_READ, out)
        ends.register(_the(child.stderr), selectors.EVENT_READ, err)
        if child.stdin:
            ends.register(child.stdin, selectors.EVENT_WRITE)
        while ends.get_map():
            ready = ends.select(max(0.0, min(WATCH, end - time.monotonic())))
            if _given_up.is_set() and threading.current_thread() is not threading.main_thread():
                raise InterruptedError
            if time.monotonic() >= end:
                raise subprocess.TimeoutExpired(child.args, timeout or 0)
            if watch and time.monotonic() - looked >= WATCH:
                watch(_text(bytes(err)))
                looked = time.monotonic()
            for key, _ in ready:
                if key.data is None:
                    given = _give(ends, _the(child.stdin), given)
                else:
                    _take(ends, key)
            if max(len(out), len(err)) > most:
                raise OverflowError
    child.wait(None if timeout is None else max(0.0, end - time.monotonic()))
    close(child)
    return bytes(out), bytes(err)


def _take(ends: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    if chunk := os.read(key.fd, 2**16):
        key.data.extend(chunk)
    else:
        ends.unregister(key.fileobj)


def _give(ends: selectors.BaseSelector, pipe: IO[bytes], given: memoryview) -> memoryview:
    """Write as much of its input as a pipe that is ready takes at once; the rest."""
    try:
        rest = given[os.write(pipe.fileno(), given[: select.PIPE_BUF]) :]
    except BrokenPipeError:
        rest = memoryview(b"")
    if not rest:
        ends.unregister(pipe)
        pipe.close()
    return rest


def popen(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    user: str | None = None,
    stdin: int | IO[bytes] = subprocess.PIPE,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.PIPE,
    mortal: bool = False,
) -> subprocess.Popen[bytes]:
    """Start `argv` in a session of its own, so that `kill` ends it with its children."""
    log.debug("run: %s", shlex.join(argv))
    try:
        with _interrupts_kept() as came:
            child = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=env,
                cwd=cwd,
                start_new_session=True,
                preexec_fn=_dying_with_us() if mortal else None,  # noqa: PLW1509  one call of C
                **_identity(user),
            )
    except OSError as error:
        raise _unusable(argv[0], error, user) from None
    if came:
        try:
            signal.raise_signal(signal.SIGINT)
        except BaseException:
            kill(child)
            raise
    return child


@contextlib.contextmanager
def side_by_side(most: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Threads that end what they run where this block fails, as by Ctrl-C: it waits for them.

    Those of a block in one of the threads end with the outer block.
    """
    from concurrent.futures import ThreadPoolExecutor

    outer = threading.current_thread() is threading.main_thread()
    try:
        with ThreadPoolExecutor(most) as threads:
            try:
                yield threads
            except BaseException:
                if outer:
                    _given_up.set()
                raise
    finally:
        if outer:
            _given_up.clear()


@contextlib.contextmanager
def interrupts_later() -> Iterator[None]:
    """Have Ctrl-C wait for the end of what may not be cut off."""
    with _interrupts_kept() as came:
        yield
    if came:
        signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def _interrupts_kept() -> Iterator[list[int]]:
    """Keep Ctrl-C back, so that no child starts unknown to us; gives what came meanwhile."""
    came: list[int] = []
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield came
        return
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, previous)


def save(
    argv: Sequence[str], stdin: str, into: IO[bytes], largest: int, watch: Callable[[str], None]
) -> Result:
    """Run `argv`, writing what it prints to a file; raises AgentVMError beyond `largest` bytes.

    And beyond MOST on stderr. `watch` is called in every few seconds of silence, and ends it by
    raising.
    """
    child = popen(argv)
    try:
        with contextlib.suppress(BrokenPipeError), _the(child.stdin) as pipe:
            pipe.write(stdin.encode())
        err = _copy(child, into, largest, watch)
        status = child.wait()
    except BaseException:
        kill(child)
        raise
    close(child)
    return Result(tuple(argv), status, "", _text(err))


def _copy(
    child: subprocess.Popen[bytes], into: IO[bytes], largest: int, watch: Callable[[str], None]
) -> bytes:
    """What it prints into a file; what it says on stderr."""
    said = bytearray()
    with selectors.DefaultSelector() as ends:
        ends.register(_the(child.stdout), selectors.EVENT_READ, into.write)
        ends.register(_the(child.stderr), selectors.EVENT_READ, said.extend)
        while ends.get_map():
            if not (ready := ends.select(WATCH)):
                watch("")
            for key, _ in ready:
                if chunk := os.read(key.fd, 2**20):
                    key.data(chunk)
                else:
                    ends.unregister(key.fileobj)
            if into.tell() > largest or len(said) > MOST:
                raise AgentVMError("it is too large")
    return bytes(said)


def follow(
    argv: Sequence[str],
    on_line: Callable[[str], None],
    *,
    env: Mapping[str, str] | None = None,
) -> Result:
    """Run `argv`, handing each line (or carriage-returned part) it prints on to `on_line`."""
    child = popen(argv, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.STDOUT)
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


def relay(
    argv: Sequence[str],
    out: Callable[[str], None],
    err: Callable[[str], None],
    watch: Callable[[str], None],
) -> int:
    """Run `argv` without input, handing on its text as it comes; its status, as a shell gives it.

    `watch` is called in every few seconds of silence, and ends it by raising.
    """
    child = popen(argv, stdin=subprocess.DEVNULL)
    try:
        with selectors.DefaultSelector() as ends:
            for stream, take in ((child.stdout, out), (child.stderr, err)):
                decode = codecs.getincrementaldecoder("utf-8")("replace").decode
                ends.register(_the(stream), selectors.EVENT_READ, (decode, take))
            while ends.get_map():
                if not (ready := ends.select(WATCH)):
                    watch("")
                for key, _ in ready:
                    _hand_on(ends, key)
        status = child.wait()
    except BaseException:
        kill(child)
        raise
    close(child)
    return _as_in_a_shell(status)


def _hand_on(ends: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
    decode, take = key.data
    chunk = os.read(key.fd, 2**16)
    if text := decode(chunk, not chunk):
        take(text)
    if not chunk:
        ends.unregister(key.fileobj)


def interactive(argv: Sequence[str], look: Callable[[], None] | None = None) -> int:
    """Run `argv` on this terminal; its status, as a shell gives it. Ctrl-C is the program's.

    It does not outlive us, and it ends first: it may have to put the terminal back. `look` is
    called once, when it takes longer than a moment.
    """
    log.debug("run: %s", shlex.join(argv))
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(argv, preexec_fn=_foreground())  # noqa: PLW1509  no threads here
        with _ended_with_us(child):
            status = _waited_for(child, look)
    except OSError as error:
        raise _unusable(argv[0], error) from None
    finally:
        signal.signal(signal.SIGINT, previous)
    return _as_in_a_shell(status)


def _as_in_a_shell(status: int) -> int:
    return status if status >= 0 else 128 - status


def _waited_for(child: subprocess.Popen[bytes], look: Callable[[], None] | None) -> int:
    if look:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(WATCH)
        look()
    return child.wait()


def is_stopped(pid: int) -> bool:
    """Whether a signal stopped that process (Ctrl-Z, a debugger): it lives, but does nothing."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(") ")[2][:1] in {"T", "t"}
    except OSError:
        return False


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
    """For the child on our terminal: Ctrl-C ends it, and so does our end."""
    die = _dying_with_us(signal.SIGHUP)

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        die()

    return prepare


def _dying_with_us(number: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """What a new child calls to get a signal when we end (prctl(2)); only Linux has that."""
    if sys.platform != "linux":
        return lambda: None
    import ctypes

    prctl, set_signal = ctypes.CDLL(None).prctl, 1
    return lambda: prctl(set_signal, int(number))


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
