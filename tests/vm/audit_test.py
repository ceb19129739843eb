"""The audit of a real VM, and its twins: what an agent, or somebody here, does is found."""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import NAME, PROGRAM, User, inside, lima_home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm

KEY = "sk-canary-0123456789"
UNCHECKED = (
    "from agent_vm_tasks import creation, settings, vm; "
    "creation.refuse_strange = lambda *_: None; vm.start(settings.load(), print)"
)
"""A start that lets everything pass that Lima was told."""
LIMIT = 60.0
"""Seconds for a whole audit; emulated as well, where nothing else runs on the machine."""


def audit(vm: User, *words: str) -> dict[str, list[dict[str, Any]]]:
    """The findings by what they say of a promise: held, broken or not tried."""
    found = json.loads(vm.run(PROGRAM, "audit", "--json", *words).stdout)["findings"]
    kinds = {True: "held", False: "broken", None: "not tried"}
    return {word: [each for each in found if each["held"] is held] for held, word in kinds.items()}


def broken(vm: User, *words: str) -> dict[str, str]:
    """What did not hold, but for a network that this host cannot close, which is told elsewhere."""
    found: dict[str, str] = {}
    for each in audit(vm, *words)["broken"]:
        found[each["promise"]] = "; ".join(
            filter(None, (found.get(each["promise"]), each["detail"]))
        )
    if "Network: open" in vm.agent_vm("status"):
        found.pop("network", None)
    return found


@pytest.fixture
def keyed(vm: User) -> Iterator[User]:
    """The person with a key that is in the VM."""
    person = vm.having(ANTHROPIC_API_KEY=KEY)
    person.agent_vm("secrets")
    yield person
    vm.agent_vm("secrets", "--clear")


def test_a_fresh_vm_holds_in_time_with_nothing_left_behind(keyed: User) -> None:
    look = "ls -A ~ ~/workspace; find ~/.agent-vm/workspaces -mindepth 1 2> /dev/null || true"
    before = inside(keyed, look)
    began = time.monotonic()
    found = audit(keyed)
    assert time.monotonic() - began < LIMIT
    assert not [each for each in found["broken"] if each["promise"] != "network"]
    tried = {each["promise"] for each in (*found["held"], *found["broken"])}
    assert tried >= {"mounts", "git", "links", "sync", "identity", "impostor", "keys", "ports",
                     "network", "terminal", "trust", "limits"}  # fmt: skip
    assert {each["promise"] for each in found["not tried"]} <= {"keys", "network", "walls"}
    assert inside(keyed, look) == before


def test_a_quick_look_finds_nothing(keyed: User) -> None:
    assert broken(keyed, "--quick") == {}
    assert "the VM is not what was created" not in keyed.run(PROGRAM, "start").stderr


def test_keys_that_lie_about_inside_are_found(keyed: User) -> None:
    inside(keyed, f"echo {KEY} >> ~/.bash_history; sudo sh -c 'echo {KEY} > /var/log/left'")
    detail = broken(keyed)["keys"]
    inside(keyed, "rm ~/.bash_history; sudo rm /var/log/left")
    assert "/home/agent/.bash_history" in detail
    assert "/var/log/left" in detail


def test_a_key_in_a_command_line_inside_is_found(keyed: User) -> None:
    inside(keyed, f"(exec -a {KEY} sleep 100) > /dev/null 2>&1 &")
    detail = broken(keyed)["keys"]
    inside(keyed, "pkill -x sleep || true")
    assert "/cmdline" in detail


def test_a_name_of_this_machine_inside_is_found(vm: User) -> None:
    was = inside(vm, "hostname").strip()
    inside(vm, f"sudo hostname {socket.gethostname()}")
    found = broken(vm)
    inside(vm, f"sudo hostname {was}")
    assert found == {"identity": f"the VM knows {socket.gethostname()}"}


def test_a_log_that_grew_without_end_is_found(vm: User) -> None:
    log = lima_home(vm) / NAME / "left.log"
    log.write_bytes(bytes(70 * 2**20))
    found = broken(vm)
    log.unlink()
    assert found == {"limits": f"{log} takes 70 MiB"}


def test_a_configuration_that_was_changed_is_told_at_each_start(vm: User) -> None:
    with edited(lima_home(vm) / NAME / "lima.yaml", ("plain: true", "plain: true # as it was")):
        said = vm.run(PROGRAM, "start").stderr
        assert "warning: the VM is not what was created: " in said
        assert "lima.yaml was changed" in broken(vm, "--quick")["mounts"]
    assert broken(vm, "--quick") == {}


def test_ports_that_lima_forwards_are_found(vm: User) -> None:
    """As without `plain`: then what the guest opens shows up here. The next start refuses that."""
    vm.agent_vm("stop")
    config = lima_home(vm) / NAME / "lima.yaml"
    ignoring = "- {guestIP: 0.0.0.0, guestIPMustBeZero: false, proto: any, ignore: true}"
    with edited(config, ("plain: true", "plain: false"), (ignoring, "")):
        assert "with other plain than asked for" in vm.fails("start")
        started = vm.run(sys.executable, "-c", UNCHECKED)
        assert started.returncode == 0, started.stderr
        found = broken(vm)
        assert "a port that the VM opened is at 127.0.0.1 here" in found["ports"]
        assert "plain" in found["mounts"]
        vm.agent_vm("stop")
    vm.agent_vm("start")
    assert broken(vm) == {}


@contextlib.contextmanager
def edited(path: Path, *changes: tuple[str, str]) -> Iterator[None]:
    """A file with some text in place of other text, for a while."""
    before = text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    try:
        yield
    finally:
        path.write_text(before)
