"""An SFTP server that wants to hang or fill this machine, or to have its files: the real sshfs.

Each attack first succeeds where what stops it is off.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import mount, settings
from agent_vm_tasks.errors import AgentVMError
from tests.conftest import mounts, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_vm_tasks.settings import Settings
    from tests.conftest import Guest

    Serve = Callable[[str], Path]

SERVER = Path(__file__).parents[1] / "stand_ins" / "sftp_server.py"
LONGEST = 10.0
"""Seconds that a program on this machine may hang."""
SILENT = ["silent", "slow", "chatty", "deaf", "late"]
MEBIBYTE = 2**20


@pytest.fixture
def chosen(guest: Guest, sshfs: None) -> Settings:
    return settings.load()


@pytest.fixture
def serve(guest: Guest, chosen: Settings, home: Path) -> Serve:
    """Mount what a server of that kind serves; where."""
    (home / "secret").write_text("of the host\n")

    def start(attack: str) -> Path:
        program = [sys.executable, "-I", "-S", str(SERVER), attack, str(home / "secret")]
        shell = guest.home / "bin" / "bash"
        shell.parent.mkdir()
        shell.write_text(f"#!/bin/sh\nexec {shlex.join(program)}\n")
        shell.chmod(0o755)
        mount.mount(chosen)
        return mount.point(chosen)

    return start


def without(monkeypatch: pytest.MonkeyPatch, option: str, *instead: str) -> None:
    """Mount without one of the options."""
    kept = (each for each in mount._OPTIONS if not each.startswith(option))
    monkeypatch.setattr(mount, "_OPTIONS", (*kept, *instead))


def ends(*argv: str | Path) -> tuple[str, str] | None:
    """What a program says; None when it hangs. It is left to itself then, for nothing ends it."""
    child = subprocess.Popen(
        list(map(str, argv)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, errors="replace",
    )  # fmt: skip
    said: list[tuple[str, str]] = []
    wait = threading.Thread(target=lambda: said.append(child.communicate()), daemon=True)
    wait.start()
    wait.join(LONGEST)
    return said[0] if said else None


def most_memory(pid: int) -> int:
    """The most bytes that a process has had; 0 when it is no more."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def test_the_server_is_one_that_sshfs_works_with(serve: Serve) -> None:
    point = serve("none")
    assert ends("ls", point) == ("bad\ngood\nlink\n", "")
    assert ends("cat", point / "good") == ("good\n", "")
    assert ends("cat", point / "bad") == ("good\n", "")


@pytest.mark.parametrize("attack", SILENT)
def test_a_server_that_does_not_answer_hangs_nothing(serve: Serve, attack: str) -> None:
    point = serve(attack)
    assert ends("cat", point / "bad") == ("", f"cat: {point}/bad: Input/output error\n")
    said = ends("sh", "-c", f'cd / && for i in 1 2 3 4 5; do cat "{point}/bad"; done')
    assert said
    assert said[1].count("Input/output error") == 5


@pytest.mark.parametrize("attack", SILENT)
def test_without_the_watch_it_does_and_force_ends_it(
    serve: Serve, chosen: Settings, home: Path, monkeypatch: pytest.MonkeyPatch, attack: str
) -> None:
    without(monkeypatch, "ssh_command")
    point = serve(attack)
    reading = subprocess.Popen(["cat", point / "bad"], stderr=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        reading.wait(LONGEST)
    reading.kill()  # which does not end it
    assert mount.unmount(chosen, force=True)
    reading.wait(LONGEST)
    assert not mounts(home)
    wait_until(lambda: mount.server(point) is None, "sshfs still runs")


def test_a_server_that_is_silent_for_good_hangs_no_command(
    guest: Guest, serve: Serve, chosen: Settings, home: Path
) -> None:
    point = serve("silent to all")
    (guest.home / "silent").touch()
    assert ends("cat", point / "good") == ("", f"cat: {point}/good: Input/output error\n")
    program = Path(sys.executable).with_name("agent-vm")
    for argv in (("df", point), ("ls", "-l", point), (program, "status"), (program, "doctor")):
        assert ends(*argv) is not None, argv
    assert ends(program, "unmount", "--force") == ("Unmounted.\n", "")
    assert not mounts(home)
    began = time.monotonic()
    with pytest.raises(AgentVMError, match="could not be mounted"):
        mount.mount(chosen)
    assert time.monotonic() - began < LONGEST


def test_it_is_asked_again_after_a_while(
    guest: Guest, serve: Serve, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = serve("silent")
    assert ends("cat", point / "bad") == ("", f"cat: {point}/bad: Input/output error\n")
    assert ends("cat", point / "good") == ("", f"cat: {point}/good: Input/output error\n")
    (note,) = home.glob(".agent-vm/*/mount.silent")
    os.utime(note, (0, 0))
    assert ends("cat", point / "good") == ("good\n", "")


def test_a_folder_without_end_hangs_nothing_and_fills_no_memory(serve: Serve) -> None:
    point = serve("endless")
    pid = mount.server(point)
    assert pid
    most, said = _listing(point / "bad", pid)
    assert said is not None
    assert most < mount.MEMORY_LIMIT
    assert ends("ls", point) is not None


@pytest.mark.parametrize("limited", [True, False])
def test_the_memory_of_sshfs_is_limited(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, *, limited: bool
) -> None:
    """Where it is listed in haste it ends by that; the twin has a higher limit, to spare us."""
    without(monkeypatch, "ssh_command")
    wanted = 400 * MEBIBYTE
    monkeypatch.setattr(mount, "MEMORY_LIMIT", wanted if limited else 3 * wanted)
    point = serve("endless")
    pid = mount.server(point)
    assert pid
    most, _ = _listing(point / "bad", pid)
    assert (most > wanted) is not limited


def _listing(folder: Path, pid: int) -> tuple[int, object]:
    """The most memory that sshfs had while a folder was listed, and what was said."""
    said: list[object] = []
    thread = threading.Thread(target=lambda: said.append(ends("ls", folder)), daemon=True)
    thread.start()
    most = 0
    while thread.is_alive():
        most = max(most, most_memory(pid))
        time.sleep(0.02)
    return most, said[0]


@pytest.mark.parametrize("attack", ["parent", "slash", "absolute", "empty", "nul", "long"])
def test_a_name_that_no_file_can_have_leads_nowhere(serve: Serve, attack: str) -> None:
    point = serve(attack)
    said = ends("ls", "-la", point / "bad")
    assert said is not None
    assert "passwd" not in said[0]
    assert ends("cat", point / "good") == ("good\n", "")
    found = ends("find", point, "-name", "secret", "-o", "-name", "passwd")
    assert found is not None
    assert found[0] == ""


@pytest.mark.parametrize("attack", ["size", "mode", "too much"])
def test_sizes_beyond_all_bounds(serve: Serve, attack: str) -> None:
    point = serve(attack)
    pid = mount.server(point)
    assert pid
    assert ends("ls", "-l", point) is not None
    assert ends("sh", "-c", f'head -c 1000000 "{point}/bad" | wc -c; cp "{point}/bad" /dev/null')
    assert most_memory(pid) < 200 * MEBIBYTE


@pytest.mark.parametrize("contained", [True, False])
def test_a_link_to_a_file_of_this_machine(
    serve: Serve, home: Path, monkeypatch: pytest.MonkeyPatch, *, contained: bool
) -> None:
    if not contained:
        without(monkeypatch, "contain_symlinks", "no_contain_symlinks")
    link = serve("none") / "link"
    said = ends("cat", link)
    ends("sh", "-c", f'echo owned > "{link}"')
    written = (home / "secret").read_text()
    if contained:
        assert (said, written) == (
            ("", f"cat: {link}: Operation not permitted\n"), "of the host\n"
        )  # fmt: skip
    else:
        assert (said, written) == (("of the host\n", ""), "owned\n")
