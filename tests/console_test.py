"""What is printed cannot steer the terminal, and tables line up."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_vm_tasks import console

STEERING = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 100 %", "plain text, 100 %"),
        ("größer 漢字 🙂", "größer 漢字 🙂"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("over\rwritten \x08", r"over\rwritten \x08"),
        ("right\u202eto left \u200b\ufeff", r"right\u202eto left \u200b\ufeff"),
        ("\x9b31m C1", r"\x9b31m C1"),
        ("\udcff lone surrogate", r"\udcff lone surrogate"),
        ("line\u2028break", r"line\u2028break"),
    ],
)
def test_control_and_format_characters_become_escapes(text: str, shown: str) -> None:
    assert console.printable(text) == shown


@given(st.text(st.characters(codec=None)))
def test_nothing_printed_steers_a_terminal(text: str) -> None:
    shown = console.printable(text)
    assert not [c for c in shown if c not in "\n\t" and unicodedata.category(c) in STEERING]
    assert console.printable(shown) == shown
    shown.encode()


def test_progress_and_warnings_go_to_stderr_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("half \x1b[2J done")
    console.warn("mind \x07 the gap")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "half \\x1b[2J done\nwarning: mind \\x07 the gap\n"


def test_progress_of_one_thing_is_one_line_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "20")
    for line in ("half \x07 done\r", "a line that is longer than that\r", "\r", "all\rdone"):
        console.say(line)
    assert capsys.readouterr().err == (
        "half \\x07 done\x1b[K\ra line that is long\x1b[K\r\x1b[K\rall\\rdone\n"
    )


def test_progress_of_one_thing_is_a_line_each_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    for line in ("half \x07 done\r", "more\r", "\r", ""):
        console.say(line)
    assert capsys.readouterr().err == "half \\x07 done\nmore\n\n"


def test_a_table_lines_up_and_shows_what_is_not_known() -> None:
    rows = [("app-fix", 1, None), ("a", 12, 0)]
    assert console.table(("WORKSPACE", "NEW", "OLD"), rows) == (
        "WORKSPACE  NEW  OLD\n"
        "app-fix    1    ?\n"
        "a          12   0"
    )  # fmt: skip


def test_a_table_without_rows_is_its_head() -> None:
    assert console.table(("A", "B"), []) == "A  B"


def test_a_cell_cannot_add_a_row_or_a_column() -> None:
    rows = [("evil\nsafe-looking  main\t0", 1), ("esc\x1b[1m", 2)]
    assert console.table(("NAME", "N"), rows).splitlines() == [
        "NAME                         N",
        r"evil\nsafe-looking  main\t0  1",
        r"esc\x1b[1m                   2",
    ]
