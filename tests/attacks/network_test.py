"""Frames that a guest could send, to the real QEMU with the network of a mode: what arrives here.

Each attack on a closed network has its twin: with `open` the same frame arrives. What a guest that
has booted reaches is in tests/vm/network_test.py.
"""

from __future__ import annotations

import contextlib
import ipaddress
import select
import shutil
import socket
import struct
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import host, lima, network
from tests.conftest import VM, free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CANARY = b"c4n4ry"
TCP, UDP = 6, 17
PATIENCE = 2.5
"""Seconds in which the same frame arrives at once where it may."""
OWN = "this machine's address"
OWN6 = "this machine's address of IPv6"
MAPPED = "this machine's address, mapped"
WAYS = {
    "the gateway": ("192.168.5.2", "127.0.0.1"),
    "the gateway of IPv6": ("fec0::2", "::1"),
    "loopback": ("127.0.0.1", "127.0.0.1"),
    "more of loopback": ("127.0.0.2", "127.0.0.2"),
    "loopback, mapped": ("::ffff:127.0.0.1", "127.0.0.1"),
    "loopback of IPv6": ("::1", "::1"),
    "no address": ("0.0.0.0", "127.0.0.1"),  # noqa: S104  nothing binds to it
    OWN: ("{own}", "{own}"),
    MAPPED: ("::ffff:{own}", "{own}"),
    OWN6: ("{own6}", "{own6}"),
}
"""What a guest names, though its own kernel would not send some, and what of this machine that is.

A socket's ::ffff:192.168.5.2 is in no frame: the guest's kernel makes 192.168.5.2 of it.
"""


@pytest.fixture(params=["open", "offline", "internet"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def ends() -> dict[str, tuple[str, str]]:
    """For each way what the guest names, and where we listen."""
    own = {"own": own_address("192.0.2.1"), "own6": own_address("2001:db8::1")}
    named = {way: (to.format(**own), here.format(**own)) for way, (to, here) in WAYS.items()}
    return {way: (to, here) for way, (to, here) in named.items() if here}


def own_address(towards: str) -> str:
    """The address that this machine would have there, or none; nothing is sent."""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asked, contextlib.suppress(OSError):
        asked.connect((towards, 9))
        return str(asked.getsockname()[0])
    return ""


@pytest.fixture
def send(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[bytes], object]]:
    """What puts a frame on the wire of a VM, as its network card would."""
    monkeypatch.setattr(host, "service_user", lambda: None)  # tmp_path is closed to it
    if not shutil.which(f"qemu-system-{host.arch()}"):
        pytest.skip("QEMU is not installed")
    if mode == "internet" and host.passt_day() < host.PASST_MINIMUM:
        pytest.skip("passt is not installed, or too old")
    folder = tmp_path / VM
    folder.mkdir()
    instance = lima.Instance(VM, "Stopped", folder, 1, 512, 4096, 0, "qemu")
    runs = str(network.qemu(instance, mode))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.bind(("127.0.0.1", 0))
        theirs = ("127.0.0.1", free_port())
        ours = "{}:{}".format(*wire.getsockname())
        forward = f"hostfwd=tcp:127.0.0.1:{free_port()}-:22"
        netdevs = [
            f"user,id=net0,net=192.168.5.0/24,dhcpstart=192.168.5.15,{forward}",
            "hubport,id=guest,hubid=0,netdev=net0",
            "socket,id=wire,udp={},localaddr={}:{}".format(ours, *theirs),
            "hubport,id=card,hubid=0,netdev=wire",
        ]
        argv = [runs, "-machine", "none", "-nodefaults", "-display", "none"]
        argv += [word for each in netdevs for word in ("-netdev", each)]
        with running(argv):
            yield lambda frame: wire.sendto(frame, theirs)


@contextlib.contextmanager
def running(argv: list[str]) -> Iterator[None]:
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as child:
        try:
            yield
            assert child.poll() is None, "QEMU has ended"
        finally:
            child.terminate()


@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_what_arrives(
    send: Callable[[bytes], object], ends: dict[str, tuple[str, str]], mode: str, protocol: int
) -> None:
    """With `internet`, what every machine of the network could send."""
    with contextlib.ExitStack() as made:
        servers = {
            made.enter_context(listener(protocol, here)): way for way, (_, here) in ends.items()
        }
        ports = {way: server.getsockname()[1] for server, way in servers.items()}
        content = udp if protocol == UDP else tcp
        frames = [frame(to, protocol, content(ports[way])) for way, (to, _) in ends.items()]
        arrived: set[str] = set()
        end = time.monotonic() + PATIENCE
        while arrived != set(ends) and time.monotonic() < end:
            for each in frames:  # again and again, as QEMU has just been started
                send(each)
            time.sleep(0.1)
            arrived |= {servers[each] for each in select.select(list(servers), [], [], 0)[0]}
    assert arrived == {"open": set(ends), "internet": {OWN} & set(ends)}.get(mode, set())


def listener(protocol: int, address: str) -> socket.socket:
    kind = socket.SOCK_DGRAM if protocol == UDP else socket.SOCK_STREAM
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    made.bind((address, 0))
    if protocol == TCP:
        made.listen()
    return made


def udp(port: int) -> bytes:
    return struct.pack(">HHHH", 40000, port, 8 + len(CANARY), 0) + CANARY


def tcp(port: int) -> bytes:
    """The first segment of a connection."""
    return struct.pack(">HHIIBBHHH", 40000, port, 1, 0, 5 << 4, 2, 65535, 0, 0)


def frame(to: str, protocol: int, content: bytes) -> bytes:
    """An Ethernet frame of the guest's to an address of its network."""
    target = ipaddress.ip_address(to)
    ours = ipaddress.ip_address("fec0::15" if target.version == 6 else "192.168.5.15")
    pseudo = ours.packed + target.packed + struct.pack(">II", len(content), protocol)
    at = 6 if protocol == UDP else 16
    content = content[:at] + checksum(pseudo + content) + content[at + 2 :]
    if target.version == 6:
        head = struct.pack(">IHBB", 6 << 28, len(content), protocol, 64)
        return ethernet(b"\x52\x56\0\0\0\x02", 0x86DD, head + ours.packed + target.packed + content)
    head = struct.pack(">BBHHHBB", 0x45, 0, 20 + len(content), 1, 0, 64, protocol)
    ends = ours.packed + target.packed
    head += checksum(head + ends) + ends
    return ethernet(b"\x52\x55\xc0\xa8\x05\x02", 0x0800, head + content)


def ethernet(to: bytes, kind: int, content: bytes) -> bytes:
    return to + b"\x52\x55\x55\x11\x22\x33" + struct.pack(">H", kind) + content


def checksum(data: bytes) -> bytes:
    """The sum that IP, UDP and TCP have (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)
