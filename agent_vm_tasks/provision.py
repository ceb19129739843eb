"""Installing what is wanted in the guest: stages.py says what, this runs it, each once per content.

The scripts are sent over a Fabric connection as one archive and run by
common/scripts/provision.sh, which keeps a stamp and a log for each stage in the guest.
"""

from __future__ import annotations

import contextlib
import io
import shlex
import signal
import threading
import time
from typing import TYPE_CHECKING

from . import data, guest, nested, stages
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fabric import Connection
    from invoke.context import Context

    from .console import Say
    from .settings import Settings
    from .stages import Stage

LOGS = "/var/log/agent-vm"
STAMPS = "/var/lib/agent-vm/stamps"
MARKER = "/etc/agent-environment"
LISTEN = 5.0
"""Seconds between two looks whether the VM answers at all."""
SILENCE = 60.0
"""Seconds without an answer until it is given up: installing keeps an emulated guest busy."""
MOST = 2**20
"""Characters that a command may say: Invoke keeps them all, and joins them anew for each 1000."""


def run(
    settings: Settings,
    wanted: Sequence[Stage],
    say: Say,
    c: Context | None = None,
    *,
    upgrade: bool = False,
) -> bool:
    """Bring the guest to these stages; True when that took any of them.

    With `upgrade` the stages that can renew what they installed run in any case. Raises
    AgentVMError naming each stage that failed, with its last words and its log.
    """
    connection = guest.connection(settings.vm.name, c)
    with connection:
        with _watched(connection, settings.vm.name, say):
            due = _due(connection, wanted, upgrade=upgrade)
        ready = nested.supplied(due, settings.packages, say)
        if not ready:
            return False
        left_out = {stage.name for stage in due} - {stage.name for stage in ready}
        archive = _archive([stage for stage in wanted if stage.name not in left_out], ready)
        listener = _Listener(say)
        with _watched(connection, settings.vm.name, say):
            folder = connection.run(
                "mktemp -d", hide=True, in_stream=False, watchers=[_Bound(connection)]
            ).stdout.strip()
            target = f"{folder}/provision.tar"
            connection.put(io.BytesIO(archive), target)
            result = connection.run(
                f"tar -xf {shlex.quote(target)} -C {shlex.quote(folder)} && "
                f"sudo bash {shlex.quote(folder)}/provision.sh{' upgrade' if upgrade else ''}",
                hide="stderr", warn=True, in_stream=False, out_stream=listener,
                watchers=[_Bound(connection)],
            )  # fmt: skip
    if not result.ok:
        raise _failure(listener, result.stderr.strip())
    return listener.worked


def _due(connection: Connection, wanted: Sequence[Stage], *, upgrade: bool) -> list[Stage]:
    """The stages to send; asked first, because their files are large and mostly there already."""
    names = shlex.join(stage.name for stage in wanted)
    ask = f"cd {STAMPS} && cat {MARKER}; grep -H . /dev/null {names}"
    said = connection.run(
        ask, hide=True, warn=True, in_stream=False, watchers=[_Bound(connection)]
    ).stdout.splitlines()
    due = [
        stage for stage in wanted
        if f"{stage.name}:{stage.stamp}" not in said or (upgrade and stage.renews)
    ]  # fmt: skip
    return due if "agent-vm" in said[:1] else due or list(wanted[-1:])


def _failure(listener: _Listener, complaint: str) -> AgentVMError:
    """One line, whatever number of stages failed."""
    failed = listener.failed or {listener.stage or "start": listener.words or complaint}
    told = "; in stage ".join(f"{name}: {why or 'no reason given'}" for name, why in failed.items())
    logs = " and ".join(f"{LOGS}/{name}.log" for name in failed if name != "start")
    where = f"its log is {logs} in the VM; " if logs else ""
    return AgentVMError(
        f"provisioning failed in stage {told}", f"{where}`agent-vm start` resumes there"
    )


@contextlib.contextmanager
def _watched(connection: Connection, name: str, say: Say) -> Iterator[None]:
    """What goes over the connection ends with Ctrl-C or a silent VM, and fails in our words."""
    with (
        _ended_by_interrupt(connection),
        _in_our_words(),
        _ended_by_silence(connection, name, say),
    ):
        yield


@contextlib.contextmanager
def _ended_by_interrupt(connection: Connection) -> Iterator[None]:
    """Let Ctrl-C end the wait: without a terminal Fabric would wait for the remote command."""
    pressed = False

    def close(*_: object) -> None:
        nonlocal pressed
        pressed = True
        connection.close()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, close)
    try:
        yield
    except Exception:
        if pressed:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, previous)
    if pressed:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _ended_by_silence(connection: Connection, name: str, say: Say) -> Iterator[None]:
    """End the wait for a VM that has long not answered: Fabric itself would wait for ever."""
    over, lost = threading.Event(), threading.Event()

    def listen() -> None:
        heard = time.monotonic()
        while not over.wait(LISTEN):
            silent = time.monotonic() - heard
            if guest.answers(name):
                heard = time.monotonic()
            elif silent < SILENCE:
                say(f"  the VM does not answer ({silent:.0f} s)")
            else:
                lost.set()
                connection.close()
                return

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    except Exception:
        if lost.is_set():
            raise guest.silence(name) from None
        raise
    finally:
        over.set()
    if lost.is_set():
        raise guest.silence(name)


@contextlib.contextmanager
def _in_our_words() -> Iterator[None]:
    """Say in one line what Fabric raises where the guest does not play along: it quotes it raw."""
    from invoke.exceptions import Failure, ThreadException
    from paramiko import SFTPError, SSHException

    try:
        yield
    except ThreadException as error:  # from telling the progress: our own terminal is gone
        raise error.exceptions[0].value from None
    except Failure as error:
        if error.reason:
            raise _cut_off(str(error.reason)) from None
        lines = (error.result.stderr or error.result.stdout).strip().splitlines()
        raise _cut_off(lines[-1] if lines else f"exit status {error.result.exited}") from None
    except (EOFError, OSError, SFTPError, SSHException, ValueError) as error:
        raise _cut_off(str(error) or type(error).__name__) from None


def _cut_off(why: str) -> AgentVMError:
    return AgentVMError(f"provisioning was cut off: {why}", "`agent-vm start` goes on with it")


class _Bound:
    """What Invoke shows all that a command has said so far, on stdout or on stderr.

    It would wait for the end of the other one: that comes with the connection's.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def submit(self, said: str) -> tuple[str, ...]:
        from invoke.exceptions import WatcherError

        if len(said) > MOST:
            self.connection.close()
            raise WatcherError("the VM says too much")
        return ()


class _Listener(io.StringIO):
    """Fabric's output stream: the runner's `@` lines become progress, the rest complaints."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self.say = say
        self.stage = ""
        self.words = ""
        self.failed: dict[str, str] = {}
        self.worked = False
        self.rest = ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self._line(line)
        return len(text)

    def _line(self, line: str) -> None:
        event, _, rest = line.partition(" ")
        if event == "@start":
            self.stage = rest
            self.say(f"  installing: {rest}")
        elif event == "@waiting":
            self.say("  an earlier installation is still at work in the VM; waiting for it")
        elif event == "@still":
            self.say(f"  still installing ({rest} s)")
        elif event == "@done":
            self.worked = True
            self.say(f"  installed: {rest} s")
        elif event == "@failed":
            name, _, why = rest.partition(" ")
            self.failed[name] = why.strip()
        elif line.strip() and not line.startswith("@"):
            self.words = line.strip()


def _archive(wanted: Sequence[Stage], due: Sequence[Stage]) -> bytes:
    """One tar with the runner, the list of stages and stamps, and what the due ones need."""
    plan = "".join(f"{s.name} {s.stamp} {s.flags}\n" for s in wanted)
    files = {"provision.sh": data.script("provision.sh").encode(), "plan": plan.encode()}
    for stage in due:
        files |= {f"{stage.name}.sh": stage.script.encode(), **stage.files}
    return stages.tar({name: (content, 0o644) for name, content in files.items()})
