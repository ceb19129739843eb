"""What breaks while a person works: QEMU frozen or killed, the guest off, the tool killed."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from .conftest import NAME, PROGRAM, User, inside, lima_home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def project(vm: User) -> Iterator[Path]:
    """A repository whose branch `fix` has uncommitted work inside."""
    top = vm.repository("faulty")
    vm.agent_vm("push", "fix", cwd=top)
    inside(vm, "echo mine > uncommitted", top, "fix")
    yield top
    vm.agent_vm("clean", "fix", "--force", cwd=top)


@pytest.fixture
def qemu(vm: User) -> int:
    return int((lima_home(vm) / NAME / "qemu.pid").read_text())


@pytest.fixture
def frozen(qemu: int) -> Iterator[int]:
    os.kill(qemu, signal.SIGSTOP)
    yield qemu
    try:
        os.kill(qemu, signal.SIGCONT)
    except ProcessLookupError:
        return


def pids(word: str) -> list[int]:
    """The processes that have a word in their command line."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True,
                            text=True, check=True).stdout  # fmt: skip
    return [int(line.split()[0]) for line in listed.splitlines() if word in line.split()]


def is_intact(vm: User, project: Path) -> bool:
    return inside(vm, "cat uncommitted", project, "fix") == "mine\n"


@pytest.mark.parametrize("verb", ["status", "push", "fetch", "clean"])
def test_a_frozen_vm_is_told_within_ten_seconds(
    vm: User, project: Path, frozen: int, verb: str
) -> None:
    began = time.monotonic()
    done = vm.run(PROGRAM, verb, *([] if verb == "status" else ["fix"]), cwd=project)
    assert "does not answer" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - began < 12  # ten, and the start of a program


def test_what_was_frozen_goes_on(vm: User, project: Path) -> None:
    assert is_intact(vm, project)


def test_a_command_in_a_frozen_vm_says_so_and_ends_when_it_thaws(
    vm: User, project: Path, frozen: int
) -> None:
    began = time.monotonic()
    argv = [PROGRAM, "connect", "fix", "--command", "cat uncommitted"]
    with subprocess.Popen(
        argv, env=vm.env, cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as entered:
        assert entered.stdout
        assert entered.stderr
        assert "does not answer" in entered.stderr.readline()
        assert time.monotonic() - began < 12
        os.kill(frozen, signal.SIGCONT)
        assert entered.stdout.read() == "mine\n"
    assert entered.returncode == 0


def test_doctor_names_a_frozen_vm_and_wakes_it(vm: User, project: Path, frozen: int) -> None:
    os.kill(frozen, signal.SIGCONT)
    inside(vm, "echo here | sudo tee /run/here")
    os.kill(frozen, signal.SIGSTOP)
    began = time.monotonic()
    assert "frozen: a signal stopped it" in vm.run(PROGRAM, "doctor").stdout
    assert time.monotonic() - began < 12
    assert "frozen" not in vm.agent_vm("doctor", "--fix")
    assert is_intact(vm, project)
    assert inside(vm, "cat /run/here") == "here\n"  # it was woken, not started anew


def test_after_hours_of_sleep_clock_connection_and_mount_are_put_right(
    vm: User, project: Path
) -> None:
    inside(vm, "sudo systemctl stop systemd-timesyncd; sudo date --set '3 hours ago'")
    socket = vm.home / ".agent-vm" / NAME / "ssh.sock"
    for server in (str(socket), str(vm.home / ".agent-vm-mounts/workspace")):
        for pid in pids(server):
            os.kill(pid, signal.SIGKILL)
    assert abs(int(inside(vm, "date +%s", project, "fix")) - time.time()) < 60
    assert is_intact(vm, project)
    assert (vm.home / ".agent-vm-mounts/workspace/faulty-fix/uncommitted").read_text() == "mine\n"


def test_a_kernel_that_panicked_is_told_and_started_anew(vm: User, project: Path) -> None:
    inside(vm, "sync", project, "fix")
    vm.run(PROGRAM, "connect", "--command", "echo c | sudo tee /proc/sysrq-trigger")
    began = time.monotonic()
    assert "its kernel panicked" in vm.run(PROGRAM, "doctor").stdout
    assert time.monotonic() - began < 12
    done = vm.run(PROGRAM, "fetch", "fix", cwd=project)
    assert "panicked; starting it anew" in done.stderr
    assert done.returncode == 0
    assert is_intact(vm, project)


def test_a_guest_that_was_powered_off_from_inside_starts_again(vm: User, project: Path) -> None:
    vm.run(PROGRAM, "connect", "--command", "sudo systemctl poweroff")
    end = time.monotonic() + 120
    while "State: Stopped" not in vm.agent_vm("status"):
        assert time.monotonic() < end
        time.sleep(2)
    assert is_intact(vm, project)


def test_a_killed_qemu_is_started_again(vm: User, project: Path, qemu: int) -> None:
    os.kill(qemu, signal.SIGKILL)
    time.sleep(1)
    vm.agent_vm("start")
    assert is_intact(vm, project)


@pytest.mark.parametrize("sign", ["starting the VM", "the guest boots"])
def test_a_start_that_was_killed_is_taken_up_by_the_next(
    vm: User, project: Path, sign: str
) -> None:
    vm.agent_vm("stop")
    vm.kills(sign, "start")
    assert is_intact(vm, project)
