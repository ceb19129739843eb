"""The ways Lima gets onto a host: which is taken, and what is left alone."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import host, install_lima
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.settings import Packages

from .fake_go import go
from .programs import calls, only_tools, script

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = Packages(lima_releases="http://127.0.0.1:9")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain user's Linux on x86-64 with Go, but without Lima; its programs' folder."""
    folder = tmp_path / "programs"
    folder.mkdir()
    go(folder)
    monkeypatch.setenv("PATH", f"{folder}:{only_tools(tmp_path / 'tools', 'gzip', 'sync')}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(host, "_SYSTEM_FOLDERS", "")
    monkeypatch.setattr(host, "_OUR_FOLDERS", ("~/.local/bin",))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return folder


def install() -> list[str]:
    """What the user was told."""
    told: list[str] = []
    install_lima.install(PACKAGES, told.append)
    return told


def test_lima_that_is_there_is_left_alone(machine: Path) -> None:
    script(machine, "limactl", "echo limactl version 2.2.0")
    script(machine, "brew")
    assert install() == []
    assert calls(machine) == ["limactl --version"]


def test_homebrew_comes_first(machine: Path) -> None:
    new = script(machine, "limactl.new", "echo limactl version 2.2.0")
    script(machine, "brew", f'cp "{new}" "{machine}/limactl"')
    assert install() == [f"$ {machine}/brew install lima"]
    assert host.lima_version() == (2, 2, 0)


def test_old_lima_of_homebrew_leads_to_the_next_way(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brewed = tmp_path / "brewed"
    brewed.mkdir()
    old = script(brewed, "limactl.old", "echo limactl version 1.2.0")
    script(brewed, "brew", f'cp "{old}" "{brewed}/limactl"')
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{brewed}")
    with pytest.raises(AgentVMError, match=r"older than Lima 2.2.0 and comes first on PATH"):
        install()
    assert (tmp_path / ".local/bin/limactl").exists()


def test_the_archive_is_unpacked_and_kept_for_the_vms(machine: Path, tmp_path: Path) -> None:
    told = install()
    assert host.limactl() == str(tmp_path / ".local/bin/limactl")
    assert (tmp_path / ".local/share/lima/templates/default.yaml").is_file()
    assert told[-1].startswith("$ tar -xzf ")
    assert [path.name for path in (tmp_path / ".cache/agent-vm/lima").iterdir()] == [
        "lima-2.2.0-Linux-x86_64.tar.gz"
    ]


def test_what_is_unpacked_over_keeps_its_mode(machine: Path, tmp_path: Path) -> None:
    share = tmp_path / ".local/share"
    share.mkdir(parents=True)
    share.chmod(0o700)
    install()
    assert share.stat().st_mode & 0o777 == 0o700


def test_a_full_disk_is_said_in_one_line(machine: Path) -> None:
    script(machine, "tar", "echo 'tar: write error: No space left on device' >&2; exit 1")
    with pytest.raises(AgentVMError, match="tar failed: the disk is full; make") as caught:
        install()
    assert "\n" not in str(caught.value)


def test_macos_without_homebrew_says_so(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(AgentVMError, match="there is no Homebrew; install it"):
        install()
