"""The end of a VM's life, and the next one from the kept disk. Runs after the other files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .conftest import NAME, PROGRAM, User, inside

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def project(vm: User) -> Path:
    top = vm.home / "kept" / "work"
    top.parent.mkdir()
    return vm.repository(str(top))


def test_the_next_vm_starts_from_the_kept_disk_whenever_its_start_was_killed(
    vm: User, project: Path
) -> None:
    was = inside(vm, "cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub")
    vm.agent_vm("push", "kept", cwd=project)
    inside(vm, "echo mine > uncommitted", project, "kept")
    assert "undo" in vm.agent_vm("destroy", "--force")
    for step in ("creating the VM", "starting the VM", "the guest boots"):
        vm.kills(step, "start")
    done = vm.run(PROGRAM, "start")
    assert done.returncode == 0
    assert "installing" not in done.stderr
    now = inside(vm, "cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub")
    assert not set(was.split()) & set(now.split())
    assert inside(vm, "claude --version; ls ~/workspace").endswith("(Claude Code)\n")


def test_work_that_was_destroyed_comes_back_in_the_next_vm(vm: User, project: Path) -> None:
    vm.agent_vm("undo", "work-kept")
    assert inside(vm, "cat uncommitted", project, "kept") == "mine\n"


def test_destroy_leaves_no_vm_no_process_and_no_mount(vm: User) -> None:
    vm.agent_vm("destroy", "--force")
    assert vm.agent_vm("status").strip() == "State: Does not exist"
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True,
                            check=True).stdout  # fmt: skip
    assert f"/{NAME}/" not in listed
    assert str(vm.home) not in listed
    assert str(vm.home) not in Path("/proc/self/mountinfo").read_text()
