"""`invoke bench`: the commands against their floors, in one run, on the VM of this machine.

A floor is what the same work costs without us: an empty tasks.py, ssh over the warm connection,
raw git over it. Times are medians in milliseconds; what counts is the ratio.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent_vm_tasks import console, guest, settings, vm
from agent_vm_tasks.errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_vm_tasks.stages import Stage

BIN = Path(sys.executable).parent
BRANCH = "bench"
BUILDING = "building a Debian 13 image (once; some minutes)"
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

    With `provision` that of two first starts. Raises AgentVMError when the VM is not running.
    """
    if boot:
        rows = [boots(settings.load()), creates(settings.load())]
        print(console.table(("COMMAND", "S", "FLOOR S", "RATIO"), rows))
        return
    if provision:
        head = ("STEP", "IN TURN, IN THE GUEST S", "AS START DOES IT S")
        print(console.table(head, first_starts(settings.load())))
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

    slow = emulated(chosen)
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


def emulated(chosen: settings.Settings) -> dict[str, str]:
    """What Lima alone needs where it would take a broken KVM."""
    from agent_vm_tasks import host

    arguments, _ = vm._acceleration(chosen)
    program = f"qemu-system-{host.arch()}"
    return {program.upper().replace("-", "_"): program + arguments} if arguments else {}


def creates(chosen: settings.Settings) -> tuple[object, ...]:
    """A VM from the kept disk, in seconds: by us, then by limactl alone from the same YAML."""
    from agent_vm_tasks import host, lima, process

    alone = elsewhere(chosen)
    name = alone.vm.name
    slow = emulated(chosen)
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


def first_starts(chosen: settings.Settings) -> list[tuple[object, ...]]:
    """Seconds of the image and each stage of a first start: all in the guest in turn, then ours."""
    turn, ours = first_start(chosen, in_turn=True), first_start(chosen, in_turn=False)
    turn["all"], ours["all"] = turn["image"] + turn["stages"], ours["image"] + ours["stages"]
    rows = [(name, f"{turn[name]:.0f}", f"{ours[name]:.0f}") for name in turn]
    return [*rows, ("", "", f"{turn['all'] / ours['all']:.2f} times faster")]


def first_start(chosen: settings.Settings, *, in_turn: bool) -> dict[str, float]:
    """Make a VM from nothing that is kept; seconds of its image, of each stage and of all stages.

    `in_turn`: from an image without the packages, each stage after the one before.
    """
    from unittest.mock import patch

    from agent_vm_tasks import data, golden, image, stages

    alone = elsewhere(chosen)
    all_stages, package_list = stages.stages, data.package_list
    taken: dict[str, float] = {}
    marks: dict[str, float] = {}

    def hear(line: str) -> None:
        console.say(line)
        marks.setdefault(line.partition(":")[0].strip(), time.perf_counter())
        if found := re.fullmatch(r" *installed: (\S+) (\d+) s", line):
            taken[found[1]] = float(found[2])
            marks["end"] = time.perf_counter()

    def one_by_one(wanted: settings.Settings) -> list[Stage]:
        return [replace(stage, beside=stage.beside and not in_turn) for stage in all_stages(wanted)]

    def build(*args: Any, **kwargs: Any) -> image.Image:  # noqa: ANN401  as image.built
        with patch.object(data, "package_list", lambda f: [] if in_turn else package_list(f)):
            return built(*args, **kwargs)

    built = image.built
    folder = image.cache().parent / "bench"
    try:
        with (
            patch.object(golden, "prefer", lambda *_: ()),
            patch.object(golden, "keep", lambda *_: False),
            patch.object(stages, "stages", one_by_one),
            patch.object(image, "built", build),
            patch.object(image, "cache", lambda: folder),
        ):
            vm.start(alone, hear)
    finally:
        vm.destroy(alone, console.say)
        shutil.rmtree(folder, ignore_errors=True)
    image_seconds = marks["creating the VM " + alone.vm.name] - marks[BUILDING]
    return {"image": image_seconds, **taken, "stages": marks["end"] - marks["installing"]}


def elsewhere(chosen: settings.Settings) -> settings.Settings:
    """The same for a VM beside the person's own."""
    return replace(
        chosen,
        vm=replace(chosen.vm, name=f"{chosen.vm.name}-bench"),
        mount=replace(chosen.mount, enabled=False),
    )


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
