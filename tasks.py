"""The tasks of this repository: the product's, plus test, lint, bench and stress."""

import importlib.util
import os
import secrets
import shlex
import shutil
import sys

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from agent_vm_tasks import host, ns

PROGRAMS = {"sshd": "openssh-server", "jq": "jq", "shellcheck": "shellcheck", "tmux": "tmux"}
PYTHON = shlex.quote(sys.executable)
AT_ONCE = 4
"""Tests without a VM wait most of their time: for ssh, or for a guest that is silent."""
NO_TESTS = 5
"""Exit status of pytest when none was chosen, as with `--only` in one of two parts."""


@task
def dev(c: Context) -> None:
    """Install what the tests need and is missing: Python packages here, programs by apt."""
    _programs(c)
    if all(importlib.util.find_spec(name) for name in ("xdist", "hypothesis", "mypy", "build")):
        return
    if importlib.util.find_spec("pip"):
        _run(c, f"{PYTHON} -m pip install --quiet --editable '.[dev]'")
    else:
        uv = shutil.which("uv") or "uv"
        _run(c, f"{shlex.quote(uv)} pip install --quiet --python {PYTHON} --editable '.[dev]'")


@task(pre=[dev])
def lint(c: Context) -> None:
    """Check style and types.

    Example: invoke lint
    """
    _run(c, f"{PYTHON} -m ruff check")
    _run(c, f"{PYTHON} -m ruff format --check")
    _run(c, f"{PYTHON} -m mypy")


@task(pre=[lint], help={"vm": "also boot a real VM (--no-vm: not)", "only": "pytest's -k"})
def test(c: Context, vm: bool = True, only: str = "") -> None:
    """Run every test, on a real VM as well.

    Example: invoke test --no-vm --only fetch
    """
    ended = [_pytest(c, f"--numprocesses={AT_ONCE}", only)]
    if vm:
        ended.append(_pytest(c, "-m vm", only))
    if status := max((each for each in ended if each != NO_TESTS), default=NO_TESTS):
        raise Exit(code=status)


@task(
    pre=[dev],
    help={
        "runs": "how many runs, each in a new world",
        "steps": "operations of a run",
        "seed": "makes the same runs again (0: others at each call)",
    },
)
def stress(c: Context, runs: int = 5, steps: int = 200, seed: int = 0) -> None:
    """Try random operations with faults among them; no work may be missing after any.

    Example: invoke stress --runs 1 --steps 50 --seed 7
    """
    which = f"--hypothesis-seed={seed or secrets.randbits(32)}"
    command = f"{PYTHON} -m pytest -m stress tests/stress {which}"
    _run(c, f"STRESS_RUNS={runs} STRESS_STEPS={steps} {command}")


@task(
    help={
        "runs": "how often each command is timed; the median counts",
        "boot": "time a start instead (stops the VM twice)",
        "provision": "time the first start of two VMs instead; takes half an hour without KVM",
    }
)
def bench(_c: Context, runs: int = 7, boot: bool = False, provision: bool = False) -> None:
    """Time the commands against their floors, on the running VM.

    Example: invoke bench
    """
    from agent_vm_tasks.tasks._edge import guarded
    from tests import bench as benchmarks

    guarded(benchmarks.run)(runs, boot=boot, provision=provision)


def _programs(c: Context) -> None:
    """Most tests talk to a real sshd of their own on loopback; the system's own is not to run."""
    missing = [package for program, package in PROGRAMS.items() if not host.which(program)]
    if not missing or not host.which("apt-get"):
        return
    sudo = "" if os.geteuid() == 0 else "sudo "
    if "openssh-server" in missing:
        _run(c, f"{sudo}ln -sfT /dev/null /etc/systemd/system/ssh.service")
    _run(c, f"{sudo}apt-get update -qq")
    _run(c, f"{sudo}apt-get install -qq -y --no-install-recommends {' '.join(missing)}")


def _pytest(c: Context, how: str, only: str) -> int:
    command = f"{PYTHON} -m pytest {how} -k {shlex.quote(only)} --durations=10"
    ended = c.run(command, in_stream=False, echo=True, warn=True)
    return 0 if ended is None else ended.exited  # None: invoke --dry


def _run(c: Context, command: str) -> None:
    c.run(command, in_stream=False, echo=True)


ns.add_task(dev)  # type: ignore[arg-type]
ns.add_task(lint)
ns.add_task(test)
ns.add_task(bench)
ns.add_task(stress)
