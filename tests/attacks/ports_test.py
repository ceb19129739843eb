"""Ports of the VM on this machine: those that are listed, and what the user's Lima adds.

What a booted guest opens is tried in tests/vm/audit_test.py.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from agent_vm_tasks import host, intact, lima, render, vm
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.image import Image
from agent_vm_tasks.settings import Network, Settings, Vm
from tests.conftest import VM, free_port
from tests.intact_test import listening

if TYPE_CHECKING:
    from collections.abc import Callable


def test_a_listed_port_is_bound_to_loopback_alone(
    lima_fills: Callable[..., dict[str, Any]], *, on: bool
) -> None:
    """Off: as Lima has it where no address is given, with a user's own rule before ours."""
    asked = Settings(vm=Vm(ca_certs=()), network=Network(ports=(3000,)))
    text = render.lima_yaml(asked, [Image("/disk.qcow2")], "key")
    theirs = "portForwards: [{guestPort: 3000, hostIP: 0.0.0.0, static: true}]"
    rules = lima_fills(text, "" if on else theirs, "override.yaml")["portForwards"]
    addresses = {rule["hostIP"] for rule in rules if not rule.get("ignore")}
    assert addresses == ({"127.0.0.1"} if on else {"127.0.0.1", "0.0.0.0"})  # noqa: S104


def test_what_the_guest_opens_is_forwarded_by_no_rule(
    lima_fills: Callable[..., dict[str, Any]], *, on: bool
) -> None:
    """Off, by `plain: false`: a rule of the user's own is there, and Lima's agent follows it."""
    text = render.lima_yaml(Settings(vm=Vm(ca_certs=())), [Image("/disk.qcow2")], "key")
    text = text if on else text.replace("plain: true", "plain: false")
    rules = lima_fills(text, "portForwards: [{guestPort: 5432}]").get("portForwards") or ()
    assert (5432 in [rule.get("guestPort") for rule in rules]) is not on


def test_a_port_that_is_taken_is_an_error(
    started: Settings, monkeypatch: pytest.MonkeyPatch, *, on: bool
) -> None:
    """Off: the VM comes up, and who calls that port calls somebody else."""
    if not on:
        monkeypatch.setattr(host, "require_free", lambda _: None)
    vm.destroy(started, print)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        listed = replace(started, network=replace(started.network, ports=(port,)))
        if not on:
            assert vm.start(listed, print).created
            return
        with pytest.raises(AgentVMError, match=f"the port {port} of network.ports cannot be had"):
            vm.start(listed, print)
        assert lima.find(VM).status == "Stopped"  # type: ignore[union-attr]
    assert not vm.start(listed, print).created


def test_a_port_that_a_process_of_the_vm_opens_is_told_at_the_next_start(
    started: Settings,
) -> None:
    assert vm.start(started, print).warnings == ()
    port = free_port()
    with listening(socket.AF_INET, "127.0.0.1", port):
        (line,) = intact.warnings(started, vm.require_exists(VM))
    assert f"port {port} is open here and is not listed" in line
