"""Runs ssh for sshfs, and ends it when the guest's SFTP server leaves a request unanswered.

sshfs waits for an answer without end, and with it each program that looks into the mount: no signal
ends that. sshfs connects anew for the next request; for a while after a silence that fails at once,
so that a program with many questions gives up soon, too.

A program of its own, for which nothing of ours is imported: sftp_watch.py NOTE ssh ARGUMENT…
NOTE is the file whose time of change tells when the server was last found silent.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import subprocess
import sys
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

PATIENCE = 7.0
"""Seconds that the oldest request may wait, as a server answers in turn; or a folder be listed."""
GRANT = 0.5
"""Seconds of waiting that each answer makes up for: the rest of it shortens our patience."""
REST = 30.0
"""Seconds after a silence in which nobody asks again."""

# A packet is its length (4 bytes), type, id (4 bytes), and more (draft-ietf-secsh-filexfer-02). The
# first request and its answer have a version for an id.
_LENGTH = 4
_INIT, _VERSION, _CLOSE, _READDIR = 1, 2, 4, 12
_KEPT = 300
"""Bytes of a packet that are looked at: all of one that has only a handle."""


def packets() -> Generator[list[bytes], bytes, None]:
    """Take a stream of SFTP apart: sent its bytes as they come, the packets that end with them."""
    head, left, whole = bytearray(), _LENGTH, list[bytes]()
    while True:
        data, whole = memoryview((yield whole)), []
        while data:
            part, data = data[:left], data[left:]
            left -= len(part)
            head += part[: max(0, _KEPT - len(head))]
            if not left and len(head) == _LENGTH:
                left = int.from_bytes(head)  # of none that means well it is 0
            if not left:
                whole.append(bytes(head))
                head, left = bytearray(), _LENGTH


@dataclass
class Unanswered:
    """What the server was asked, since when its oldest request is that, and folders being read.

    `debt`: seconds that its answers came late.
    """

    requests: OrderedDict[int, None] = field(default_factory=OrderedDict)
    folders: dict[bytes, float] = field(default_factory=dict)
    moved: float = 0.0
    debt: float = 0.0

    def ask(self, packets: list[bytes], now: float) -> None:
        self.moved = self.moved if self.requests else now
        for packet in packets:
            self.requests[_number(packet)] = None
            if packet[4] == _READDIR:
                self.folders.setdefault(packet[9:], now)
            elif packet[4] == _CLOSE:
                self.folders.pop(packet[9:], None)

    def answer(self, packets: list[bytes], now: float) -> None:
        for packet in packets:
            if _number(packet) == next(iter(self.requests), None):
                self.debt = max(0.0, self.debt + now - self.moved - GRANT)
                self.moved = now
            self.requests.pop(_number(packet), None)

    def end(self, unsent: bytes) -> float:
        """When our patience ends."""
        oldest = self.moved + PATIENCE - self.debt if self.requests or unsent else math.inf
        return min([oldest, *(since + PATIENCE for since in self.folders.values())])


def relay(child: subprocess.Popen[bytes]) -> bool:
    """Carry packets between our own stdin and stdout and a program; whether it fell silent."""
    assert child.stdin  # noqa: S101  they are pipes
    assert child.stdout  # noqa: S101
    to, back = child.stdin.fileno(), child.stdout.fileno()
    os.set_blocking(to, False)
    asked, answered = packets(), packets()
    next(asked), next(answered)
    seen, rest = Unanswered(), b""
    while True:
        if (left := seen.end(rest) - time.monotonic()) <= 0:
            return True
        readable, writable, _ = select.select(
            [back] if rest else [back, 0], [to] if rest else [], [], min(left, PATIENCE)
        )
        if 0 in readable:
            if not (rest := os.read(0, 2**16)):
                return False
            seen.ask(asked.send(rest), time.monotonic())
        if writable:
            rest = rest[os.write(to, rest) :]
        if back in readable:
            if not (chunk := os.read(back, 2**16)):
                return False
            seen.answer(answered.send(chunk), time.monotonic())
            _write(chunk)


def _number(packet: bytes) -> int:
    return -1 if packet[4] in {_INIT, _VERSION} else int.from_bytes(packet[5:9])


def _write(chunk: bytes) -> None:
    while chunk:
        chunk = chunk[os.write(1, chunk) :]


def main(note: Path, argv: list[str]) -> int:
    with contextlib.suppress(OSError):
        if abs(time.time() - note.stat().st_mtime) < REST:
            return 1
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
    try:
        if relay(child):
            note.touch()
        elif child.stdin:
            child.stdin.close()
            child.wait(PATIENCE)
    except (OSError, IndexError, subprocess.TimeoutExpired):
        pass
    finally:
        child.kill()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
