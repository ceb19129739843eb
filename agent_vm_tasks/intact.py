"""Whether the VM is what was created: facts of this machine, looked at in a moment at each start.

The guest is not asked: nothing here rests on its word.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import pwd
import re
import stat
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import creation, guest, host, lima, mount, network, process, secrets, state
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .lima import Instance
    from .settings import Settings

LARGEST_LOG = 64 * 2**20
"""Bytes of a file of Lima's in which keys are looked for: larger ones are disks."""
SHORTEST_KEY = 8
_LISTENS = "0A"
"""A socket's state in /proc/net/tcp."""
_STRICT = {
    "stricthostkeychecking": "true", "nohostauthenticationforlocalhost": "no",
    "updatehostkeys": "false", "forwardagent": "no", "forwardx11": "no", "identityagent": "none",
    "identitiesonly": "yes",
}  # fmt: skip


class NotTriedError(Exception):
    """Why an attack could not be made."""


@dataclass(frozen=True)
class Finding:
    """`held`: None where nothing was tried; `detail` says what got through, or why not."""

    promise: str
    tried: str
    held: bool | None
    detail: str = ""
    fix: str = ""


@dataclass(frozen=True)
class Fact:
    """`look` gives what is not as it was made, or nothing; raises NotTriedError."""

    promise: str
    tried: str
    look: Callable[[Settings, Instance], str]
    fix: str


def look(settings: Settings, instance: Instance) -> list[Finding]:
    """Look at every fact, in the order in which they are listed."""
    return [judged(each.promise, each.tried, each.fix, partial(each.look, settings, instance))
            for each in FACTS]  # fmt: skip


def warnings(settings: Settings, instance: Instance) -> list[str]:
    """One line where the VM is not what was created."""
    wrong = [each.detail for each in look(settings, instance) if each.held is False]
    if not wrong:
        return []
    told = "`agent-vm audit --quick` says what to do"
    return [f"the VM is not what was created: {'; '.join(wrong)} ({told})"]


def seal(instance: Instance) -> None:
    """Remember the configuration as Lima has just written it."""
    state.write(sealed(instance.name), _digest(instance))


def sealed(name: str) -> Path:
    """The file with the hash of what the VM was created from."""
    return state.folder(name) / "created"


def commands(name: str, instance: Instance) -> Iterator[tuple[int, bytes]]:
    """The processes of this machine that work for the VM, with their command lines.

    Raises NotTriedError where they cannot be seen.
    """
    if host.is_macos():
        raise NotTriedError("macOS shows no processes in /proc")
    marks = (f"{instance.dir}/".encode(), str(guest.config(name)).encode())
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            argv = path.read_bytes()
            if any(mark in argv for mark in marks):
                yield int(path.parent.name), argv


def judged(promise: str, tried: str, fix: str, look: Callable[[], str]) -> Finding:
    """What comes of a look, or an attack, that gives what is wrong, or nothing."""
    try:
        wrong = look()
    except (NotTriedError, AgentVMError, OSError) as error:
        return Finding(promise, tried, None, str(error))
    return Finding(promise, tried, not wrong, wrong, fix if wrong else "")


def _digest(instance: Instance) -> str:
    return hashlib.sha256(lima.asked(instance).encode()).hexdigest()


# The facts


def _configuration(_: Settings, instance: Instance) -> str:
    try:
        creation.refuse_strange(instance, lima.asked(instance))
    except AgentVMError as error:
        return error.message
    if not sealed(instance.name).exists():
        raise NotTriedError("an older agent-vm made the VM, and did not note from what")
    if sealed(instance.name).read_text("utf-8", "replace").strip() != _digest(instance):
        return f"{instance.dir}/lima.yaml was changed"
    return ""


def _owner(settings: Settings, _: Instance) -> str:
    return mount.trust(mount.point(settings))


def _mounted(settings: Settings, _: Instance) -> str:
    lacking = mount.lacking(mount.point(settings))
    if lacking is None:
        raise NotTriedError("the workspaces are not mounted")
    return f"the workspaces are mounted without {', '.join(lacking)}" if lacking else ""


def _folders(settings: Settings, instance: Instance) -> str:
    user = host.service_user()
    theirs = pwd.getpwnam(user).pw_uid if user else os.geteuid()
    private = {state.folder(settings.vm.name): os.geteuid(), instance.dir: theirs,
               instance.dir.parent / "_config" / "user": theirs}  # fmt: skip
    for path, owner in private.items():
        found = path.stat()
        if found.st_uid != owner or stat.S_IMODE(found.st_mode) & 0o077:
            return f"{path} is open to other users"
    return ""


def _connection(settings: Settings, _: Instance) -> str:
    name = settings.vm.name
    listed = process.run(guest.ssh(name, "-G"), timeout=10).stdout.splitlines()
    has = dict(line.partition(" ")[::2] for line in listed)
    loose = [key for key, value in _STRICT.items() if has.get(key, "").lower() != value]
    if has.get("userknownhostsfile", "").replace("%%", "%") != str(guest.known_hosts(name)):
        loose.append("userknownhostsfile")
    return f"{guest.config(name)} has another {', '.join(loose)}" if loose else ""


def _keys(settings: Settings, instance: Instance) -> str:
    files = [instance.dir / "lima.yaml", *instance.dir.glob("*.log")]
    values = handed_over(settings).values()
    if not values:
        raise NotTriedError("no keys are handed over")
    for path in files:
        text = path.read_bytes() if path.stat().st_size < LARGEST_LOG else b""
        if any(value in text for value in values):
            return f"a key is in {path}"
    return ""


def listeners(settings: Settings, instance: Instance) -> str:
    allowed = {instance.ssh_port, *settings.network.ports}
    way_out, closed = f"{instance.dir}/proxy/".encode(), False
    for pid, argv in commands(settings.vm.name, instance):
        where = _listening(pid)
        if where is None and _is_passt(argv):
            if more := _more_of_passt(argv, instance.ssh_port):
                return f"passt opens more of this machine than the VM's ssh port: {more}"
            continue
        closed |= where is None
        for address, port in where or ():
            if not ipaddress.ip_address(address).is_loopback:
                return f"port {port} of the VM is open at {address}, not on loopback alone"
            if port not in allowed and way_out not in argv:
                return f"port {port} is open here and is not listed"
    if closed:
        raise NotTriedError("some processes of the VM do not show where they listen")
    return ""


def _listening(pid: int) -> list[tuple[str, int]] | None:
    """Where a process listens by TCP; None for one that hides it from its own user, as passt."""
    try:
        held = {str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except PermissionError:
        return None
    except OSError:
        return []  # it has ended
    return [where for inode, where in _sockets() if f"socket:[{inode}]" in held]


def _is_passt(argv: bytes) -> bool:
    return argv.partition(b"\0")[0].rpartition(b"/")[2] in {b"passt", b"passt.avx2"}


def _more_of_passt(argv: bytes, port: int) -> str:
    """What a passt was told to open besides the VM's ssh port; options may be cut or put together.

    It hides where it listens from all but root; what it was told it does not hide.
    """
    text = argv.decode("utf-8", "replace")
    for ours in (f"\0--tcp-ports\x00127.0.0.1/{port}:22\0", "\0--udp-ports\0none\0"):
        text = text.replace(ours, "\0", 1)
    words = text.rstrip("\0").split("\0")
    found = [at for at, word in enumerate(words) if re.match(r"-[^-]|--[tu]", word)]
    return " ".join(words[found[0] : found[0] + 2]) if found else ""


def _sockets() -> Iterator[tuple[str, tuple[str, int]]]:
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net", table)
        for line in path.read_text("ascii").splitlines()[1:] if path.exists() else ():
            _, local, _, status, *rest = line.split()
            if status == _LISTENS:
                address, _, port = local.partition(":")
                yield rest[5], (_address(address), int(port, 16))


def _address(text: str) -> str:
    """An address as the kernel writes it: words of 32 bits, each with its last byte first."""
    raw = bytes.fromhex(text)
    words = [raw[at : at + 4][::-1] for at in range(0, len(raw), 4)]
    return str(ipaddress.ip_address(b"".join(words)))


def _network(settings: Settings, instance: Instance) -> str:
    name, mode = settings.vm.name, network.in_force(settings.vm.name)
    argv = next((argv for pid, argv in commands(name, instance) if pid == instance.driver_pid), b"")
    if b"qemu-system" not in argv.partition(b"\0")[0]:
        raise NotTriedError("no QEMU of the VM runs here")
    restricted, passt = b"restrict=on" in argv, b"passt.sock" in argv
    has = network.RESTRICTED if restricted else {"internet"} if passt else {"open"}
    if mode not in has:
        return f"QEMU does not run with the network {mode}"
    if passt and not any(b"--no-map-gw" in each for _, each in commands(name, instance)):
        return "passt shows the VM this machine's loopback"
    if mode != network.wanted(settings):
        raise NotTriedError(f"the network is {mode}, {network.wanted(settings)} is asked for")
    return ""


def handed_over(settings: Settings) -> dict[str, bytes]:
    """What is handed over from this machine and is long enough to be recognized."""
    given = secrets.collect(settings)
    pairs = given.variables.items()
    ours = {name: value for name, value in pairs if os.environb.get(name.encode()) == value}
    known = {**ours, **given.files}
    return {name: value for name, value in known.items() if len(value) >= SHORTEST_KEY}


FACTS = (
    Fact("mounts", "the configuration that Lima runs the VM with", _configuration,
         "see what was changed there; `agent-vm destroy`, then start, makes it anew"),
    Fact("git", "settings of git here that trust the mount", _owner, mount.UNTRUST),
    Fact("links", "the options of the mount", _mounted,
         "`agent-vm unmount --force`, then `agent-vm mount`"),
    Fact("identity", "folders of the VM that others can read", _folders,
         "chmod 700 it, or give it back to its owner"),
    Fact("impostor", "the configuration of ssh", _connection, "`agent-vm restart` writes it anew"),
    Fact("keys", "Lima's files of the VM", _keys, "change those keys"),
    Fact("ports", "what the VM's processes listen at here", listeners, "`agent-vm restart`"),
    Fact("network", "the network that QEMU was started with", _network, "`agent-vm restart`"),
)  # fmt: skip
