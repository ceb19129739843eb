"""A program on a pseudo-terminal, and somebody who reads and types there.

What is typed at a shell here takes `<shell> ` for its prompt.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import select
import struct
import termios
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

LINES, COLUMNS = 33, 99


class Terminal:
    """The other side of a program's terminal; `seen` is all that was shown there."""

    def __init__(self, child: int, master: int, limit: float) -> None:
        self.child, self.master, self.limit = child, master, limit
        self.seen, self.told = b"", 0

    def wait_for(self, text: str) -> None:
        """Read until `text` is shown, after what was waited for before."""
        end = time.monotonic() + self.limit
        while (at := self.seen.find(text.encode(), self.told)) < 0:
            assert self._read(end - time.monotonic()), f"no {text!r} in {self.seen[self.told :]!r}"
        self.told = at + len(text.encode())

    def type(self, keys: str | bytes) -> None:
        """Press keys; what is shown meanwhile is read, so that neither side waits for the other."""
        left = keys.encode() if isinstance(keys, str) else keys
        while left:
            readable, writable, _ = select.select([self.master], [self.master], [], self.limit)
            assert readable or writable, "nobody reads what is typed"
            assert not readable or self._read(0), f"it has ended: {self.seen[self.told :]!r}"
            if writable:
                left = left[os.write(self.master, left[:1024]) :]

    def press(self, key: str, text: str) -> None:
        """Press a key until `text` is shown: the shell may still be handing the terminal over."""
        for _ in range(5):
            self.type(key)
            end = time.monotonic() + self.limit / 5
            while (at := self.seen.find(text.encode(), self.told)) < 0:
                if not self._read(end - time.monotonic()):
                    break
            else:
                self.told = at + len(text.encode())
                return
        raise AssertionError(f"no {text!r} in {self.seen[self.told :]!r}")

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def modes(self) -> list[object]:
        """What `stty -a` has, as one value to compare."""
        return termios.tcgetattr(self.master)

    def status(self) -> int:
        """Read to the end; the program's exit status, as a shell has it."""
        end = time.monotonic() + self.limit
        while self._read(end - time.monotonic()):
            pass
        assert time.monotonic() < end, f"it does not end: {self.seen[self.told :]!r}"
        ended = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        return ended if ended >= 0 else 128 - ended

    def _read(self, limit: float) -> bool:
        """Take what is shown next; False when there is nothing, or nobody is there any more."""
        if not select.select([self.master], [], [], max(0, limit))[0]:
            return False
        try:
            part = os.read(self.master, 65536)
        except OSError as error:
            if error.errno != errno.EIO:  # which says that the program has ended
                raise
            return False
        self.seen += part
        return bool(part)


@contextlib.contextmanager
def terminal(
    argv: list[str], *, env: Mapping[str, str], cwd: Path | None = None, limit: float = 15
) -> Iterator[Terminal]:
    """Run `argv` on a terminal of 33 lines and 99 columns; `limit`: seconds for each answer."""
    child, master = pty.fork()
    if child == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        os.chdir(cwd or ".")
        os.execvpe(argv[0], argv, env)  # noqa: S606  no shell
    try:
        yield Terminal(child, master, limit)
    finally:
        os.close(master)  # hangs up: what still runs there ends


def takes_a_line(at: Terminal, text: str) -> None:
    """Enter ends a line, which arrives as it was typed."""
    at.type("read -r -p re''ady line; echo \"<$line>${#line}\"\r")
    at.wait_for("ready")
    at.type(f"{text}\r")
    at.wait_for(f"<{text}>{len(text)}\r\n")


def interrupts(at: Terminal) -> None:
    """Ctrl-C ends the program, and the shell goes on."""
    at.type("sh -c 'echo run''ning; exec sleep 1000'\r")
    at.wait_for("running")
    at.type("\x03")
    at.wait_for("<shell> ")
    at.type('echo "status=$?"\r')
    at.wait_for("status=130\r\n")


def stops_and_goes_on(at: Terminal) -> None:
    """Ctrl-Z stops the program, and fg returns to it."""
    at.type("sh -c 'echo wai''ting; read -r word; echo \"<$word>\"'\r")
    at.wait_for("waiting")
    at.press("\x1a", "Stopped")
    at.wait_for("<shell> ")
    at.type("fg\r")
    at.wait_for("sh -c")
    at.type("again\r")
    at.wait_for("<again>\r\n")


def ends_with_the_last_status(at: Terminal) -> None:
    """Ctrl-D ends the shell."""
    at.type("(exit 7)\r")
    at.wait_for("<shell> ")
    at.type("\x04")
    assert at.status() == 7
