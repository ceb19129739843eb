"""`agent-vm connect` on a terminal: keys, signals, size, screens, and how it ends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import console
from agent_vm_tasks import guest as ssh_guest

from .conftest import VM, wait_until
from .terminals import (
    COLUMNS,
    LINES,
    Terminal,
    ends_with_the_last_status,
    interrupts,
    stops_and_goes_on,
    takes_a_line,
    terminal,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Guest, Limactl

PROGRAM = str(Path(sys.executable).with_name("agent-vm"))
WIDE = "größer 漢字 한글 👩‍💻 é ﷽"
ESCAPES = "\r~.\r~~~\r~?\n~.~"
"""Where ssh's own escape character would act."""
SCREEN = (
    "\x1b[?1049h\x1b[?1000;1002;1006h\x1b[?2004h\x1b[>1u\x1b[2J\x1b[H\x1b[38;2;255;100;0m"
    f"{WIDE}\x1b[0m\x1b]0;title\x07\x1b]52;c;aGVsbG8=\x07\x1bP+q544e\x1b\\\x9b1m\r\n\t\b"
    "\x1b[?1006;1002;1000l\x1b[?1049l"
)
# Kills the sshd that serves this session, or stops it as a frozen guest is.
SERVER = (
    "pid=$$; until [[ $(cat /proc/$pid/comm) = sshd* ]]; "
    "do pid=$(cut -d' ' -f4 /proc/$pid/stat); done; "
)
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.fixture
def vm(guest: Guest, limactl: Limactl) -> Guest:
    """A VM that runs and is connected, with a prompt that shows when the shell is ready."""
    limactl.adopt(guest)
    (guest.home / ".bash_profile").write_text("PS1='<shell> '\n")
    settings = Path.home() / ".config" / "agent-vm"
    settings.mkdir(parents=True)
    (settings / "config.toml").write_text("[mount]\nenabled = false\n")
    ssh_guest.warm_up(VM)
    return guest


@contextlib.contextmanager
def connected(*words: str, **env: str) -> Iterator[Terminal]:
    """`agent-vm connect WORDS…` on a terminal."""
    with terminal([PROGRAM, "connect", *words], env=environment(**env)) as at:
        yield at


def environment(**env: str) -> dict[str, str]:
    return {**os.environ, "TERM": "xterm-256color", **env}


@contextlib.contextmanager
def shell(*words: str) -> Iterator[Terminal]:
    """The shell of `agent-vm connect WORDS…`, when it waits for a command."""
    with connected(*words) as at:
        at.wait_for("<shell> ")
        yield at


def arrived(keys: bytes) -> str:
    """What the terminal shows when a program inside got just these keys."""
    return f"{hashlib.sha256(keys).hexdigest()}  -"


# Keys


def test_enter_ends_a_line_and_wide_characters_come_back_as_typed(vm: Guest) -> None:
    with shell() as at:
        takes_a_line(at, WIDE)
        at.type("exit\r")
        assert at.status() == 0


@pytest.mark.parametrize(
    "keys",
    [
        bytes(range(256)) * 2,
        WIDE.encode() + ESCAPES.encode(),
        f"\x1b[200~{ESCAPES}{WIDE * (2**16 // len(WIDE))}\x1b[201~".encode(),
    ],
    ids=["every byte", "wide and ssh's escapes", "a paste"],
)
def test_a_program_gets_the_keys_byte_for_byte(vm: Guest, keys: bytes) -> None:
    read = f"stty raw -echo; echo ready; head -c {len(keys)} | sha256sum; exit 7"
    with connected("--command", read) as at:
        at.wait_for("ready")
        at.type(keys)
        at.wait_for(arrived(keys))
        assert at.status() == 7


def test_ctrl_c_ends_the_program_and_the_shell_goes_on(vm: Guest, repository: Path) -> None:
    with shell("fix") as at:
        interrupts(at)
        at.type("exit\r")
        assert at.status() == 0


def test_what_is_typed_ahead_reaches_the_shell_of_a_new_branch(vm: Guest, repository: Path) -> None:
    with connected("fix") as at:
        at.type("echo branch=$(git branch --show-current)\r")
        at.wait_for("branch=fix\r\n")
        at.type("exit\r")
        assert at.status() == 0


def test_ctrl_c_reaches_a_program_that_catches_it(vm: Guest) -> None:
    catching = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done"
    with connected("--command", catching) as at:
        at.wait_for("ready")
        at.type("\x03")
        at.wait_for("caught")
        assert at.status() == 9


def test_ctrl_d_ends_the_shell_with_the_last_status(vm: Guest) -> None:
    with shell() as at:
        ends_with_the_last_status(at)


def test_ctrl_z_stops_the_program_and_fg_returns_to_it(vm: Guest) -> None:
    with shell() as at:
        stops_and_goes_on(at)
        at.type("exit\r")
        assert at.status() == 0


# What is shown


def test_the_size_and_its_changes_reach_the_program(vm: Guest) -> None:
    # bash loses a signal that comes while it is in the trap for the one before.
    loop = "now=$new; new=; ${now:+stty size}; sleep 0.05"
    watch = f"trap new=yes WINCH; new=yes; while :; do {loop}; done"
    with connected("--command", watch) as at:
        at.wait_for(f"{LINES} {COLUMNS}\r\n")
        for lines, columns in ((40, 120), (10, 20)):
            at.resize(lines, columns)
            at.wait_for(f"{lines} {columns}\r\n")


def test_a_screen_comes_byte_for_byte_and_nothing_of_ours_is_in_it(vm: Guest) -> None:
    """Alternate screen, mouse, pastes, titles: they are the program's and the terminal's."""
    (vm.home / "screen").write_bytes(SCREEN.encode() + bytes(range(256)))
    with connected("--", "sh", "-c", "stty raw; cat screen; exit 3") as at:
        assert at.status() == 3
        assert at.seen == SCREEN.encode() + bytes(range(256))


@pytest.mark.parametrize(
    ("here", "inside"),
    [
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "xterm-256color truecolor C.UTF-8"),
        ({"TERM": "vt100", "COLORTERM": "", "LANG": "de_DE.ISO-8859-1"}, "vt100 none C.UTF-8"),
        ({"TERM": "no-such-terminal", "COLORTERM": "$(id)"}, "xterm-256color none C.UTF-8"),
    ],
)
def test_the_terminals_kind_is_known_inside(vm: Guest, here: dict[str, str], inside: str) -> None:
    ask = "echo $TERM ${COLORTERM:-none} $LANG; test -t 0 && test -t 1 && test -t 2"
    with connected("--command", ask, **here) as at:
        assert at.status() == 0
        assert at.seen.decode() == f"{inside}\r\n"


# How it ends


def in_a_shell_of_the_host(words: str) -> list[str]:
    """What a person has around `agent-vm`: a shell that looks at the terminal before and after."""
    return ["bash", "-c", f'stty -g > before; {words}; echo "ended $?"; stty -g > after']


@needs_proc
@pytest.mark.parametrize(("how", "every"), [("KILL", 15), ("STOP", 1)])
def test_a_lost_connection_says_how_to_return_and_the_terminal_is_as_before(
    vm: Guest, repository: Path, how: str, every: int
) -> None:
    config = ssh_guest.config(VM)
    old = "ServerAliveInterval 15\n  ServerAliveCountMax 2"
    assert old in config.read_text()
    ssh_guest.disconnect(VM)
    config.write_text(config.read_text().replace(old, f"ServerAliveInterval {every}"))
    ssh_guest.warm_up(VM)
    program = in_a_shell_of_the_host(shlex.join([PROGRAM, "connect", "fix"]))
    with terminal(program, env=environment()) as at:
        before = at.modes()
        at.wait_for("<shell> ")
        assert at.modes() != before
        at.type("printf '\\033[?1049h\\033[?1000h'; echo \"scr\"een\r")
        at.wait_for("screen")
        at.type(f"{SERVER} echo $pid > ~/server; kill -{how} $pid\r")
        at.wait_for(f"{console._RESET}agent-vm: the connection was lost; return with ")
        at.wait_for("`agent-vm connect fix`\r\n")
        at.wait_for("ended 1")
        assert at.status() == 0
    assert Path("after").read_text() == Path("before").read_text()
    with contextlib.suppress(ProcessLookupError):
        os.kill(int((vm.home / "server").read_text()), signal.SIGKILL)
    ssh_guest.warm_up(VM)
    with shell("fix") as at:
        at.type("exit 5\r")
        assert at.status() == 5


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_tool_that_is_ended_leaves_the_terminal_as_it_was(vm: Guest, number: int) -> None:
    program = in_a_shell_of_the_host(f"{shlex.quote(PROGRAM)} connect; sleep 1")
    with terminal(program, env=environment()) as at:
        before = at.modes()
        at.wait_for("<shell> ")
        assert at.modes() != before
        (tool,) = children(at.child)
        (ssh,) = children(tool)
        os.kill(tool, number)
        wait_until(lambda: not Path(f"/proc/{ssh}").exists(), "ssh runs on")
        at.wait_for("ended")
        assert at.status() == 0
    assert Path("after").read_text() == Path("before").read_text()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
