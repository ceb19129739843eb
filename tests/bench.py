"""`invoke bench`: the commands against their floors, in one run, on the VM of this machine.

A floor is what the same work costs without us: an empty tasks.py, ssh over the warm connection,
raw git over it. Times are medians in milliseconds; what counts is the ratio.
"""

from __future__ import annotations

import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from agent_vm_tasks import console, guest, settings, vm
from agent_vm_tasks.errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from agent_vm_tasks.stages import Stage

BIN = Path(sys.executable).parent
BRANCH = "bench"
REMOVE = """
cd /var/lib/agent-vm/stamps && rm -f node npm python tools nested
rm -rf /opt/uv-tools /usr/local/lib/node_modules /root/.npm /root/.cache
rm -rf /usr/local/bin/* /usr/local/share/lima /usr/local/lib/python3*/dist-packages/uv*
"""
EMPTY = """
from invoke import task

@task
def nothing(c):
    pass
"""


@dataclass(frozen=True)
class Bench:
    """A repository with a workspace in the VM, and a bare one beside it for raw git."""

    top: Path
    name: str
    runs: int

    def time(self, argv: list[str], before: Callable[[], None] = lambda: None) -> float:
        """Median wall-clock milliseconds of `argv`; `before` each run is not counted."""
        return statistics.median(self._once(argv, before) for _ in range(self.runs))

    def _once(self, argv: list[str], before: Callable[[], None]) -> float:
        before()
        began = time.perf_counter()
        self.run(argv)
        return (time.perf_counter() - began) * 1000

    def run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv, cwd=self.top, env=self.env, text=True, capture_output=True,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if done.returncode:
            raise AgentVMError(f"{' '.join(argv)} failed: {done.stderr}")
        return done

    @property
    def env(self) -> dict[str, str]:
        ssh = f"ssh -F '{guest.config(self.name)}'"
        return {**os.environ, "GIT_SSH_COMMAND": ssh, "GIT_SSH_VARIANT": "ssh"}

    def git(self, *args: str) -> str:
        return self.run(["git", "-c", "user.name=b", "-c", "user.email=b@localhost", *args]).stdout

    def commit_here(self) -> None:
        self.git("commit", "--quiet", "--allow-empty", "--message=here")

    def commit_inside(self, path: str) -> Callable[[], None]:
        line = f"cd {path} && git commit --quiet --allow-empty --message=inside"
        return lambda: void(self.run([*guest.ssh(self.name), line]))

    def children(self, argv: list[str]) -> str:
        """How many limactl and ssh a command starts, from its own debug log."""
        said = self.run([argv[0], "--debug", *argv[1:]]).stderr
        started = re.findall(r"run: (?:prlimit \S+ )?(?:\S*/)?(ssh|limactl|git) (.*)", said)
        limactl = sum(program == "limactl" for program, _ in started)
        ssh = sum(program == "ssh" and " -O " not in words for program, words in started)
        ssh += sum(
            program == "git" and re.search(r" (push|fetch) --", words) is not None
            for program, words in started
        )
        return f"{limactl} limactl, {ssh} ssh"


def void(_: object) -> None:
    return


def run(runs: int, *, boot: bool = False, provision: bool = False) -> None:
    """Print the table; with `boot` that of a start instead, against Lima's own of the same disk.

    With `provision` that of the downloads, removed and installed again: one stage after another,
    and side by side. Raises AgentVMError when the VM is not running.
    """
    if boot:
        rows = [boots(settings.load()), creates(settings.load())]
        print(console.table(("COMMAND", "S", "FLOOR S", "RATIO"), rows))
        return
    if provision:
        head = ("STAGE", "ONE AFTER ANOTHER S", "SIDE BY SIDE S")
        print(console.table(head, downloads(settings.load())))
        return
    name = settings.load().vm.name
    vm.require_running(name)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), name, runs)
        prepare(bench)
        try:
            rows = measure(bench)
        finally:
            bench.run([str(BIN / "agent-vm"), "clean", BRANCH, "--force"])
            bench.run([*guest.ssh(name), "rm -rf bench-raw bench-raw.git"])
    print(console.table(("COMMAND", "MS", "FLOOR MS", "RATIO", "GOAL", "CHILDREN"), rows))


def boots(chosen: settings.Settings) -> tuple[object, ...]:
    """One boot each, in seconds: a stopped VM by limactl alone, then by us."""
    from agent_vm_tasks import host, lima, process

    slow, _ = vm._acceleration(chosen)  # Lima alone would take a broken KVM
    plain = [host.limactl(), "start", "--tty=false", "--timeout=30m", chosen.vm.name]
    env = {**lima.environment(), **slow}
    vm.stop(chosen, console.say)
    began = time.perf_counter()
    process.run(plain, env=env, cwd="/", user=host.service_user())
    floor = time.perf_counter() - began
    vm.stop(chosen, console.say)
    began = time.perf_counter()
    vm.start(chosen, console.say)
    taken = time.perf_counter() - began
    return ("agent-vm start", f"{taken:.0f}", f"{floor:.0f}", f"{taken / floor:.2f}")


def creates(chosen: settings.Settings) -> tuple[object, ...]:
    """A VM from the kept disk, in seconds: by us, then by limactl alone from the same YAML."""
    from agent_vm_tasks import host, lima, process

    alone = replace(
        chosen,
        vm=replace(chosen.vm, name=f"{chosen.vm.name}-bench"),
        mount=replace(chosen.mount, enabled=False),
    )
    name = alone.vm.name
    slow, _ = vm._acceleration(chosen)
    try:
        began = time.perf_counter()
        vm.start(alone, console.say)
        taken = time.perf_counter() - began
        made = vm.require_exists(name)
        yaml = lima.asked(made)
        lima.stop(name, force=True)
        lima.delete(name)
        began = time.perf_counter()
        lima.create(name, yaml, print)
        plain = [host.limactl(), "start", "--tty=false", "--timeout=30m", name]
        env = {**lima.environment(), **slow}
        process.run(plain, env=env, cwd="/", user=host.service_user())
        floor = time.perf_counter() - began
    finally:
        vm.destroy(alone, print)
    return ("start after destroy", f"{taken:.0f}", f"{floor:.0f}", f"{taken / floor:.2f}")


def downloads(chosen: settings.Settings) -> list[tuple[object, ...]]:
    """Seconds of each stage that downloads, in both orders, and of all together."""
    from agent_vm_tasks import stages

    wanted = stages.stages(chosen)
    after, beside = (installed(chosen, order) for order in (
        [replace(stage, beside=False) for stage in wanted], wanted,
    ))  # fmt: skip
    ratio = f"{after['all'] / beside['all']:.2f} times faster"
    rows = [(name, f"{seconds:.0f}", f"{beside[name]:.0f}") for name, seconds in after.items()]
    return [*rows, ("", "", ratio)]


def installed(chosen: settings.Settings, wanted: Sequence[Stage]) -> dict[str, float]:
    """Remove what the stages downloaded, install it again; seconds by stage and for all."""
    from agent_vm_tasks import provision

    name, taken = chosen.vm.name, {}
    vm.require_running(name)
    subprocess.run([*guest.ssh(name), f"sudo sh -c {shlex.quote(REMOVE)}"], check=True)

    def hear(line: str) -> None:
        console.say(line)
        if found := re.fullmatch(r" *installed: (\S+) (\d+) s", line):
            taken[found[1]] = float(found[2])

    began = time.perf_counter()
    provision.run(chosen, wanted, hear)
    return {**taken, "all": time.perf_counter() - began}


def prepare(bench: Bench) -> None:
    (bench.top / "tasks.py").write_text(EMPTY)
    bench.git("init", "--quiet", f"--initial-branch={BRANCH}")
    bench.commit_here()
    bench.git("checkout", "--quiet", "-b", "elsewhere")
    bench.run([str(BIN / "agent-vm"), "push", BRANCH])
    bench.run([*guest.ssh(bench.name), "git init --quiet --bare bench-raw.git"])


def measure(bench: Bench) -> list[tuple[object, ...]]:
    invoke, tool = str(BIN / "invoke"), str(BIN / "agent-vm")
    path = f"workspace/{bench.top.name}-{BRANCH}"
    raw = f"{bench.name}:bench-raw.git"
    bare = bench.time([invoke, "--list"])
    ssh = bench.time([*guest.ssh(bench.name), "true"])
    (bench.top / "tasks.py").write_text("from agent_vm_tasks import ns\n")
    bench.git("checkout", "--quiet", BRANCH)
    push = bench.time(["git", "push", "--quiet", raw, f"+{BRANCH}"], bench.commit_here)
    bench.run([tool, "push", BRANCH])
    inside = bench.commit_inside(path)
    fetch = bench.time(["git", "fetch", "--quiet", f"{bench.name}:{path}", BRANCH], inside)
    bench.run([tool, "fetch", BRANCH])
    return [
        row(bench, [invoke, "--list"], bare, 1.3),
        row(bench, [invoke, "status"], bare + ssh, 1.5),
        row(bench, [invoke, "connect", "--branch", BRANCH, "--command", "true"], bare + ssh, 1.5),
        row(bench, [invoke, "push", "--branch", BRANCH], bare + push, 1.6, bench.commit_here),
        row(bench, [invoke, "fetch", "--branch", BRANCH], bare + fetch, 1.6, inside),
    ]


def row(
    bench: Bench,
    argv: list[str],
    floor: float,
    goal: float,
    before: Callable[[], None] = lambda: None,
) -> tuple[object, ...]:
    taken = bench.time(argv, before)
    command = " ".join([Path(argv[0]).name, *argv[1:]])
    return (
        command, f"{taken:.0f}", f"{floor:.0f}", f"{taken / floor:.2f}", f"{goal}",
        bench.children(argv),
    )  # fmt: skip
