"""limactl as it behaves on bad days: odd answers, none at all, boots that are lost."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from agent_vm_tasks import host, lima, process
from agent_vm_tasks.errors import AgentVMError

from .programs import calls, script

if TYPE_CHECKING:
    from .conftest import Limactl

Program = Callable[[str], Path]
NAME = "agent-vm"
ENTRY = {
    "name": NAME, "status": "Running", "dir": "/home/dev/.lima/agent-vm", "cpus": 4,
    "memory": 8 * 2**30, "disk": 100 * 2**30, "sshLocalPort": 60022, "vmType": "qemu",
    "errors": None, "config": {"plain": True}, "unknown": 1,
}  # fmt: skip


@pytest.fixture
def program(home: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Make a limactl of a shell script; gives the folder that has its record."""
    folder = home / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(host, "service_user", lambda: None)
    monkeypatch.setattr(lima, "POLL", 0.02)

    def made(body: str) -> Path:
        script(folder, "limactl", body)
        return folder

    return made


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut every time limit to what a test can wait for; a call without one still has none."""
    real = process.run

    def run(argv: list[str], *, timeout: float | None = None, **rest: Any) -> process.Result:  # noqa: ANN401
        return real(argv, timeout=timeout and 0.3, **rest)

    monkeypatch.setattr(process, "run", run)


def instance(folder: Path) -> lima.Instance:
    return lima.Instance(NAME, "Stopped", folder, 4, 8192, 102400, 0, "qemu")


def answer(entry: object) -> str:
    return f"echo {shlex.quote(json.dumps(entry))}"


def test_no_instance(limactl: Limactl) -> None:
    assert lima.find(NAME) is None


def test_an_instance_in_our_units(program: Program) -> None:
    folder = program(answer(ENTRY))
    found = lima.find(NAME)
    assert found == lima.Instance(
        name=NAME, status="Running", dir=Path("/home/dev/.lima/agent-vm"), cpus=4, memory=8192,
        disk=102400, ssh_port=60022, vm_type="qemu", errors=(), config={"plain": True},
    )  # fmt: skip
    assert found.running
    assert calls(folder) == ["limactl list --format {{json .}} agent-vm"]


def test_an_instance_that_lima_could_not_load(program: Program) -> None:
    program(answer({"name": NAME, "status": "", "dir": "/x", "errors": ["bad yaml", "worse"]}))
    found = lima.find(NAME)
    assert found is not None
    assert (found.status, found.running, found.errors) == ("Unknown", False, ("bad yaml", "worse"))


@pytest.mark.parametrize(
    "output",
    [
        "echo",
        "true",
        "echo not json",
        "echo '{\"name\": '",
        "echo null",
        "echo '[]'",
        "echo 7",
        "echo '{}'",
        answer({**ENTRY, "cpus": "many"}),
        answer({**ENTRY, "dir": 5}),
        answer({**ENTRY, "errors": 5}),
        f"{answer(ENTRY)}; {answer(ENTRY)}",
        r"printf '\377\376'",
    ],
)
def test_an_answer_that_makes_no_sense_is_an_error_with_the_name(
    program: Program, output: str
) -> None:
    program(output)
    with pytest.raises(AgentVMError, match="limactl list gave no usable answer for agent-vm"):
        lima.find(NAME)


def test_a_failing_list_is_not_taken_for_no_instance(program: Program) -> None:
    """Else a VM with work in it would be made anew over the old one."""
    fatal = 'time="2026" level=fatal msg="open \\"/x\\": denied"'
    program(f"echo {shlex.quote(fatal)} >&2; exit 1")
    with pytest.raises(AgentVMError, match='limactl list failed: open "/x": denied'):
        lima.find(NAME)


@pytest.mark.usefixtures("impatient")
def test_a_limactl_that_hangs_is_given_up(program: Program) -> None:
    program("sleep 60")
    began = time.monotonic()
    with pytest.raises(AgentVMError, match=r"limactl gave no answer within"):
        lima.find(NAME)
    assert time.monotonic() - began < 5


def test_a_missing_limactl_says_what_to_run(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_args, **_more: None)
    with pytest.raises(AgentVMError) as caught:
        lima.find(NAME)
    assert str(caught.value) == "limactl (Lima) is not installed; run `agent-vm setup`"


def test_create_hands_over_the_yaml_and_boots_nothing(program: Program) -> None:
    folder = program('cat > "$HOME/yaml"')
    lima.create(NAME, "plain: true\n", print)
    assert calls(folder) == ["limactl create --name=agent-vm --tty=false -"]
    assert (folder.parent / "yaml").read_text() == "plain: true\n"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("image not found", "limactl could not create agent-vm: image not found"),
        (
            "write disk: No space left on device",
            "limactl could not create agent-vm: write disk: No space left on device; "
            "make room and try again",
        ),
    ],
)
def test_a_failing_create_tells_why(limactl: Limactl, message: str, error: str) -> None:
    limactl.fail("create", message)
    with pytest.raises(AgentVMError) as caught:
        lima.create(NAME, "", print)
    assert str(caught.value) == error


def start_script(boot: str) -> str:
    return f"""
folder=$HOME/instance
case $1 in
    start) {boot} ;;
    stop) exit 0 ;;
esac"""


def lost(folder: Path) -> AgentVMError:
    """Start, which must fail soon and leave the VM stopped by force."""
    (folder.parent / "instance").mkdir()
    began = time.monotonic()
    with pytest.raises(AgentVMError) as caught:
        lima.start(instance(folder.parent / "instance"), lambda _: None, {})
    assert time.monotonic() - began < 2
    assert calls(folder)[-1] == "limactl stop --tty=false --force agent-vm"
    return caught.value


def test_a_kernel_panic_is_told_at_once_and_the_vm_is_stopped(program: Program) -> None:
    boot = 'echo "[ 1.0] Kernel panic - not syncing: VFS" > $folder/serial.log; sleep 60'
    error = lost(program(start_script(f"echo $$ > $HOME/pid; {boot}")))
    assert error.message == "the VM did not start: the guest's kernel panicked"
    assert error.hint.endswith("/instance/serial.log")
    pid = int((Path.home() / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("line", "meaning", "advice"),
    [
        ("Could not access KVM kernel module: Permission denied", "KVM cannot be used", "accel"),
        ("error: failed to set MSR 0x10a to 0x0", "KVM is broken on this machine", "accel"),
        ("Could not set up host forwarding rule 'tcp:127.0.0.1:1-:22'", "ssh port was taken",
         "try again"),
        ("write: No space left on device", "the disk is full", "make room"),
    ],
)  # fmt: skip
def test_what_qemu_complains_of_is_put_in_plain_words(
    program: Program, line: str, meaning: str, advice: str
) -> None:
    boot = f"echo {shlex.quote(line)} > $folder/ha.stderr.log; sleep 60"
    error = lost(program(start_script(boot)))
    assert meaning in error.message
    assert advice in error.hint
    assert error.hint.endswith("/instance/ha.stderr.log")


def test_a_crash_of_the_network_is_told_at_once(program: Program) -> None:
    error = lost(program(start_script("sh -c 'echo $$' > $folder/passt.pid; sleep 60")))
    assert error.message == "the VM did not start: passt, its network, crashed"
    assert "network open" in error.hint


def test_the_log_of_an_earlier_boot_does_not_count(program: Program) -> None:
    folder = program(start_script("sleep 0.2"))
    (folder.parent / "instance").mkdir()
    (folder.parent / "instance" / "passt.pid").write_text("4000000000\n")
    old = folder.parent / "instance" / "serial.log"
    old.write_text("Kernel panic\n")
    os.utime(old, (time.time() - 60, time.time() - 60))
    lima.start(instance(old.parent), lambda _: None, {})
    assert [call.split()[1] for call in calls(folder)] == ["start"]


def test_what_the_guest_complains_of_on_its_console_does_not_end_its_boot(program: Program) -> None:
    """With its own disk full it must still come up: how else would the work get out."""
    line = "systemd[1]: Failed to write: No space left on device"
    folder = program(start_script(f"echo '{line}' > $folder/serial.log; sleep 0.2"))
    (folder.parent / "instance").mkdir()
    lima.start(instance(folder.parent / "instance"), lambda _: None, {})


def test_a_start_that_fails_says_limas_last_words(program: Program) -> None:
    lines = ['level=info msg="fine"', r'level=fatal msg="driver \"qemu\" is gone"']
    boot = "; ".join(f"echo {shlex.quote(line)} >&2" for line in lines)
    error = lost(program(start_script(f"{boot}; exit 1")))
    assert error.message == 'the VM did not start: driver "qemu" is gone'
    assert error.hint.endswith("/instance/*.log")


def test_a_start_that_fails_without_a_word(program: Program) -> None:
    error = lost(program(start_script("exit 1")))
    assert error.message == "the VM did not start: limactl said nothing"


def test_a_start_tells_its_steps_once_each(program: Program) -> None:
    steps = (
        "echo x > $folder/serial.log; sleep 0.3; ",
        'echo "The ssh requirement 1 of 3 is satisfied" > $folder/ha.stderr.log; sleep 0.3; ',
        'echo "Waiting for the final requirement 1 of 1" >> $folder/ha.stderr.log; sleep 0.3',
    )
    folder = program(start_script("".join(steps)))
    (folder.parent / "instance").mkdir()
    said: list[str] = []
    lima.start(instance(folder.parent / "instance"), said.append, {})
    told = [line.rpartition(" (")[0] for line in said]
    assert told[-3:] == ["  the guest boots", "  ssh answers", "  the guest finishes booting"]
    assert len(set(told)) == len(told)


def test_limactl_gets_what_it_needs_and_no_secrets(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ANTHROPIC_API_KEY", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("PATH", f"{Path.home()}/bin:/usr/bin:/bin")
    monkeypatch.setenv("LIMA_HOME", "/elsewhere/lima")
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    folder = program("env > $HOME/env; pwd >> $HOME/env")
    lima.start(instance(folder), lambda _: None, {"QEMU_SYSTEM_X86_64": "qemu -accel tcg"})
    lines = (folder.parent / "env").read_text().splitlines()
    env = dict(line.partition("=")[::2] for line in lines)
    assert "secret" not in env.values()
    assert env["LIMA_HOME"] == "/elsewhere/lima"
    assert env["https_proxy"] == "http://proxy:3128"
    assert env["QEMU_SYSTEM_X86_64"] == "qemu -accel tcg"
    assert env["HOME"] == str(folder.parent)
    assert env["PATH"].startswith(f"{folder}:")
    assert "/usr/sbin" in env["PATH"].split(":")
    assert lines[-1] == "/"


def test_who_writes_into_the_vms_folder_gets_no_secrets(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    script(program(""), "tar", f"env > {tmp_path}/env; cat > {tmp_path}/tar")
    lima.put(tmp_path / "folder", {"file": "text"})
    assert f"HOME={Path.home()}" in (tmp_path / "env").read_text().splitlines()
    assert "secret" not in (tmp_path / "env").read_text()


def test_stop_by_force_never_fails(program: Program) -> None:
    folder = program("exit 1")
    lima.stop(NAME, force=True)
    assert calls(folder) == ["limactl stop --tty=false --force agent-vm"]


@pytest.mark.usefixtures("impatient")
def test_stop_by_force_goes_on_without_a_limactl_that_answers(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = program("sleep 60")
    lima.stop(NAME, force=True)
    assert calls(folder) == ["limactl stop --tty=false --force agent-vm"]
    monkeypatch.setattr(shutil, "which", lambda *_args, **_more: None)
    lima.stop(NAME, force=True)


@pytest.mark.usefixtures("impatient")
def test_ctrl_c_stays_one_when_the_vm_cannot_be_stopped(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    folder = program("sleep 60")
    monkeypatch.setattr(lima, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lima.start(instance(folder), lambda _: None, {})


@pytest.mark.parametrize("content", [None, b"# caf\xe9\n"])
def test_a_configuration_that_cannot_be_read_is_one_line(
    tmp_path: Path, content: bytes | None
) -> None:
    if content:
        (tmp_path / "lima.yaml").write_bytes(content)
    with pytest.raises(AgentVMError, match=r"has lost its configuration: .*; `agent-vm destroy`"):
        lima.asked(instance(tmp_path))


def test_a_stop_that_fails_is_told(limactl: Limactl) -> None:
    limactl.change(status="Running")
    limactl.fail("stop", "it is on fire")
    with pytest.raises(AgentVMError, match="limactl could not stop agent-vm: it is on fire"):
        lima.stop(NAME)


def test_delete_removes_it(limactl: Limactl) -> None:
    limactl.change(status="Stopped")
    lima.delete(NAME)
    assert limactl.instance() is None


def test_a_delete_that_only_says_so_is_not_believed(program: Program) -> None:
    program(f"[ $1 = delete ] || {answer(ENTRY)}")
    with pytest.raises(AgentVMError, match="limactl could not delete agent-vm"):
        lima.delete(NAME)


def test_a_delete_that_fails_is_told(limactl: Limactl) -> None:
    limactl.change(status="Stopped")
    limactl.fail("delete", "instance is protected")
    with pytest.raises(AgentVMError, match="could not delete agent-vm: instance is protected"):
        lima.delete(NAME)
