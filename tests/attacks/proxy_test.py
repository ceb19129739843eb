"""Attacks on the way out of the VM: a real squid between a guest and an internet of the test.

Each attack has a twin: the same request gets through where the rule that stops it is taken out.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_vm_tasks import host, lima, network, proxy
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.lima import Instance
from agent_vm_tasks.settings import Settings
from tests.attacks import internet
from tests.conftest import VM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

PUBLIC = "93.184.216.34"
OWN = "81.2.69.142"
ALLOW = ("good.org", "*.below.org", ".both.org", "port.org:8443")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
UNSHARE = ["unshare", "--net"]
if os.geteuid() != 0:
    UNSHARE += ["--user", "--map-current-user", "--keep-caps"]


class Internet:
    """The process in the namespace, and the proxy's log."""

    def __init__(self, folder: Path, process: subprocess.Popen[str]) -> None:
        self.folder, self.process, self.count = folder, process, 0

    def do(self, what: str, *given: Any) -> Any:  # noqa: ANN401
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps([what, *given]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def get(self, url: str, headers: str = "", method: str = "GET") -> str:
        """What comes back for a plain request."""
        return str(self.do("ask", f"{method} {url} HTTP/1.0\r\n{headers}\r\n"))

    def tunnel(self, to: str) -> str:
        """What comes back through a tunnel, or in its place."""
        return str(self.do("ask", f"CONNECT {to} HTTP/1.1\r\n\r\n", "GET / HTTP/1.0\r\n\r\n"))

    def means(self, *turns: str) -> str:
        """A new listed name with these answers in turn, each addresses with spaces between."""
        self.count += 1
        name = f"n{self.count}.below.org"
        self.do("names", {name: [turn.split() for turn in turns]})
        return name


@contextlib.contextmanager
def laid_out(folder: Path, change: Callable[[str], str]) -> Iterator[Internet]:
    """The internet, with a proxy by our rules as `change` leaves them."""
    if not shutil.which("squid", path=PATH):
        pytest.skip("squid is not installed")
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are not permitted here")
    texts = proxy.configuration(
        name="vm", folder=folder, port=internet.PROXY, rules="0", allow=ALLOW, own=[OWN]
    )
    for file, text in texts.items():
        (folder / file).write_text(text)
    main = change(texts["squid.conf"]) + "dns_nameservers 127.0.0.1\n"
    (folder / "squid.conf").write_text(main)
    (folder / "log").chmod(0o755)
    (folder / "run").mkdir()
    for place in (folder / "run", folder):
        place.chmod(0o777)
    for above in folder.parents:  # squid runs as nobody
        with contextlib.suppress(PermissionError):
            above.chmod(above.stat().st_mode | 0o111)
    argv = [*UNSHARE, sys.executable, internet.__file__, str(folder)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as made:
        assert made.stdout
        assert made.stdout.readline() == '"ready"\n'
        yield Internet(folder, made)


def without(rule: str) -> Callable[[str], str]:
    """The rules without those that begin so."""
    return lambda rules: re.sub(rf"(?m)^http_access deny {rule}.*\n", "", rules)


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    with laid_out(tmp_path_factory.mktemp("net"), lambda rules: rules) as made:
        made.do("names", {"good.org": [[PUBLIC]], "other.org": [[PUBLIC]]})
        yield made


@pytest.fixture(scope="module")
def careless(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    """The twin: a proxy that hands on whatever it is asked for."""
    with laid_out(tmp_path_factory.mktemp("twin"), without("")) as made:
        made.do("names", {"good.org": [[PUBLIC]], "other.org": [[PUBLIC]]})
        yield made


def reached(said: str) -> str:
    """Which address answered, if any."""
    found = re.search(r"REACHED (\S+):(\d+)\n", said)
    return found[1] if found else ""


def status(said: str) -> str:
    return said.partition("\r\n")[0]


# What is listed, and what is not


@pytest.mark.parametrize(
    "url",
    ["http://good.org/", "http://GOOD.ORG/", "http://good.org./", "http://a.below.org/",
     "http://both.org/", "http://a.b.both.org/", "http://port.org:8443/"],
)  # fmt: skip
def test_what_is_listed_is_reached(net: Internet, url: str) -> None:
    host = url.split("/")[2].lower().rstrip(".").split(":")[0]
    net.do("names", {host: [[PUBLIC]]})
    assert reached(net.get(url)) == PUBLIC


def test_a_tunnel_to_what_is_listed_opens(net: Internet) -> None:
    assert reached(net.tunnel("good.org:443")) == PUBLIC


@pytest.mark.parametrize(
    "url",
    [
        "http://other.org/",
        "http://xgood.org/",
        "http://good.org.other.org/",
        "http://good.org@other.org/",
        "http://good.org%2eother.org/",
        "http://below.org/",
        "http://xboth.org/",
        "http://port.org/",
        "http://good.org:22/",
        "http://good.org:8443/",
        f"http://{PUBLIC}/",
        "http://1572395042/",
        "http://0x5db8d822/",
        "http://0135.0270.0330.042/",
        "http://[2606:2800:220:1::1]/",
        f"http://[::ffff:{PUBLIC}]/",
    ],
)
def test_what_is_not_listed_is_not_reached(net: Internet, careless: Internet, url: str) -> None:
    for each in (net, careless):
        for name in ("xgood.org", "good.org.other.org", "below.org", "xboth.org", "port.org"):
            each.do("names", {name: [[PUBLIC]]})
    said = net.get(url)
    assert (status(said)[:12], reached(said)) in {("HTTP/1.1 403", ""), ("HTTP/1.1 400", "")}
    if not any(odd in url for odd in ("%2e", "/1572", "/0x", "/0135")):  # no name of any resolver's
        assert reached(careless.get(url))


@pytest.mark.parametrize("to", ["other.org:443", "good.org:22", "good.org:8443", f"{PUBLIC}:443"])
def test_a_tunnel_to_what_is_not_listed_does_not_open(
    net: Internet, careless: Internet, to: str
) -> None:
    assert "403" in status(net.tunnel(to))
    assert reached(careless.tunnel(to)) == PUBLIC


@pytest.mark.parametrize(
    "url",
    ["ftp://good.org/", "https://good.org/", "urn:good.org", "cache_object://localhost/info",
     "http://good.org:80/squid-internal-mgr/menu", "http://agent-vm:3128/squid-internal-mgr/menu"],
)  # fmt: skip
def test_only_http_is_handed_on(net: Internet, url: str) -> None:
    said = net.get(url)
    assert status(said)[9:12] in {"400", "403", "404"} or reached(said) == PUBLIC
    assert "Cache Manager" not in said
    assert "Squid Object Cache" not in said


def test_the_twin_tells_of_squid_itself(careless: Internet) -> None:
    ways = ("cache_object://localhost/info", "http://agent-vm:3128/squid-internal-mgr/info")
    assert any("Squid Object Cache" in careless.get(each) for each in ways)


def test_a_name_that_is_not_listed_is_asked_of_no_resolver(
    net: Internet, careless: Internet
) -> None:
    for each in (net, careless):
        each.get("http://sesame-4711.leak.org/")
        each.tunnel("sesame-4711.leak.org:443")
    assert "sesame-4711.leak.org" not in net.do("asked")
    assert "sesame-4711.leak.org" in careless.do("asked")


def test_the_owner_of_an_address_gives_it_no_name(net: Internet) -> None:
    net.get(f"http://{PUBLIC}/")
    net.tunnel(f"{PUBLIC}:443")
    assert "34.216.184.93.in-addr.arpa" not in net.do("asked")


# Addresses


@pytest.mark.parametrize(
    "address",
    [*(each for each in internet.ADDRESSES if each not in {PUBLIC, "1.1.1.1", *internet.RELAYS}
       and not each.startswith("2606:")), OWN, "127.0.0.1", "::1", "::ffff:127.0.0.1"],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused(
    net: Internet, careless: Internet, address: str
) -> None:
    name = net.means(address)
    for said in (net.get(f"http://{name}/"), net.tunnel(f"{name}:443")):
        assert (status(said)[9:12], reached(said)) == ("403", "")
    if not address.startswith(("0.", "240.", "::127", "::ffff:")):  # which Linux itself refuses
        assert reached(careless.get(f"http://{careless.means(address)}/")) == address


@pytest.mark.parametrize(
    "answers", [f"{PUBLIC} 10.1.2.3", f"10.1.2.3 {PUBLIC}", f"{PUBLIC} fd00::1"]
)
def test_one_private_answer_among_public_ones_is_enough(net: Internet, answers: str) -> None:
    assert "403" in status(net.get(f"http://{net.means(answers)}/"))


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:2800:220:1::1"])
def test_a_public_address_is_reached(net: Internet, address: str) -> None:
    assert reached(net.get(f"http://{net.means(address)}/")) == address


QUICK = ("negative_dns_ttl 10 seconds", "negative_dns_ttl 1 second")
"""Answers that hold for a second, so that many run out while requests are on their way."""


@pytest.mark.parametrize("turns", [(PUBLIC, "10.1.2.3"), ("", "10.1.2.3"), (PUBLIC, "fd00::1")])
def test_an_answer_that_changes_leads_nowhere_else(tmp_path: Path, turns: tuple[str, ...]) -> None:
    found = flooded(tmp_path, lambda rules: rules.replace(*QUICK), turns)
    assert sum(found.values()) > 100
    assert not any("10.1.2.3" in text or "fd00" in text for text in found)
    if turns[0]:
        assert any(f"REACHED {PUBLIC}" in text for text in found)
        assert any("refused" in text for text in found)


def test_where_addresses_do_not_count_an_answer_that_changes_leads_inside(tmp_path: Path) -> None:
    found = flooded(tmp_path, without("addresses"), (PUBLIC, "10.1.2.3"), 25)
    assert any("REACHED 10.1.2.3" in text for text in found)


def flooded(
    folder: Path, change: Callable[[str], str], turns: tuple[str, ...], seconds: int = 6
) -> dict[str, int]:
    with laid_out(folder, change) as made:
        found: dict[str, int] = made.do(
            "flood", f"GET http://{made.means(*turns)}/ HTTP/1.0\r\n\r\n", seconds
        )
        return found


# This machine's root


def written(folder: Path, texts: Mapping[str, str]) -> None:
    """As lima.put writes, but as whoever runs agent-vm."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)


@pytest.mark.parametrize("link", ["proxy/squid.conf", "proxy/rules", "proxy", "agent-vm-qemu"])
def test_root_writes_nothing_where_the_account_of_the_vm_has_laid_a_link(
    home: Path, monkeypatch: pytest.MonkeyPatch, link: str, *, on: bool
) -> None:
    """Whoever breaks out of QEMU or squid is that account."""
    if not (user := host.service_user()) or not shutil.which(f"qemu-system-{host.arch()}"):
        pytest.skip("needs root, the account that runs the VM, and QEMU")
    if not on:
        monkeypatch.setattr(lima, "put", written)
    monkeypatch.setattr(proxy, "_start", lambda *_: None)
    monkeypatch.setattr(proxy, "_await", lambda *_: None)
    top = Path(tempfile.mkdtemp(prefix="lima-", dir="/tmp"))
    monkeypatch.setenv("LIMA_HOME", str(top))
    laid, target = top / VM / link, top / "root's"
    laid.parent.mkdir(parents=True)
    for place in {top, top / VM, laid.parent}:
        shutil.chown(place, user)
    if link == "proxy":
        target.mkdir()
    else:
        target.write_text("as it was")
    laid.symlink_to(target)
    with contextlib.suppress(AgentVMError):
        proxy.keep(Settings(), print)
    network.qemu(Instance(VM, "Stopped", top / VM, 1, 512, 4096, 0, "qemu"), "offline")
    kept = not list(target.iterdir()) if link == "proxy" else target.read_text() == "as it was"
    assert (kept, target.owner()) == (on, "root")
    shutil.rmtree(top)


# What the other side, the guest and the log are told


def test_the_other_side_learns_nothing_of_this_machine(net: Internet) -> None:
    said = net.get("http://good.org/", "User-Agent: curl\r\n")
    assert "User-Agent: curl" in said
    assert not re.search(r"(?im)^(via|x-forwarded-for|forwarded):", said.partition("\r\n\r\n")[2])


def test_the_guest_is_told_why_and_what_to_do(net: Internet) -> None:
    page, tunnel = net.get("http://other.org/"), net.tunnel("other.org:443")
    for said in (page, tunnel):
        assert "X-Agent-VM: this host and port are not on the list of what the VM" in said
    assert "`agent-vm network-log --learn`" in page.partition("\r\n\r\n")[2]
    inside = net.get(f"http://{net.means('10.1.2.3')}/")
    assert "its address is private" in inside.partition("\r\n\r\n")[2]
    assert "no address for this name" in net.get("http://none.below.org/")


def test_the_log_has_each_decision_and_no_byte_of_the_guests(net: Internet) -> None:
    net.get("http://other.org/", "User-Agent: a\x1b[31m b\xff\x9b\t\r\n")
    net.get("http://good.org/\x1b]0;x", "User-Agent: -\r\n", method="G\x1bET")
    net.get("http://\x1bother.org/")
    net.tunnel("good.org:443")
    log = net.folder / "run" / "log"
    wait(lambda: log.exists() and " CONNECT good.org 443 - " in log.read_text())
    raw = log.read_bytes()
    assert re.fullmatch(rb"[ -~\n]*", raw)
    found = [proxy._decision(line) for line in raw.decode().splitlines()]
    assert all(found)
    programs = {each.program for each in found if each and each.host == "other.org"}
    assert any(program.startswith("a\x1b[31m b") for program in programs)
    outcomes = {(each.host, each.port, each.method, each.refused) for each in found if each}
    assert ("other.org", 80, "GET", "unlisted") in outcomes
    assert ("good.org", 443, "CONNECT", "") in outcomes


def test_a_flood_of_refused_requests_leaves_a_small_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "LARGEST_LOG", 5_000)
    found = flooded(tmp_path, lambda rules: rules.replace(".below", ".listed"), (PUBLIC,), 6)
    assert sum(found.values()) > 150
    assert (tmp_path / "run/log.old").exists()
    logs = list((tmp_path / "run").glob("log*"))  # between a move and a line there is but one
    assert len(logs) <= 2
    assert all(file.stat().st_size < 6_000 for file in logs)


def wait(come: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not come():
        assert time.monotonic() < limit
        time.sleep(0.05)
