"""The one way out of a VM whose network is `allowlist`: squid, on this machine's loopback.

QEMU hands what the guest sends to render.INSIDE to a program of its own, which joins it to squid.
Squid asks for names itself, and decides by the rules of templates/squid.conf.j2.
"""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
import re
import shlex
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from . import data, host, lima, process, secrets, settings, state
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .console import Say
    from .settings import Settings

PORTS = (80, 443)
"""Of an entry that names none."""
PATIENCE = 15.0
"""Seconds for squid to start, to take new rules, or to end."""
LARGEST_LOG = 4 * 2**20
"""Bytes of the log, of which there are two."""
LARGEST_MEMORY = 2**30
OPEN_FILES = 4096

REASONS = {
    "protocol": "only http, and tunnels (CONNECT) to other ports, are handed on",
    "unlisted": "this host and port are not on the list of what the VM may reach",
    "unknown": "there is no address for this name",
    "private": "its address is private, special, or this machine's own, which no list opens",
}
"""Why something is refused, as the guest is told."""

PRIVATE = (
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15",
    "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/3",
    "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20", "4000::/2", "8000::/1",
)  # fmt: skip
"""What is no public address (IANA's special-purpose registries): of IPv6 only 2000::/3 is public.

The rest of ::/3, but for the IPv4 addresses that squid keeps there, comes from `_low`.
"""
_SPECIAL = (".localhost", ".local", ".internal", ".home.arpa", ".test", ".invalid", ".example",
            ".onion")  # fmt: skip
"""Names of no public host (RFC 6761 and 6762, ICANN's .internal)."""


@dataclass(frozen=True)
class Decision:
    """What was asked of the proxy; `refused` is a key of REASONS, "malformed", or empty.

    Host, method and program are the guest's words.
    """

    time: float
    refused: str
    status: int
    method: str
    host: str
    port: int
    program: str


def keep(chosen: Settings, say: Say) -> None:
    """Have the proxy run by what the settings allow now; raises AgentVMError.

    Connections that are open stay. One that runs by the same rules is left alone.
    """
    folder, rules = _folder(chosen.vm.name), _rules(chosen)
    if _pid(folder) and _port(folder) and state.read(folder / "rules") == rules:
        return
    with state.lock(chosen.vm.name, say, "proxy.lock"):
        port = _port(folder) or host.free_port()  # a running VM's QEMU knows the old one
        _write(folder, chosen, port, rules)
        if not _rereads(_pid(folder)):
            _start(folder, port)
        _await(folder, port, rules)
        lima.put(folder, {"rules": rules})


def end(name: str) -> None:
    """End the VM's proxy, if there is one; the next boot's gets a port of its own."""
    folder = _folder(name)
    _kill(folder)
    for file in ("rules", "port"):
        (folder / file).unlink(missing_ok=True)


def command(name: str) -> str:
    """What QEMU runs for each of the guest's connections."""
    port = _port(_folder(name))
    return f"{shlex.quote(host.require('socat'))} -t 5 STDIO TCP:127.0.0.1:{port}"


def lacks() -> str:
    """Which of the programs this host lacks."""
    return host.lacks(*host.PROXY)


def decisions(name: str) -> list[Decision]:
    """What the log holds, the oldest first."""
    run, lines = _folder(name) / "run", list[str]()
    for file in (run / "log.old", run / "log"):
        with contextlib.suppress(FileNotFoundError):
            lines += file.read_text("utf-8", "replace").splitlines()
    return sorted(filter(None, map(_decision, lines)), key=lambda each: each.time)


def plain(each: Decision) -> dict[str, object]:
    """A decision as JSON has it."""
    return {**asdict(each), "refused": each.refused or None, "why": REASONS.get(each.refused)}


def learned(found: Iterable[Decision], chosen: Settings) -> dict[str, list[Decision]]:
    """Entries for network.allow that would let through what was not listed, and what asked.

    None for what can be no public host.
    """
    listed, entries = patterns(allowed(chosen)), dict[str, list[Decision]]()
    for each in found:
        known = any(re.search(one, each.host) for one in listed.get(each.port, ()))
        entry = each.host if each.port in PORTS else f"{each.host}:{each.port}"
        usable = re.fullmatch(settings.ALLOWED, entry) and not each.host.endswith(_SPECIAL)
        if each.refused == "unlisted" and usable and not known:
            entries.setdefault(entry, []).append(each)
    return entries


def allowed(chosen: Settings) -> tuple[str, ...]:
    """What the VM may reach: our list, the settings', and the mirrors that they name.

    An IPv6 address in place of a name is none that a list opens.
    """
    common = data.entries(data.root() / "common" / "network" / "allow.txt")
    packages = chosen.packages
    mirrors = (packages.debian_mirror, packages.npm_registry, packages.python_index,
               packages.go_proxy, packages.lima_releases)  # fmt: skip
    found = filter(None, (re.match(r"https?://([^/\[]+)", each) for each in mirrors))
    named = [each[1].lower() for each in found]
    return tuple(dict.fromkeys((*common, *chosen.network.allow, *named)))


def patterns(entries: Iterable[str]) -> dict[int, list[str]]:
    """Regular expressions for the hosts, in lower case, that may be reached on each port."""
    found: dict[int, list[str]] = {}
    for entry in entries:
        name, _, port = entry.partition(":")
        form = {"*": r"^.+\.", ".": r"^(.+\.)?"}.get(name[0], "^")
        pattern = f"{form}{re.escape(name.lstrip('*.'))}$"
        for each in (int(port),) if port else PORTS:
            found.setdefault(each, []).append(pattern)
    return found


def configuration(*, name: str, folder: Path, port: int, rules: str, allow: Iterable[str],
                  own: Iterable[str]) -> dict[str, str]:  # fmt: skip
    """Squid's configuration and what it names: texts by file name."""
    from . import render

    env = render.environment()
    page = env.get_template("refused.j2")
    pages = {reason: page.render(why=why, ask=reason == "unlisted")
             for reason, why in REASONS.items()}  # fmt: skip
    main = env.get_template("squid.conf.j2").render(
        name=name, folder=folder, port=port, rules=rules, reasons=REASONS, own=own,
        listed=patterns(allow), private=(*PRIVATE, *_low()), files=OPEN_FILES,
    )  # fmt: skip
    log = env.get_template("proxy-log.sh.j2").render(largest=LARGEST_LOG)
    return {"squid.conf": main, "log": log, **pages}


def _low() -> list[str]:
    """::/3 but for ::ffff:0:0/96, as which squid keeps IPv4 addresses."""
    low, mapped = ipaddress.IPv6Network("::/3"), ipaddress.IPv6Network("::ffff:0:0/96")
    return [str(network) for network in low.address_exclude(mapped)]


def _own() -> list[str]:
    """The addresses of this machine, public ones included; raises AgentVMError."""
    try:
        table = Path("/proc/net/fib_trie").read_text("ascii")
    except OSError as error:
        raise AgentVMError(f"this machine's addresses are not known: {error.strerror}") from None
    old = re.findall(r"\|-- (\S+)\n\s+/32 host LOCAL", table)
    six = Path("/proc/net/if_inet6")
    lines = six.read_text("ascii").split("\n")[:-1] if six.exists() else []
    new = [str(ipaddress.IPv6Address(bytes.fromhex(line.split()[0]))) for line in lines]
    return sorted({*old, *new})


def _rules(chosen: Settings) -> str:
    """A hash of all that decides: the list, this machine's addresses and resolvers, our rules.

    The guest gets to see it, and without the key it could try out addresses.
    """
    files = (data.root() / "templates" / "squid.conf.j2", Path("/etc/resolv.conf"))
    texts = [path.read_text("utf-8", "replace") for path in files if path.exists()]
    text = "\0".join([*texts, *PRIVATE, *allowed(chosen), "", *_own()])
    return hmac.digest(secrets.key(chosen.vm.name), text.encode(), "sha256").hex()[:16]


def _write(folder: Path, chosen: Settings, port: int, rules: str) -> None:
    texts = configuration(name=chosen.vm.name, folder=folder, port=port, rules=rules,
                          allow=allowed(chosen), own=_own())  # fmt: skip
    lima.put(folder / "run", {})
    lima.put(folder, {**texts, "port": str(port)})


def _start(folder: Path, port: int) -> None:
    """Start squid as the account that runs the VM; what is left of an earlier one is no use."""
    for file in ("squid.pid", "squid.log"):
        (folder / "run" / file).unlink(missing_ok=True)
    # the name keeps what it shares in memory apart from other squids'
    argv = [host.require("squid"), "-n", f"agentvm{port}", "-f", str(folder / "squid.conf")]
    if host.which("prlimit"):
        argv = ["prlimit", f"--as={LARGEST_MEMORY}", *argv]
    process.run(argv, user=host.service_user(), env=lima.environment(), cwd="/", timeout=PATIENCE)


def _rereads(pid: int) -> bool:
    """Have the squid of that process id read its rules anew; False where it has ended."""
    with contextlib.suppress(ProcessLookupError):
        if pid:
            os.kill(pid, signal.SIGHUP)
            return True
    return False


def _await(folder: Path, port: int, rules: str) -> None:
    """Wait until it decides by these rules; raises AgentVMError, and ends it, when it is late."""
    limit = time.monotonic() + PATIENCE
    while _told(port) != rules:
        if time.monotonic() > limit:
            _kill(folder)
            raise AgentVMError(
                "the proxy, the way out of the VM, does not start",
                f"see {folder}/run/squid.log; `agent-vm restart` tries again",
            )
        time.sleep(0.05)


def _kill(folder: Path) -> None:
    limit = time.monotonic() + PATIENCE
    while pid := _pid(folder):
        late = time.monotonic() > limit
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        time.sleep(0.1)


def _told(port: int) -> str:
    """By which rules the proxy at this port says that it decides."""
    import http.client

    to = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        to.request("GET", "http://rules.agent-vm.invalid/")
        return to.getresponse().getheader("X-Agent-VM-Rules") or ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        to.close()


def _decision(line: str) -> Decision | None:
    """A line of the log; None for what is none, as after a full disk."""
    try:
        when, status, method, name, port, refused, program = line.split(" ")
        malformed = "malformed" if name.startswith("error:") or port == "-" else ""
        return Decision(
            float(when), refused if refused in REASONS else malformed, int(status),
            unquote(method), unquote(name), int(port) if port.isdigit() else 0,
            "" if program == "-" else unquote(program),
        )  # fmt: skip
    except ValueError:
        return None


def _folder(name: str) -> Path:
    """In the VM's folder of Lima's: the account that runs the VM works there."""
    return lima.folder(name) / "proxy"


def _pid(folder: Path) -> int:
    """The process id of the squid that runs by this folder; 0 without one."""
    try:
        pid = int((folder / "run" / "squid.pid").read_text("ascii"))
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return 0
    return pid if os.fsencode(folder / "squid.conf") in words else 0


def _port(folder: Path) -> int:
    try:
        return int((folder / "port").read_text("ascii"))
    except (OSError, ValueError):
        return 0
