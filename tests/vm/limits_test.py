"""A guest that takes all it can get: it gets what was set, and this machine's commands go on."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import NAME, PROGRAM, User, inside, lima_home

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.vm

LIMIT = 10.0
START = 3.0
"""Seconds that the start of a program may take on top, on a machine that emulates.

Python, limactl and ssh start before the VM is asked, while the guest keeps all processors busy.
"""
VERBS = ["status", "doctor", "fetch fix", "push fix", "connect --command true",
         "unmount --force"]  # fmt: skip
BUSY = "does not answer: it is frozen, or too busy"
BOMB = 'nohup bash -c "bomb() { bomb | bomb & }; bomb" > /dev/null 2>&1 < /dev/null & sleep 3'
HOG = """nohup perl -e '@all = map { "x" x 2**28 } 1 .. 64' > /dev/null 2>&1 < /dev/null &"""
FILL = "sudo fallocate -l $(($(df -k --output=avail / | tail -1) * 1024)) /full"
LOGINS = "/sys/fs/cgroup/user.slice/user-1000.slice/session-*.scope"
REFUSED = f"cat {LOGINS}/pids.events | awk '{{n += $2}} END {{print n}}'"
"""How many tasks were refused to logins that are still there."""
TASKS = """
limit=$(cat "/sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/pids.max")
LIFT
echo "$limit"
python3 - "$limit" << 'END'
import _thread, os, sys, threading
threading.stack_size(2**16)
held, made = _thread.allocate_lock(), 0
held.acquire()
try:
    while made < int(sys.argv[1]) + 100:
        _thread.start_new_thread(held.acquire, ())
        made += 1
except RuntimeError:
    pass
os.write(1, b"%d" % made)
os._exit(0)
END
"""
"""A bomb that stops a hundred tasks beyond a login's limit; it prints that, and how many came."""
LIFT = (
    'sudo systemctl set-property --runtime "$(basename "$(cut -d: -f3 /proc/self/cgroup)")" '
    "TasksMax=infinity"
)
OOM = "pgrep --exact --count perl; grep -E '^oom(_kill)? ' /sys/fs/cgroup/user.slice/memory.events"
WRITE = "head -c 16M /dev/zero > ~/more && echo written || echo full; rm -f ~/more"
END_LOGINS = """
own=$(cut -d: -f3 /proc/self/cgroup)
for login in /sys/fs/cgroup/user.slice/user-1000.slice/session-*.scope; do
    [ "$login" = "/sys/fs/cgroup$own" ] || echo 1 | sudo tee "$login/cgroup.kill" > /dev/null
done
"""


@pytest.fixture(scope="module")
def project(vm: User) -> Iterator[Path]:
    top = vm.repository("limited")
    vm.agent_vm("push", "fix", cwd=top)
    yield top
    vm.agent_vm("clean", "fix", "--force", cwd=top)


def said_within(vm: User, project: Path, *argv: str) -> str:
    """What a command says until it ends, or tells that the VM is busy: both in time."""
    began = time.monotonic()
    with subprocess.Popen(
        [PROGRAM, *argv], env=vm.env, cwd=project, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as asked:  # fmt: skip
        assert asked.stdout
        said = ""
        for line in asked.stdout:
            said += line
            if BUSY in line:
                asked.kill()
                break
        assert time.monotonic() - began < LIMIT + START, said
    assert "Traceback" not in said
    return said


def login(vm: User, command: str) -> subprocess.CompletedProcess[str]:
    """A command over a connection of its own."""
    config = vm.home / ".agent-vm" / NAME / "ssh.config"
    return vm.run("ssh", "-F", str(config), "-o", "ControlPath=none", NAME, command)


def until(vm: User, command: str, says: str) -> None:
    """Log in until it says so; a login may come too late on a machine that emulates."""
    end = time.monotonic() + 300
    while login(vm, command).stdout != says:
        assert time.monotonic() < end


def test_qemu_gets_what_was_set_and_bounded_logs(vm: User) -> None:
    folder = lima_home(vm) / NAME
    pid = (folder / "qemu.pid").read_text().strip()
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    told = json.loads(vm.agent_vm("status", "--json"))
    assert int(words[words.index("-m") + 1]) == told["memory"]
    assert words[words.index("-smp") + 1].split(",")[0] == str(told["cpus"])
    disk = vm.run("qemu-img", "info", "--force-share", "--output=json", str(folder / "disk"))
    assert json.loads(disk.stdout)["virtual-size"] == told["disk"] * 2**20
    logs = [word for word in words if "logfile=" in word]
    assert len(logs) == 1
    assert logs[0].endswith("serial.log,logappend=on")


def test_a_fork_bomb_leaves_every_command_an_answer_and_a_new_login_a_place(
    vm: User, project: Path
) -> None:
    vm.run(PROGRAM, "connect", "--command", BOMB)
    try:
        for verb in VERBS:
            said_within(vm, project, *verb.split())
        until(vm, "echo in", "in\n")
        until(vm, f"[ $({REFUSED}) = 0 ] || echo exploded", "exploded\n")
    finally:
        login(vm, END_LOGINS)
    assert inside(vm, "echo works") == "works\n"


@pytest.mark.parametrize("lifted", [False, True])
def test_a_login_gets_so_many_tasks(vm: User, *, lifted: bool) -> None:
    limit, made = map(int, login(vm, TASKS.replace("LIFT", LIFT if lifted else "")).stdout.split())
    assert made == limit + 100 if lifted else 0 < made < limit


def test_a_memory_hog_is_ended_and_every_command_answers(vm: User, project: Path) -> None:
    """By the limit of all logins together; without it the kernel would end what it likes."""
    before = ooms(vm)[1:]
    vm.run(PROGRAM, "connect", "--command", HOG)
    end = time.monotonic() + 600
    while (now := ooms(vm))[:1] != [0] or now[1:] == before:
        assert time.monotonic() < end
        for verb in VERBS:
            said_within(vm, project, *verb.split())
    assert all(more > was for more, was in zip(now[1:], before, strict=True))
    assert inside(vm, "echo works") == "works\n"


def ooms(vm: User) -> list[int]:
    """How many hogs run; how often logins were at the limit, and how often one was killed."""
    return [int(line.split()[-1]) for line in login(vm, OOM).stdout.splitlines()]


def test_a_full_disk_leaves_every_command_an_answer(vm: User, project: Path) -> None:
    assert inside(vm, WRITE) == "written\n"
    vm.run(PROGRAM, "connect", "--command", FILL)
    try:
        assert inside(vm, WRITE) == "full\n"
        for verb in VERBS:
            said_within(vm, project, *verb.split())
    finally:
        inside(vm, "sudo rm -f /full")
