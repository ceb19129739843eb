"""The steps of an installation: a command is told, then run; a failure is put in plain words."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from . import process
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .console import Say

AGAIN = "then `agent-vm setup` again"

# What programs say when the surroundings are at fault: what that means, and what to do.
_SIGNS = (
    (r"no space left|enough free space", "the disk is full",
     f"make room (`df -h /tmp /var /usr/local ~` shows where), {AGAIN}"),
    (r"failure resolving|could not resolve|name resolution|name or service|lookup address|dial tcp|"
     r"could not connect|connection|unreachable|timed out|timeout|failed to fetch",
     "the network does not answer", f"check it and the proxy settings, {AGAIN}"),
    (r"could not get lock|could not open lock", "another package manager is at work",
     f"wait for it, {AGAIN}"),
)  # fmt: skip


def run(
    argv: Sequence[str],
    say: Say,
    before: str = "",
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> process.Result:
    """Tell the command and run it; raises AgentVMError with what to do when it fails.

    `before` is what earlier steps wrote and may explain a failure. sudo gets the terminal when it
    may have to ask for a password.
    """
    say(f"$ {shlex.join(argv)}")
    if argv[0] == "sudo" and argv[1] != "-n":
        result = process.Result(tuple(argv), process.interactive(argv), "", "")
    else:
        env = {**(env or os.environ), "LC_ALL": "C"}
        result = process.run(argv, check=False, cwd=cwd, env=env)
    if not result.ok:
        said = f"{result.stderr}\n{before}"
        for line in [_telling(said)] if _telling(said) else result.stderr.splitlines()[-5:]:
            say(f"  {line}")
        raise trouble(f"{_name(argv)} failed", said, result.reason)
    return result


def trouble(what: str, text: str, otherwise: str = "") -> AgentVMError:
    """Make the error that `what` deserves after a program wrote `text`."""
    for sign, meaning, advice in _SIGNS:
        if re.search(sign, text, re.IGNORECASE):
            return AgentVMError(f"{what}: {meaning}", advice)
    return AgentVMError(f"{what}: {otherwise or text}", f"see above, {AGAIN}")


def _telling(text: str) -> str:
    """Find the line that names the trouble; seldom the last one."""
    signs = "|".join(sign for sign, _, _ in _SIGNS)
    return next((line for line in text.splitlines() if re.search(signs, line, re.IGNORECASE)), "")


def _name(argv: Sequence[str]) -> str:
    if "pip" in argv:
        return "pip"
    return next(Path(word).name for word in argv if word not in {"sudo", "-n"})
