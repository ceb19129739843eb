"""The end of a VM's life, and the next one from the kept disk. Runs after the other files."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from .conftest import NAME, PROGRAM, User, inside

pytestmark = pytest.mark.vm


def test_the_next_vm_starts_from_the_kept_disk_without_installing_anything(vm: User) -> None:
    was = inside(vm, "cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub")
    vm.agent_vm("destroy", "--force")
    done = vm.run(PROGRAM, "start")
    assert done.returncode == 0
    assert "using the provisioned disk" in done.stderr
    assert "installing" not in done.stderr
    now = inside(vm, "cat /etc/machine-id; cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub")
    assert not set(was.split()) & set(now.split())
    assert inside(vm, "claude --version; ls ~/workspace").endswith("(Claude Code)\n")


def test_destroy_leaves_no_vm_no_process_and_no_mount(vm: User) -> None:
    vm.agent_vm("destroy", "--force")
    assert vm.agent_vm("status").strip() == "State: Does not exist"
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True,
                            check=True).stdout  # fmt: skip
    assert f"/{NAME}/" not in listed
    assert str(vm.home) not in listed
    assert str(vm.home) not in Path("/proc/self/mountinfo").read_text()
