"""What stands between sshfs and ssh; tests/attacks/sftp_server_test.py has it at work."""

from __future__ import annotations

import itertools
import math
import os
import struct
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from agent_vm_tasks import sftp_watch

if TYPE_CHECKING:
    from pathlib import Path

BODIES = st.lists(st.binary(max_size=400), max_size=6)


def framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


@given(BODIES, st.lists(st.integers(1, 50), min_size=1))
def test_packets_are_found_however_they_come(bodies: list[bytes], steps: list[int]) -> None:
    stream, found = b"".join(map(framed, bodies)), list[bytes]()
    watch = sftp_watch.packets()
    next(watch)
    for step in itertools.cycle(steps):
        if not stream:
            break
        found += watch.send(stream[:step])
        stream = stream[step:]
    assert [each[4:] for each in found] == [body[: sftp_watch._KEPT - 4] for body in bodies]


def started(note: Path, *argv: str) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-I", "-S", sftp_watch.__file__, str(note), *argv]
    pipe = subprocess.PIPE
    return subprocess.Popen(program, stdin=pipe, stdout=pipe, stderr=pipe)


def test_what_is_carried_is_not_changed(tmp_path: Path) -> None:
    much = b"".join(
        framed(b"\x05" + struct.pack(">I", at) + os.urandom(50_000)) for at in range(99)
    )
    with started(tmp_path / "note", "cat") as child:
        assert child.stdin
        assert child.stdout
        threading.Thread(target=child.stdin.write, args=(much,)).start()
        assert child.stdout.read(len(much)) == much
        assert child.communicate(timeout=20) == (b"", b"")
    assert not (tmp_path / "note").exists()


def test_what_is_no_sftp_ends_it_without_a_word(tmp_path: Path) -> None:
    zeros = "printf '\\0\\0\\0\\0\\0\\0\\0\\0'; exec sleep 100"
    with started(tmp_path / "note", "sh", "-c", zeros) as child:
        assert child.wait(20)
        assert child.communicate() == (b"", b"")


def test_after_a_silence_it_is_not_asked_again_at_once(tmp_path: Path) -> None:
    note, ran = tmp_path / "note", tmp_path / "ran"
    note.touch()
    with started(note, "touch", str(ran)) as child:
        assert child.wait(20) == 1
    assert not ran.exists()
    for seconds in (sftp_watch.REST + 1, -sftp_watch.REST - 1):  # a clock may be set back
        os.utime(note, (0, time.time() - seconds))
        with started(note, "touch", str(ran)) as child:
            child.wait(20)
        assert ran.exists()
        ran.unlink()


def test_a_folder_is_read_from_its_first_names_until_it_is_closed() -> None:
    seen = sftp_watch.Unanswered()
    for kind, number in (
        (sftp_watch._READDIR, 1),
        (sftp_watch._READDIR, 2),
        (sftp_watch._CLOSE, 3),
    ):
        packet = framed(bytes([kind]) + struct.pack(">I", number) + framed(b"handle"))
        seen.ask([packet], float(number))
        assert seen.folders == ({} if number == 3 else {framed(b"handle"): 1.0})


def test_patience_is_for_the_oldest_request_and_late_answers_use_it_up() -> None:
    def packet(number: int) -> list[bytes]:
        return [framed(b"\x05" + struct.pack(">I", number) + framed(b"handle"))]

    seen = sftp_watch.Unanswered()
    seen.ask(packet(1), 0.0)
    seen.ask(packet(2), 1.0)
    assert seen.end(b"") == sftp_watch.PATIENCE
    seen.answer(packet(2), 3.0)
    seen.answer(packet(7), 3.0)
    assert seen.end(b"") == sftp_watch.PATIENCE
    seen.answer(packet(1), 5.0)
    assert seen.end(b"") == math.inf
    left = 5.0 + sftp_watch.PATIENCE - (5.0 - sftp_watch.GRANT)
    assert seen.end(b"what the server does not take") == left
    seen.ask(packet(3), 5.0)
    assert seen.end(b"") == left
