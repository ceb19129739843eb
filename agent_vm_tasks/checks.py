"""What one value of a settings file or a flag may be: small checks to build a table from.

A check takes where the value stands (`agent-vm.toml: vm.cpus`, `--memory`) and the value as given.
It returns the value as the program wants it, or raises UsageError, naming both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from .console import printable
from .errors import UsageError

Check = Callable[[str, Any], Any]

GIB = 1024  # sizes are counted in MiB
PART = r"(?!\.\.?(?:/|$))[^/]+"  # of a path; neither . nor ..
PATH = rf"~?(?:/{PART})+/?"
_VISIBLE = "text without control characters and '{{'"
RELATIVE_PATH = rf"(?!~){PART}(?:/{PART})*/?"


def wrong(where: str, expected: str, given: object) -> UsageError:
    return UsageError(f"{where} must be {expected}, not {_shown(given)}")


def flag(where: str, given: object) -> bool:
    if not isinstance(given, bool):
        raise wrong(where, "true or false", given)
    return given


def integer(low: int, high: int) -> Check:
    def check(where: str, given: object) -> int:
        if type(given) is not int or not low <= given <= high:  # to isinstance a bool is an int
            raise wrong(where, f"a whole number from {low} to {high}", given)
        return given

    return check


def text(expected: str, pattern: str) -> Check:
    def check(where: str, given: object) -> str:
        visible(where, given)
        if not isinstance(given, str) or not re.fullmatch(pattern, given):
            raise wrong(where, expected, given)
        return given

    return check


def secret(where: str, given: object) -> str:
    """Check for text as `visible` has it, of which no error shows anything."""
    if not isinstance(given, str) or not _visible(given):
        raise UsageError(f"{where} must be {_VISIBLE}")
    return given


def items(check_item: Check) -> Check:
    """Check a list without repetitions; it becomes a tuple."""

    def check(where: str, given: object) -> tuple[Any, ...]:
        if not isinstance(given, list):
            raise wrong(where, "a list", given)
        found = tuple(check_item(f"{where}[{place}]", each) for place, each in enumerate(given))
        for each, count in Counter(found).items():
            if count > 1:
                raise UsageError(f"{where} names {_shown(each)} more than once")
        return found

    return check


def mapping(check_key: Check, check_value: Check) -> Check:
    """Check a table of keys that are free to choose; it becomes a tuple of pairs."""

    def check(where: str, given: object) -> tuple[tuple[Any, Any], ...]:
        if not isinstance(given, dict):
            raise wrong(where, "a table", given)
        pairs = []
        for key, value in given.items():
            pairs.append((check_key(where, key), check_value(f"{where}.{key}", value)))
        return tuple(pairs)

    return check


def word_or_items(word: str, expected: str, check_item: Check) -> Check:
    """Check for `word`, or else a list."""

    def check(where: str, given: object) -> str | tuple[Any, ...]:
        if given == word:
            return word
        if not isinstance(given, list):
            raise wrong(where, f'"{word}" or {expected}', given)
        found: tuple[Any, ...] = items(check_item)(where, given)
        return found

    return check


def size(low: int, high: int) -> Check:
    """Check an amount of memory or disk, in MiB: a whole number counts GiB."""
    expected = f'GiB or a size like "8GiB", from {size_text(low)} to {size_text(high)}'

    def check(where: str, given: object) -> int:
        mebibytes = _mebibytes(given)
        if mebibytes is None or not low <= mebibytes <= high:
            raise wrong(where, expected, given)
        return mebibytes

    return check


def size_text(mebibytes: int) -> str:
    """Write a size as a file has it: 8192 becomes 8GiB."""
    return f"{mebibytes}MiB" if mebibytes % GIB else f"{mebibytes // GIB}GiB"


def visible(where: str, given: object) -> None:
    """Refuse what Lima would evaluate, {{…}}, and characters that do not show."""
    for each in given if isinstance(given, list) else [given]:
        if isinstance(each, str) and not _visible(each):
            raise wrong(where, _VISIBLE, each)


def _visible(text: str) -> bool:
    return text == printable(text) and not re.search(r"[\n\t]|{{", text)


def _mebibytes(given: object) -> int | None:
    if type(given) is int:
        return given * GIB
    pattern = r"([0-9]{1,9}) ?(G|M)(B|iB)?"
    match = isinstance(given, str) and re.fullmatch(pattern, given, re.IGNORECASE | re.ASCII)
    return int(match[1]) * (GIB if match[2] in "Gg" else 1) if match else None


def _shown(given: object) -> str:
    """Show what was given, short, without the password that a URL may carry."""
    if isinstance(given, bool):
        return str(given).lower()
    if isinstance(given, (list, dict)):
        return "a list" if isinstance(given, list) else "a table"
    if isinstance(given, str):
        safe = re.sub(r"//[^/]*@", "//***@", given)
        return repr(safe if len(safe) <= 60 else f"{safe[:57]}...")  # noqa: PLR2004
    if isinstance(given, int) and abs(given) >= 10**18:
        return "a number beyond all use"  # Python refuses to print thousands of digits
    return str(given)
