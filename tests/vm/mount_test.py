"""The mount of a real guest whose SFTP server, or whole self, falls silent."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import NAME, PROGRAM, User, inside, lima_home

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.vm

SERVER = Path(__file__).parents[1] / "stand_ins" / "sftp_server.py"
LONGEST = 10.0
"""Seconds that a program on this machine may hang."""
START = 3.0
"""Seconds that it may take on top, on a machine that emulates."""
HOSTILE = """
cat > /tmp/server.py
sudo mv /usr/lib/openssh/sftp-server /usr/lib/openssh/sftp-server.real
printf '#!/bin/sh\\nexec python3 -I -S /tmp/server.py %s /etc/passwd\\n' {attack} |
    sudo tee /usr/lib/openssh/sftp-server > /dev/null
sudo chmod 755 /usr/lib/openssh/sftp-server
"""
HONEST = "sudo mv -f /usr/lib/openssh/sftp-server.real /usr/lib/openssh/sftp-server"


@pytest.fixture
def file(vm: User) -> Path:
    inside(vm, "mkdir -p workspace/files; echo here > workspace/files/one")
    return vm.home / ".agent-vm-mounts/workspace/files/one"


def ends(vm: User, *argv: str) -> tuple[str, float]:
    """What a program says that looks into the mount, and the seconds that it took."""
    began = time.monotonic()
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=100)
    return done.stdout + done.stderr, time.monotonic() - began


def heals(vm: User, file: Path) -> bool:
    """Whether the mount serves the file again after the next command, and a rest."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        vm.agent_vm("connect", "--command", "true")
        if ends(vm, "cat", str(file))[0] == "here\n":
            return True
        time.sleep(2)
    return False


@pytest.fixture
def served(vm: User) -> Iterator[None]:
    """An sftp-server of the guest's choice; afterwards the honest one."""
    yield
    inside(vm, HONEST)
    vm.agent_vm("unmount", "--force")
    vm.agent_vm("mount")


@pytest.mark.parametrize("attack", ["silent", "late", "endless"])
def test_a_hostile_server_hangs_nothing(vm: User, file: Path, served: None, attack: str) -> None:
    replace(vm, attack)
    vm.agent_vm("unmount", "--force")
    vm.agent_vm("mount")
    bad = vm.home / ".agent-vm-mounts/workspace/bad"
    said, took = ends(vm, "ls" if attack == "endless" else "cat", str(bad))
    assert "Input/output error" in said
    assert took < LONGEST + START
    for argv in ((PROGRAM, "status"), (PROGRAM, "unmount", "--force")):
        began = time.monotonic()
        assert vm.run(*argv).returncode == 0
        assert time.monotonic() - began < LONGEST + START


def replace(vm: User, attack: str) -> None:
    """Have root in the guest put another sftp-server in place of its own."""
    with SERVER.open("rb") as file:
        subprocess.run([PROGRAM, "connect", "--command", HOSTILE.format(attack=attack)],
                       env=vm.env, cwd=vm.home, stdin=file, check=True)  # fmt: skip


def test_a_server_that_root_stops_hangs_nothing_and_heals(vm: User, file: Path) -> None:
    assert ends(vm, "cat", str(file))[0] == "here\n"
    inside(vm, "echo more > workspace/files/two; sudo pkill -STOP sftp-server")
    said, took = ends(vm, "cat", str(file.with_name("two")))
    assert "Input/output error" in said
    assert took < LONGEST + START
    inside(vm, "sudo pkill -KILL sftp-server; true")
    assert heals(vm, file)


def test_a_frozen_vm_hangs_nothing_and_heals_when_it_thaws(vm: User, file: Path) -> None:
    qemu = int((lima_home(vm) / NAME / "qemu.pid").read_text())
    inside(vm, "echo more > workspace/files/three")
    os.kill(qemu, signal.SIGSTOP)
    try:
        said, took = ends(vm, "cat", str(file.with_name("three")))
    finally:
        os.kill(qemu, signal.SIGCONT)
    assert "Input/output error" in said
    assert took < LONGEST + START
    assert heals(vm, file)


def test_nothing_of_the_mount_outlives_it(vm: User, file: Path) -> None:
    assert len(watches(vm)) == 2  # itself, and the ssh that it started
    vm.agent_vm("unmount")
    end = time.monotonic() + LONGEST
    while watches(vm):
        assert time.monotonic() < end
        time.sleep(0.2)
    vm.agent_vm("mount")
    assert all("?" in line.split()[1] for line in watches(vm))  # no terminal can signal them
    assert ends(vm, "cat", str(file))[0] == "here\n"


def watches(vm: User) -> list[str]:
    """The processes between sshfs and the VM, each with its terminal."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,tty=,args="], capture_output=True,
                            text=True, check=True).stdout  # fmt: skip
    words = (str(vm.home), f"{NAME}-mount")
    return [line for line in listed.splitlines()
            if all(word in line for word in words) and " sshfs " not in line]  # fmt: skip
