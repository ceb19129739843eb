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
    with subprocess.Popen(
        [PROGRAM, "start"], env=vm.env, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as started:
        assert started.stderr
        for line in started.stderr:
            if sign in line:
                break
        started.kill()
    assert is_intact(vm, project)
