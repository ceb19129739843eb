"""What a person sees: escaped text, progress, warnings, tables."""

from __future__ import annotations

import shutil
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable
from typing import TextIO

# The normal screen, a soft reset, and no reports of mouse, focus or pastes (xterm's ctlseqs); the
# last takes back kitty's keys.
_RESET = "\x1b[?1047l\x1b[!p\x1b[?1000;1002;1003;1004;1006;2004l\x1b[<u"

Say = Callable[[str], None]
"""How the core tells what it is doing: one line of text, no terminal assumed."""
STILL = 20.0
"""Seconds after which what goes on is told again."""


def printable(text: str) -> str:
    """Make text from the guest safe to print: control and format characters become escapes.

    Escape sequences in a file name or an error message could otherwise retitle the terminal, move
    the cursor over what we said, or fill the clipboard.
    """
    return "\n".join(
        line if line.isprintable() else "".join(map(_escape, line)) for line in text.split("\n")
    )


def one_line(text: str) -> str:
    """Like `printable`, and no part of it can look like a line of ours."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def _escape(char: str) -> str:
    if char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}:
        return char
    return char.encode("unicode_escape").decode()


def escaped(stream: TextIO) -> Callable[[str], None]:
    """What writes text from the guest to a stream as it comes, made safe to print."""
    return lambda text: print(printable(text), end="", file=stream, flush=True)


def say(line: str) -> None:
    """Tell progress; on stderr, so that stdout carries only what was asked for.

    On a terminal the next line takes the place of one that ends in a carriage return.
    """
    text, passing = one_line(line.removesuffix("\r")), line.endswith("\r")
    if passing and sys.stderr.isatty():
        room = shutil.get_terminal_size().columns - 1
        print(f"{text[:room]}\x1b[K", end="\r", file=sys.stderr, flush=True)
    elif text or not passing:
        print(text, file=sys.stderr, flush=True)


def again(tell: Callable[[float], None]) -> Callable[[], None]:
    """What to call often while something lasts: it tells at once how long, and every STILL."""
    began, told = time.monotonic(), -1.0

    def look() -> None:
        nonlocal told
        taken = time.monotonic() - began
        if taken // STILL > told:
            told = taken // STILL
            tell(taken)

    return look


def warn(line: str) -> None:
    print(one_line(f"warning: {line}"), file=sys.stderr, flush=True)


def reset() -> None:
    """Take back what a program that was cut off has made of the terminal."""
    if sys.stdout.isatty():
        print(_RESET, end="", flush=True)


def as_json(value: object) -> str:
    """JSON without control characters: of these json leaves DEL as it is."""
    import json

    return json.dumps(value, indent=2).replace("\x7f", r"\u007f")


def table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    """Aligned columns; `?` where a value is not known. No cell can look like another row."""
    texts = [head, *(tuple(_cell(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in texts)
    return "\n".join(line.rstrip() for line in lines)


def _cell(value: object) -> str:
    return "?" if value is None else one_line(str(value))
