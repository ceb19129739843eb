"""The way out with network mode allowlist: its list, squid's life, and the log."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import data, host, proxy, secrets, settings
from agent_vm_tasks.errors import AgentVMError, UsageError

from .conftest import VM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def mine(home: Path, text: str) -> settings.Settings:
    """The settings with this in the user's own file."""
    config = home / ".config" / "agent-vm" / "config.toml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(text)
    return settings.load(home)


def allow(*entries: str) -> str:
    return f"[network]\nallow = {json.dumps(entries)}\n"


# The list


def refused(name: str, port: str) -> proxy.Decision:
    return proxy.Decision(1.0, "unlisted", 403, "CONNECT", name, int(port), "curl/8")


@pytest.mark.parametrize(
    ("entry", "reached", "not_reached"),
    [
        ("a.org", ("a.org:80", "a.org:443"), ("a.org:22", "b.a.org:443", "xa.org:443", "aXorg:80")),
        ("*.a.org", ("b.a.org:443", "c.b.a.org:80"), ("a.org:443", "xa.org:443", "a.org.c:80")),
        (".a.org", ("a.org:443", "b.a.org:80"), ("xa.org:443", "a.orgx:443")),
        ("a.org:8443", ("a.org:8443",), ("a.org:443", "a.org:80", "b.a.org:8443")),
    ],
)
def test_what_an_entry_lets_through(
    home: Path, entry: str, reached: tuple[str, ...], not_reached: tuple[str, ...]
) -> None:
    chosen = mine(home, allow(entry))
    tried = [refused(*each.split(":")) for each in (*reached, *not_reached)]
    assert set(proxy.learned(tried, chosen)).isdisjoint(reached)
    assert not listed(chosen, *not_reached)
    assert listed(chosen, *reached) == set(reached)


def listed(chosen: settings.Settings, *asked: str) -> set[str]:
    found = proxy.patterns(chosen.network.allow)
    pairs = [(each, *each.split(":")) for each in asked]
    return {each for each, name, port in pairs
            if any(re.search(one, name) for one in found.get(int(port), ()))}  # fmt: skip


@pytest.mark.parametrize(
    "entry",
    ["10.0.0.1", "localhost", "com", "*.com", "*", "a.org.", "A.org", "a..org", "-a.org", "a_b.org",
     "[::1]", "a.org:0", "a.org:65536", "a.org:x", "http://a.org", "a.org/x", "0x7f.0x1", "a.org ",
     "a.*.org", "bücher.org", "a.org\nhttp_access allow all", "a.127"],
)  # fmt: skip
def test_what_is_no_host_of_the_internet_is_no_entry(home: Path, entry: str) -> None:
    with pytest.raises(UsageError, match=r"network\.allow"):
        mine(home, allow(entry))


def test_our_own_list_holds_entries_only_and_no_double(home: Path) -> None:
    entries = data.entries(data.root() / "common" / "network" / "allow.txt")
    assert mine(home, allow(*entries)).network.allow == entries
    assert len(set(entries)) == len(entries) > 30


def test_lists_and_mirrors_add_up(home: Path) -> None:
    mirrors = """[packages]
        npm_registry = "https://npm.corp.org:8443/x"
        go_proxy = "https://Go.corp.org"
        """
    found = proxy.allowed(mine(home, f"{allow('a.org')}{mirrors}"))
    assert {"a.org", "npm.corp.org:8443", "go.corp.org", "pypi.org"} <= set(found)


@pytest.mark.parametrize("mirror", ["http://[fd00::1]", "http://[::1]:3142/x", "http://[:::]/"])
def test_a_mirror_by_address_is_no_entry(home: Path, mirror: str) -> None:
    """No list opens addresses: those of a company are private."""
    chosen = mine(home, f'[packages]\nnpm_registry = "{mirror}"\n')
    assert proxy.allowed(chosen) == proxy.allowed(settings.Settings())
    proxy.patterns(proxy.allowed(chosen))


def test_a_repositorys_hosts_wait_for_trust(home: Path, repository: Path) -> None:
    mine(home, allow("a.org"))
    (repository / "agent-vm.toml").write_text(allow("a.org"))
    assert settings.load(repository).network.allow == ("a.org",)
    (repository / "agent-vm.toml").write_text(allow("a.org", "evil.org"))
    with pytest.raises(UsageError, match=r"network\.allow: not approved by you"):
        settings.load(repository)


# Squid


@pytest.fixture
def squid(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a VM's proxy, where the account that runs the VM gets to."""
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    if proxy.lacks() or (os.geteuid() == 0 and not host.account_exists()):
        pytest.skip("squid, socat or the account that runs it is missing")
    top = Path(tempfile.mkdtemp(prefix="lima-", dir="/tmp"))
    top.chmod(0o755)
    if user := host.service_user():
        shutil.chown(top, user)
    monkeypatch.setenv("LIMA_HOME", str(top))
    yield top / VM / "proxy"
    proxy.end(VM)
    shutil.rmtree(top)


def keep(chosen: settings.Settings) -> int:
    """Keep the proxy; its process id."""
    told: list[str] = []
    proxy.keep(chosen, told.append)
    assert not told
    return int((proxy._folder(VM) / "run" / "squid.pid").read_text())


def answer(squid: Path, name: str) -> str:
    """What the proxy says to a request for a host."""
    port = int((squid / "port").read_text())
    with socket.create_connection(("127.0.0.1", port), 20) as to:
        to.sendall(f"GET http://{name}/ HTTP/1.0\r\nUser-Agent: me\r\n\r\n".encode())
        return b"".join(iter(lambda: to.recv(65536), b"")).decode()


def test_a_list_that_changed_is_in_force_at_once_in_the_same_squid(squid: Path, home: Path) -> None:
    pid = keep(mine(home, ""))
    assert "not on the list" in answer(squid, "new.invalid")
    assert keep(mine(home, "")) == pid
    for _ in range(3):
        assert keep(mine(home, allow("new.invalid"))) == pid
        assert "not on the list" not in answer(squid, "new.invalid")
        assert keep(mine(home, "")) == pid
        assert "not on the list" in answer(squid, "new.invalid")


def test_one_that_was_killed_comes_back_at_the_port_that_qemu_knows(
    squid: Path, home: Path
) -> None:
    pid, port = keep(mine(home, "")), (squid / "port").read_text()
    command = proxy.command(VM)
    os.kill(pid, signal.SIGKILL)
    for child in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if os.fsencode(squid) in child.read_bytes():
                os.kill(int(child.parent.name), signal.SIGKILL)
    wait(lambda: not proxy._pid(squid))
    assert keep(mine(home, "")) != pid
    assert (squid / "port").read_text() == port
    assert command == proxy.command(VM)
    assert command.endswith(f" -t 5 STDIO TCP:127.0.0.1:{port}")


def test_one_that_ends_while_it_is_told_of_new_rules_is_started_anew(
    squid: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, kill = keep(mine(home, "")), os.kill

    def late(pid: int, number: int) -> None:
        if number == signal.SIGHUP:
            proxy._kill(squid)
            raise ProcessLookupError
        kill(pid, number)

    monkeypatch.setattr(os, "kill", late)
    assert keep(mine(home, allow("new.invalid"))) != first
    assert "not on the list" not in answer(squid, "new.invalid")


def test_it_listens_on_the_loopback_alone_and_ends_with_the_vm(squid: Path, home: Path) -> None:
    keep(mine(home, ""))
    port = int((squid / "port").read_text())
    listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    places = {line.split()[1] for line in listening.splitlines() if f":{port:04X} " in line
              and line.split()[3] == "0A"}  # fmt: skip
    assert places == {f"0100007F:{port:04X}"}
    proxy.end(VM)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)


def test_a_process_that_took_the_number_is_left_alone(squid: Path, home: Path) -> None:
    keep(mine(home, ""))
    proxy.end(VM)
    with subprocess.Popen(["sleep", "60"]) as other:
        (squid / "run" / "squid.pid").write_text(f"{other.pid}\n")
        proxy.end(VM)
        time.sleep(0.2)
        assert other.poll() is None
        assert keep(mine(home, "")) != other.pid
        other.kill()


def test_a_port_that_somebody_took_is_one_line(
    squid: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "PATIENCE", 2.0)
    keep(mine(home, ""))
    port = (squid / "port").read_text()
    proxy.end(VM)
    (squid / "port").write_text(port)
    with (
        socket.create_server(("127.0.0.1", int(port))),
        pytest.raises(AgentVMError, match=r"the proxy, the way out of the VM, does not start"),
    ):
        keep(mine(home, ""))


def wait(come: Callable[[], bool]) -> None:
    limit = time.monotonic() + 10
    while not come():
        assert time.monotonic() < limit
        time.sleep(0.05)


def test_what_the_guest_sees_of_the_rules_tells_nothing_of_this_machine(home: Path) -> None:
    """The rules are told apart by a word that nobody without the VM's key can work out."""
    before = proxy._rules(settings.Settings())
    assert proxy._rules(settings.Settings()) == before
    secrets.key_file(VM).unlink()
    assert proxy._rules(settings.Settings()) != before
