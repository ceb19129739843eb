"""Read one TOML file that anybody may have written: small, plain text, a real file, or an error."""

from __future__ import annotations

import re
import stat
from typing import TYPE_CHECKING, Any

from .errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

LARGEST = 1 << 20  # bytes


def read(path: Path) -> dict[str, Any]:
    """Parse `path`; raises UsageError with the line when it is not TOML."""
    import tomllib

    text = _contents(path)
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise UsageError(f"{label(path)}: lists or tables are nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, or a number of thousands of digits
        reason, _, place = str(error).partition(" (at ")
        line = re.match("line ([0-9]+)", place)
        number = line[1] if line else max(1, len(text.splitlines()))
        raise UsageError(f"{label(path)}:{number}: not valid TOML: {reason}") from None


def label(path: Path) -> str:
    """Name `path` on one line."""
    return str(path).replace("\n", "\\n")


def _contents(path: Path) -> str:
    try:
        regular = stat.S_ISREG(path.stat().st_mode)  # to open a pipe or a device could hang
        raw = _head(path) if regular else b""
        if len(raw) > LARGEST:
            raise UsageError(f"{label(path)} is larger than 1 MiB")
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{label(path)} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{label(path)} is not UTF-8 text (byte {error.start})") from None
    if not regular:
        raise UsageError(f"{label(path)} is not a regular file")
    return text


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LARGEST + 1)
