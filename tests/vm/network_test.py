"""What a real guest reaches: a service on this machine's loopback plays the secret."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from .conftest import PROGRAM, User, inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm

TRY = """
for address in 192.168.5.2 192.168.5.3 fec0::2 fec0::3; do
    timeout 5 bash -c "head -c 6 < /dev/tcp/$address/{tcp}"
    timeout 5 bash -c "echo from-$address > /dev/udp/$address/{udp}"
done 2> /dev/null
true
"""
NAMES = "getent hosts deb.debian.org > /dev/null && echo found || echo none"


class Services:
    """TCP on this machine's loopback, which says SECRET, and UDP, which keeps what it is told."""

    def __init__(self, tcp: socket.socket, udp: socket.socket) -> None:
        self.tcp, self.udp = tcp, udp

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self.tcp.accept()
                with caller:
                    caller.sendall(b"SECRET")

    def heard(self) -> bytes:
        self.udp.settimeout(1)
        try:
            return self.udp.recv(100)
        except TimeoutError:
            return b""

    def tried(self, vm: User) -> str:
        """What an agent gets of them."""
        ports = {"tcp": self.tcp.getsockname()[1], "udp": self.udp.getsockname()[1]}
        return inside(vm, TRY.format(**ports))


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind(("127.0.0.1", 0))
        tcp.listen()
        udp.bind(("127.0.0.1", 0))
        made = Services(tcp, udp)
        threading.Thread(target=made.serve, daemon=True).start()
        yield made


def test_open_is_what_the_attack_needs(vm: User, services: Services) -> None:
    vm.agent_vm("network", "open")
    if "Network: open" not in vm.agent_vm("status"):  # as the file before this one leaves it
        vm.agent_vm("restart")
    assert services.tried(vm).startswith("SECRET")
    assert services.heard().startswith(b"from-192.168.5.2")


def test_offline_reaches_nothing_and_work_goes_on(vm: User, services: Services) -> None:
    top = vm.repository("offline")
    vm.agent_vm("network", "offline")
    assert "`agent-vm restart` brings that" in vm.fails("connect", "--command", "true")
    vm.agent_vm("restart")
    assert services.tried(vm) == ""
    assert services.heard() == b""
    assert inside(vm, NAMES) == "none\n"
    assert works(vm, top)


def test_the_hosts_loopback_is_out_of_reach_and_names_work(vm: User, services: Services) -> None:
    vm.agent_vm("network", "internet")
    said = vm.run(PROGRAM, "restart").stderr
    if "there is no passt of 2026 or newer" in said:
        assert "Network: open" in vm.agent_vm("status")
        pytest.skip("this host cannot keep its loopback from the VM, and says so")
    assert "Network: internet" in vm.agent_vm("status")
    assert services.tried(vm) == ""
    assert services.heard() == b""
    assert inside(vm, NAMES) == "found\n"


def test_an_audit_of_a_real_vm_says_what_the_network_is(vm: User) -> None:
    found = json.loads(vm.run(PROGRAM, "audit", "--json").stdout)["findings"]
    (loopback,) = [each["held"] for each in found if "loopback" in each["tried"]]
    assert loopback is ("Network: open" not in vm.agent_vm("status"))


def works(vm: User, top: Path) -> bool:
    inside(vm, "echo 1 > work; git add work; git commit -qm work", top, "fix")
    vm.agent_vm("fetch", "fix", cwd=top)
    mounted = vm.home / ".agent-vm-mounts/workspace/offline-fix/work"
    return vm.git("show", "fix:work", cwd=top) == mounted.read_text().strip() == "1"
