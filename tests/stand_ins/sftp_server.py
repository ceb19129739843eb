"""An SFTP server that does not mean well: sftp_server.py ATTACK, in place of the guest's own.

Its folder has `good` (a file), `bad` (what the attack is about) and `link` (to argv[2]).
"""

from __future__ import annotations

import os
import stat
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ATTACK, TARGET = sys.argv[1], os.fsencode(sys.argv[2])
INIT, OPEN, CLOSE, READ, LSTAT, FSTAT, OPENDIR, READDIR, REALPATH, STAT, READLINK = (
    1, 3, 4, 5, 7, 8, 11, 12, 16, 17, 19,
)  # fmt: skip
VERSION, STATUS, HANDLE, DATA, NAME, ATTRS = 2, 101, 102, 103, 104, 105
FOLDER, FILE, LINK = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
END, NO_SUCH_FILE, UNSUPPORTED = 1, 2, 8
ODD_NAMES = {
    "parent": b"..", "slash": b"../../out", "absolute": b"/etc", "empty": b"", "nul": b"a\0b",
    "long": b"x" * 5000, "escape": b"\x1b]0;owned\x07\x1b[2J",
}  # fmt: skip
CONTENT = b"good\n"
done: set[bytes] = set()


def base(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def text(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value


def attributes(mode: int, size: int = len(CONTENT)) -> bytes:
    return struct.pack(">IQIIIII", 1 | 2 | 4 | 8, size, 1000, 1000, mode, 0, 0)


def entry(name: bytes, mode: int) -> bytes:
    return text(name) + text(name) + attributes(mode)


def answer(kind: int, number: bytes, body: bytes = b"") -> None:
    packet = bytes([kind]) + number + body
    whole = struct.pack(">I", len(packet)) + packet
    while whole:
        whole = whole[os.write(1, whole) :]


def status(number: bytes, code: int) -> None:
    answer(STATUS, number, struct.pack(">I", code) + text(b"no") + text(b""))


def mode_of(path: bytes) -> int | None:
    name = base(path)
    if name == b"bad":
        return FOLDER if ATTACK in {"endless", *ODD_NAMES} else FILE
    if name == b"link":
        return LINK
    return FILE if name == b"good" else FOLDER if name in {b"workspace", b"folder", b"."} else None


def names(path: bytes) -> list[tuple[bytes, int]]:
    if base(path) == b"bad":
        return [(ODD_NAMES[ATTACK], FILE), (b"good", FILE)]
    return [(b"good", FILE), (b"link", LINK), (b"bad", mode_of(b"bad") or FILE)]


def endless(number: bytes) -> None:
    first = time.monotonic_ns()
    many = [b"%x%0200d" % (first, at) for at in range(100)]
    answer(NAME, number, struct.pack(">I", 100) + b"".join(entry(name, FILE) for name in many))


def slow(number: bytes) -> None:
    os.write(1, struct.pack(">IB", 1009, DATA) + number + struct.pack(">I", 1000))
    for _ in range(1000):
        os.write(1, b"x")
        time.sleep(0.5)


def chatty(_: bytes) -> None:
    for _again in range(100):
        status(b"\xff\xff\xff\xff", 0)
        time.sleep(0.5)


MISBEHAVIOUR: dict[str, tuple[set[int], Callable[[bytes], object]]] = {
    "endless": ({READDIR}, endless),
    "silent": ({READ}, lambda _: None),
    "slow": ({READ}, slow),
    "chatty": ({READ}, chatty),
    "deaf": ({READ}, lambda _: time.sleep(60)),
    "too much": ({READ}, lambda number: answer(DATA, number, text(b"x" * 200_000))),
    "size": (
        {LSTAT, STAT, FSTAT},
        lambda number: answer(ATTRS, number, attributes(FILE, 2**63 - 1)),
    ),
    "mode": (
        {LSTAT, STAT, FSTAT},
        lambda number: answer(ATTRS, number, attributes(0xFFFFFFFF, 2**64 - 1)),
    ),
}
"""What an attack does to which requests for `bad`."""


def serve(kind: int, number: bytes, path: bytes) -> None:
    mode = mode_of(path)
    if kind in {LSTAT, STAT, FSTAT}:
        answer(ATTRS, number, attributes(mode)) if mode else status(number, NO_SUCH_FILE)
    elif kind in {OPEN, OPENDIR}:
        done.discard(path)
        answer(HANDLE, number, text(path)) if mode else status(number, NO_SUCH_FILE)
    elif kind == READDIR and path not in done:
        done.add(path)
        listed = [entry(*pair) for pair in names(path)]
        answer(NAME, number, struct.pack(">I", len(listed)) + b"".join(listed))
    elif kind == READ and path not in done:
        done.add(path)
        answer(DATA, number, text(CONTENT))
    elif kind in {READDIR, READ}:
        status(number, END)
    elif kind == READLINK:
        answer(NAME, number, struct.pack(">I", 1) + entry(TARGET, LINK))
    elif kind == REALPATH:
        answer(NAME, number, struct.pack(">I", 1) + entry(path, FOLDER))
    else:
        status(number, 0 if kind == CLOSE else UNSUPPORTED)


def read(count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += os.read(0, count - len(data)) or sys.exit()
    return data


kinds, misbehave = MISBEHAVIOUR.get(ATTACK, (set(), slow))
while True:
    (length,) = struct.unpack(">I", read(4))
    packet = read(length)
    kind, number, rest = packet[0], packet[1:5], packet[5:]
    if ATTACK == "silent to all" and Path("silent").exists():
        time.sleep(60)
    if kind == INIT:
        answer(VERSION, struct.pack(">I", 3))
        continue
    if ATTACK == "late":
        time.sleep(5)
    path = rest[4 : 4 + struct.unpack(">I", rest[:4])[0]]
    if kind in kinds and base(path) == b"bad":
        misbehave(number)
    else:
        serve(kind, number, path)
