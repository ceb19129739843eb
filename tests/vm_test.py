"""The VM's life against a stand-in limactl whose instances are an sshd on loopback."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_vm_tasks import (
    golden,
    host,
    lima,
    mount,
    process,
    provision,
    state,
    vm,
)
from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.settings import (
    NETWORKS,
    Mount,
    Network,
    Provision,
    Settings,
    Vm,
    with_vm,
)

from .conftest import VM, WORKS, a_host, answers, commit, git, leading, wait_until
from .family import family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from agent_vm_tasks.console import Say
    from agent_vm_tasks.stages import Stage

    from .conftest import Guest, Limactl

CREATE = ["create", f"--name={VM}", "--tty=false", "-"]
START = ["start", "--tty=false", f"--timeout={lima.START_TIMEOUT}s", VM]
FORCE_STOP = ["stop", "--tty=false", "--force", VM]
DELETE = ["delete", "--tty=false", "--force", VM]
BROKEN = host.Kvm(works=False, reason="there is no /dev/kvm")


@pytest.fixture
def settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A host with much to give, and a VM that is neither provisioned nor mounted."""
    a_host(monkeypatch, cpus=8, memory=16384, kvm=WORKS)
    disk = home / "disk.qcow2"
    disk.touch()
    return Settings(
        vm=Vm(image=str(disk), ca_certs=()),
        provision=Provision(enabled=False),
        mount=Mount(enabled=False),
    )


def started(settings: Settings) -> list[str]:
    """Start it; what was said."""
    said: list[str] = []
    vm.start(settings, said.append)
    return said


def destroyed(settings: Settings) -> bool:
    return vm.destroy(settings, lambda _: None)


def test_a_start_creates_boots_and_connects(limactl: Limactl, settings: Settings) -> None:
    said: list[str] = []
    assert vm.start(settings, said.append).created
    assert limactl.calls() == [CREATE, START]
    assert vm.ready(VM)
    assert said[0] == "creating the VM agent-vm: 4 CPUs, 8 GiB memory, 100 GiB disk"
    assert said[1] == "starting the VM agent-vm"


def test_a_small_vm_is_not_said_to_have_no_memory(limactl: Limactl, settings: Settings) -> None:
    said = started(with_vm(settings, memory="512MiB", disk="20000MiB"))
    assert said[0] == "creating the VM agent-vm: 4 CPUs, 0.5 GiB memory, 19.53 GiB disk"


def test_a_disk_that_can_fill_this_machine_is_told_at_its_creation(
    limactl: Limactl, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "room", lambda _: 50 * 1024)
    assert "its disk grows as it fills; this machine has 50 GiB for it" in started(settings)
    monkeypatch.setattr(host, "room", lambda _: 200 * 1024)
    destroyed(settings)
    assert not any("grows" in line for line in started(settings))


def test_the_guest_gets_the_host_key_that_is_pinned(limactl: Limactl, settings: Settings) -> None:
    started(settings)
    known = (state.folder(VM) / "known_hosts").read_text().split()
    assert known[:2] == [VM, "ssh-ed25519"]
    ssh_guest.disconnect(VM)
    (state.folder(VM) / "known_hosts").write_text(limactl.sshd.public_key("other"))
    with pytest.raises(AgentVMError, match="its host key is another"):
        ssh_guest.warm_up(VM)


def test_a_second_start_does_nothing(limactl: Limactl, settings: Settings) -> None:
    started(settings)
    again = vm.start(settings, lambda _: None)
    assert limactl.calls() == [CREATE, START]
    assert (again.created, again.warnings) == (False, ())


def test_a_stopped_vm_is_booted_again_and_found_at_its_new_port(
    limactl: Limactl, settings: Settings
) -> None:
    started(settings)
    assert vm.stop(settings, print)
    assert not vm.ready(VM)
    assert not vm.start(settings, lambda _: None).created
    assert [call[0] for call in limactl.calls()] == ["create", "start", "stop", "start"]
    assert vm.ready(VM)


def test_a_boot_that_unmarks_the_vm_beside_the_look_is_no_trouble(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: True)  # it goes after this look
    assert not vm.outdated(Settings())


def test_two_starts_at_once_make_one_vm(limactl: Limactl, settings: Settings) -> None:
    said: list[str] = []
    starts = [threading.Thread(target=vm.start, args=(settings, said.append)) for _ in range(2)]
    for each in starts:
        each.start()
    for each in starts:
        each.join()
    assert limactl.calls() == [CREATE, START]
    assert any("waiting for another agent-vm command" in line for line in said)


def test_an_interrupted_start_is_repaired_by_the_next(
    limactl: Limactl, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(lima, "start", interrupted)
        with pytest.raises(KeyboardInterrupt):
            started(settings)
    started(settings)
    assert limactl.calls() == [CREATE, START]
    assert vm.ready(VM)


def test_a_vm_that_does_not_boot_is_stopped_and_can_be_started_again(
    limactl: Limactl, settings: Settings
) -> None:
    limactl.fail("start", "exiting, driver stopped")
    with pytest.raises(AgentVMError, match="did not start: exiting, driver stopped"):
        started(settings)
    assert limactl.calls() == [CREATE, START, FORCE_STOP]
    limactl.repair("start")
    started(settings)
    assert vm.ready(VM)


def test_a_vm_that_goes_down_while_it_boots_is_not_taken_for_running(
    limactl: Limactl, settings: Settings
) -> None:
    """`limactl start` may end with 0 all the same."""
    limactl.fail("start", "", status=0)
    with pytest.raises(AgentVMError, match="went down while it booted"):
        started(settings)


def test_a_failed_creation_leaves_no_vm(limactl: Limactl, settings: Settings) -> None:
    limactl.fail("create", "no image")
    with pytest.raises(AgentVMError, match="could not create agent-vm: no image"):
        started(settings)
    assert limactl.calls() == [CREATE]
    assert vm.status(settings).state == vm.ABSENT


def test_what_is_refused_is_deleted_and_never_boots(
    limactl: Limactl, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = lima.create

    def create(name: str, text: str, say: Say) -> None:
        real(name, text, say)
        made = limactl.instance()
        assert made
        limactl.change(config={**made["config"], "mounts": [{"location": "~"}]})

    monkeypatch.setattr(lima, "create", create)
    with pytest.raises(AgentVMError, match="with other mounts than asked for"):
        started(settings)
    assert limactl.calls() == [CREATE, DELETE]
    assert limactl.instance() is None


def test_what_was_mixed_in_since_the_creation_is_refused_before_the_next_boot(
    limactl: Limactl, settings: Settings
) -> None:
    started(settings)
    vm.stop(settings, print)
    found = limactl.instance()
    assert found
    limactl.change(config={**found["config"], "mounts": [{"location": "~"}]})
    before = limactl.calls()
    with pytest.raises(AgentVMError, match="with other mounts than asked for"):
        started(settings)
    assert limactl.calls() == before
    assert vm.status(settings).state == "Stopped"


def test_a_failed_creation_does_not_claim_an_instance_that_appears_later(
    limactl: Limactl, settings: Settings
) -> None:
    limactl.fail("create", "no image")
    with pytest.raises(AgentVMError):
        started(settings)
    assert not ssh_guest.known_hosts(VM).exists()


def test_what_an_existing_vm_does_not_have_is_told(limactl: Limactl, settings: Settings) -> None:
    started(settings)
    flags = with_vm(settings, cpus="2", memory="3000MiB", disk="50")
    assert vm.start(flags, lambda _: None).warnings == (
        "the VM has 4 CPUs, not 2 CPUs: vm.cpus counts when it is created (destroy, then start)",
        "the VM has 8 GiB memory, not 2.93 GiB memory: vm.memory counts when it is created "
        "(destroy, then start)",
        "the VM has 100 GiB disk, not 50 GiB disk: vm.disk counts when it is created "
        "(destroy, then start)",
    )
    assert limactl.calls() == [CREATE, START]
    same = with_vm(settings, cpus="4", memory="8", disk="100")
    assert vm.start(same, lambda _: None).warnings == ()


def test_what_nobody_asks_for_is_not_missed(limactl: Limactl, settings: Settings) -> None:
    started(with_vm(settings, cpus="2", memory="3", disk="50"))
    assert vm.start(settings, lambda _: None).warnings == ()


def test_a_broken_vm_is_healed_without_being_made_anew(
    limactl: Limactl, settings: Settings
) -> None:
    started(settings)
    ssh_guest.disconnect(VM)
    limactl.change(status="Broken", errors=["hostagent is gone"])
    said = started(settings)
    assert said[0] == "the VM agent-vm is Broken; cleaning up"
    assert limactl.calls() == [CREATE, START, FORCE_STOP, START]
    assert vm.ready(VM)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the time that a VM has to answer to what a test can wait for."""
    monkeypatch.setattr(ssh_guest, "GREETING", 0.3)
    monkeypatch.setattr(process, "WATCH", 0.3)
    monkeypatch.setattr(vm, "PAUSE", 0.1)


@pytest.fixture
def silent(limactl: Limactl, settings: Settings) -> Iterator[int]:
    """A VM that lost its connection and takes new ones without a word; its port."""
    started(settings)
    port = ssh_guest.port(VM)
    limactl.signal(signal.SIGKILL)
    wait_until(lambda: not answers(port), "the port stays taken")
    with leading("sleep", "100") as qemu, socket.create_server(("127.0.0.1", port)):
        (limactl.lima / VM / "ha.pid").write_text(str(qemu.pid))
        yield port


@pytest.mark.usefixtures("impatient")
def test_a_vm_that_another_command_left_booting_is_waited_for(
    limactl: Limactl, settings: Settings
) -> None:
    started(settings)
    before = limactl.calls()
    limactl.signal(signal.SIGKILL)
    sshd = limactl.sshd.argv(limactl.lima / VM / "host_key", ssh_guest.port(VM))
    with leading("sh", "-c", 'sleep 1; exec "$@" 2> /dev/null', "sh", *sshd) as qemu:
        (limactl.lima / VM / "ha.pid").write_text(str(qemu.pid))
        said = started(settings)
        assert any("runs, but does not answer yet" in line for line in said)
        assert vm.ready(VM)
        assert limactl.calls() == before


@pytest.mark.usefixtures("impatient")
def test_a_vm_that_has_long_been_silent_is_told_at_once(
    limactl: Limactl, settings: Settings, silent: int
) -> None:
    pid_file = limactl.lima / VM / "ha.pid"
    os.utime(pid_file, (time.time() - vm.BOOT_LIMIT - 1, time.time() - vm.BOOT_LIMIT - 1))
    with pytest.raises(AgentVMError, match=r"does not answer: .*; `agent-vm doctor --fix`"):
        started(settings)
    assert [call[0] for call in limactl.calls()] == ["create", "start"]


@pytest.mark.usefixtures("impatient")
def test_a_panic_is_answered_by_a_new_start_and_a_stop_by_force(
    limactl: Limactl, settings: Settings, silent: int
) -> None:
    (limactl.lima / VM / "serial.log").write_text("Kernel panic - not syncing\n")
    said = started(settings)
    assert said[0] == "the kernel of the VM agent-vm panicked; starting it anew"
    assert limactl.calls() == [CREATE, START, FORCE_STOP, START]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("panicked", [True, False])
def test_a_silent_vm_is_stopped_by_force_only_when_nothing_can_be_lost(
    limactl: Limactl, settings: Settings, silent: int, panicked: bool
) -> None:
    if panicked:
        (limactl.lima / VM / "serial.log").write_text("Kernel panic - not syncing\n")
    said: list[str] = []
    assert vm.stop(settings, said.append)
    assert said == ["stopping the VM agent-vm; one that does not answer takes up to 3 minutes"]
    assert ("--force" in limactl.calls()[-1]) is panicked


def test_a_connection_whose_other_end_is_gone_is_opened_anew(
    limactl: Limactl, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(settings)
    before = login()
    for pid in family(limactl.driver())[1:]:
        os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(ssh_guest, "RESPONSE", 0.5)
    began = time.monotonic()
    assert started(settings) == []
    assert time.monotonic() - began < 20  # ssh alone gives up after 45
    assert login() != before


@pytest.mark.parametrize("other", ["key", "none"])
def test_only_the_instance_with_the_pinned_key_is_ours(
    limactl: Limactl, settings: Settings, other: str
) -> None:
    started(settings)
    vm.stop(settings, print)
    found = limactl.instance()
    assert found
    key = (limactl.sshd.folder / "other").read_text()
    provision = [{"script": key}] if other == "key" else []
    limactl.change(config={**found["config"], "provision": provision})
    before = limactl.calls()
    for act in (started, vm.status, destroyed):
        with pytest.raises(AgentVMError, match="agent-vm did not make for this user"):
            act(settings)
    assert limactl.calls() == before


def test_a_vm_that_stays_broken_is_kept_and_its_troubles_told(
    limactl: Limactl, settings: Settings
) -> None:
    started(settings)
    limactl.change(status="Broken", errors=["disk is missing", "no key"])
    limactl.fail("stop")
    with pytest.raises(AgentVMError) as caught:
        started(settings)
    assert caught.value.message == "the VM agent-vm is Broken: disk is missing; no key"
    assert "agent-vm destroy" in caught.value.hint
    assert limactl.instance() is not None
    limactl.repair("stop")


def test_somebody_elses_instance_of_that_name_is_left_alone(
    limactl: Limactl, settings: Settings
) -> None:
    theirs: dict[str, Any] = {"status": "Running", "cpus": 1, "config": {}}
    limactl.change(**theirs)
    for act in (started, vm.status, lambda s: vm.stop(s, print), destroyed, vm.contents):
        with pytest.raises(AgentVMError, match="agent-vm did not make for this user"):
            act(settings)
    assert limactl.calls() == []


def test_provisioning_that_failed_leaves_a_vm_that_is_not_ready(
    limactl: Limactl, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> bool:
        raise AgentVMError("in stage npm")

    results: list[Callable[[], bool]] = [fail, lambda: True, lambda: False, fail]

    monkeypatch.setattr(provision, "run", lambda *_: results.pop(0)())
    wanted = replace(settings, provision=Provision(enabled=True))
    with pytest.raises(AgentVMError, match="in stage npm"):
        started(wanted)
    assert not vm.ready(VM)
    started(wanted)
    assert vm.ready(VM)
    started(wanted)
    assert limactl.calls() == [CREATE, START]
    vm.stop(wanted, print)
    with pytest.raises(AgentVMError, match="in stage npm"):
        started(wanted)
    assert not vm.ready(VM)
    assert not results


def test_only_a_vm_that_nobody_can_have_worked_in_has_its_disk_kept(
    limactl: Limactl, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[str] = []
    trouble = [AgentVMError("in stage npm")]

    def run(*_: object, **__: object) -> bool:
        if trouble:
            raise trouble.pop()
        return True

    monkeypatch.setattr(provision, "run", run)
    monkeypatch.setattr(golden, "keep", lambda *_: kept.append("disk"))
    wanted = replace(settings, provision=Provision(enabled=True))
    with pytest.raises(AgentVMError, match="in stage npm"):
        started(wanted)
    assert kept == []
    for _ in range(2):
        started(wanted)
        assert kept == ["disk"]
    vm.stop(wanted, lambda _: None)
    started(wanted)
    assert kept == ["disk"]
    destroyed(wanted)
    started(wanted)
    assert kept == ["disk", "disk"]


@pytest.mark.parametrize("trouble", [AgentVMError("no room"), OSError(28, "no room")])
def test_a_disk_that_cannot_be_kept_is_a_warning(
    limactl: Limactl, settings: Settings, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    def keep(*_: object) -> None:
        raise trouble

    monkeypatch.setattr(provision, "run", lambda *_, **__: True)
    monkeypatch.setattr(golden, "keep", keep)
    wanted = replace(settings, provision=Provision(enabled=True))
    warnings = vm.start(wanted, lambda _: None).warnings
    assert [line for line in warnings if "disk was not kept" in line and "no room" in line]
    assert vm.ready(VM)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages of each provisioning, which does nothing; "fail" as the first makes it fail."""
    told: list[str] = []

    def run(_settings: Settings, wanted: Sequence[Stage], *_: object, **__: object) -> bool:
        if told[:1] == ["fail"] and wanted[0].name.startswith("script"):
            raise AgentVMError("provisioning failed in stage script")
        told.append(" ".join(stage.name.partition("-")[0] for stage in wanted))
        return False

    monkeypatch.setattr(provision, "run", run)
    return told


ALL = "packages users node npm python nested tools home"


def with_script(settings: Settings, repository: Path, text: str) -> Settings:
    (repository / "vm.sh").write_text(text)
    sources = {**settings.sources, "provision.script": str(repository / "agent-vm.toml")}
    return replace(settings, provision=Provision(script="vm.sh"), sources=sources)


def test_what_is_asked_for_later_is_installed_at_the_next_connection_once(
    limactl: Limactl, settings: Settings, runs: list[str], repository: Path
) -> None:
    wanted = replace(settings, provision=Provision())
    started(wanted)
    assert runs == [ALL]
    assert vm.catch_up(wanted, lambda _: None) == []
    assert runs == [ALL]
    more = with_script(wanted, repository, "true\n")
    for _ in range(2):
        assert vm.catch_up(more, lambda _: None) == []
    assert runs == [ALL, ALL, "script"]
    vm.catch_up(with_script(wanted, repository, "false\n"), lambda _: None)
    assert runs[3:] == [ALL, "script"]
    for earlier in (wanted, with_script(wanted, repository, "true\n")):
        assert vm.catch_up(earlier, lambda _: None) == []
    assert len(runs) == 5


def test_what_fails_at_a_connection_is_a_warning_and_is_not_tried_at_each(
    limactl: Limactl, settings: Settings, runs: list[str], repository: Path
) -> None:
    started(replace(settings, provision=Provision()))
    runs[:] = ["fail"]
    more = with_script(settings, repository, "exit 7\n")
    assert vm.catch_up(more, lambda _: None) == ["provisioning failed in stage script"]
    (told,) = vm.catch_up(more, lambda _: None)
    assert "`agent-vm provision` tries again" in told
    assert runs == ["fail", ALL]
    runs.clear()
    vm.install(more, lambda _: None)
    assert runs == [ALL, "script"]
    assert vm.catch_up(more, lambda _: None) == []


def test_what_was_installed_later_is_in_force_for_the_next_command(
    limactl: Limactl, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(settings)
    before = login()
    monkeypatch.setattr(provision, "run", lambda *_, **__: False)
    vm.install(settings, lambda _: None)
    assert login() == before
    monkeypatch.setattr(provision, "run", lambda *_, **__: True)
    vm.install(settings, lambda _: None)
    assert login() != before


def login() -> str:
    """The client's port: another for each login."""
    return process.run([*ssh_guest.ssh(VM), "echo $SSH_CONNECTION"]).stdout


def test_what_cannot_be_read_is_said_before_a_vm_is_made(
    limactl: Limactl, settings: Settings, repository: Path
) -> None:
    wanted = with_script(settings, repository, "true\n")
    (repository / "vm.sh").unlink()
    with pytest.raises(AgentVMError, match=r"provision\.script: .* is not a file"):
        vm.start(wanted, lambda _: None)
    assert limactl.calls() == []


def test_trouble_with_the_mount_is_a_warning(
    limactl: Limactl, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Settings) -> None:
        raise AgentVMError("sshfs is not installed", "run `agent-vm setup`")

    monkeypatch.setattr(mount, "mount", fail)
    done = vm.start(replace(settings, mount=Mount()), lambda _: None)
    assert done.warnings == (
        "the workspaces are not mounted: sshfs is not installed; run `agent-vm setup`",
    )
    assert vm.ready(VM)


def test_status_without_a_vm_starts_nothing(limactl: Limactl, settings: Settings) -> None:
    assert vm.status(settings) == vm.Status(
        name=VM, state="Does not exist", cpus=0, memory=0, disk=0,
        mount=str(Path.home() / ".agent-vm-mounts" / "workspace"), mounted=False,
    )  # fmt: skip
    assert limactl.calls() == []


def test_status_of_a_stopped_vm(limactl: Limactl, settings: Settings) -> None:
    started(settings)
    vm.stop(settings, print)
    before = limactl.calls()
    now = vm.status(settings)
    assert (now.state, now.cpus, now.memory, now.disk) == ("Stopped", 4, 8192, 102400)
    assert (now.workspaces, now.trouble) == ((), "")
    assert limactl.calls() == before


@pytest.mark.parametrize("warm", [True, False])
def test_status_of_a_running_vm_lists_its_workspaces(
    limactl: Limactl, guest: Guest, settings: Settings, warm: bool
) -> None:
    limactl.adopt(guest)
    a_workspace(guest, "app-fix")
    if warm:
        vm.require_running(VM)
    now = vm.status(settings)
    assert now.state == "Running"
    assert now.trouble == ""
    assert [row.folder for row in now.workspaces] == ["app-fix"]
    assert now.workspaces[0].untracked == 1


def a_workspace(guest: Guest, folder: str) -> None:
    """A clone with one commit and one untracked file, as an agent leaves it."""
    path = guest.workspaces / folder
    path.mkdir(parents=True)
    git(path, "init", "--quiet")
    commit(path, "README")
    (path / "new").touch()


def test_status_of_a_vm_that_ssh_cannot_reach_says_why(
    limactl: Limactl, guest: Guest, settings: Settings
) -> None:
    limactl.adopt(guest)
    limactl.change(sshLocalPort=1)
    now = vm.status(settings)
    assert now.state == "Running"
    assert "ssh does not get in" in now.trouble


def test_what_a_destruction_would_lose(limactl: Limactl, guest: Guest, settings: Settings) -> None:
    assert vm.contents(settings) == ((), "")
    limactl.adopt(guest)
    assert vm.contents(settings) == ((), "")
    a_workspace(guest, "app-fix")
    ((row,), trouble) = vm.contents(settings)
    commits = "1 commit not fetched (1 on branch main)"
    assert (row.losses, trouble) == ([commits, "1 file untracked"], "")


def test_why_workspaces_cannot_be_looked_at(limactl: Limactl, settings: Settings) -> None:
    started(settings)
    vm.stop(settings, print)
    assert vm.contents(settings) == ((), "the VM is not running")


def test_stop(limactl: Limactl, settings: Settings) -> None:
    with pytest.raises(AgentVMError, match="there is no VM agent-vm"):
        vm.stop(settings, print)
    started(settings)
    assert vm.stop(settings, print) is True
    assert limactl.calls()[-1] == ["stop", "--tty=false", VM]
    assert vm.stop(settings, print) is False
    limactl.change(status="Broken")
    assert vm.stop(settings, print) is True
    assert limactl.calls()[-1] == FORCE_STOP


def test_destroy_removes_the_vm_and_what_is_kept_of_it(
    limactl: Limactl, settings: Settings
) -> None:
    started(settings)
    assert destroyed(settings) is True
    assert limactl.instance() is None
    assert limactl.calls()[-2:] == [FORCE_STOP, DELETE]
    left = {path.name for path in state.folder(VM).iterdir()}
    assert not left & {"ready", "ssh.config", "known_hosts", "ssh.sock"}
    assert destroyed(settings) is False


def test_a_vm_that_is_still_there_is_not_said_to_be_destroyed(
    limactl: Limactl, settings: Settings
) -> None:
    started(settings)
    limactl.fail("delete", "instance is protected")
    with pytest.raises(AgentVMError, match="could not delete agent-vm: instance is protected"):
        destroyed(settings)
    limactl.repair("delete")
    assert destroyed(settings) is True


def test_a_destroyed_vm_can_be_made_again_with_a_new_host_key(
    limactl: Limactl, settings: Settings
) -> None:
    started(settings)
    before = ssh_guest.known_hosts(VM).read_text()
    destroyed(settings)
    started(settings)
    assert ssh_guest.known_hosts(VM).read_text() != before
    assert vm.ready(VM)


@pytest.mark.parametrize(
    ("asked", "kvm", "arch", "machine", "why"),
    [
        (Vm(), WORKS, "x86_64", "", ""),
        (Vm(accel="kvm"), BROKEN, "x86_64", "", ""),
        (Vm(vm_type="vz"), BROKEN, "x86_64", "", ""),
        (Vm(), BROKEN, "x86_64", "q35", "there is no /dev/kvm"),
        (Vm(vm_type="qemu"), BROKEN, "aarch64", "virt", "there is no /dev/kvm"),
        (Vm(accel="tcg"), WORKS, "x86_64", "q35", "KVM is off by vm.accel"),
    ],
)
def test_emulation_is_chosen_where_kvm_does_not_work(
    monkeypatch: pytest.MonkeyPatch,
    *,
    asked: Vm,
    kvm: host.Kvm,
    arch: str,
    machine: str,
    why: str,
) -> None:
    a_host(monkeypatch, kvm=kvm, arch=arch)
    arguments, slow = vm._acceleration(Settings(vm=asked))
    if not machine:
        assert (arguments, slow) == ("", "")
        return
    assert arguments.startswith(f" -machine {machine}")
    assert "-accel tcg" in arguments
    assert "kvm" not in arguments
    assert why in slow
    assert "no strong security boundary" in slow


@pytest.mark.parametrize("mode", NETWORKS)
def test_qemu_is_started_by_what_bounds_its_logs_whatever_the_network(
    limactl: Limactl, settings: Settings, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    given = env_of_a_start(monkeypatch)
    started(replace(settings, network=Network(mode)))
    assert given == {"QEMU_SYSTEM_X86_64": str(limactl.lima / VM / "agent-vm-qemu")}


def test_limactl_is_told_to_emulate_and_the_user_that_it_is_slow(
    limactl: Limactl, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_host(monkeypatch, kvm=BROKEN)
    given = env_of_a_start(monkeypatch)
    said = started(settings)
    assert list(given) == ["QEMU_SYSTEM_X86_64"]
    assert said[1].startswith("KVM cannot be used (there is no /dev/kvm): the VM is emulated")


def env_of_a_start(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What `lima.start` is given from now on."""
    real, given = lima.start, dict[str, str]()

    def start(instance: lima.Instance, say: Any, extra_env: dict[str, str]) -> None:  # noqa: ANN401
        given.update(extra_env)
        real(instance, say, extra_env)

    monkeypatch.setattr(lima, "start", start)
    return given


def test_a_qemu_that_cannot_emulate_the_guest_is_refused(
    limactl: Limactl, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_host(monkeypatch, kvm=BROKEN, qemu=(7, 2, 22))
    with pytest.raises(AgentVMError) as caught:
        started(settings)
    assert "QEMU 7.2 cannot emulate a Debian 13 guest" in caught.value.message
    assert "agent-vm setup" in caught.value.hint
    assert START not in limactl.calls()
    a_host(monkeypatch, kvm=WORKS, qemu=(7, 2, 22))
    started(settings)
    assert START in limactl.calls()


def test_an_old_lima_is_refused_before_anything_else(limactl: Limactl, settings: Settings) -> None:
    program = limactl.folder / "bin" / "limactl"
    program.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "limactl version 2.1.4"\n')
    with pytest.raises(AgentVMError, match=r"Lima 2\.1\.4 at .* is older than 2\.2\.0"):
        started(settings)
    assert limactl.instance() is None
