"""What is kept on the host: private, written whole, one command at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import console, state
from agent_vm_tasks.errors import AgentVMError

from .conftest import VM, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

HOLD = """
import sys, time
from agent_vm_tasks import state
with state.lock("agent-vm", print):
    print("held", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def holder(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Another command that holds the lock."""
    argv = [sys.executable, "-c", HOLD]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        yield child
        child.kill()


def test_the_folder_is_private(home: Path) -> None:
    assert state.folder(VM) == home / ".agent-vm" / VM
    state.write(state.folder(VM) / "file", "")
    assert state.folder(VM).stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_can_read_is_made_private(home: Path) -> None:
    (home / ".agent-vm" / VM).mkdir(parents=True, mode=0o755)
    assert state.folder(VM).stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_somebody_else_is_refused(home: Path) -> None:
    (home / ".agent-vm" / VM).mkdir(parents=True)
    os.chown(home / ".agent-vm" / VM, 65534, 65534)
    with pytest.raises(AgentVMError, match="belongs to another user"):
        state.write(state.folder(VM) / "file", "")


def test_a_file_is_replaced_whole(home: Path) -> None:
    path = home / "file"
    texts = {"a" * 100_000, "b" * 100_000}
    state.write(path, "a" * 100_000)
    seen = set()
    writer = threading.Thread(target=write, args=(path, [*texts] * 20))
    writer.start()
    while writer.is_alive():
        seen.add(path.read_text())
    writer.join()
    assert seen <= texts
    assert {entry.name for entry in home.iterdir()} == {".gitconfig", "file"}


def write(path: Path, texts: list[str]) -> None:
    for text in texts:
        state.write(path, text)


def test_a_file_is_private_and_a_failed_write_leaves_the_old_one(home: Path) -> None:
    path = home / "file"
    state.write(path, "old")
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(UnicodeEncodeError):
        state.write(path, "\udcff")
    assert path.read_text() == "old"
    assert {entry.name for entry in home.iterdir()} == {".gitconfig", "file"}


def test_files_that_a_write_at_work_has_just_put_in_place_are_no_leftovers(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = state.folder(VM) / ".ssh.config.gone"
    monkeypatch.setattr(Path, "glob", lambda *_: [gone])
    assert state.leftovers(VM) == []


def test_the_lock_makes_another_command_wait_and_names_it(
    holder: subprocess.Popen[str],
) -> None:
    said: list[str] = []
    entered = threading.Event()

    def enter() -> None:
        with state.lock(VM, said.append):
            entered.set()

    waiter = threading.Thread(target=enter)
    waiter.start()
    wait_until(lambda: said, "nothing was said")
    owner = rf"process {holder.pid}, -c, since 2\d\d\d-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d"
    assert re.fullmatch(rf"waiting for another agent-vm command \({owner}\)", said[0])
    assert not entered.is_set()
    os.kill(holder.pid, signal.SIGKILL)
    assert entered.wait(5)
    waiter.join()


def test_a_wait_is_told_again_while_it_lasts_and_never_ends_by_itself(
    holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "STILL", 0.2)
    monkeypatch.setattr(state, "POLL", 0.01)
    said: list[str] = []

    def enough(line: str) -> None:
        said.append(line)
        if len(said) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), state.lock(VM, enough):
        raise AssertionError
    assert all(f"(process {holder.pid}, " in line for line in said)
    assert said[0].endswith(")")
    assert all(line.endswith(" s so far") for line in said[1:])
    assert holder.poll() is None


def test_who_holds_the_lock_is_known_without_waiting(holder: subprocess.Popen[str]) -> None:
    assert state.owner(VM).startswith(f"process {holder.pid}, -c, since ")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert state.owner(VM) == ""
    with state.lock(VM, print):
        assert state.owner(VM).startswith(f"process {os.getpid()}, ")


def test_the_words_of_a_command_line_are_not_written_into_the_lock(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/agent-vm", "connect", "--command", "canary"])
    with state.lock(VM, print):
        text = (state.folder(VM) / "lock").read_text()
    assert ", agent-vm connect, since " in text
    assert "canary" not in text


def test_a_free_lock_says_nothing(home: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        with state.lock(VM, said.append):
            pass
    with state.lock("other", said.append), state.lock(VM, said.append):
        pass
    assert said == []


def test_a_home_without_locks_is_one_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    said = f"{home}/.agent-vm/{VM}/lock cannot be locked: No locks available; set HOME to a local"
    with pytest.raises(AgentVMError, match=said), state.lock(VM, print):
        raise AssertionError
    with pytest.raises(AgentVMError, match=said):
        state.owner(VM)


@pytest.mark.parametrize("length", [40, 70, 120])
def test_the_connections_socket_can_be_bound(
    home: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    deep = home / ("x" * (length - len(f"{home}/")))
    deep.mkdir()
    monkeypatch.setenv("HOME", str(deep))
    monkeypatch.setattr("tempfile.tempdir", str(home))
    state.write(state.folder(VM) / "ssh.config", "")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(f"{state.control_path(VM)}.0123456789abcdef")
    assert state.control_path(VM).parent.stat().st_mode & 0o777 == 0o700


@pytest.fixture
def deep(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home too deep for a socket; what is temporary goes beside it."""
    folder = home / ("deep" * 30)
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setattr("tempfile.tempdir", str(home))
    return folder


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_somebody_else_is_no_place_for_the_socket(
    deep: Path,
) -> None:
    private = deep.parent / f"agent-vm-{os.geteuid()}"
    private.mkdir(mode=0o777)
    os.chown(private, 65534, 65534)
    with pytest.raises(AgentVMError, match="belongs to another user"):
        state.control_path(VM)


def test_a_folder_for_the_socket_that_others_can_enter_is_made_private(deep: Path) -> None:
    private = deep.parent / f"agent-vm-{os.geteuid()}"
    private.mkdir()
    private.chmod(0o777)
    assert state.control_path(VM).parent == private
    assert private.stat().st_mode & 0o777 == 0o700


def test_a_link_in_place_of_the_folder_for_the_socket_is_refused(deep: Path) -> None:
    private = deep.parent / f"agent-vm-{os.geteuid()}"
    private.symlink_to(deep)
    with pytest.raises(AgentVMError, match=f"{private} is a link"):
        state.control_path(VM)


def test_two_deep_homes_share_no_connection(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {state.control_path(name) for name in (VM, "other")}
    (deep / "more").mkdir()
    monkeypatch.setenv("HOME", str(deep / "more"))
    paths |= {state.control_path(name) for name in (VM, "other")}
    assert len(paths) == 4
    assert {path.parent for path in paths} == {deep.parent / f"agent-vm-{os.geteuid()}"}
