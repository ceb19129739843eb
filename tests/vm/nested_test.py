"""VMs inside the VM: what is there for them, and, when asked for, one that boots.

`NESTED_BOOT=1 pytest -m vm tests/vm/nested_test.py` also boots the VM inside the VM: its kernel
and a busybox, up to a prompt on the serial console. Emulated twice, that takes minutes.
"""

from __future__ import annotations

import json
import os
import platform
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import __version__, host, lima_archive

from .conftest import inside

if TYPE_CHECKING:
    from .conftest import User

pytestmark = pytest.mark.vm


def test_lima_is_there_in_a_login_shell_and_in_a_plain_command(vm: User) -> None:
    said = f"limactl version {lima_archive.VERSION}\n"
    assert inside(vm, "limactl --version") == said
    assert inside(vm, "bash -lc 'limactl --version'") == said


def test_lima_has_its_templates_and_the_agent_for_its_guests(vm: User) -> None:
    assert "default" in inside(vm, "limactl create --list-templates").split()
    inside(vm, "limactl validate template:default template:debian template:docker")
    known = json.loads(inside(vm, "limactl info"))
    assert host.arch() in known["guestAgents"]


def test_agent_vm_itself_is_there_and_finds_what_it_needs(vm: User) -> None:
    assert inside(vm, "agent-vm --version") == f"agent-vm {__version__}\n"
    found = json.loads(inside(vm, "agent-vm doctor --json"))
    details = {check["name"]: check["detail"] for check in found["checks"]}
    assert found["ok"]
    assert details["account"] == "limactl runs as agent"
    assert details["lima"] == f"{lima_archive.VERSION} at /usr/local/bin/limactl"
    assert details["sshfs"] == "keeps links inside the mount"


def test_kvm_may_be_used_where_there_is_one(vm: User) -> None:
    assert "kvm" in inside(vm, "id -nG").split()
    usable = "test ! -e /dev/kvm || { stat -c %G /dev/kvm; test -r /dev/kvm -a -w /dev/kvm; }"
    assert inside(vm, usable).strip() in {"", "kvm"}


BOOT = r"""
set -euo pipefail
began=$SECONDS
step() { echo "$1: $((SECONDS - began)) s"; began=$SECONDS; }
folder=$(mktemp -d)
trap 'limactl delete --force nested-boot > /dev/null 2>&1; rm -rf "$folder"' EXIT
sudo apt-get -qq update
sudo apt-get -qq install -y --no-install-recommends busybox-static cpio > /dev/null
step "busybox installed"
mkdir -p "$folder/root/bin" "$folder/root/dev"
cp /bin/busybox "$folder/root/bin"
cat > "$folder/root/init" <<'INIT'
#!/bin/busybox sh
export PS1='prompt of the inner VM# '
exec /bin/busybox sh -i
INIT
chmod +x "$folder/root/init"
(cd "$folder/root" && find . | cpio --quiet -o -H newc | gzip > "$folder/initrd")
qemu-img create -q -f qcow2 "$folder/disk" 16M
cat > "$folder/nested-boot.yaml" <<YAML
plain: true
vmType: qemu
cpus: 1
memory: 512MiB
disk: 64MiB
firmware: {legacyBIOS: true}
images:
- location: $folder/disk
  arch: x86_64
  kernel: {location: $(echo /boot/vmlinuz-*-amd64), cmdline: console=ttyS0}
  initrd: {location: $folder/initrd}
YAML
step "image made"
limactl --tty=false create "$folder/nested-boot.yaml"
step "created"
# It has no ssh to wait for, so that start would fail in the end.
limactl --tty=false start --timeout 20m nested-boot > "$folder/said" 2>&1 &
for _ in $(seq 600); do
    if grep -q 'prompt of the inner VM#' ~/.lima/nested-boot/serial.log 2> /dev/null; then
        step "prompt"
        exit
    fi
    sleep 2
done
cat "$folder/said" ~/.lima/nested-boot/serial.log
exit 1
"""
EMULATED = "qemu-system-x86_64 -machine q35,vmport=off -accel tcg -cpu max"


@pytest.mark.skipif(not os.environ.get("NESTED_BOOT"), reason="slow: set NESTED_BOOT=1")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="boots an x86-64 kernel")
def test_lima_starts_a_vm_inside_the_vm(vm: User) -> None:
    doctor = json.loads(inside(vm, "agent-vm doctor --json"))
    kvm = next(check["ok"] for check in doctor["checks"] if check["name"] == "kvm")
    choice = "" if kvm else f"export QEMU_SYSTEM_X86_64='{EMULATED}'\n"
    said = inside(vm, choice + BOOT)
    print(said)
    assert "prompt: " in said
