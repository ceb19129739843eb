"""What a person types at `agent-vm connect`, on a real Debian guest."""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING

import pytest

from tests.terminals import (
    COLUMNS,
    LINES,
    Terminal,
    ends_with_the_last_status,
    interrupts,
    stops_and_goes_on,
    takes_a_line,
    terminal,
)

from .conftest import PROGRAM, User

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm

LIMIT = 100
"""Seconds for an answer: an emulated guest takes some ten times as long as another."""
WIDE = "größer 漢字 한글 é"
PASTE = f"\x1b[200~\r~.\r~~~\r{WIDE * 3000}\x1b[201~".encode()


@pytest.fixture(scope="module")
def project(vm: User) -> Iterator[Path]:
    top = vm.repository("term")
    vm.agent_vm("push", "typing", cwd=top)  # what is typed before there is a shell is nobody's
    yield top
    vm.agent_vm("clean", "typing", "--force", cwd=top)


@contextlib.contextmanager
def connected(vm: User, project: Path, *words: str) -> Iterator[Terminal]:
    env = {**vm.env, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    argv = [PROGRAM, "connect", "typing", *words]
    with terminal(argv, env=env, cwd=project, limit=LIMIT) as at:
        yield at


def test_a_shell_from_the_first_key_to_the_last_status(vm: User, project: Path) -> None:
    with connected(vm, project) as at:
        at.type("PS1='<sh''ell> '\r")
        at.wait_for("<shell> ")
        takes_a_line(at, WIDE)
        at.wait_for("<shell> ")
        at.type('echo "$TERM $COLORTERM $LANG"\r')
        at.wait_for("xterm-256color truecolor C.UTF-8\r\n")
        at.wait_for("<shell> ")

        interrupts(at)

        stops_and_goes_on(at)

        at.wait_for("<shell> ")
        ends_with_the_last_status(at)


def test_the_size_and_its_changes_reach_the_program(vm: User, project: Path) -> None:
    loop = "now=$new; new=; ${now:+stty size}; sleep 0.2"
    watch = f"trap new=yes WINCH; new=yes; while :; do {loop}; done"
    with connected(vm, project, "--command", watch) as at:
        at.wait_for(f"{LINES} {COLUMNS}\r\n")
        at.resize(40, 120)
        at.wait_for("40 120\r\n")


def test_a_paste_arrives_whole_and_the_commands_status_is_ours(vm: User, project: Path) -> None:
    assert len(PASTE) > 65536
    read = f"stty raw -echo; echo ready; head -c {len(PASTE)} | sha256sum; exit 3"
    with connected(vm, project, "--command", read) as at:
        at.wait_for("ready")
        at.type(PASTE)
        at.wait_for(hashlib.sha256(PASTE).hexdigest())
        assert at.status() == 3


def test_what_a_program_draws_comes_as_it_was_written(vm: User, project: Path) -> None:
    screen = f"\x1b[?1049h\x1b[?1000h\x1b[2J{WIDE}\x1b]0;title\x07\x1b[?1000l\x1b[?1049l"
    with connected(vm, project, "--", "sh", "-c", 'stty raw; printf %s "$1"', "sh", screen) as at:
        assert at.status() == 0
        assert screen.encode() in at.seen
