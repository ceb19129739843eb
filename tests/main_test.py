"""The `agent-vm` program: its spelling, its help, its exit statuses."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_vm_tasks import __version__, main, ns

from .cli import run

if TYPE_CHECKING:
    from .conftest import Limactl

TASKS = sorted(ns.task_names)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("connect x", "connect --branch x"),
        ("connect feature/x", "connect --branch feature/x"),
        ("push x fetch x", "push --branch x fetch --branch x"),
        ("push x clean y --force", "push --branch x clean --branch y --force"),
        ("connect", "connect"),
        ("connect --branch x", "connect --branch x"),
        ("connect -b x", "connect -b x"),
        ("connect --command ls", "connect --command ls"),
        ("connect x --command ls", "connect --branch x --command ls"),
        ("connect x -- push y", "connect --branch x -- push y"),
        ("connect -- x", "connect -- x"),
        ("connect -- push x", "connect -- push x"),
        ("git x -- log -- push", "git --branch x -- log -- push"),
        ("connect x -- a -- b", "connect --branch x -- a -- b"),
        ("clean-all", "clean-all"),
        ("clean-all --force", "clean-all --force"),
        ("start stop", "start stop"),
        ("push status", "push status"),
        ("fetch clean-all", "fetch clean-all"),
        ("--debug push x", "--debug push --branch x"),
        ("connect --branch push fetch x", "connect --branch push fetch --branch x"),
        ("connect --branch=push", "connect --branch=push"),
        ("start --memory 16", "start --memory 16"),
        ("mount x", "mount x"),
        ("undo", "undo"),
        ("undo app-x", "undo --workspace app-x"),
        ("undo -w app-x push x", "undo -w app-x push --branch x"),
        ("undo --json", "undo --json"),
        ("", ""),
    ],
)  # fmt: skip
def test_a_bare_word_after_a_verb_is_its_branch(typed: str, meant: str) -> None:
    assert main.with_flags(["agent-vm", *typed.split()]) == ["agent-vm", *meant.split()]


def test_an_empty_branch_is_still_a_word() -> None:
    assert main.with_flags(["agent-vm", "push", ""]) == ["agent-vm", "push", "--branch", ""]


@given(
    st.lists(st.sampled_from(["push", "connect", "x", "--", "-b", "--force", "é", "", "status"]))
)
def test_nothing_but_branch_flags_is_added_and_none_after_the_dashes(words: list[str]) -> None:
    got = main.with_flags(["agent-vm", *words])
    until = words.index("--") if "--" in words else len(words)
    tail = words[until:]
    assert got[len(got) - len(tail) :] == tail
    head = got[1 : len(got) - len(tail)]
    assert [word for word in head if word != "--branch"] == words[:until]


def parameters(verb: str) -> set[str]:
    return set(inspect.signature(ns[verb].body).parameters)


def test_the_shorthand_is_for_just_those_verbs_that_take_one_thing() -> None:
    things = {"branch", "workspace", "mode", "repository"}
    takes = {verb for verb in TASKS if parameters(verb) & things}
    assert takes == main.FLAGS.keys()


@pytest.mark.parametrize("verb", TASKS)
def test_help_has_an_example_and_does_nothing(
    limactl: Limactl,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    said = run(monkeypatch, capfd, verb, "--help")
    assert (said.status, said.err) == (0, "")
    assert f"Usage: agent-vm [--core-opts] {verb} " in said.out
    assert "Example: " in said.out
    assert not (limactl.folder / "calls").exists()


def test_every_flag_is_explained() -> None:
    """In a new process: Invoke takes the texts out of a task when it first looks at them."""
    code = (
        "import json; from agent_vm_tasks import ns; print(json.dumps({name: "
        "{arg.name: arg.help for arg in ns[name].get_arguments()} for name in ns.task_names}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    explained = json.loads(done.stdout)
    assert explained.keys() == set(TASKS)
    silent = [(name, arg) for name, args in explained.items() for arg in args if not args[arg]]
    assert not silent


def test_every_task_is_listed_with_a_line_of_its_own(
    home: object, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = run(monkeypatch, capfd, "--list")
    listed = {words[0]: words[1:] for line in said.out.splitlines() if (words := line.split())}
    assert said.status == 0
    for name in TASKS:
        assert listed[name], f"{name} has no summary"


def test_without_a_verb_it_prints_help(
    limactl: Limactl, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    said = run(monkeypatch, capfd)
    assert said.status == 0
    assert said.out.startswith("Usage: agent-vm ")
    assert not (limactl.folder / "calls").exists()


def test_version(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    said = run(monkeypatch, capfd, "--version")
    assert (said.status, said.out) == (0, f"agent-vm {__version__}\n")


@pytest.mark.parametrize(
    ("closed", "status", "out"),
    [("<&-", 0, 'vm.name                = "agent-vm"'), (">&-", 0, ""), ("<&- >&- 2>&-", 0, "")],
)
def test_streams_that_are_closed_are_no_trouble(
    home: Path, closed: str, status: int, out: str
) -> None:
    command = f"exec {Path(sys.executable).with_name('agent-vm')} config-show {closed}"
    done = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.startswith(out)


def test_text_that_the_terminals_encoding_lacks_is_shown_as_escapes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")):
        monkeypatch.setenv(name, value)
    config = home / ".config" / "agent-vm" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[mount]\npath = "~/größer"\n', "utf-8")
    program = [str(Path(sys.executable).with_name("agent-vm")), "config-show"]
    done = subprocess.run(program, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"~/gr\xf6\xdfer" in done.stdout
