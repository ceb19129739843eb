"""The command line on a host with much to give, its limactl a stand-in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import host
from tests.cli import Said, run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Guest, Limactl

Command = Callable[..., Said]

CONFIG = """\
[vm]
image = "~/disk.qcow2"
ca_certs = []
[provision]
enabled = false
[mount]
enabled = false
"""


@pytest.fixture
def vm(guest: Guest, limactl: Limactl) -> Guest:
    """A VM that runs."""
    limactl.adopt(guest)
    return guest


@pytest.fixture
def agent_vm(
    home: Path,
    limactl: Limactl,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Command:
    """Run `agent-vm` with these words; its VM is neither provisioned nor mounted."""
    monkeypatch.setattr(host, "cpus", lambda: 8)
    monkeypatch.setattr(host, "memory", lambda: 16384)
    monkeypatch.setattr(host, "kvm", lambda: host.Kvm(works=True, reason="a guest ran on it"))
    (home / "disk.qcow2").touch()
    config = home / ".config" / "agent-vm" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(CONFIG)
    return lambda *argv: run(monkeypatch, capfd, *argv)
