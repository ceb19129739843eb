"""A small internet in a network namespace: addresses, services, names, and squid as its way in.

Started as `unshare --net python internet.py FOLDER` with squid's configuration in FOLDER. Takes
one command a line, in JSON, on stdin and answers each with a line. Every service says at which
address it was reached. What comes to an address of RELAYS
goes to the socket FOLDER/ADDRESS:PORT instead, where that is.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

RELAYS = tuple(f"5.5.5.{each}" for each in range(1, 10))
ADDRESSES = (
    "93.184.216.34", "1.1.1.1", *RELAYS, "10.1.2.3", "172.16.0.1", "192.168.1.1",
    "169.254.169.254", "100.64.0.1", "198.18.0.1", "203.0.113.5", "192.0.0.8", "192.88.99.1",
    "0.0.0.1", "240.0.0.1", "81.2.69.142", "2606:2800:220:1::1", "fd00::1", "fec0::2",
    "64:ff9b::7f00:1", "2002:7f00:1::1", "2001:db8::1", "2001::1", "3fff::1", "::127.0.0.1",
    "100::1", "4000::1",
)  # fmt: skip
PORTS = (22, 80, 443, 8443)
PROXY = 3128
A, AAAA = 1, 28


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: dict[str, list[list[str]]] = {}
        self.asked: list[str] = []
        self.turn: dict[tuple[str, int], int] = {}

    def lay_out(self) -> None:
        ip("link", "set", "lo", "up")
        Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").write_text("0")
        for address in ADDRESSES:
            six = ":" in address
            ip(
                "address",
                "add",
                f"{address}/{128 if six else 32}",
                "dev",
                "lo",
                *(["nodad"] if six else []),
            )
        for port in PORTS:
            server = socket.create_server(("::", port), family=socket.AF_INET6, backlog=512,
                                          dualstack_ipv6=True)  # fmt: skip
            threading.Thread(target=self.accept, args=(server, port), daemon=True).start()
        names = socket.socket(type=socket.SOCK_DGRAM)
        names.bind(("127.0.0.1", 53))
        threading.Thread(target=self.resolve, args=(names,), daemon=True).start()

    def accept(self, server: socket.socket, port: int) -> None:
        while True:
            caller, _ = server.accept()
            threading.Thread(target=self.serve, args=(caller, port), daemon=True).start()

    def serve(self, caller: socket.socket, port: int) -> None:
        where = caller.getsockname()[0].removeprefix("::ffff:")
        with caller, contextlib.suppress(OSError):
            if (outside := self.folder / f"{where}:{port}").exists():
                relay(caller, str(outside))
                return
            request = caller.recv(65536)
            text = b"REACHED %s:%d\n%s" % (where.encode(), port, request)
            head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            caller.sendall(head % len(text) + text)

    def resolve(self, server: socket.socket) -> None:
        while True:
            query, asker = server.recvfrom(512)
            end = query.index(b"\0", 12)
            name, at = [], 12
            while at < end:
                name.append(query[at + 1 : at + 1 + query[at]].decode("latin-1"))
                at += query[at] + 1
            kind = struct.unpack(">H", query[end + 1 : end + 3])[0]
            server.sendto(self.answer(".".join(name).lower(), kind, query, end), asker)

    def answer(self, name: str, kind: int, query: bytes, end: int) -> bytes:
        """The next of the answers in turn, with a time to live of 0."""
        if kind != AAAA:
            self.asked.append(name)
        turns = self.names.get(name, [])
        turn = self.turn.get((name, kind), 0)
        self.turn[name, kind] = turn + 1
        now = turns[turn % len(turns)] if turns else []
        family = socket.AF_INET if kind == A else socket.AF_INET6
        fitting = [each for each in now if (":" in each) == (kind == AAAA)]
        records = b"".join(
            struct.pack(">HHHIH", 0xC00C, kind, 1, 0, len(packed)) + packed
            for packed in (socket.inet_pton(family, each) for each in fitting)
        )
        status = 0x8180 if now else 0x8183
        head = query[:2] + struct.pack(">HHHHH", status, 1, len(fitting), 0, 0)
        return head + query[12 : end + 5] + records

    def do(self, what: str, *given: Any) -> object:  # noqa: ANN401  as JSON has it
        if what == "names":
            self.names.update(*given)
        if what == "ask":
            return ask(*given)
        return flood(*given) if what == "flood" else self.asked


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def relay(one: socket.socket, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(path)
        back = threading.Thread(target=pump, args=(other, one), daemon=True)
        back.start()
        pump(one, other)
        back.join()


def pump(source: socket.socket, to: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            to.sendall(chunk)
        to.shutdown(socket.SHUT_WR)


def ask(request: str, then: str = "") -> str:
    """What the proxy, and in a tunnel what is behind it, says."""
    said = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", PROXY), 10) as to:
        to.sendall(request.encode("latin-1"))
        if then:
            said = to.recv(65536)
            if b" 200 " not in said.split(b"\r\n")[0]:
                return said.decode("latin-1")
            to.sendall(then.encode("latin-1"))
        while chunk := to.recv(65536):
            said += chunk
    return said.decode("latin-1")


def flood(request: str, seconds: float) -> dict[str, int]:
    """How often which first line of text came back for a request that is made again and again."""
    counts: dict[str, int] = {}
    end = time.monotonic() + seconds

    def one() -> None:
        while time.monotonic() < end:
            text = ask(request).partition("\r\n\r\n")[2].split("\n")[0]
            counts[text] = counts.get(text, 0) + 1

    workers = [threading.Thread(target=one) for _ in range(8)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    return counts


def main() -> None:
    folder = Path(sys.argv[1])
    world = World(folder)
    world.lay_out()
    account = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    who: dict[str, Any] = (
        {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    )
    argv = ["squid", "-N", "-n", f"world{os.getpid()}", "-f", str(folder / "squid.conf")]
    path = f"{os.environ['PATH']}:/usr/sbin"
    with subprocess.Popen(argv, env={"PATH": path}, stdin=subprocess.DEVNULL, **who) as squid:
        while not ask("GET http://rules.agent-vm.invalid/ HTTP/1.0\r\n\r\n"):
            if squid.poll() is not None:
                sys.exit("squid does not start")
            time.sleep(0.05)
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            print(json.dumps(world.do(*json.loads(line))), flush=True)
        squid.kill()


if __name__ == "__main__":
    main()
