"""Text from the guest cannot steer the terminal it is printed on."""

from __future__ import annotations

import shlex
import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_vm_tasks import process, workspaces
from agent_vm_tasks.console import printable
from agent_vm_tasks.main import program
from tests.conftest import VM, commit, git

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Guest, Limactl

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\r"


@pytest.fixture
def inside(guest: Guest, limactl: Limactl, warm: None, repository: Path) -> Path:
    """A workspace in a VM that limactl knows."""
    limactl.adopt(guest)
    ws = workspaces.workspace(VM, workspaces.repository(repository), "fix")
    workspaces.push(ws, lambda _line: None)
    return guest.workspaces / ws.folder


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """All that a command prints, which has no character that a terminal obeys."""
    capsys.readouterr()
    program.run(["agent-vm", *words], exit=False)
    out, err = capsys.readouterr()
    for char in out + err:
        assert char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf"}, (out, err)
    return out + err


@given(st.text())
def test_printable_text_is_printable(text: str) -> None:
    for char in printable(text):
        assert char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_a_folders_name_in_the_inventory(
    guest: Guest, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (guest.workspaces / f"{EVIL}\nState: Stopped").mkdir()
    (inside / ".git/agent-vm").write_text(f"{EVIL}\n{EVIL}repository\n{EVIL}branch\n")
    text = said(capsys, "status")
    for name in (f"{SHOWN}\\nState: Stopped", f"{SHOWN}repository", f"{SHOWN}branch"):
        assert name in text
    assert "\nState: Stopped" not in text
    assert r"\u001b]0;owned" in said(capsys, "status", "--json")


def test_a_folders_name_before_it_is_deleted(
    guest: Guest, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (guest.workspaces / f"{EVIL}x").mkdir()
    text = said(capsys, "clean-all")
    assert f"would be lost: {SHOWN}x: " in text
    assert "add --force" in text
    assert (guest.workspaces / f"{EVIL}x").exists()


def test_a_branchs_name_in_what_stays_inside(
    guest: Guest, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest.run("git checkout -q -b 'a\u202eb' && git commit -q --allow-empty -m x", cwd=inside)
    guest.run("git checkout -q fix", cwd=inside)
    assert r"1 commit on branch a\u202eb" in said(capsys, "fetch", "--branch", "fix")


def test_a_files_name_that_is_in_the_way(
    guest: Guest, inside: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    git(repository, "checkout", "--quiet", "fix")
    commit(repository, f"{EVIL}x")
    (inside / f"{EVIL}x").touch()
    assert r"\x9b31m\u202e" in said(capsys, "push", "--branch", "fix")


@pytest.mark.parametrize("command", ["git-upload-pack", "git-receive-pack", "git"])
def test_an_error_of_the_guests_programs(
    guest: Guest, inside: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    executable(guest.home / "bin" / command, f"echo {q('fatal: ' + EVIL)} >&2; exit 1")
    verbs = {"git-upload-pack": "fetch", "git-receive-pack": "push", "git": "fetch"}
    assert r"\x1b]0;owned" in said(capsys, verbs[command], "--branch", "fix")


def test_progress_of_the_guests_programs(
    guest: Guest, inside: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WATCH", 0.1)
    words = f"printf %s {q('Resolving deltas: 1' + EVIL)} >&2; sleep 1"
    executable(guest.home / "bin/git-receive-pack", words)
    assert "Resolving deltas: 1" + SHOWN.removesuffix(r"\r") in said(
        capsys, "push", "--branch", "fix"
    )


def test_a_files_name_that_looks_like_a_line_of_ours(
    guest: Guest, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (inside / "x\nfix is up to date with the VM.").mkdir()
    (inside / "x\nfix is up to date with the VM./.envrc").touch()
    (inside / f"{EVIL}.code-workspace").touch()
    guest.run("git add . && git commit -q -m x", cwd=inside)
    text = said(capsys, "fetch", "--branch", "fix")
    assert text.splitlines().count("fix is up to date with the VM.") == 1
    assert r"look at it first: x\nfix is up to date" in text
    assert f"look at it first: {SHOWN}.code-workspace (the editor)" in text


def test_a_folders_name_that_looks_like_a_line_of_ours(
    guest: Guest, inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (guest.workspaces / "x\nDeleted 0 workspaces.").mkdir()
    text = said(capsys, "clean-all")
    assert r"would be lost: x\nDeleted 0 workspaces.: " in text
    assert "Deleted 0 workspaces." not in text.splitlines()


def q(text: str) -> str:
    return shlex.quote(text)


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    rest = f'PATH=${{PATH#*:}}; exec {path.name} "$@"'
    path.write_text(f"#!/bin/sh\n{text}\n{rest}\n")
    path.chmod(0o755)
