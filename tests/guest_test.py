"""The way into the VM, over a real ssh: the shared connection, scripts, commands, Fabric."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from invoke.config import Config
from invoke.context import Context

from agent_vm_tasks import data, guest, process, render, state, workspaces
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.guest import UnreachableError
from agent_vm_tasks.lima import Instance

from .conftest import USER, VM, free_port, ssh_config, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Guest

# No NUL: no argument can hold one.
WORDS = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
ODD = ["", " ", "two words", "it's", '"', "$(id)", "`id`", "\\", "a\nb", "é", "*", "~", "-n", "!x"]
FEW = settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ENTER = "import sys; from agent_vm_tasks import guest; sys.exit(guest.enter(*sys.argv[1:]))"


@pytest.fixture(name="vm")
def _vm(guest: Guest) -> Guest:
    return guest


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest's script only says its arguments."""
    monkeypatch.setattr(data, "script", lambda _file: 'for word; do printf "%s\\0" "$word"; done')


def change_config(old: str, new: str) -> None:
    text = guest.config(VM).read_text()
    assert old in text
    guest.config(VM).write_text(text.replace(old, new))


# The shared connection


def test_the_connection_opens_once_and_closes(vm: Guest) -> None:
    assert not guest.connected(VM)
    guest.warm_up(VM)
    assert guest.connected(VM)
    guest.disconnect(VM)
    assert not guest.connected(VM)
    guest.disconnect(VM)


def test_a_killed_connection_is_opened_again(vm: Guest) -> None:
    guest.warm_up(VM)
    said = subprocess.run(guest.ssh(VM, "-O", "check"), check=True, capture_output=True, text=True)
    os.kill(int(said.stderr.partition("pid=")[2].partition(")")[0]), signal.SIGKILL)
    wait_until(lambda: not guest.connected(VM), "the master is still there")
    guest.warm_up(VM)
    assert guest.connected(VM)


def test_a_new_login_leaves_open_sessions_alone(vm: Guest) -> None:
    guest.warm_up(VM)
    login = "echo $SSH_CONNECTION"  # has the client's port, another for each login
    before = subprocess.run([*guest.ssh(VM), login], check=True, capture_output=True, text=True)
    with subprocess.Popen(
        [*guest.ssh(VM), f"{login}; cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == before.stdout
        guest.reconnect(VM)
        after = subprocess.run([*guest.ssh(VM), login], check=True, capture_output=True, text=True)
        said, _ = session.communicate("still here")
    assert guest.connected(VM)
    assert after.stdout not in {"", before.stdout}
    assert (said, session.returncode) == ("still here", 0)


def test_attach_follows_the_port_of_a_new_start(vm: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "GUEST_USER", USER)
    guest.warm_up(VM)
    lima = vm.sshd.folder / "lima"
    (lima / "_config").mkdir(parents=True, exist_ok=True)
    (lima / "_config" / "user").write_bytes(vm.sshd.identity.read_bytes())
    (lima / "_config" / "user").chmod(0o600)
    guest.config(VM).write_text(ssh_config(vm.sshd, free_port()))
    instance = Instance(VM, "Running", lima / VM, 1, 512, 4096, vm.port, "qemu")
    guest.attach(instance)
    assert f"Port {vm.port}\n" in guest.config(VM).read_text()
    assert not guest.connected(VM)
    guest.warm_up(VM)


def test_a_connection_to_where_it_is_already_stays_open(
    vm: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(render, "GUEST_USER", USER)
    instance = Instance(VM, "Running", vm.sshd.folder / "lima" / VM, 1, 512, 4096, vm.port, "qemu")
    keys = vm.sshd.folder / "lima" / "_config"
    keys.mkdir(parents=True, exist_ok=True)
    (keys / "user").write_bytes(vm.sshd.identity.read_bytes())
    (keys / "user").chmod(0o600)
    guest.attach(instance)
    guest.warm_up(VM)
    guest.attach(instance)
    assert guest.connected(VM)


def test_a_master_that_does_not_answer_is_none(vm: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest, "RESPONSE", 0.3)
    guest.warm_up(VM)
    said = subprocess.run(guest.ssh(VM, "-O", "check"), check=True, capture_output=True, text=True)
    master = int(said.stderr.partition("pid=")[2].partition(")")[0])
    os.kill(master, signal.SIGSTOP)
    assert not guest.connected(VM)
    guest.disconnect(VM)
    guest.warm_up(VM)
    assert guest.responds(VM)
    os.kill(master, signal.SIGKILL)


def test_another_host_key_is_said_to_be_that(vm: Guest) -> None:
    guest.known_hosts(VM).write_text(f"{VM} {vm.sshd.public_key('other')}\n")
    with pytest.raises(UnreachableError, match="is not that VM: its host key is another") as caught:
        guest.warm_up(VM)
    assert "\n" not in str(caught.value)


# The guest's clock


@pytest.fixture
def asked(vm: Guest) -> Path:
    """What the guest's sudo was asked to do, which does nothing: the clock is this machine's."""
    sudo = vm.home / "bin" / "sudo"
    sudo.parent.mkdir()
    sudo.write_text('#!/bin/sh\necho "$*" >> "$HOME/asked"\nexit 1\n')
    sudo.chmod(0o755)
    return vm.home / "asked"


def test_a_clock_that_is_right_is_left_alone(asked: Path) -> None:
    guest.warm_up(VM)
    guest.enter(VM, "true")
    assert not asked.exists()


@pytest.mark.parametrize("off", [-7200, 7200, 90])
def test_a_clock_that_is_far_off_is_set_by_whoever_comes_in(
    vm: Guest, asked: Path, monkeypatch: pytest.MonkeyPatch, off: int
) -> None:
    here = int(time.time()) + off
    monkeypatch.setattr(time, "time", lambda: here)
    for come_in in (guest.warm_up, guest.responds, lambda name: guest.enter(name, "exit 5") == 5):
        asked.unlink(missing_ok=True)
        assert come_in(VM) in {None, True}
        assert asked.read_text() == f"-n date --set=@{here}\n"


def test_no_vm_on_the_port_is_one_line(vm: Guest) -> None:
    guest.config(VM).write_text(ssh_config(vm.sshd, free_port()))
    began = time.monotonic()
    with pytest.raises(
        UnreachableError, match=r"ssh does not get in: .*refused; `agent-vm start` waits"
    ) as caught:
        guest.warm_up(VM)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnreachableError, match=r"cannot be reached: .*refused; see"):
        guest.script(VM, "workspace-list.sh")
    with pytest.raises(UnreachableError, match=r"cannot be reached: .*; see"):
        guest.connection(VM)
    assert time.monotonic() - began < 5


def test_a_silent_vm_does_not_hang_us(vm: Guest) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        guest.config(VM).write_text(ssh_config(vm.sshd, silent.getsockname()[1]))
        change_config("ConnectTimeout 10", "ConnectTimeout 1")
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="timed out"):
            guest.warm_up(VM)
        assert time.monotonic() - began < 5


# Scripts


def test_a_script_answers_in_fields(vm: Guest, echo: None) -> None:
    assert guest.script(VM, "any", *ODD) == ODD
    assert guest.script(VM, "any") == []


@given(words=WORDS)
@FEW
def test_arguments_of_a_script_arrive_as_they_are(vm: Guest, echo: None, words: list[str]) -> None:
    assert guest.script(VM, "any", *words) == words


def test_a_failing_script_tells_its_last_words(vm: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "script", lambda _file: "echo first >&2; echo last >&2; exit 3")
    with pytest.raises(AgentVMError, match=r"^last$"):
        guest.script(VM, "any")


def test_a_script_that_never_ends_is_given_up(vm: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "script", lambda _file: "sleep 100")
    guest.warm_up(VM)
    with pytest.raises(AgentVMError, match=r"ssh gave no answer within 0\.2 s"):
        guest.script(VM, "any", timeout=0.2)


# Commands


@pytest.mark.parametrize("status", [0, 7, 130])
def test_a_commands_status_passes_through(vm: Guest, status: int) -> None:
    assert guest.enter(VM, f"exit {status}") == status


def test_a_command_without_a_terminal_gets_none(
    vm: Guest, capfd: pytest.CaptureFixture[str]
) -> None:
    assert guest.enter(VM, "tty; echo to stderr >&2") == 0
    assert capfd.readouterr() == ("not a tty\n", "to stderr\n")


def test_a_command_that_takes_long_is_not_disturbed(
    vm: Guest, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WATCH", 0.1)
    for warm in (False, True):
        if warm:
            guest.warm_up(VM)
        assert guest.enter(VM, "sleep 1; echo end; exit 7") == 7
        assert capfd.readouterr() == ("end\n", "")


def test_input_reaches_a_command(vm: Guest) -> None:
    argv = [sys.executable, "-c", ENTER, VM, "cat; exit 3"]
    done = subprocess.run(argv, check=False, input=b"a\0\r\n\xff", capture_output=True)
    assert (done.stdout, done.returncode) == (b"a\0\r\n\xff", 3)


@given(words=WORDS)
@FEW
def test_an_argv_arrives_as_it_is(
    vm: Guest, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    workspaces.enter(VM, None, None, ["printf", r"%s\0", "", *words])
    assert capfd.readouterr().out == "\0".join(["", *words, ""])


def test_odd_words_arrive_as_they_are(vm: Guest, capfd: pytest.CaptureFixture[str]) -> None:
    assert workspaces.enter(VM, None, None, ["printf", r"%s\0", *ODD]) == 0
    assert capfd.readouterr().out == "\0".join([*ODD, ""])


# Fabric


def test_a_fabric_connection_runs_and_copies(vm: Guest, home: Path) -> None:
    with guest.connection(VM) as made:
        assert made.run("pwd", hide=True, in_stream=False).stdout.strip() == str(vm.home)
        (home / "file").write_text("text")
        made.put(str(home / "file"), "copy")
    assert (vm.home / "copy").read_text() == "text"


def test_a_fabric_connection_has_the_flags_of_its_context(
    vm: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    c = Context(Config(overrides={"run": {"dry": True}}))
    with guest.connection(VM, c) as made:
        made.run("touch canary")
    assert "touch canary" in capsys.readouterr().out
    assert not (vm.home / "canary").exists()


def test_a_fabric_connection_without_its_key(vm: Guest, home: Path) -> None:
    change_config(str(vm.sshd.identity), str(home / "gone"))
    with pytest.raises(UnreachableError):
        guest.connection(VM)


@pytest.mark.parametrize(
    ("last", "why"),
    [(b"", "it hung up"),
     (b"\0\0\0\x14\4\1\0\0\0\2\0\0\0\1\xff\0\0\0\0\0\0\0\0\0", "codec can't decode")],
)  # fmt: skip
def test_a_fabric_connection_that_the_vm_ends_at_once(vm: Guest, last: bytes, why: str) -> None:
    """By hanging up, or with a farewell (RFC 4253, 11.1) that is no text."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        guest.config(VM).write_text(ssh_config(vm.sshd, server.getsockname()[1]))

        def end() -> None:
            to, _ = server.accept()
            with to:
                to.sendall(b"SSH-2.0-x\r\n" + last)
                to.shutdown(socket.SHUT_WR)
                while to.recv(2**16):
                    pass

        with ThreadPoolExecutor() as threads:
            threads.submit(end)
            with pytest.raises(UnreachableError, match=f"cannot be reached: .*{why}"):
                guest.connection(VM)


@pytest.mark.parametrize("text", [None, "", "garbage", f"{VM} ssh-ed25519 AAAA\n"])
def test_a_fabric_connection_without_a_known_host_key(vm: Guest, text: str | None) -> None:
    if text is None:
        guest.known_hosts(VM).unlink()
    else:
        guest.known_hosts(VM).write_text(text)
    with pytest.raises(UnreachableError, match="host key"):
        guest.connection(VM)


def test_a_home_with_odd_characters_works(
    vm: Guest, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = home / 'a %h "q" b'
    odd.mkdir()
    monkeypatch.setenv("HOME", str(odd))
    state.write(guest.known_hosts(VM), f"{VM} {vm.sshd.public_key()}\n")
    state.write(guest.config(VM), ssh_config(vm.sshd, vm.port))
    try:
        guest.warm_up(VM)
        assert guest.connected(VM)
        guest.connection(VM).close()
    finally:
        guest.disconnect(VM)
