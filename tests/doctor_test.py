"""Each fault is made for real, seen by a look at the VM, and put right by the repair."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import doctor, guest, image, lima, mount, process, state, vm
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.settings import Mount, Provision, Settings, Vm

from .conftest import VM, a_host, leading, running_sshd, ssh_config, unmount, wait_until
from .family import family

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Limactl

SILENT = """
import socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("up", flush=True)
time.sleep(1000)
"""


@pytest.fixture
def settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    a_host(monkeypatch)
    disk = home / "disk.qcow2"
    disk.touch()
    return Settings(
        vm=Vm(image=str(disk), ca_certs=()),
        provision=Provision(enabled=False),
        mount=Mount(enabled=False),
    )


@pytest.fixture
def started(limactl: Limactl, settings: Settings) -> Settings:
    """A VM that runs, made by a start."""
    vm.start(settings, lambda _: None)
    return settings


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the time that a VM has to answer to what a test can wait for."""
    monkeypatch.setattr(guest, "GREETING", 0.5)
    monkeypatch.setattr(guest, "RESPONSE", 1.0)
    monkeypatch.setattr(process, "WATCH", 0.5)


def faults(settings: Settings) -> dict[str, str]:
    return {check.name: check.detail for check in doctor.checks(settings) if not check.ok}


def repaired(settings: Settings) -> list[str]:
    """What was said while everything was put right."""
    said: list[str] = []
    left = [check for check in doctor.repair(settings, said.append) if not check.ok]
    assert left == []
    return said


def works(settings: Settings) -> None:
    """A start has nothing to do, and a command comes back."""
    said: list[str] = []
    vm.start(settings, said.append)
    assert said == []
    assert process.run([*guest.ssh(VM), "echo in"]).stdout == "in\n"


@contextlib.contextmanager
def silent(limactl: Limactl, port: int) -> Iterator[None]:
    """Put something in the place of the VM that takes connections and says nothing."""
    limactl.signal(signal.SIGKILL)
    wait_until(lambda: free(port), "the port stays taken")
    argv = (sys.executable, "-c", SILENT, str(port))
    with leading(*argv, stdout=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.readline() == "up\n"
        (limactl.lima / VM / "ha.pid").write_text(str(child.pid))
        yield


def long_ago(limactl: Limactl) -> None:
    """Have the VM started an hour ago."""
    os.utime(limactl.lima / VM / "ha.pid", (time.time() - 3600, time.time() - 3600))


def free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_where_nothing_is_wrong_nothing_is_said_or_done(
    limactl: Limactl, started: Settings
) -> None:
    before = limactl.calls()
    assert faults(started) == {}
    assert repaired(started) == []
    assert limactl.calls() == before
    vm.stop(started, lambda _: None)
    assert faults(started) == {}
    vm.destroy(started, lambda _: None)
    assert faults(started) == {}
    assert limactl.instance() is None


def test_half_written_files_are_removed_when_nobody_can_be_at_them(started: Settings) -> None:
    old, new = (state.folder(VM) / f".ssh.config.{name}" for name in ("old", "new"))
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 60, time.time() - 60))
    assert "1 half-written files" in faults(started)["state"]
    repaired(started)
    assert not old.exists()
    assert new.exists()


def test_a_lock_that_is_held_is_told_and_not_broken(started: Settings) -> None:
    with state.lock(VM, print):
        assert f"process {os.getpid()}, " in faults(started)["lock"]
    assert "lock" not in faults(started)


def test_a_folder_that_is_none_of_ours_is_told(home: Path, settings: Settings) -> None:
    (home / ".agent-vm").touch()
    (check,) = doctor.checks(settings)
    assert (check.ok, check.detail) == (False, f"{home}/.agent-vm/{VM} is not a folder")


def test_a_broken_instance(limactl: Limactl, started: Settings) -> None:
    limactl.change(status="Broken", errors=["hostagent is gone"])
    assert faults(started)["instance"] == "Broken: hostagent is gone"
    repaired(started)
    assert limactl.calls()[-1][:3] == ["stop", "--tty=false", "--force"]
    assert not vm.start(started, lambda _: None).created


def test_an_instance_that_was_deleted_by_hand(limactl: Limactl, started: Settings) -> None:
    limactl.signal(signal.SIGKILL)
    shutil.rmtree(limactl.lima / VM)
    assert "deleted without agent-vm" in faults(started)["instance"]
    repaired(started)
    left = {path.name for path in state.folder(VM).iterdir()}
    assert left <= {"lock", "secrets.lock"}
    assert vm.start(started, lambda _: None).created


@pytest.mark.parametrize("by", ["repair", "start"])
def test_a_half_made_instance(limactl: Limactl, settings: Settings, by: str) -> None:
    state.write(guest.known_hosts(VM), f"{VM} ssh-ed25519 AAAA\n")
    (limactl.lima / VM).mkdir()
    assert faults(settings)["instance"] == "Incomplete: it has no lima.yaml"
    if by == "repair":
        repaired(settings)
        assert not (limactl.lima / VM).exists()
        vm.forget(VM)
    assert vm.start(settings, lambda _: None).created


def test_an_instance_without_configuration_but_with_a_disk_is_left_to_the_person(
    limactl: Limactl, settings: Settings
) -> None:
    state.write(guest.known_hosts(VM), f"{VM} ssh-ed25519 AAAA\n")
    (limactl.lima / VM).mkdir()
    (limactl.lima / VM / "disk").write_text("work")
    found = {check.name: check for check in doctor.repair(settings, lambda _: None)}
    assert "`agent-vm destroy` removes it" in found["instance"].fix
    with pytest.raises(AgentVMError, match=r"is Incomplete: it has no lima\.yaml"):
        vm.start(settings, lambda _: None)
    assert (limactl.lima / VM / "disk").read_text() == "work"
    assert vm.destroy(settings, lambda _: None)
    assert not (limactl.lima / VM).exists()


def test_a_limactl_that_does_not_answer_is_told_once(
    limactl: Limactl, started: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    limactl.does("list", "sleep 60")
    monkeypatch.setattr(lima, "PATIENCE", 0.3)
    (limactl.folder / "calls").unlink()
    found = faults(started)
    assert len((limactl.folder / "calls").read_text().splitlines()) == 1
    assert list(found) == ["instance"]
    assert "gave no answer" in found["instance"]


def test_files_of_a_vm_that_were_lost_are_made_anew(limactl: Limactl, started: Settings) -> None:
    guest.disconnect(VM)
    shutil.rmtree(state.folder(VM))
    with pytest.raises(AgentVMError, match="agent-vm did not make for this user"):
        vm.start(started, lambda _: None)
    assert "is not pinned here" in faults(started)["owner"]
    repaired(started)
    works(started)
    assert [call[0] for call in limactl.calls()] == ["create", "start"]


def test_somebody_elses_instance_is_not_taken(limactl: Limactl, settings: Settings) -> None:
    limactl.change(status="Running", cpus=1, config={"provision": [{"script": "true"}]})
    found = {check.name: check for check in doctor.repair(settings, lambda _: None)}
    assert found["owner"].fix == "agent-vm did not make it; set another vm.name"
    assert not guest.known_hosts(VM).exists()
    assert limactl.calls() == []


def test_a_port_that_is_the_vms_no_more(limactl: Limactl, started: Settings) -> None:
    guest.disconnect(VM)
    guest.config(VM).write_text(ssh_config(limactl.sshd, 1))
    assert faults(started)["port"].endswith("but looked for at 1")
    repaired(started)
    works(started)


@pytest.mark.usefixtures("impatient")
def test_a_frozen_vm_is_woken(limactl: Limactl, started: Settings) -> None:
    limactl.signal(signal.SIGSTOP)
    long_ago(limactl)
    assert faults(started) == {"answers": "frozen: a signal stopped it"}
    repaired(started)
    works(started)
    assert [call[0] for call in limactl.calls()] == ["create", "start"]


@pytest.mark.usefixtures("impatient")
def test_a_vm_whose_kernel_panicked_is_started_anew(limactl: Limactl, started: Settings) -> None:
    with silent(limactl, guest.port(VM)):
        (limactl.lima / VM / "serial.log").write_text("[ 9.9] Kernel panic - not syncing: sysrq\n")
        long_ago(limactl)
        assert faults(started) == {"answers": "its kernel panicked"}
        said = repaired(started)
    assert "the kernel of the VM agent-vm panicked; starting it anew" in said
    assert [call[:3] for call in limactl.calls()[2:]] == [
        ["stop", "--tty=false", "--force"], ["start", *limactl.calls()[1][1:3]],
    ]  # fmt: skip
    works(started)


@pytest.mark.usefixtures("impatient")
def test_a_vm_that_has_long_been_silent_is_stopped_and_started(
    limactl: Limactl, started: Settings
) -> None:
    with silent(limactl, guest.port(VM)):
        assert faults(started) == {"answers": "booting"}
        long_ago(limactl)
        assert faults(started) == {"answers": "no answer: frozen, or busy"}
        repaired(started)
    assert limactl.calls()[2] == ["stop", "--tty=false", VM]
    works(started)


def test_who_answers_is_not_the_vm(limactl: Limactl, started: Settings) -> None:
    guest.disconnect(VM)
    limactl.signal(signal.SIGKILL)
    with running_sshd(limactl.sshd, limactl.sshd.folder / "other") as port:
        (limactl.lima / VM / "ha.pid").unlink()
        limactl.change(sshLocalPort=port)
        vm_config = guest.config(VM).read_text()
        guest.config(VM).write_text(
            "".join(
                f"  Port {port}\n" if "  Port " in line else line
                for line in vm_config.splitlines(keepends=True)
            )
        )
        assert faults(started) == {"login": "who answers has another host key than the VM"}
        with pytest.raises(AgentVMError, match="is not that VM: its host key is another"):
            vm.require_running(VM)
        repaired(started)
    works(started)


@pytest.mark.usefixtures("impatient")
def test_a_connection_whose_other_end_is_gone(limactl: Limactl, started: Settings) -> None:
    for pid in family(limactl.driver())[1:]:
        os.kill(pid, signal.SIGSTOP)
    assert faults(started) == {"connection": "the warm connection is dead"}
    repaired(started)
    assert not state.control_path(VM).exists()
    works(started)


def test_a_clock_that_is_far_off(
    limactl: Limactl, started: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock_tools(limactl)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    assert faults(started)["clock"].endswith(" s slow")
    doctor.repair(started, lambda _: None)
    assert asked(limactl) == f"-n date --set=@{int(now + 7200)}\n"


def clock_tools(limactl: Limactl) -> None:
    """A sudo in the VM that only says what it was asked: the clock is this machine's."""
    sudo = limactl.sshd.home / "bin" / "sudo"
    sudo.parent.mkdir(exist_ok=True)
    sudo.write_text('#!/bin/sh\necho "$*" > "$HOME/asked"\n')
    sudo.chmod(0o755)


def asked(limactl: Limactl) -> str:
    return (limactl.sshd.home / "asked").read_text()


@pytest.fixture
def mounted(started: Settings, sshfs: None, home: Path) -> Iterator[Settings]:
    settings = replace(started, mount=Mount())
    mount.mount(settings)
    yield settings
    unmount(home)


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_mount(
    limactl: Limactl, mounted: Settings, sign: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mount, "ANSWER", 0.5)
    path = mount.point(mounted)
    pid = mount.server(path)
    assert pid
    os.kill(pid, sign)
    if sign == signal.SIGKILL:
        wait_until(lambda: mount.server(path) is None, "sshfs still runs")
    wrong = "is dead" if sign == signal.SIGKILL else "does not answer"
    assert wrong in faults(mounted)["mount"]
    repaired(mounted)
    assert mount.server(path) not in {None, pid}
    assert list(path.iterdir()) == []


def test_a_mount_that_is_missing(mounted: Settings) -> None:
    mount.unmount(mounted)
    assert faults(mounted)["mount"].endswith(" is not mounted")
    repaired(mounted)
    assert mount.server(mount.point(mounted))


def test_git_that_trusts_the_mount(home: Path, settings: Settings) -> None:
    """Without a look into the mount, and where the settings have it."""
    (home / ".gitconfig").write_text(f"[safe]\n\tdirectory = {home}/seen/app-fix\n")
    elsewhere = replace(settings, mount=Mount(path=str(home / "seen")))
    check = next(check for check in doctor.checks(elsewhere) if check.name == "git trust")
    assert (check.ok, check.required) == (False, False)
    assert check.detail == (
        f"git's safe.directory has {home}/seen/app-fix: files of the VM could run code here"
    )
    assert check.fix.startswith("take that out (`git config --global --edit`")
    assert "git trust" not in faults(settings)


def test_a_mount_of_a_vm_that_is_gone_is_taken_away(limactl: Limactl, mounted: Settings) -> None:
    pid = mount.server(mount.point(mounted))
    assert pid
    os.kill(pid, signal.SIGKILL)
    guest.disconnect(VM)
    limactl.signal(signal.SIGKILL)
    assert list(faults(mounted)) == ["mount"]
    repaired(mounted)
    assert mount.current(mount.point(mounted)) is None


def test_what_killed_commands_left_of_disks(settings: Settings, limactl: Limactl) -> None:
    images = image.cache()
    old = [images / "build-old", images.parent / "golden" / "keep-old"]
    new = [images / "build-new", images.parent / "golden" / "keep-new", images / "debian-13-aa"]
    for folder in (*old, *new):
        folder.mkdir(parents=True)
        (folder / "disk").write_text("disk")
    for folder in (*old, new[-1]):
        for path in (folder / "disk", folder):
            os.utime(path, (time.time() - 100_000, time.time() - 100_000))
    assert "build-old" in faults(settings)["leftovers"]
    repaired(settings)
    assert [folder.exists() for folder in (*old, *new)] == [False, False, True, True, True]


@pytest.mark.parametrize("gone", ["build-new", "build-new/raw"])
def test_a_build_that_goes_on_beside_the_look_is_none_of_it(
    settings: Settings, limactl: Limactl, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    (image.cache() / "build-new").mkdir(parents=True)
    listed = Path.iterdir

    def late(folder: Path) -> Iterator[Path]:
        if folder.name != "build-new":
            return listed(folder)
        if gone == folder.name:
            folder.rmdir()
            return listed(folder)
        return iter([folder / "raw"])

    monkeypatch.setattr(Path, "iterdir", late)
    assert "leftovers" not in faults(settings)


def test_a_look_at_a_dead_vm_takes_less_than_ten_seconds(
    limactl: Limactl, started: Settings
) -> None:
    limactl.signal(signal.SIGSTOP)
    began = time.monotonic()
    assert list(faults(started)) == ["answers"]
    assert time.monotonic() - began < 10
