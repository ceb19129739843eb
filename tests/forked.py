"""The `agent-vm` program in a process of its own, forked from the tests' with all fixtures.

A process that is to be killed cannot be the tests' own, and eight at once need eight.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_vm_tasks.main import program

from .conftest import VM, mounts, wait_until


@dataclass(frozen=True)
class Ended:
    """How it ended (negative: by that signal), what it printed, how many programs it had run."""

    status: int
    out: str
    err: str
    children: int


@dataclass(frozen=True)
class Running:
    pid: int
    folder: Path

    def end(self, limit: float = 120) -> Ended:
        """Wait for its end; what hangs is killed, and told by its status."""
        killer = threading.Timer(limit, os.kill, (self.pid, signal.SIGKILL))
        killer.start()
        _, status = os.waitpid(self.pid, 0)
        killer.cancel()
        killer.join()
        return Ended(
            os.waitstatus_to_exitcode(status),
            (self.folder / "out").read_text(),
            (self.folder / "err").read_text(),
            len((self.folder / "children").read_bytes()),
        )


def start(folder: Path, *argv: str, at: int = 0, kill: signal.Signals = signal.SIGKILL) -> Running:
    """Run `agent-vm` with these words; `kill` reaches it when it runs its child number `at`.

    Ctrl-C reaches all of its process group, as from a terminal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("out", "err", "children"):
        (folder / name).write_bytes(b"")
    if pid := os.fork():
        return Running(pid, folder)
    status = 70
    try:
        _redirect(folder)
        _count_children(folder / "children", at, kill)
        status = _program(["agent-vm", *argv])
    except BaseException:  # noqa: BLE001  nothing may get back into the tests
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(folder: Path, *argv: str, at: int = 0, kill: signal.Signals = signal.SIGKILL) -> Ended:
    return start(folder, *argv, at=at, kill=kill).end()


def no_orphans(home: Path) -> None:
    """Wait until nothing runs any more that was started for this home, but the warm connection."""
    wait_until(lambda: not orphans(home), f"still there: {orphans(home)}")


def orphans(home: Path) -> list[str]:
    """The command lines of what runs with this $HOME: not the VM's, the master's or a mount's."""
    found, mounted = [], bool(mounts(home))
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            env = (entry / "environ").read_bytes().split(b"\0")
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        name = Path(words[0]).name
        if f"HOME={home}".encode() not in env or entry.name == str(os.getpid()):
            continue
        if mounted and (f"{VM}-mount" in words or f"{VM}-mount:workspace" in words):
            continue
        if words != [""] and not name.startswith("sshd") and "[mux]" not in words[0]:
            found.append(" ".join(words))
    return found


def _program(argv: list[str]) -> int:
    sys.argv = argv
    try:
        program.run()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def _redirect(folder: Path) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_APPEND), number)
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1)


def _count_children(record: Path, at: int, number: signal.Signals) -> None:
    real = subprocess.Popen.__init__
    log = os.open(record, os.O_WRONLY | os.O_APPEND)
    lock = threading.Lock()

    def counted(self: subprocess.Popen[Any], *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        real(self, *args, **kwargs)
        with lock:
            os.write(log, b".")
            count = os.fstat(log).st_size
        if count == at and number == signal.SIGKILL:
            os.kill(os.getpid(), number)
        elif count == at:  # a person's finger is not as quick as to hit a child's very start
            threading.Timer(0.01, os.killpg, (os.getpid(), number)).start()

    subprocess.Popen.__init__ = counted  # type: ignore[method-assign]
