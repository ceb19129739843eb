"""What an agent may take of this machine: as much as was set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_vm_tasks import mount, render
from agent_vm_tasks.image import Image
from agent_vm_tasks.settings import Settings, Vm
from tests.conftest import bare_mount

from .mounts_test import refused

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {"cpus": 2, "memory": "2048MiB", "disk": "10240MiB"}


@pytest.mark.parametrize("key", SIZES)
def test_the_vm_has_what_was_set(
    lima_fills: Callable[..., dict[str, Any]], key: str, *, on: bool
) -> None:
    """Off: the user's override.yaml gives it ten times as much, which a start refuses."""
    asked = Settings(vm=Vm(cpus=2, memory=2048, disk=10240, ca_certs=()))
    text = render.lima_yaml(asked, [Image("/disk.qcow2")], "key")
    more = {"cpus": 20, "memory": "20GiB", "disk": "100GiB"}[key]
    config = lima_fills(text, "" if on else f"{key}: {more}", "override.yaml")
    assert config[key] == (SIZES[key] if on else more)
    assert refused(config, text) == ("" if on else key)


def test_what_serves_the_mount_has_an_end_to_its_memory(
    started: Settings, home: Path, *, on: bool
) -> None:
    """A server that lists a folder without end would fill the memory of this machine."""
    if on:
        assert memory(mount.point(started)) == mount.MEMORY_LIMIT
        return
    with bare_mount(home / "bare") as other:
        assert memory(other) != mount.MEMORY_LIMIT


def memory(path: Path) -> int | None:
    """How much the sshfs at `path` may have; None for all there is."""
    limits = Path(f"/proc/{mount.server(path)}/limits").read_text()
    found = re.search(r"^Max address space +(\d+)", limits, re.MULTILINE)
    return int(found[1]) if found else None
