"""A guest that wants to fill this machine, or to have its commands wait: each is bounded.

Its console is played by a real QEMU without an operating system.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import host, lima, render
from tests import forked
from tests.conftest import VM, leading, wait_until
from tests.programs import script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Guest, Limactl

KIBIBYTE = 1024
MOST, PAUSE = 64 * KIBIBYTE, 0.2
"""What a log may take, and between two looks; the product's are 16 MiB and 5 s."""
SOON = 10.0
FLOOD = bytes.fromhex("ba f8 03 b0 78 ee eb fd")
"""A boot sector: mov dx, 0x3f8; mov al, 'x'; again: out dx, al; jmp again."""


def bounding(folder: Path, qemu: str, pause: float = PAUSE) -> list[str]:
    """The wrapper that Lima starts, with smaller numbers."""
    text = render.qemu(mode="open", qemu=qemu, passt="", folder=folder)
    for ours, smaller in (("-t 5", f"-t {pause}"), ("16384", str(MOST // KIBIBYTE)),
                          ("1048576", str(4 * KIBIBYTE))):  # fmt: skip
        assert ours in text
        text = text.replace(ours, smaller)
    (folder / "wrapper").write_text(text)
    return ["bash", str(folder / "wrapper")]


def taken(path: Path) -> int:
    """Bytes of the disk that a file takes."""
    return path.stat().st_blocks * 512 if path.exists() else 0


def named(folder: Path) -> str:
    """The processes whose command line names the wrapper of a folder."""
    return subprocess.run(["pgrep", "-f", str(folder / "wrapper")], capture_output=True, text=True,
                          check=False).stdout  # fmt: skip


@contextlib.contextmanager
def flooded(folder: Path, *qemu: str) -> Iterator[Path]:
    """A QEMU whose guest writes to its console without end; the log."""
    disk, log = folder / "disk", folder / "serial.log"
    disk.write_bytes(FLOOD.ljust(510, b"\0") + b"\x55\xaa")
    socket = f"socket,id=s,path={folder}/serial.sock,server=on,wait=off,logfile={log}"
    machine = ["-display", "none", "-m", "16", "-accel", "tcg", "-net", "none"]
    drive = ["-drive", f"file={disk},format=raw"]
    with leading(*qemu, *machine, *drive, "-chardev", socket, "-serial", "chardev:s"):
        yield log


def test_a_flood_on_the_console_fills_no_disk(tmp_path: Path) -> None:
    real = shutil.which("qemu-system-x86_64")
    if not real or host.is_macos():
        pytest.skip("needs qemu-system-x86_64 and Linux")
    began = time.monotonic()
    with flooded(tmp_path, real) as log:
        wait_until(lambda: taken(log) > 20 * MOST, "the attack does not work", 60)
    seconds = time.monotonic() - began
    log.unlink()
    (tmp_path / "ha.stderr.log").touch()
    with flooded(tmp_path, *bounding(tmp_path, real)) as log:
        most, end = 0, time.monotonic() + 2 * seconds
        while time.monotonic() < end:
            most = max(most, taken(log))
            time.sleep(PAUSE / 4)
        assert 0 < most < 20 * MOST
        assert log.read_bytes().endswith(b"xxx")


def test_a_panic_is_still_seen_after_a_flood(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    flood = f"head -c {4 * MOST} /dev/zero >> '{log}'; echo Kernel panic >> '{log}'; exec sleep 60"
    program = script(tmp_path, "qemu", flood)
    (tmp_path / "ha.stderr.log").touch()
    found = lima.Instance(VM, "Running", tmp_path, 1, 1, 1, 1, "qemu")
    with leading(*bounding(tmp_path, str(program))):
        wait_until(lambda: lima.panicked(found), "the panic does not come")
        wait_until(lambda: taken(log) <= MOST, "the log is not bounded")
        wait_until(lambda: lima.panicked(found), "the panic is lost")


def test_complaints_of_qemu_that_a_guest_causes_fill_no_disk(tmp_path: Path) -> None:
    """Lima appends them to its own log, which it keeps open."""
    program = script(tmp_path, "qemu", "yes virtio: bogus descriptor >&2")
    log = tmp_path / "ha.stderr.log"
    with log.open("wb") as err, leading(*bounding(tmp_path, str(program)), stderr=err):
        wait_until(lambda: taken(log) > 1000 * MOST, "the attack does not work")
        wait_until(lambda: taken(log) < 500 * MOST, "nothing is cut")


def test_what_bounds_the_logs_ends_with_qemu(tmp_path: Path) -> None:
    """At once, not at its next look: a VM that was destroyed leaves no process."""
    program = script(tmp_path, "qemu", "exec sleep 60")
    argv = bounding(tmp_path, str(program), pause=60)
    with leading(*argv) as qemu:
        wait_until((tmp_path / "calls").exists, "QEMU does not start")
        assert named(tmp_path)
        qemu.kill()
        wait_until(lambda: not named(tmp_path), "a process is left", 5)


def test_the_second_console_is_not_logged(tmp_path: Path) -> None:
    program = script(tmp_path, "qemu", "exit")
    consoles = [f"socket,id={name},path={tmp_path}/{name}.sock,logfile={tmp_path}/{name}.log"
                for name in ("serial", "serialv")]  # fmt: skip
    subprocess.run([*bounding(tmp_path, str(program)), *consoles], check=True)
    (called,) = (tmp_path / "calls").read_text().splitlines()
    first, second = (each for each in called.split() if each.startswith("socket"))
    assert first == f"{consoles[0]},logappend=on"
    assert second == f"socket,id=serialv,path={tmp_path}/serialv.sock"


def test_the_end_of_a_huge_log_is_shown_without_reading_all_of_it(tmp_path: Path) -> None:
    with (tmp_path / "serial.log").open("wb") as file:
        file.truncate(4 * 2**30)
        file.seek(0, 2)
        file.write(b"\nthe end\n")
    show = "import sys, pathlib; from agent_vm_tasks import lima\n"
    show += "print(lima.log_tail(pathlib.Path(sys.argv[1]), 'serial', 1))"
    argv = ["prlimit", f"--as={2**30}", sys.executable, "-c", show, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("the end\n", "")


@pytest.mark.parametrize("words", ["status", "fetch fix", "push fix", "git fix -- log"])
def test_a_vm_that_starts_no_program_is_told_in_time_and_can_be_left(
    guest: Guest, limactl: Limactl, repository: Path, tmp_path: Path, words: str
) -> None:
    """As with a fork bomb inside: sshd greets, and nothing comes after that."""
    limactl.adopt(guest)
    settings = repository / "agent-vm.toml"
    settings.write_text("[mount]\nenabled = false\n[provision]\nenabled = false\n")
    assert forked.start(tmp_path, "push", "fix").end().status == 0
    (guest.home / "bin").mkdir()
    script(guest.home / "bin", "bash", "exec sleep 100")
    asked = forked.start(tmp_path, *words.split())
    wait_until(
        lambda: "does not answer: it is frozen, or too busy" in (tmp_path / "err").read_text(),
        "it is not told", SOON,
    )  # fmt: skip
    os.kill(asked.pid, signal.SIGINT)
    ended = asked.end(3 * SOON)
    assert ended.status == 130
    assert "Traceback" not in ended.err
