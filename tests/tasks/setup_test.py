"""What `setup` and `doctor` print, and the exit status they give."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from invoke.context import Context
from invoke.exceptions import Exit

from agent_vm_tasks import doctor as faults
from agent_vm_tasks import host, install
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.tasks import setup as commands

if TYPE_CHECKING:
    from pathlib import Path

    from agent_vm_tasks.console import Say
    from agent_vm_tasks.settings import Packages

pytestmark = pytest.mark.usefixtures("home")

FINE = host.Check("lima", ok=True, required=True, detail="2.2.0 at /usr/local/bin/limactl")
SLOW = host.Check("kvm", ok=False, required=False, detail="no /dev/kvm", fix="turn it on")
LOST = host.Check("qemu", ok=False, required=True, detail="not installed", fix="install it")


@pytest.fixture(autouse=True)
def no_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at no VM, least of all at one of this machine."""
    monkeypatch.setattr(faults, "checks", lambda _settings: [])
    monkeypatch.setattr(faults, "repair", lambda _settings, _say: [])


def finds(monkeypatch: pytest.MonkeyPatch, *checks: host.Check) -> None:
    monkeypatch.setattr(host, "checks", lambda: list(checks))
    monkeypatch.setattr(install, "setup", lambda _packages, _say: list(checks))


def test_doctor_passes_a_host_with_warnings_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finds(monkeypatch, FINE, SLOW)
    commands.doctor(Context())
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["ok", "lima", FINE.detail]
    assert lines[1] == ["warning", "kvm", SLOW.detail]
    assert " ".join(lines[2]) == SLOW.fix


def test_doctor_fails_when_no_vm_can_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finds(monkeypatch, FINE, SLOW, LOST)
    with pytest.raises(Exit, match="no VM can run yet: qemu;") as caught:
        commands.doctor(Context())
    assert caught.value.code == 1
    assert "PROBLEM  qemu" in capsys.readouterr().out


@pytest.mark.parametrize(("checks", "usable"), [((FINE, SLOW), True), ((FINE, LOST), False)])
def test_doctor_in_json(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checks: tuple[host.Check, ...],
    usable: bool,
) -> None:
    finds(monkeypatch, *checks)
    if usable:
        commands.doctor(Context(), json=True)
    else:
        with pytest.raises(Exit):
            commands.doctor(Context(), json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["ok"] is usable
    assert shown["checks"][1] == {
        "name": checks[1].name,
        "ok": False,
        "required": checks[1].required,
        "detail": checks[1].detail,
        "fix": checks[1].fix,
    }


def test_doctor_with_fix_sets_up_first(monkeypatch: pytest.MonkeyPatch) -> None:
    finds(monkeypatch, LOST)
    monkeypatch.setattr(install, "setup", lambda _packages, _say: [FINE])
    commands.doctor(Context(), fix=True)


def test_setup_says_what_is_left_and_that_the_host_is_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finds(monkeypatch, FINE, SLOW)
    commands.setup(Context())
    out = capsys.readouterr().out
    assert "turn it on" in out
    assert out.endswith("the host is ready\n")
    assert "lima" not in out


def test_setup_that_leaves_a_problem_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    finds(monkeypatch, LOST)
    with pytest.raises(Exit, match="no VM can run yet: qemu"):
        commands.setup(Context())


def test_setup_that_cannot_install_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_packages: Packages, say: Say) -> list[host.Check]:
        say("$ apt-get update")
        raise AgentVMError("apt-get failed: the disk is full", "make room")

    monkeypatch.setattr(install, "setup", fails)
    with pytest.raises(Exit) as caught:
        commands.setup(Context())
    assert caught.value.message == "agent-vm: apt-get failed: the disk is full; make room"
    assert capsys.readouterr().err == "$ apt-get update\n"


def test_setup_takes_lima_from_where_the_users_settings_say(
    monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    config = home / ".config/agent-vm/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[packages]\nlima_releases = "https://mirror.example/lima"\n')
    asked: list[str] = []

    def setup(packages: Packages, _say: Say) -> list[host.Check]:
        asked.append(packages.lima_releases)
        return [FINE]

    monkeypatch.setattr(install, "setup", setup)
    commands.setup(Context())
    commands.doctor(Context(), fix=True)
    assert asked == ["https://mirror.example/lima"] * 2
