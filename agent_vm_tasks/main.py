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

BRANCH = ("--branch", "-b")
FLAGS = {
    **dict.fromkeys(("connect", "push", "fetch", "clean"), BRANCH),
    "undo": ("--workspace", "-w"),
}
"""What the bare word behind a verb stands for."""
TAKES_VALUE = {*BRANCH, *FLAGS["undo"], "--command", "-c"}


class AgentVM(Program):
    """Invoke's Program, which cannot have positional arguments that may be missing."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:  # noqa: A002
        super().run(with_flags(sys.argv if argv is None else argv), exit=exit)

    def parse_core(self, argv: list[str] | None) -> None:
        with _usage_errors():
            super().parse_core(argv)

    def parse_tasks(self) -> None:
        with _usage_errors():
            super().parse_tasks()

    def parse_cleanup(self) -> None:
        with _usage_errors():
            super().parse_cleanup()


def with_flags(argv: list[str]) -> list[str]:
    """Put --branch before the first bare word of a verb that takes a branch, and so on."""
    until = argv.index("--") if "--" in argv else len(argv)
    words: list[str] = []
    wanted: tuple[str, ...] = ()
    for at, word in enumerate(argv[:until]):
        if at and argv[at - 1] in TAKES_VALUE:
            wanted = () if argv[at - 1] in wanted else wanted
        elif at and word in ns.task_names:
            wanted = FLAGS.get(word, ())
        elif wanted and not word.startswith("-"):
            words.append(wanted[0])
            wanted = ()
        words.append(word)
    return words + argv[until:]


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """End with 2 on words that make no sense, as for all wrong usage; Invoke alone ends with 1."""
    try:
        yield
    except (ParseError, ValueError) as error:
        raise Exit(f"agent-vm: {printable(str(error))} See `agent-vm --help`.", 2) from error


program = AgentVM(name="agent-vm", binary="agent-vm", namespace=ns, version=__version__)
