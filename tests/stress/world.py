"""Two repositories, the VM of the tests, and agent-vm between them, with faults while it works."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import state, workspaces
from tests import forked
from tests.conftest import VM, commit, make_repository, wait_until

from . import people, places

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Limactl
    from tests.forked import Ended, Running

REPOSITORIES = {"A": "src/app", "B": "other/app"}
BRANCHES = (("A", "fix"), ("A", "feature/x"), ("B", "fix"))
LONGEST = 60
"""Seconds for any command here: what takes longer hangs."""
TIDY = 20
"""Seconds that what a killed command started may take to end by itself."""
FULL = 8000
"""Bytes of the largest file that agent-vm itself can write to a full disk: what it says fits."""


@dataclass(frozen=True)
class Target:
    """A branch of a repository and the workspace it has, or would have."""

    repository: str
    branch: str
    key: str
    folders: tuple[str, str]
    fetched: str

    @property
    def head(self) -> str:
        return f"refs/heads/{self.branch}"

    @property
    def words(self) -> dict[str, str]:
        """For acts of people."""
        return {"branch": self.branch, "fetched": self.fetched}


@dataclass(frozen=True)
class Fault:
    """What befalls a command, so many seconds after it has started its child of that number.

    kill, interrupt: the tool; cut: its connection; power off: the VM. Or all the time: full, guest
    full: git there can write no more than `size` bytes to a file.
    """

    kind: str = "none"
    child: int = 1
    delay: float = 0.0
    size: int = 0

    def __str__(self) -> str:
        if self.kind == "none":
            return ""
        if "full" in self.kind:
            return f" [{self.kind}: {self.size} bytes]"
        return f" [{self.kind} {self.delay * 1000:.0f} ms after child {self.child}]"


class World:
    """Everything that a run works on. `close` empties it, so that the next can begin."""

    def __init__(self, home: Path, limactl: Limactl) -> None:
        self.home, self.limactl, self.inside = home, limactl, limactl.sshd.home
        self.people = {"here": people.Person(home), "inside": people.Person(self.inside)}
        for folder in REPOSITORIES.values():
            make_repository(home / folder)
            commit(home / folder, ".gitignore", "*.o\n")
        self.targets = [self._target(*each) for each in BRANCHES]
        owners = {each.key: each.repository for each in self.targets}
        self.now = places.Everything(owners, {}, {}, {})
        for each in self.targets:
            self.run(each.repository, "push", each.branch)
        self.look()

    def close(self) -> None:
        ssh_guest.disconnect(VM)
        self.power_off()
        for folder in ("src", "other", "unpacked", ".agent-vm"):
            shutil.rmtree(self.home / folder, ignore_errors=True)
        shutil.rmtree(self.limactl.lima / VM, ignore_errors=True)
        self._forget_disk()

    def repository(self, name: str) -> Path:
        return self.home / REPOSITORIES[name]

    def look(self) -> None:
        """See all there is, as it is now."""
        self.now = places.Everything(
            self.now.owners,
            {name: places.look(self.repository(name)) for name in REPOSITORIES},
            {key: places.look(folder, inside=True)
             for key, folder in places.workspaces(self.inside).items()},
            places.copies(state.folder(VM) / "undo", self.home / "unpacked", self.now.copies),
        )  # fmt: skip

    def look_at(self, name: str) -> None:
        """See what somebody did in one place."""
        if name in REPOSITORIES:
            seen = {name: places.look(self.repository(name))}
            self.now = replace(self.now, hosts={**self.now.hosts, **seen})
        else:
            spaces = dict(self.now.spaces)
            folder = spaces.pop(name).folder
            seen = {name: places.look(folder, inside=True)} if folder.exists() else {}
            self.now = replace(self.now, spaces={**spaces, **seen})

    def run(self, where: str, *argv: str, fault: Fault = Fault()) -> Ended:
        """Run `agent-vm` in a repository and wait for all that it has started."""
        with self._full(fault):
            running = self.start(where, argv)
        try:
            self._befall(running, fault)
            return self.end(running)
        finally:
            self._make_room()

    def start(self, where: str, argv: tuple[str, ...], number: int = 0) -> Running:
        """Start `agent-vm`; those at the same time need different numbers."""
        os.chdir(self.repository(where))
        return forked.start(self.home / f"said-{number}", *argv)

    def end(self, running: Running) -> Ended:
        try:
            wait_until(lambda: _ended(running), "it hangs", LONGEST)
        finally:
            os.kill(running.pid, signal.SIGKILL)
            said = running.end()
        assert "Traceback" not in said.err, said.err
        wait_until(lambda: not self._at_work(), "what it started does not end", TIDY)
        if not self.limactl.instance():
            self._forget_disk()
        return said

    def cut(self) -> None:
        """End the shared connection."""
        own = f"ssh: {state.control_path(VM)} [mux]"
        for pid, words in _processes():
            if words.startswith(own):
                os.kill(pid, signal.SIGKILL)

    def power_off(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.limactl.signal(signal.SIGKILL)

    def runs(self) -> bool:
        """Whether the VM does, and is not only waited for."""
        with contextlib.suppress(FileNotFoundError):
            stat = Path(f"/proc/{self.limactl.driver()}/stat").read_text()
            return stat.rpartition(") ")[2][0] != "Z"
        return False

    def delete_instance(self) -> None:
        """By hand, as `limactl delete --force` does, with its disk."""
        self.power_off()
        shutil.rmtree(self.limactl.lima / VM, ignore_errors=True)
        self._forget_disk()

    def locks(self) -> set[Path]:
        """Lock files of git that are lying about."""
        roots = [self.repository(name) for name in REPOSITORIES] + [self.inside / "workspace"]
        return {path for root in roots for path in root.rglob(".git/**/*.lock")}

    def _target(self, name: str, branch: str) -> Target:
        repository = workspaces.repository(self.repository(name))
        made = workspaces.workspace(VM, repository, branch)
        return Target(name, branch, made.key, made.folders, made.ref)

    def _forget_disk(self) -> None:
        for name in ("workspace", ".agent-vm"):
            shutil.rmtree(self.inside / name, ignore_errors=True)
        (self.inside / "workspace").mkdir()

    @contextlib.contextmanager
    def _full(self, fault: Fault) -> Iterator[None]:
        """A disk is full: programs get an error for what they write, not a signal."""
        if fault.kind == "guest full":
            limit = f"trap '' XFSZ\nprlimit --fsize={fault.size} --pid $$\n"
            (self.inside / ".bashrc").write_text(limit)
        if fault.kind != "full":
            yield
            return
        (self.limactl.folder / "calls").unlink(missing_ok=True)  # or it would be too large for all
        git, stand_in = shutil.which("git"), self.limactl.folder / "bin/git"
        stand_in.write_text(
            f'#!/bin/sh\ntrap "" XFSZ\nexec prlimit --fsize={fault.size} {git} "$@"\n'
        )
        stand_in.chmod(0o755)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def _make_room(self) -> None:
        """Undo what `_full` did; a VM that was started meanwhile has inherited the limit."""
        (self.inside / ".bashrc").unlink(missing_ok=True)
        (self.limactl.folder / "bin/git").unlink(missing_ok=True)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            resource.prlimit(self.limactl.driver(), resource.RLIMIT_FSIZE, limits)

    def _befall(self, running: Running, fault: Fault) -> None:
        acts = {
            "kill": lambda: os.kill(running.pid, signal.SIGKILL),
            "interrupt": lambda: os.killpg(running.pid, signal.SIGINT),
            "cut": self.cut,
            "power off": self.power_off,
        }
        if fault.kind not in acts:
            return
        started = running.folder / "children"
        while started.stat().st_size < fault.child and not _ended(running):
            time.sleep(0.001)
        time.sleep(fault.delay)
        if not _ended(running):
            acts[fault.kind]()

    def _at_work(self) -> bool:
        """Whether anything runs for the tool, but for the VM and the shared connection."""
        marks = str(self.home), str(self.inside)
        return any(any(mark in words + _environment(pid) for mark in marks)
                   for pid, words in _processes()
                   if pid != os.getpid() and "[mux]" not in words
                   and not Path(words.split()[0]).name.startswith("sshd"))  # fmt: skip


def _ended(running: Running) -> bool:
    return bool(os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT))


def _processes() -> Iterator[tuple[int, str]]:
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = os.fsdecode((entry / "cmdline").read_bytes()).replace("\0", " ").strip()
            if words:
                yield int(entry.name), words


def _environment(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.fsdecode(Path(f"/proc/{pid}/environ").read_bytes())
    return ""
