"""The `agent-vm` program: the same tasks without a tasks.py, and the earlier tool's spelling.

`agent-vm connect fix-login` means `agent-vm connect --branch fix-login`.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from invoke.exceptions import Exit, ParseError
from invoke.program import Program

from . import __version__, ns
from .console import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

TAKES_BRANCH = frozenset({"connect", "push", "fetch", "clean"})


class AgentVM(Program):
    """Invoke's Program, which cannot have positional arguments that may be missing."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:  # noqa: A002
        super().run(with_branch_flags(sys.argv if argv is None else argv), exit=exit)

    def parse_core(self, argv: list[str] | None) -> None:
        with _usage_errors():
            super().parse_core(argv)

    def parse_tasks(self) -> None:
        with _usage_errors():
            super().parse_tasks()

    def parse_cleanup(self) -> None:
        with _usage_errors():
            super().parse_cleanup()


def with_branch_flags(argv: list[str]) -> list[str]:
    """Put --branch before a bare word that follows a verb which takes a branch."""
    until = argv.index("--") if "--" in argv else len(argv)
    words: list[str] = []
    for at, word in enumerate(argv[:until]):
        if at and argv[at - 1] in TAKES_BRANCH and _is_branch(word):
            words.append("--branch")
        words.append(word)
    return words + argv[until:]


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """End with 2 on words that make no sense, as for all wrong usage; Invoke alone ends with 1."""
    try:
        yield
    except (ParseError, ValueError) as error:
        raise Exit(f"agent-vm: {printable(str(error))} See `agent-vm --help`.", 2) from error


def _is_branch(word: str) -> bool:
    return not word.startswith("-") and word not in ns.task_names


program = AgentVM(name="agent-vm", binary="agent-vm", namespace=ns, version=__version__)
