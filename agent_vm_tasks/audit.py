"""The isolation, attacked on the user's own machine and VM: with canaries, over loopback only.

A promise counts as kept only where an attack on it was made and failed.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import re
import socket
import time
import unicodedata
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from . import audit_scene, golden, guest, intact, mount, network, process, render, vm, walls
from .errors import UsageError
from .intact import NotTriedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from .audit_scene import Scene, Told
    from .intact import Finding
    from .settings import Settings

LARGEST_SAID = 2**26
"""Bytes of a log of Lima's: each is bounded well below."""
SEARCH = 20.0
"""Seconds for a kept disk to be read through."""
SHOWS_UP = 4.0
"""Seconds for a port that the guest opens to show up here: Lima's agent looks every three."""
REPORT = "report it: it is a fault of agent-vm"
_ACTING = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of characters that act instead of being seen."""
_V6 = socket.AF_INET6
_COMMON = {"0", "1000", "65534"}
"""Uids that say nothing of who has them: the VM has them of itself."""


@dataclass(frozen=True)
class Attack:
    """`make` gives what got through, or nothing; raises NotTriedError where it cannot be made."""

    promise: str
    tried: str
    make: Callable[[Scene], str]
    fix: str


def run(settings: Settings) -> list[Finding]:
    """Make every attack on the running VM; raises AgentVMError where it cannot be entered."""
    vm.require_running(settings.vm.name)
    with audit_scene.laid_out(settings) as scene:
        return findings(scene)


def quick(settings: Settings) -> list[Finding]:
    """Look whether the VM is what was created; raises AgentVMError where there is none."""
    return intact.look(settings, vm.require_exists(settings.vm.name))


def findings(scene: Scene) -> list[Finding]:
    """What a quick look finds, and every attack, in the order in which they are listed."""
    facts = [each for each in quick(scene.settings) if each.promise not in COVERED]
    return facts + [intact.judged(each.promise, each.tried, each.fix, partial(each.make, scene))
                    for each in ATTACKS]  # fmt: skip


# The attacks


def _mounts(scene: Scene) -> str:
    inside = scene.said.get("mounts", "")
    return f"mounted in the VM: {', '.join(inside.split())}" if inside else ""


def _git(scene: Scene) -> str:
    done = _in_mount("git", "-C", str(scene.mounted / "repository"), "rev-parse")  # runs no program
    if done.ok:
        return "git here works in the mount, and runs what the VM names"
    if "dubious ownership" not in done.stderr:
        raise NotTriedError(f"git did not come to ask who owns the repository: {done.reason}")
    return ""


def _links(scene: Scene) -> str:
    link = str(scene.mounted / "link")
    read = _in_mount("head", "-c", "100", link)
    if scene.canary in read.stdout:
        return "a link in the workspace led to a file of this machine"
    if not _in_mount("test", "-L", link).ok:
        raise NotTriedError("the mount shows no link of the VM's")
    if not read.stderr.endswith(": Operation not permitted\n"):
        raise NotTriedError(f"the link was not refused: {read.reason}")
    return ""


def _in_mount(*argv: str) -> process.Result:
    """What a program says there, in English; one of its own may hang and be ended."""
    return process.run(argv, check=False, timeout=10, env={**os.environ, "LC_ALL": "C"})


def _sync(scene: Scene) -> str:
    told = _heard(scene)
    if (scene.folder / "hooked").exists():
        return "a hook that the VM had committed ran here"
    return f"names that nobody asked for came in: {', '.join(told.refs)}" if told.refs else ""


def _private(scene: Scene) -> str:
    return "commits of a branch that was not named are in the VM" if _heard(scene).private else ""


def _terminal(scene: Scene) -> str:
    text = _heard(scene).text
    if any(char not in "\n\t" and unicodedata.category(char) in _ACTING for char in text):
        return "what the VM calls its files reaches the terminal as it is"
    if "0;audit" not in text:
        raise NotTriedError("no command printed the VM's text")
    return ""


def _trust(scene: Scene) -> str:
    told, asked = _heard(scene), (scene.repository / "agent-vm.toml").read_text("utf-8", "replace")
    if "AGENT_VM_AUDIT" not in asked:
        raise NotTriedError("the changed agent-vm.toml did not come")
    refused = told.pushed == UsageError("").status and "not approved by you" in told.text
    return "" if refused else "a fetched agent-vm.toml counts without your approval"


def _heard(scene: Scene) -> Told:
    if isinstance(scene.told, str):
        raise NotTriedError(scene.told)
    if scene.told.fetched:
        raise NotTriedError(scene.told.text.strip().rpartition("\n")[2])
    return scene.told


def _identity(scene: Scene) -> str:
    known = sorted(_ours() & set(scene.said.get("names", "").splitlines()))
    if known:
        return f"the VM knows {', '.join(known)}"
    uid, walled = str(os.geteuid()), walls.users(scene.name)
    accounts = (each.split(":") for each in scene.said.get("accounts", "").split())
    same = [name for name, *uids in accounts if [uid] == uids and name not in walled]
    return f"{same[0]} in the VM has your uid, {uid}" if same and uid not in _COMMON else ""


def _forwarded(scene: Scene) -> str:
    """Offer an agent and a display to a connection that is not shared: another has its own."""
    if scene.said.get("agent"):
        return "an ssh agent or a display of this machine is in the VM"
    shown = 'printf %s "${SSH_AUTH_SOCK-}${DISPLAY-}"'
    with audit_scene.agent(scene) as (path, asked):
        env = {**os.environ, "SSH_AUTH_SOCK": str(path), "DISPLAY": "127.0.0.1:99"}
        own = ("-v", "-o", "ControlPath=none", "-o", "ForwardX11Trusted=yes")
        argv = [*guest.ssh(scene.name, *own), shown]
        done = process.run(argv, check=False, timeout=20, env=env)
    if asked:
        return "ssh goes to the agent of this machine"
    if done.stdout or "Requesting X11 forwarding" in done.stderr:
        return "ssh offers the VM an agent or a display of this machine"
    if not done.ok:
        raise NotTriedError(f"ssh did not get in: {done.reason}")
    return ""


def _ours() -> set[str]:
    """Names by which this machine and its user are known; not those that many have."""
    account = pwd.getpwuid(os.geteuid())
    names = {socket.gethostname(), getpass.getuser(), account.pw_dir, str(Path.home()), _zone(),
             account.pw_gecos.partition(",")[0]}  # fmt: skip
    return names - {"", "agent", "root", "/root", "/home/agent", "localhost", "Etc/UTC", "UTC"}


def _zone() -> str:
    """The time zone of this machine, Europe/Paris for one."""
    return os.path.realpath("/etc/localtime").partition("zoneinfo/")[2]


def _impostor(scene: Scene) -> str:
    key = scene.folder / "impostor"
    process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    kind, public, *_ = key.with_suffix(".pub").read_text().split()
    (scene.folder / "known_hosts").write_text(f"{scene.name} {kind} {public}\n")
    own = ("-o", "ControlPath=none", "-o", f"UserKnownHostsFile={scene.folder}/known_hosts")
    argv = [*guest.ssh(scene.name, *own), "true"]
    done = process.run(argv, check=False, timeout=20)
    if done.ok:
        return "ssh went to a host with another key"
    if not guest.is_impostor(done):
        raise NotTriedError(f"ssh did not come to look at the key: {done.reason}")
    return ""


def _keys(scene: Scene) -> str:
    values = intact.handed_over(scene.settings).values()
    if not values:
        raise NotTriedError("no keys are handed over")
    found = scene.instance
    files = [path for path in found.dir.iterdir() if path.is_file()]
    told = [path.read_bytes() for path in files if path.stat().st_size < intact.LARGEST_LOG]
    if any(value in text for value in values for text in told):
        return f"a key is in {found.dir}"
    argv = [argv for _, argv in intact.commands(scene.name, found)]
    shown = any(value in text for value in values for text in argv)
    return "a key is in a command line of the VM's processes here" if shown else ""


def _keys_inside(scene: Scene) -> str:
    if not audit_scene.marks(scene.settings):
        raise NotTriedError("no keys are handed over")
    if "keys" not in scene.said:
        raise NotTriedError("the VM's user is not root there, so it could not look")
    places = scene.said["keys"].split("\n")
    return f"a key is in the VM in {', '.join(places)}" if any(places) else ""


def _keys_kept(scene: Scene) -> str:
    marks, disks = audit_scene.marks(scene.settings), [kept.folder for kept in golden.kept_disks()]
    if not marks or not disks:
        raise NotTriedError("no keys are handed over" if disks else "no disk is kept")
    argv = ["grep", "--recursive", "--text", "--fixed-strings", "--files-with-matches", "--file=-"]
    found = process.run(
        [*argv, *map(str, disks)], stdin=b"\n".join(marks), check=False, timeout=SEARCH
    )
    return f"a key is in {', '.join(found.stdout.split())}" if found.ok else ""


def _ports(scene: Scene) -> str:
    if scene.said.get("listens") != "tcp udp":
        raise NotTriedError("what was to listen in the VM does not, by TCP and UDP")
    while True:
        for address in ("127.0.0.1", "::1"):
            if _answers(address, scene.listening):
                return f"a port that the VM opened is at {address} here"
        if time.monotonic() > scene.began + SHOWS_UP:
            return ""
        time.sleep(0.2)


def _answers(address: str, port: int) -> bool:
    """Whether somebody is there, by TCP or by UDP."""
    with contextlib.suppress(OSError), socket.create_connection((address, port), 1):
        return True
    with socket.socket(_V6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(0.2)
        with contextlib.suppress(OSError):
            asking.connect((address, port))
            asking.send(b"?")
            return bool(asking.recv(10))
    return False


def _network(scene: Scene) -> str:
    mode = network.in_force(scene.name)
    if mode == network.wanted(scene.settings) == "open":
        raise NotTriedError("network.mode is open, which allows it")
    if reached := scene.said.get("reached", ""):
        return f"the VM reached a service of this machine's loopback at {reached.split()[0]}"
    if scene.canary.encode() in scene.heard:
        return "a datagram of the VM came to a service of this machine's loopback"
    if mode in network.RESTRICTED and scene.said.get("names_answered"):
        return f"the network is {mode}, but a name was looked up"
    if not scene.said.get("tried"):
        raise NotTriedError("the VM did not get to the end of its ways: python3 there failed")
    return ""


def _way_out(scene: Scene) -> str:
    """Ask the proxy for what is not listed and for the canary; only its own refusal counts."""
    if network.in_force(scene.name) != "allowlist":
        raise NotTriedError("the network is not allowlist")
    here = f"127.0.0.1:{scene.port}"
    asked = ("GET http://unlisted.invalid/", "GET http://127.0.0.1/", f"GET http://{here}/",
             f"CONNECT {here}")  # fmt: skip
    told = guest.script(scene.name, "audit-proxy.sh", *map(str, render.INSIDE), *asked)
    answers = dict(zip(asked, told, strict=False))
    for what, answer in answers.items():
        if answer and not re.match(r"HTTP/1\.[01] 403\b", answer):
            return f"the proxy does not refuse {what}: {answer[:100]}"
    if silent := [what for what in asked if not answers.get(what)]:
        raise NotTriedError(f"the proxy gave no answer to {silent[0]}")
    return ""


def _names(scene: Scene) -> str:
    mode = network.in_force(scene.name)
    if mode in network.RESTRICTED:
        raise NotTriedError(f"the network is {mode}")
    if not scene.said.get("names_answered"):
        raise NotTriedError("the VM's resolver gave no answer: perhaps this machine has none")
    return ""


def _walls(scene: Scene) -> str:
    if not (users := walls.users(scene.name)):
        raise NotTriedError("no workspace has walls")
    for user in users:
        if got := guest.script(scene.name, "audit-walls.sh", user=user):
            return f"{user} gets at {', '.join(got)[:200]}"
    return ""


def _limits(scene: Scene) -> str:
    found = scene.instance
    most = {"CPUs": found.cpus, "MiB of memory": found.memory, "MiB of disk": found.disk}
    with guest.understood():
        has = [int(number) for number in scene.said.get("sizes", "").split()]
        if len(has) != len(most):
            raise ValueError(has)
    for number, (what, allowed) in zip(has, most.items(), strict=True):
        if number > allowed:
            return f"the VM has {number} {what}, not {allowed}"
    for path in found.dir.glob("*.log"):
        if (taken := path.stat().st_blocks * 512) > LARGEST_SAID:  # Lima's own have holes
            return f"{path} takes {taken >> 20} MiB"
    return ""


def _mount_memory(scene: Scene) -> str:
    server = mount.server(mount.point(scene.settings)) if scene.mounted else None
    limits = Path(f"/proc/{server}/limits")
    if not limits.exists():
        raise NotTriedError("needs /proc, and the mount's sshfs")
    found = re.search(r"^Max address space +(\d+)", limits.read_text(), re.MULTILINE)
    allowed = found is not None and int(found[1]) <= mount.MEMORY_LIMIT
    return "" if allowed else "the mount's sshfs may fill this machine's memory"


COVERED = {"keys"}
"""Promises of which an attack looks at all that a quick look does."""
ATTACKS = (
    Attack("mounts", "a folder of this machine in the VM", _mounts,
           "see $LIMA_HOME/_config; `agent-vm destroy`, then start"),
    Attack("git", "settings of a workspace's git that name a program", _git,
           "take the safe.directory out that covers the mount (git config --global --edit)"),
    Attack("links", "a link in a workspace to a file here", _links, "run `agent-vm setup`"),
    Attack("sync", "hooks, tags, notes and replaced commits for a fetch", _sync, REPORT),
    Attack("sync", "commits of a branch that was not named", _private, REPORT),
    Attack("identity", "names and uid of this machine's user in the VM", _identity,
           "set vm.name and the VM's user apart from yours"),
    Attack("identity", "an agent and a display, offered to ssh", _forwarded,
           "`agent-vm restart` writes the configuration of ssh anew"),
    Attack("impostor", "a VM with another host key", _impostor, "run `agent-vm doctor --fix`"),
    Attack("keys", "keys in process lists and Lima's files", _keys, "change those keys"),
    Attack("keys", "keys in the VM's process list, logs, settings and shell histories",
           _keys_inside, "change those keys"),
    Attack("keys", "keys in kept disks", _keys_kept, "change those keys, and delete that disk"),
    Attack("ports", "a port that the VM opens", _ports, "`agent-vm destroy`, then start"),
    Attack("network", "this machine's loopback from the VM", _network,
           "run `agent-vm setup`, then `agent-vm restart`"),
    Attack("network", "names from the VM, which have to work", _names, ""),
    Attack("network", "what is not listed, and this machine's loopback, by the proxy", _way_out,
           "`agent-vm restart`"),
    Attack("terminal", "files and branches whose names steer a terminal", _terminal, REPORT),
    Attack("trust", "an agent-vm.toml that the VM had changed", _trust, REPORT),
    Attack("walls", "what is not its own, by the user of a walled workspace", _walls,
           "run `agent-vm provision`, then `agent-vm restart`"),
    Attack("limits", "what the VM has, and what Lima keeps of its words", _limits,
           "`agent-vm destroy`, then start"),
    Attack("limits", "the memory of what serves the mount", _mount_memory,
           "`agent-vm unmount --force`, then `agent-vm mount`"),
)  # fmt: skip
