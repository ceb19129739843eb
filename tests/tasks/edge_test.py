"""The edge: errors become one line and an exit status, bugs stay visible."""

from __future__ import annotations

import errno
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from invoke.exceptions import Exit
from invoke.tasks import Task

from agent_vm_tasks.errors import AgentVMError, UsageError
from agent_vm_tasks.tasks._edge import guarded

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
import os, signal, sys
from invoke.collection import Collection
from invoke.program import Program
from invoke.tasks import task
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.tasks._edge import guarded

@task
@guarded
def act(_context, what, lines=1):
    print("\\n".join(["line"] * lines))
    exec(what)

Program(namespace=Collection(act)).run()
"""


def run(what: str, *more: str, redirect: str = "") -> subprocess.CompletedProcess[str]:
    script = f'"$@" {redirect}; echo "status ${{PIPESTATUS[0]}}" >&2'
    program = [sys.executable, "-c", PROGRAM, "act", "--what", what, *more]
    return subprocess.run(
        ["bash", "-c", script, "bash", *program],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_invoke_sees_the_tasks_own_signature_and_help() -> None:
    @guarded
    def connect(_context: object, branch: str, force: bool = False) -> None:
        """Open a shell."""

    assert list(inspect.signature(connect).parameters) == ["_context", "branch", "force"]
    task: Task[Any] = Task(connect)
    assert [argument.name for argument in task.get_arguments()] == ["branch", "force"]
    assert (task.name, task.__doc__) == ("connect", "Open a shell.")


def test_the_result_comes_through() -> None:
    assert guarded(lambda: 7)() == 7


def test_an_error_is_one_line_with_its_hint_and_status() -> None:
    done = run("raise AgentVMError('it broke', 'mend it', status=42)")
    assert done.stderr == "agent-vm: it broke; mend it\nstatus 42\n"


@pytest.mark.parametrize(("error", "status"), [(AgentVMError("x"), 1), (UsageError("x"), 2)])
def test_each_error_has_its_status(error: AgentVMError, status: int) -> None:
    @guarded
    def fail() -> None:
        raise error

    with pytest.raises(Exit) as caught:
        fail()
    assert caught.value.code == status


@pytest.mark.parametrize("typed", [b"\xe9\n", b"y\xff\n"])
def test_an_answer_in_another_encoding_is_no_yes(typed: bytes) -> None:
    ours, theirs = os.openpty()
    program = "from agent_vm_tasks.tasks._edge import agreed; print(agreed('do it'))"
    os.write(ours, typed)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8:strict"},
        stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, check=False,
    )  # fmt: skip
    os.close(ours)
    os.close(theirs)
    assert (done.returncode, done.stdout) == (0, b"False\n")


def test_a_message_cannot_write_to_the_terminal() -> None:
    done = run("raise AgentVMError('\\x1b]0;owned\\x07 \\u202e \\udcff')")
    assert done.stderr == "agent-vm: \\x1b]0;owned\\x07 \\u202e \\udcff\nstatus 1\n"


def test_ctrl_c_is_one_line() -> None:
    done = run("os.kill(os.getpid(), signal.SIGINT)")
    assert done.stderr == "agent-vm: interrupted\nstatus 130\n"


@pytest.mark.parametrize("lines", ["1", "200000"])
def test_a_reader_that_left_is_no_error_to_talk_about(lines: str) -> None:
    done = run("import time; time.sleep(0.2)", "--lines", lines, redirect="| true")
    assert done.stderr == "status 141\n"


def test_a_message_to_a_closed_stderr_ends_quietly() -> None:
    slow = "import time; time.sleep(0.2); print('x', file=sys.stderr, flush=True)"
    assert run(slow, redirect="2>&1 | true").stderr == "status 141\n"


def test_another_broken_pipe_is_not_hidden() -> None:
    done = run("r, w = os.pipe(); os.close(r); os.write(w, b'x')")
    assert done.stderr == "agent-vm: a file: Broken pipe\nstatus 1\n"


def test_a_full_disk_behind_stdout_is_one_line() -> None:
    done = run("pass", redirect="> /dev/full")
    assert done.stderr == "agent-vm: standard output: No space left on device\nstatus 1\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM])
def test_trouble_with_a_file_names_it(number: int) -> None:
    @guarded
    def fail() -> None:
        raise OSError(number, os.strerror(number), "/some/path")

    with pytest.raises(Exit) as caught:
        fail()
    assert caught.value.message == f"agent-vm: /some/path: {os.strerror(number)}"
    assert caught.value.code == 1


@pytest.mark.parametrize("bug", ["1 / 0", "open('/nowhere')", "{}['x']"])
def test_a_bug_stays_a_traceback(bug: str) -> None:
    done = run(bug)
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("status 1\n")


def test_an_exit_from_within_passes() -> None:
    @guarded
    @guarded
    def fail() -> None:
        raise Exit("done", 5)

    with pytest.raises(Exit) as caught:
        fail()
    assert (caught.value.message, caught.value.code) == ("done", 5)
