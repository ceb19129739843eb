"""The `agent-vm` program: the same tasks without a tasks.py, and the earlier tool's spelling.

`agent-vm connect fix-login` means `agent-vm connect --branch fix-login`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from io import TextIOWrapper
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from invoke.exceptions import AmbiguousEnvVar, Exit, ParseError, UncastableEnvVar
from invoke.program import Program

from . import __version__, ns
from .console import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from invoke.parser.context import ParserContext

BRANCH = ("--branch", "-b")
FLAGS = {
    **dict.fromkeys(("connect", "git", "push", "fetch", "clean"), BRANCH),
    "undo": ("--workspace", "-w"),
    "network": ("--mode", "-m"),
    "trust": ("--repository", "-r"),
}
"""What the bare word behind a verb stands for."""
TAKES_COMMAND = {"connect", "git"}
TAKES_VALUE = {*chain.from_iterable(FLAGS.values()), "--command", "-c"}


class AgentVM(Program):
    """Invoke's Program, which cannot have positional arguments that may be missing."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:  # noqa: A002
        _open_streams()
        super().run(with_flags(sys.argv if argv is None else argv), exit=exit)

    def create_config(self) -> None:
        with _configuration_errors():
            super().create_config()

    def parse_core(self, argv: list[str] | None) -> None:
        with _usage_errors():
            super().parse_core(argv)

    def parse_tasks(self) -> None:
        with _usage_errors():
            super().parse_tasks()
            _refuse_values(self.argv, self.initial_context, self.parser.contexts)
            takes_one = TAKES_COMMAND & {task.name for task in self.tasks}
            if "--" in self.argv[:-1] and not (takes_one or self.args.complete.value):
                raise ParseError("Only connect and git take a command after '--'.")

    def parse_cleanup(self) -> None:
        with _usage_errors():
            style = self.args["list-format"].value
            if style not in {"flat", "nested", "json"}:
                raise ParseError(f"There is no list format {style!r}.")
            super().parse_cleanup()

    def update_config(self, merge: bool = True) -> None:
        with _configuration_errors():
            if named := self.args.config.value or os.environ.get("INVOKE_RUNTIME_CONFIG"):
                Path(named).expanduser().stat()  # Invoke would pass over one that is not there
            super().update_config(merge)

    def execute(self) -> None:
        with _configuration_errors(AmbiguousEnvVar, UncastableEnvVar):
            super().execute()


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


def _refuse_values(
    argv: list[str], core: ParserContext, verbs: Mapping[str, ParserContext]
) -> None:
    """Refuse --force=stop: Invoke would take the value of a flag that takes none for a verb."""
    until = argv.index("--") if "--" in argv else len(argv)
    known = [core.flags]
    for before, word in pairwise(argv[:until]):
        if before in TAKES_VALUE:
            continue
        if word in verbs:
            known = [verbs[word].flags, core.flags]
        flag, given, _ = word.partition("=")
        meant = next((flags[flag] for flags in known if flag in flags), None)
        if given and meant and not meant.takes_value:
            raise ParseError(f"{flag} takes no value.")


def _open_streams() -> None:
    """Have all three streams, also where the caller closed one, and have them print any text."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """End with 2 on words that make no sense, as for all wrong usage; Invoke alone ends with 1."""
    try:
        yield
    except (ParseError, ValueError) as error:
        raise _wrong_usage(str(error)) from error
    except Exit as error:
        if not error.message:
            raise
        raise _wrong_usage(error.message) from error


def _wrong_usage(what: str) -> Exit:
    return Exit(f"agent-vm: {one_line(what)} See `agent-vm --help`.", 2)


@contextlib.contextmanager
def _configuration_errors(*kinds: type[Exception]) -> Iterator[None]:
    """End with 2 on what Invoke is given by files or INVOKE_ variables and cannot use.

    A file may be a program, so that it may raise anything.
    """
    try:
        yield
    except Exception as error:
        if kinds and not isinstance(error, kinds):
            raise
        why = " ".join(str(error).split()) or type(error).__name__
        told = f"agent-vm: Invoke's configuration cannot be used: {one_line(why)}"
        raise Exit(told, 2) from error


program = AgentVM(name="agent-vm", binary="agent-vm", namespace=ns, version=__version__)
