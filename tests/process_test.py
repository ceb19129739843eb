"""Child processes: what comes back, what is killed, what a missing program says."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agent_vm_tasks import process
from agent_vm_tasks.errors import AgentVMError

from .conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")


def python(code: str, *args: str) -> list[str]:
    return [sys.executable, "-c", code, *args]


def gone(pid: int) -> bool:
    """Whether no such process runs; a zombie that waits for its parent counts as gone."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_run_gives_status_and_both_outputs() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    result = process.run(python(code), check=False)
    assert (result.status, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert not result.ok


@hypothesis_settings(max_examples=15, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_arguments_and_stdin_arrive_as_they_are(text: str) -> None:
    result = process.run(["sh", "-c", 'printf %s "$1"; cat >&2', "sh", text], stdin=text)
    assert (result.stdout, result.stderr) == (text, text)


def test_relay_hands_text_on_as_it_comes() -> None:
    """A character whose bytes come apart is still one; what comes is not kept until the end."""
    out: list[str] = []
    script = r"printf 'a\303'; sleep 0.2; printf '\274\377'; printf 'e\303' >&2; read x; exit 7"
    err: list[str] = []
    assert process.relay(["sh", "-c", script], out.append, err.append, lambda _: None) == 7
    assert (len(out), "".join(out), "".join(err)) == (2, "aü\ufffd", "e\ufffd")
    assert process.relay(["sh", "-c", "kill $$"], print, print, lambda _: None) == 128 + 15


def test_a_relay_is_watched_and_ended_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: str) -> None:
        raise AgentVMError("it is silent")

    monkeypatch.setattr(process, "WATCH", 0.2)
    argv = ["sh", "-c", f"sleep 100 & echo $! > {tmp_path}/pid; wait"]
    with pytest.raises(AgentVMError, match="it is silent"):
        process.relay(argv, print, print, look)
    assert gone(int((tmp_path / "pid").read_text()))


def test_bytes_that_are_no_utf_8_do_not_stop_it() -> None:
    assert process.run(["printf", r"a\377b"]).stdout == "a\ufffdb"


def test_a_failure_names_the_program_and_its_last_words() -> None:
    with pytest.raises(process.ProcessError) as caught:
        process.run(["sh", "-c", "echo first >&2; echo 'disk on fire' >&2; exit 7"])
    assert str(caught.value) == "sh failed: disk on fire"
    assert caught.value.result.status == 7
    assert caught.value.status == 1


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo only out; exit 1", "only out"),
        ("echo out; echo err >&2; exit 1", "err"),
        ("exit 9", "exit status 9"),
        ("echo '  ' >&2; exit 9", "exit status 9"),
    ],
)
def test_the_reason_of_a_failure(script: str, reason: str) -> None:
    assert process.run(["sh", "-c", script], check=False).reason == reason


def test_a_missing_program_is_named_with_what_to_do() -> None:
    with pytest.raises(AgentVMError) as caught:
        process.run(["no-such-program", "x"])
    assert caught.value.message == "no-such-program is not installed"
    assert "agent-vm setup" in caught.value.hint


def test_a_program_that_may_not_be_executed_is_no_traceback(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    with pytest.raises(AgentVMError, match="program may not be executed by this user"):
        process.run([str(program)])


@AS_ROOT
def test_a_folder_on_path_that_may_not_be_read_does_not_hide_that_a_program_is_missing() -> None:
    env = {"PATH": "/root/bin:/usr/bin:/bin"}
    with pytest.raises(AgentVMError, match="no-such-program is not installed"):
        process.run(["no-such-program"], env=env, user="nobody", cwd="/")


def test_a_missing_folder_is_not_taken_for_a_missing_program() -> None:
    with pytest.raises(AgentVMError, match="/no/such/folder: No such file or directory"):
        process.run(["true"], cwd="/no/such/folder")


def test_a_program_of_another_machine_is_no_traceback(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(60))
    program.chmod(0o755)
    with pytest.raises(AgentVMError, match=r"program cannot be executed: Exec format error"):
        process.run([str(program)])


def test_the_time_limit_ends_the_whole_group(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = f"sleep 60 & echo $! > {note}; wait"
    began = time.monotonic()
    with pytest.raises(AgentVMError, match=r"^sh gave no answer within 0\.3 s$"):
        process.run(["sh", "-c", script], timeout=0.3)
    assert time.monotonic() - began < 5
    assert gone(int(note.read_text()))


def test_an_interruption_ends_the_whole_group(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from agent_vm_tasks import process\n"
        "process.run(['sh', '-c', 'sleep 60 & echo $! > \"$1\"; wait', 'sh', sys.argv[2]])\n"
    )
    root = str(Path(__file__).parent.parent)
    child = subprocess.Popen(python(code, root, str(note)), stderr=subprocess.DEVNULL)
    while not (note.exists() and note.read_text().strip()):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    child.wait(10)
    assert gone(int(note.read_text()))


def test_an_interruption_while_a_child_starts_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real, started = subprocess.Popen.__init__, []

    def interrupted(self: subprocess.Popen[bytes], *args: Any, **more: Any) -> None:  # noqa: ANN401
        real(self, *args, **more)
        started.append(self.pid)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess.Popen, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        process.popen(["sleep", "60"])
    assert gone(*started)


def test_a_left_behind_daemon_that_keeps_stderr_open_is_waited_for_until_the_limit() -> None:
    """An ssh master keeps no stream open (OpenSSH 8.9 or newer), and whatever does is bounded."""
    began = time.monotonic()
    with pytest.raises(AgentVMError, match="gave no answer"):
        process.run(["sh", "-c", "sleep 60 >/dev/null & exit 0"], timeout=0.3)
    assert time.monotonic() - began < 5


def test_a_daemon_without_our_streams_is_left_alone() -> None:
    result = process.run(["sh", "-c", "sleep 60 </dev/null >/dev/null 2>&1 & echo $!"], timeout=10)
    pid = int(result.stdout)
    try:
        assert sys.platform == "darwin" or not gone(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_what_watches_hears_what_was_said_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WATCH", 0.1)
    heard: list[str] = []
    script = "echo one >&2; echo not this; sleep 0.5; echo two >&2; sleep 0.5"
    result = process.run(["sh", "-c", script], watch=heard.append)
    assert (heard[0], heard[-1]) == ("one\n", "one\ntwo\n")
    assert (result.stdout, result.stderr) == ("not this\n", "one\ntwo\n")


def test_what_watches_ends_it_by_raising(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WATCH", 0.1)

    def watch(said: str) -> None:
        if said:
            raise AgentVMError(said)

    with pytest.raises(AgentVMError) as caught:
        process.run(["sh", "-c", "sleep 60 & echo $! >&2; wait"], watch=watch)
    assert gone(int(str(caught.value)))


@pytest.mark.parametrize("stream", ["", ">&2"])
def test_a_program_that_prints_without_end_is_ended(stream: str) -> None:
    with pytest.raises(AgentVMError, match=r"^sh was ended: it printed more than 1 MiB$"):
        process.run(["sh", "-c", f"while :; do echo noise; done {stream}"], most=2**20)


@pytest.mark.parametrize("before", ["", "exec >&-;"])
def test_what_is_saved_has_an_end_on_stderr_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    monkeypatch.setattr(process, "MOST", 2**20)
    flood = f"{before} head -c 30000000 /dev/zero >&2; sleep 1; exit 7"
    with (tmp_path / "copy").open("wb") as file, pytest.raises(AgentVMError, match="too large"):
        process.save(["sh", "-c", flood], "", file, 1000, print)


def test_what_is_saved_comes_with_its_complaint_and_status(tmp_path: Path) -> None:
    with (tmp_path / "copy").open("wb") as file:
        said = process.save(["sh"], "echo 1; echo no >&2; echo 2; exit 7", file, 4, print)
        assert (said.status, said.reason) == (7, "no")
    assert (tmp_path / "copy").read_text() == "1\n2\n"


def test_much_goes_in_and_out_at_once() -> None:
    given = os.urandom(3_000_000).hex()
    assert process.run(["cat"], stdin=given, timeout=60).stdout == given


def test_a_program_that_does_not_read_what_it_is_given() -> None:
    assert process.run(["sh", "-c", "exec <&-; echo done"], stdin="x" * 2**20).stdout == "done\n"


def test_silence_is_looked_into(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def look(_said: str) -> None:
        raise AgentVMError("frozen")

    monkeypatch.setattr(process, "WATCH", 0.1)
    with pytest.raises(AgentVMError, match="frozen"):
        process.run(["sleep", "60"], watch=look)
    with (tmp_path / "copy").open("wb") as file, pytest.raises(AgentVMError, match="frozen"):
        process.save(["sleep", "60"], "", file, 9, look)


def test_a_reason_has_a_length() -> None:
    said = process.run(["sh", "-c", "yes | tr -d '\\n' | head -c 100000; exit 1"], check=False)
    assert len(said.reason) == process.LONGEST_REASON


def test_the_environment_given_is_the_whole_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    result = process.run(["env"], env={"PATH": os.environ["PATH"], "ONE": "1"})
    assert set(result.stdout.split()) >= {"ONE=1"}
    assert "secret" not in result.stdout


@AS_ROOT
def test_user_runs_it_as_that_account() -> None:
    result = process.run(["sh", "-c", "id -un; id -G; touch /etc/agent-vm-x"], check=False,
                         user="nobody", cwd="/")  # fmt: skip
    assert result.stdout.splitlines()[0] == "nobody"
    assert "0" not in result.stdout.splitlines()[1].split()
    assert "Permission denied" in result.stderr


def test_follow_hands_on_lines_and_progress() -> None:
    said: list[str] = []
    script = r"printf 'one\ntwo 10%%\rtwo 100%%\r\n\nthree' ; echo '' ; printf 'last' >&2; exit 4"
    result = process.follow(["sh", "-c", script], said.append)
    assert said == ["one", "two 10%", "two 100%", "three", "last"]
    assert result.status == 4
    assert result.reason == "last"


def test_follow_tells_a_line_while_the_program_still_runs(tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"echo ready; until [ -e {go} ]; do sleep 0.02; done; echo done"
    said: list[str] = []

    def on_line(line: str) -> None:
        said.append(line)
        go.touch()

    assert process.follow(["timeout", "10", "sh", "-c", script], on_line).ok
    assert said == ["ready", "done"]


def test_follow_ends_the_program_when_the_listener_fails(tmp_path: Path) -> None:
    note = tmp_path / "pid"

    def on_line(line: str) -> None:
        note.write_text(line)
        raise ValueError(line)

    with pytest.raises(ValueError, match=r"\d+"):
        process.follow(["sh", "-c", "sleep 60 & echo $!; wait"], on_line)
    assert gone(int(note.read_text()))


def test_interactive_gives_the_status() -> None:
    assert process.interactive(["sh", "-c", "exit 42"]) == 42


def test_the_end_by_a_signal_is_the_status_that_a_shell_gives() -> None:
    assert process.interactive(["sh", "-c", "kill -INT $$"]) == 130


def test_ctrl_c_waits_for_what_may_not_be_cut_off(tmp_path: Path) -> None:
    script = f"kill -INT {os.getpid()}; sleep 0.1; touch {tmp_path}/whole"
    with pytest.raises(KeyboardInterrupt), process.interrupts_later():
        process.run(["sh", "-c", script])
    assert (tmp_path / "whole").exists()


def test_ctrl_c_at_its_very_start_waits_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def interrupted(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401
        child = start(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)
        return child

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    for later, whole in ((contextlib.nullcontext, False), (process.interrupts_later, True)):
        with pytest.raises(KeyboardInterrupt), later():
            process.run(["sh", "-c", f"sleep 0.1; touch {tmp_path}/whole"])
        assert (tmp_path / "whole").exists() is whole


def test_interactive_leaves_ctrl_c_to_the_program() -> None:
    """A shell or an editor on the terminal handles it; agent-vm must still be there after."""
    script = 'trap "exit 5" INT; kill -INT 0; exit 6'
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from agent_vm_tasks import process\n"
        "print(process.interactive(['sh', '-c', sys.argv[2]]))\n"
    )
    root = str(Path(__file__).parent.parent)
    done = subprocess.run(
        python(code, root, script), capture_output=True, text=True, check=False,
        start_new_session=True,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("5\n", 0)


def test_interactive_restores_ctrl_c() -> None:
    process.interactive(["true"])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interactive_with_a_missing_program() -> None:
    with pytest.raises(AgentVMError, match="no-such-program is not installed"):
        process.interactive(["no-such-program"])


RUN = (
    "import sys; sys.path.insert(0, sys.argv[1]); from agent_vm_tasks import process\n"
    "sleep = ['sh', '-c', 'echo $$ > $0; exec sleep 60', sys.argv[2]]\n"
    "{}\n"
)


@pytest.mark.parametrize("call", ["process.run(sleep, mortal=True)", "process.interactive(sleep)"])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do that")
def test_a_child_that_may_not_go_on_alone_dies_with_us(tmp_path: Path, call: str) -> None:
    note, root = tmp_path / "pid", str(Path(__file__).parent.parent)
    with subprocess.Popen(python(RUN.format(call), root, str(note))) as parent:
        wait_until(lambda: note.exists() and note.read_text(), "the child does not start")
        parent.kill()
    assert gone(int(note.read_text()))


def test_a_sigterm_ends_the_child_on_the_terminal_first_where_that_cannot_die_with_us(
    tmp_path: Path,
) -> None:
    note, root = tmp_path / "pid", str(Path(__file__).parent.parent)
    as_on_macos = "process._dying_with_us = lambda *_: lambda: None; process.interactive(sleep)"
    with subprocess.Popen(python(RUN.format(as_on_macos), root, str(note))) as parent:
        wait_until(lambda: note.exists() and note.read_text(), "the child does not start")
        parent.terminate()
        assert parent.wait(10) == -signal.SIGTERM
    assert gone(int(note.read_text()))


def test_a_process_that_a_signal_stopped_is_known() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert not process.is_stopped(child.pid)
        os.kill(child.pid, signal.SIGSTOP)
        wait_until(lambda: process.is_stopped(child.pid), "it is not seen")
        os.kill(child.pid, signal.SIGCONT)
        wait_until(lambda: not process.is_stopped(child.pid), "it is not seen")
        child.kill()
    assert not process.is_stopped(child.pid)
    assert not process.is_stopped(0)


def test_interactive_looks_once_and_only_when_it_takes_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "WATCH", 0.2)
    looks: list[str] = []
    assert process.interactive(["true"], lambda: looks.append("early")) == 0
    late = ["sh", "-c", "sleep 0.9; exit 3"]
    assert process.interactive(late, lambda: looks.append("late")) == 3
    assert looks == ["late"]


def sleeping(seconds: float = 60) -> process.Result:
    return process.run(["sleep", str(seconds)])


def beside(seconds: float, *, fails: bool = False) -> None:
    """A block of its own within a thread."""
    with contextlib.suppress(ValueError), process.side_by_side() as more:
        ended = more.submit(sleeping, seconds)
        if fails:
            raise ValueError
        ended.result()


@pytest.mark.parametrize("work", [sleeping, lambda: beside(60)], ids=["outer", "inner"])
def test_what_runs_side_by_side_ends_with_its_block(work: Callable[[], object]) -> None:
    began = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt), process.side_by_side() as threads:
        threads.submit(work)
        time.sleep(0.5)
        raise KeyboardInterrupt
    assert time.monotonic() - began < 30


def test_a_block_that_fails_in_a_thread_ends_no_other() -> None:
    with process.side_by_side() as threads:
        other = threads.submit(sleeping, 4)
        threads.submit(lambda: beside(4, fails=True))
    assert other.result().ok
