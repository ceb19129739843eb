"""Where the core's errors become what a person at a terminal sees."""

from __future__ import annotations

import errno
import functools
import os
import select
import sys
from io import TextIOWrapper, UnsupportedOperation
from typing import TYPE_CHECKING, ParamSpec, TextIO, TypeVar

from invoke.exceptions import Exit

from agent_vm_tasks.console import one_line, warn
from agent_vm_tasks.errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
READER_GONE = 141  # what the shell reports of a program ended by SIGPIPE
SURROUNDINGS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EPIPE, errno.EFBIG,
    errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTCONN, errno.ENOTDIR,
    errno.ESTALE,
}  # fmt: skip


def guarded(function: Callable[P, R]) -> Callable[P, R]:
    """Turn what a user can cause into one line on stderr and an exit status; goes below @task."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = function(*args, **kwargs)
            sys.stdout.flush()  # else a closed pipe shows only when Python shuts down
        except AgentVMError as error:
            raise _exit(str(error), error.status) from error
        except KeyboardInterrupt as error:
            raise _exit("interrupted", INTERRUPTED) from error
        except OSError as error:
            lost = _drop_dead_streams()
            if error.errno not in SURROUNDINGS:
                raise
            if lost and isinstance(error, BrokenPipeError):
                raise Exit(code=READER_GONE) from error
            where = error.filename or ("standard output" if lost else "a file")
            raise _exit(f"{where}: {error.strerror}", 1) from error
        return result

    return run


def confirm(doing: str, losses: list[str]) -> None:
    """Ask on a terminal before something is deleted; elsewhere refuse and name the flag."""
    for loss in losses:
        warn(f"would be lost: {loss}")
    if not agreed(doing):
        raise AgentVMError("nothing was deleted")


def agreed(doing: str) -> bool:
    """Ask on a terminal; elsewhere refuse and name the flag."""
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        raise AgentVMError(f"will not {doing} without being asked to", "add --force")
    print(one_line(f"agent-vm: {doing}? [y/N] "), end="", file=sys.stderr, flush=True)
    if isinstance(sys.stdin, TextIOWrapper):  # a key pressed in another encoding is no "yes"
        sys.stdin.reconfigure(errors="replace")
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _exit(message: str, status: int) -> Exit:
    return Exit(f"agent-vm: {one_line(message)}", status)


def _drop_dead_streams() -> bool:
    """Tell whether stdout or stderr cannot be written; nothing is left for Python to flush."""
    dead = [stream for stream in (sys.stdout, sys.stderr) if not _writable(stream)]
    for stream in dead:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(dead)


def _writable(stream: TextIO) -> bool:
    """Look at the other end, too: a failed write of much text leaves nothing to flush."""
    try:
        stream.flush()
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return not poll.poll(0)
    except UnsupportedOperation:  # no file at all: a test's, or a program's that calls us
        return True
    except OSError:
        return False
