"""What a real guest reaches: services on this machine, on its loopback or not, play the secret."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from tests.attacks.network_test import own_address

from .conftest import PROGRAM, User, inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm

TRY = """
gateways=$({{ ip route show default; ip -6 route show default; }} |
    awk '{{ print ($3 ~ "^fe80:") ? $3 "%" $5 : $3 }}')
for address in {named} $gateways; do
    (
        timeout 10 bash -c "head -c 6 < /dev/tcp/$address/{tcp}" | sed "s/SECRET/&-of-$address /"
        timeout 10 bash -c "echo from-$address > /dev/udp/$address/{udp}"
    ) &
done 2> /dev/null
wait
"""
LOOPBACK = "192.168.5.2 192.168.5.3 fec0::2 fec0::3 ::ffff:192.168.5.2 ::ffff:192.168.5.3"
NAMES = "getent hosts deb.debian.org > /dev/null && echo found || echo none"


class Services:
    """TCP at an address of this machine, which says SECRET, and UDP, which keeps what it is told.

    `named` is what a guest calls that address.
    """

    def __init__(self, named: str, tcp: socket.socket, udp: socket.socket) -> None:
        self.named, self.tcp, self.udp = named, tcp, udp

    def serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self.tcp.accept()
                with caller:
                    caller.sendall(b"SECRET")

    def heard(self) -> bytes:
        self.udp.settimeout(1)
        said = b""
        with contextlib.suppress(TimeoutError):
            while True:
                said += self.udp.recv(100)
        return said

    def tried(self, vm: User) -> str:
        """What an agent gets of them."""
        ports = {"tcp": self.tcp.getsockname()[1], "udp": self.udp.getsockname()[1]}
        return inside(vm, TRY.format(named=self.named, **ports))


@contextlib.contextmanager
def serving(address: str, named: str) -> Iterator[Services]:
    with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
        tcp.bind((address, 0))
        tcp.listen()
        udp.bind((address, 0))
        made = Services(named, tcp, udp)
        threading.Thread(target=made.serve, daemon=True).start()
        yield made


@pytest.fixture(scope="module")
def services() -> Iterator[Services]:
    with serving("127.0.0.1", LOOPBACK) as made:
        yield made


@pytest.fixture(scope="module")
def own() -> Iterator[Services]:
    """Services that other machines could reach, too."""
    if not (address := own_address("192.0.2.1")):
        pytest.skip("this machine has loopback only")
    with serving(address, f"{address} ::ffff:{address}") as made:
        yield made


def test_open_is_what_the_attack_needs(vm: User, services: Services, own: Services) -> None:
    vm.agent_vm("network", "open")
    if "Network: open" not in vm.agent_vm("status"):  # as the file before this one leaves it
        vm.agent_vm("restart")
    for each, address in ((services, "192.168.5.2"), (own, own.tcp.getsockname()[0])):
        said, heard = each.tried(vm), each.heard().decode()
        for name in (address, f"::ffff:{address}"):
            assert f"SECRET-of-{name} " in said
            assert f"from-{name}\n" in heard


def test_offline_reaches_nothing_and_work_goes_on(
    vm: User, services: Services, own: Services
) -> None:
    top = vm.repository("offline")
    vm.agent_vm("network", "offline")
    assert "`agent-vm restart` brings that" in vm.fails("connect", "--command", "true")
    vm.agent_vm("restart")
    for each in (services, own):
        assert each.tried(vm) == ""
        assert each.heard() == b""
    assert inside(vm, NAMES) == "none\n"
    assert works(vm, top)


def test_the_hosts_loopback_is_out_of_reach_and_names_work(
    vm: User, services: Services, own: Services
) -> None:
    """What it offers on another address is reached, as on any machine of the network."""
    vm.agent_vm("network", "internet")
    said = vm.run(PROGRAM, "restart").stderr
    if "there is no passt of 2026 or newer" in said:
        assert "Network: open" in vm.agent_vm("status")
        pytest.skip("this host cannot keep its loopback from the VM, and says so")
    assert "Network: internet" in vm.agent_vm("status")
    assert services.tried(vm) == ""
    assert services.heard() == b""
    assert f"SECRET-of-{own.tcp.getsockname()[0]} " in own.tried(vm)
    assert inside(vm, NAMES) == "found\n"


AUDITED = "this machine's loopback from the VM"


def test_an_audit_of_a_real_vm_says_what_the_network_is(vm: User) -> None:
    found = json.loads(vm.run(PROGRAM, "audit", "--json").stdout)["findings"]
    (loopback,) = [each["held"] for each in found if each["tried"] == AUDITED]
    assert loopback is ("Network: open" not in vm.agent_vm("status"))


def works(vm: User, top: Path) -> bool:
    inside(vm, "echo 1 > work; git add work; git commit -qm work", top, "fix")
    vm.agent_vm("fetch", "fix", cwd=top)
    mounted = vm.home / ".agent-vm-mounts/workspace/offline-fix/work"
    return vm.git("show", "fix:work", cwd=top) == mounted.read_text().strip() == "1"
