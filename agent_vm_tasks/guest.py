"""The way into the VM: OpenSSH over one warm connection, and Fabric for composition."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
import time
from typing import IO, TYPE_CHECKING, Any

from . import data, process, state
from .console import warn
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from fabric import Connection
    from invoke.context import Context

    from .lima import Instance
    from .process import Result

GREETING = 3.0
"""Seconds for sshd in the guest to say its first word."""
RESPONSE = 5.0
"""Seconds for a command that does nothing to come back over the warm connection."""
LONG = 4.0
"""Seconds after which it is looked whether commands still come back."""
DRIFT = 60
"""Seconds that the guest's clock may be off before it is set."""
SSH_FAILED = 255
"""ssh(1)'s own exit status when the connection, not the remote command, fails."""


class UnreachableError(AgentVMError):
    """ssh could not get in, or lost the connection."""


def attach(instance: Instance) -> None:
    """Write our ssh configuration for a running instance; its port changes at each start.

    A connection to where it is already stays: other commands may be using it.
    """
    from . import render

    name = instance.name
    text = render.ssh_config(
        name=name,
        user=render.GUEST_USER,
        port=instance.ssh_port,
        identity=instance.dir.parent / "_config" / "user",
        known_hosts=known_hosts(name),
        control_path=state.control_path(name),
    )
    if config(name).exists() and config(name).read_text("utf-8", "replace") == text:
        return
    disconnect(name)
    state.write(config(name), text)


def config(name: str) -> Path:
    return state.folder(name) / "ssh.config"


def known_hosts(name: str) -> Path:
    return state.folder(name) / "known_hosts"


def ssh(name: str, *options: str) -> list[str]:
    return ["ssh", "-F", str(config(name)), *options, name]


def acting(user: str) -> list[str]:
    """What goes in front of a command to run it as that user of the guest, in that one's home.

    Nothing for "", who is agent. Bash then loads what ssh gives agent (templates/provision/walls).
    """
    loading = "BASH_ENV=/usr/local/lib/agent-vm/walled.sh"
    return ["sudo", "-n", "-H", "-u", user, loading] if user else []


def text_as(user: str, remote: str) -> str:
    """Shell text that runs the text as that user."""
    return f"exec {shlex.join([*acting(user), 'bash', '-c', remote])}" if user else remote


def connected(name: str) -> bool:
    """Whether the warm connection's master lives; asks it, opens nothing."""
    return state.control_path(name).exists() and _succeeds(ssh(name, "-O", "check"))


def responds(name: str) -> bool:
    """Whether a command comes back over the warm connection: its master may live all alone."""
    return connected(name) and _comes_back(name)


def _comes_back(name: str) -> bool:
    alone = ("-o", "ControlMaster=no")  # where the connection is lost, this opens none in its place
    return _succeeds([*ssh(name, *alone), set_clock()])


def set_clock() -> str:
    """Shell text that sets the guest's clock where it is far off, as after a sleep of this machine.

    It costs no program where the clock is right.
    """
    now = int(time.time())
    return (
        f'[ -z "${{EPOCHSECONDS-}}" ] || [ $(((EPOCHSECONDS - {now}) / {DRIFT})) = 0 ] || '
        f"sudo -n date --set=@{now} < /dev/null > /dev/null 2>&1 || true"
    )


def port(name: str) -> int:
    """Where our configuration looks for the VM; 0 without one."""
    try:
        found = re.search(r"^ *Port (\d+)$", config(name).read_text("utf-8"), re.MULTILINE)
    except (OSError, ValueError):
        return 0
    return int(found[1]) if found else 0


def answers(name: str) -> bool:
    """Whether the guest's sshd greets: what QEMU alone accepts, a frozen guest does not answer."""
    import socket

    try:
        with socket.create_connection(("127.0.0.1", port(name)), GREETING) as to:
            return to.recv(4) == b"SSH-"
    except (OSError, OverflowError):
        return False


def silence(name: str) -> UnreachableError:
    """What is said of a VM that does not answer."""
    return UnreachableError(
        f"the VM {name} does not answer: it is frozen, or too busy",
        "`agent-vm doctor --fix` wakes it or starts it anew",
    )


def watch(name: str, hear: Callable[[str], None] = lambda _said: None) -> Callable[[str], None]:
    """What to look at while something in the guest takes long; raises UnreachableError.

    `hear` gets what the program has said on stderr; while that grows, the guest lives. One whose
    sshd greets may still start no program, or a long one: that is told, once.
    """
    heard, began, looked = "", time.monotonic(), False

    def look(said: str) -> None:
        nonlocal heard, looked
        if said == heard and not answers(name) and not answers(name):  # busy ones may miss one
            raise silence(name)
        if not looked and time.monotonic() - began > LONG:
            looked = True
            if not responds(name):
                warn(str(silence(name)))
        heard = said
        hear(said)

    return look


def warm_up(name: str) -> None:
    """Open the shared connection; raises UnreachableError."""
    argv = [*ssh(name), set_clock()]
    result = process.run(argv, check=False, timeout=60, watch=watch(name))
    if is_impostor(result):
        raise UnreachableError(
            f"who answers on the port of the VM {name} is not that VM: its host key is another",
            "`agent-vm doctor --fix` looks for the VM",
        )
    if not result.ok:
        raise UnreachableError(
            f"the VM {name} runs, but ssh does not get in: {result.reason}",
            "`agent-vm start` waits for one that boots; `agent-vm logs` shows its console",
        )


def is_impostor(result: Result) -> bool:
    """Whether ssh turned away from a host key that is not the pinned one."""
    return result.status == SSH_FAILED and "Host key verification failed" in result.stderr


def reconnect(name: str) -> None:
    """Log in anew for what follows: groups and environment are those of the login.

    Sessions that are open go on over the old connection. Raises UnreachableError.
    """
    _succeeds(ssh(name, "-O", "stop"))
    state.control_path(name).unlink(missing_ok=True)
    warm_up(name)


def disconnect(name: str) -> None:
    """End the warm connection, if there is one."""
    if state.control_path(name).exists() and config(name).exists():
        _succeeds(ssh(name, "-O", "exit"))
    state.control_path(name).unlink(missing_ok=True)


def script(
    name: str, file: str, *args: str, user: str = "", timeout: float | None = 120
) -> list[str]:
    """Run common/scripts/`file` in the guest; the NUL-ended fields it prints.

    One ssh session: the script goes in on stdin. Raises UnreachableError when ssh fails, and
    AgentVMError with the script's last words when it does not succeed.
    """
    remote = shlex.join([*acting(user), "bash", "-s", "--", *args])
    result = process.run(
        [*ssh(name), remote], stdin=data.script(file), check=False, timeout=timeout,
        watch=watch(name),
    )  # fmt: skip
    return _successful(result).split("\0")[:-1]


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """An answer that cannot be taken apart is an error: the guest may say anything."""
    try:
        yield
    except (ValueError, TypeError, IndexError):
        raise AgentVMError(
            "the VM gave a strange answer", "its ~/.bashrc may not print anything here"
        ) from None


def feed(
    name: str, file: str, stdin: bytes | IO[bytes], *args: str, user: str = "",
    timeout: float | None = 120,
) -> str:  # fmt: skip
    """Run common/scripts/`file` in the guest with `stdin` as its input; what it prints.

    For input that no command line may show, or that is large. Raises UnreachableError when ssh
    fails, and AgentVMError with the script's last words when it does not succeed.
    """
    remote = shlex.join([*acting(user), "bash", "-c", data.script(file), file, *args])
    argv = [*ssh(name), remote]
    result = process.run(argv, stdin=stdin, check=False, timeout=timeout, watch=watch(name))
    return _successful(result)


def receive(
    name: str, file: str, *args: str, into: IO[bytes], largest: int, user: str = ""
) -> None:
    """Run common/scripts/`file` in the guest; what it prints goes to a file.

    Raises UnreachableError when ssh fails, and AgentVMError with the script's last words, or beyond
    `largest` bytes.
    """
    argv = [*ssh(name), shlex.join([*acting(user), "bash", "-s", "--", *args])]
    _successful(process.save(argv, data.script(file), into, largest, watch(name)))


def unpack(name: str, folder: str, archive: bytes, user: str = "") -> None:
    """Unpack a tar into a folder of the guest (from its home); what is there already stays."""
    remote = f"tar --extract --skip-old-files --file=- --directory={shlex.quote(folder)}"
    argv = [*ssh(name), text_as(user, remote)]
    result = process.run(argv, stdin=archive, check=False, timeout=600, watch=watch(name))
    if not result.ok:
        raise AgentVMError(f"copying files into the VM failed: {result.reason}")


def enter(name: str, remote: str, user: str = "") -> int:
    """Run a remote command on this terminal; a pseudo-terminal when both ends are one.

    What is typed or pasted there goes in as it is: ssh has no escape character.
    """
    remote = f"{set_clock()}\n{text_as(user, remote)}"
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return process.interactive([*ssh(name), remote], lambda: _tell_silence(name))
    colours = os.environ.get("COLORTERM")
    known = f"export COLORTERM={colours}\n" if colours in {"truecolor", "24bit"} else ""
    argv = [*ssh(name, "-t", "-e", "none"), f"{known}{remote}"]
    return process.interactive(argv, lambda: _tell_silence(name))


def relay(
    name: str, remote: str, out: Callable[[str], None], err: Callable[[str], None], user: str = ""
) -> int:
    """Run a remote command without terminal and input, handing on what it prints; its status."""
    argv = [*ssh(name), f"{set_clock()}\n{text_as(user, remote)}"]
    return process.relay(argv, out, err, watch(name))


def _tell_silence(name: str) -> None:
    """Say so when nothing comes back; ssh itself gives up later, for the VM may go on."""
    if not (_comes_back(name) if connected(name) else answers(name)):
        warn(str(silence(name)))


def connection(name: str, c: Context | None = None) -> Connection:
    """An open Fabric Connection into the VM, with the flags and settings of the context `c`.

    Fabric's own habits are switched off: it would take any host key, offer the user's agent and
    keys, and wait 40 ms a command for delayed acknowledgements.
    Raises UnreachableError.
    """
    import socket

    from paramiko.ssh_exception import SSHException

    made = _connection(name, c)
    try:
        made.open()
    except (EOFError, OSError, SSHException, ValueError) as error:  # the last: text that is none
        raise _unreachable(str(error) or "it hung up") from None
    made.transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def _succeeds(argv: list[str]) -> bool:
    """Whether a small command of ssh succeeds soon."""
    try:
        return process.run(argv, check=False, timeout=RESPONSE).ok
    except AgentVMError:
        return False


def _successful(result: Result) -> str:
    if result.status == SSH_FAILED:
        raise _unreachable(result.reason)
    if not result.ok:
        raise AgentVMError(result.reason)
    return result.stdout


def _unreachable(why: str) -> UnreachableError:
    return UnreachableError(f"the VM cannot be reached: {why}", "see `agent-vm status`")


def _connection(name: str, c: Context | None) -> Connection:
    from fabric import Config, Connection
    from invoke.config import Config as InvokeConfig
    from paramiko import RejectPolicy

    source = c.config if c is not None else InvokeConfig()
    settings: Any = source.clone(into=Config)
    settings.set_runtime_ssh_path(str(config(name)))
    settings.load_ssh_config()
    made = Connection(
        name,
        config=settings,
        forward_agent=False,
        connect_timeout=10,
        connect_kwargs={
            "allow_agent": False,
            "look_for_keys": False,
            # paramiko takes quotes and %% in the file's own IdentityFile by the letter
            "key_filename": _identity(name),
        },
    )
    keys = made.client.get_host_keys()
    kind, key = _host_key(name)
    keys.add(f"[{made.host}]:{made.port}", kind, key)
    made.client.set_missing_host_key_policy(RejectPolicy())
    return made


def _identity(name: str) -> str:
    """The private key of Lima's folder, as ssh(1) reads its path from the configuration."""
    for line in process.run(ssh(name, "-G"), timeout=10).stdout.splitlines():
        keyword, _, value = line.partition(" ")
        if keyword == "identityfile":
            return value.replace("%%", "%")
    raise _unreachable("its configuration names no key")


def _host_key(name: str) -> tuple[str, Any]:
    """The pinned host key, as paramiko wants it; raises UnreachableError."""
    from base64 import b64decode

    from paramiko import Ed25519Key
    from paramiko.ssh_exception import SSHException

    try:
        _, kind, encoded, *_ = known_hosts(name).read_text("utf-8").split()
        return kind, Ed25519Key(data=b64decode(encoded))
    except (OSError, ValueError, SSHException):
        raise UnreachableError(
            f"{known_hosts(name)} does not hold the VM's host key",
            "put it back, or destroy the VM and start a new one",
        ) from None
