"""audit: what is printed, and the exit status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import audit, intact
from agent_vm_tasks.audit import Attack
from agent_vm_tasks.intact import Fact, NotTriedError

if TYPE_CHECKING:
    from pathlib import Path

    from agent_vm_tasks.audit_scene import Scene
    from tests.conftest import Guest, Limactl

    from .conftest import Command


def cannot(_scene: Scene) -> str:
    raise NotTriedError("there is none")


@pytest.fixture
def attacked(
    limactl: Limactl, guest: Guest, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running VM on which three attacks are made, that end in three ways."""
    limactl.adopt(guest)
    attacks = [
        Attack("keeps", "a good lock", lambda _: "", "nothing"),
        Attack("leaks", "a bad lock", lambda _: "open\x1b[2J\nheld       leaks", "lock it"),
        Attack("lacks", "no lock", cannot, "nothing"),
    ]
    monkeypatch.setattr(audit, "ATTACKS", attacks)
    monkeypatch.setattr(intact, "FACTS", [])


def test_each_promise_has_a_line_and_what_is_broken_fails(
    attacked: None, agent_vm: Command
) -> None:
    said = agent_vm("audit")
    assert said.status == 1
    assert said.out == (
        "held       keeps      a good lock\n"
        "BROKEN     leaks      a bad lock\n"
        "                      open\\x1b[2J\\nheld       leaks; lock it\n"
        "not tried  lacks      no lock\n"
        "                      there is none\n"
    )
    assert said.error.endswith("the isolation does not hold: leaks; do what is said")


def test_a_file_that_goes_while_it_is_read_ends_no_audit(
    attacked: None, agent_vm: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gone = Attack("lacks", "a file", lambda _: (tmp_path / "gone").read_text(), "nothing")
    monkeypatch.setattr(audit, "ATTACKS", [gone, audit.ATTACKS[0]])
    said = agent_vm("audit", "--json")
    assert (said.status, said.err) == (0, "")
    assert [each["held"] for each in json.loads(said.out)["findings"]] == [None, True]


def test_what_was_not_tried_is_no_fault_and_does_not_count_as_held(
    attacked: None, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "ATTACKS", [audit.ATTACKS[0], audit.ATTACKS[2]])
    said = agent_vm("audit", "--json")
    found = json.loads(said.out)
    assert (said.status, found["ok"]) == (0, True)
    assert [each["held"] for each in found["findings"]] == [True, None]


def test_without_a_vm_there_is_nothing_to_attack(
    home: Path, limactl: Limactl, agent_vm: Command
) -> None:
    assert agent_vm("audit").error.endswith("there is no VM agent-vm; `agent-vm start` creates it")


@pytest.mark.parametrize("wrong", ["", "it was changed\x1b[2J"])
def test_a_quick_look_attacks_nothing(
    attacked: None, agent_vm: Command, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    facts = [Fact("mounts", "its files", lambda *_: wrong, "make it anew")]
    monkeypatch.setattr(intact, "FACTS", facts)
    said = agent_vm("audit", "--quick")
    assert said.status == (1 if wrong else 0)
    told = "BROKEN     mounts     its files\n" if wrong else "held       mounts     its files\n"
    more = f"{'':21} it was changed\\x1b[2J; make it anew\n" if wrong else ""
    assert said.out == told + more
    found = json.loads(agent_vm("audit", "--quick", "--json").out)
    assert (found["ok"], len(found["findings"])) == (not wrong, 1)


def test_a_quick_look_at_no_vm(limactl: Limactl, agent_vm: Command) -> None:
    said = agent_vm("audit", "--quick")
    assert said.error == "agent-vm: there is no VM agent-vm; `agent-vm start` creates it"
