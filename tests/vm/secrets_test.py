"""A key and Google's credentials in a real VM: they arrive, and lie in its memory alone.

The tests build on each other in this order.
"""

from __future__ import annotations

import json
import secrets
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import golden, settings

from .conftest import NAME, PROGRAM, User, lima_home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm

CANARY = f"c4n4ry-{secrets.token_hex(8)}"
ROTATED = f"r0t4t3d-{secrets.token_hex(8)}"
MARKER = f"m4rk3r-{secrets.token_hex(8)}"
ODD = f'it\'s "{CANARY}"\n$HOME `id` \\ é'
INSIDE = "/etc/google/application_default_credentials.json"
FABRIC = """
import agent_vm_tasks
from invoke.context import Context
with agent_vm_tasks.connection(Context()) as guest:
    print(guest.run("printenv GEMINI_API_KEY", hide=True, in_stream=False).stdout, end="")
"""
CHUNK = 1 << 24


@pytest.fixture(scope="module")
def key_file(user: User) -> Path:
    path = user.home / "service account.json"
    path.write_text(json.dumps({"type": "service_account", "private_key": f"{CANARY}\n"}))
    return path


@pytest.fixture(scope="module")
def project(user: User) -> Path:
    """A repository with settings of its own, so that a new disk is kept from its VM.

    What they add is installed already: nothing has to be downloaded for it.
    """
    top = user.repository("secrets-project")
    (top / "agent-vm.toml").write_text('[packages]\napt = ["base-files"]\n')
    return top


@pytest.fixture(scope="module")
def vm(user: User, project: Path, key_file: Path) -> Iterator[User]:
    """The person with a key and credentials, and a VM that was made for them."""
    person = user.having(GEMINI_API_KEY=CANARY, GOOGLE_APPLICATION_CREDENTIALS=str(key_file))
    user.agent_vm("destroy", "--force")
    remove_kept(project)
    try:
        person.agent_vm("start", cwd=project)
        yield person
    finally:
        remove_kept(project)


def kept_disks(project: Path) -> list[Path]:
    """Folders of disks with just what the project's settings ask for."""
    wanted = golden._stamps(settings.load(project))
    return [kept.folder for kept in golden.kept_disks() if dict(kept.stamps) == wanted]


def remove_kept(project: Path) -> None:
    for folder in kept_disks(project):
        shutil.rmtree(folder)


def ssh(person: User, *words: str, typed: str = "") -> str:
    """What a plain ssh prints, past `connect`; without words it is a shell for what is typed."""
    config = person.home / ".agent-vm" / NAME / "ssh.config"
    flags = [] if words else ["-tt"]
    done = subprocess.run(
        ["ssh", "-F", str(config), *flags, NAME, *words], check=True, capture_output=True,
        text=True, input=typed,
    )  # fmt: skip
    return done.stdout


def holds(path: Path, text: str) -> bool:
    """Whether a file of any size has the text in it."""
    wanted, rest = text.encode(), b""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            if wanted in rest + chunk:
                return True
            rest = chunk[-len(wanted) :]
    return False


def holding(folder: Path, text: str) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if holds(path, text)]


def test_the_start_alone_brought_them(vm: User) -> None:
    assert ssh(vm, "printenv GEMINI_API_KEY") == f"{CANARY}\n"


def test_every_way_in_has_them(vm: User, project: Path) -> None:
    ask = "printenv GEMINI_API_KEY"
    assert vm.agent_vm("connect", "--", *ask.split()) == f"{CANARY}\n"
    assert vm.agent_vm("connect", "fix", "--command", ask, cwd=project) == f"{CANARY}\n"
    assert vm.agent_vm("connect", "--command", f"bash -lc '{ask}'") == f"{CANARY}\n"
    assert ssh(vm, "env -i PATH=$PATH sh -lc 'printenv GEMINI_API_KEY'") == f"{CANARY}\n"
    assert CANARY in ssh(vm, typed=f"{ask}\nexit\n")
    done = vm.run(sys.executable, "-c", FABRIC)
    assert (done.returncode, done.stdout) == (0, f"{CANARY}\n")


def test_a_strict_script_of_any_shell_survives_the_loader(vm: User) -> None:
    for shell in ("bash", "sh", "bash --posix"):
        script = f"{shell} -euc '. /etc/profile.d/ai-agent-env.sh; echo ${{GEMINI_API_KEY-none}}'"
        assert ssh(vm, f"env -i {script}") == f"{CANARY}\n"
        assert ssh(vm, f"sudo -u nobody {script} 2>&1") == "none\n"


def test_the_defaults_are_there(vm: User) -> None:
    ask = "echo $ANTHROPIC_MODEL $CLOUD_ML_REGION ${CLAUDE_CODE_USE_VERTEX-off}"
    assert ssh(vm, ask) == "claude-3-5-sonnet-20241022 us-central1 off\n"


def test_the_credentials_are_at_the_promised_place(vm: User, key_file: Path) -> None:
    assert ssh(vm, "printenv GOOGLE_APPLICATION_CREDENTIALS") == f"{INSIDE}\n"
    assert ssh(vm, f"cat {INSIDE}") == key_file.read_text()
    assert ssh(vm, f"stat -L -c '%a %U' {INSIDE}") == "600 agent\n"
    assert ssh(vm, "stat -L -c '%a %U' /run/agent-vm-secrets") == "700 agent\n"
    assert ssh(vm, f"findmnt -n -o FSTYPE -T $(readlink -f {INSIDE})") == "tmpfs\n"
    assert "denied" in ssh(vm, f"sudo -u nobody cat {INSIDE} 2>&1 || true")
    assert ssh(vm, "swapon --show --noheadings") == ""


def test_odd_values_arrive_and_a_new_value_takes_the_old_ones_place(vm: User) -> None:
    odd = vm.having(GEMINI_API_KEY=ODD)
    assert odd.agent_vm("connect", "--", "printenv", "GEMINI_API_KEY") == f"{ODD}\n"
    assert ssh(vm, "printenv GEMINI_API_KEY") == f"{ODD}\n"
    new = vm.having(GEMINI_API_KEY=ROTATED)
    assert new.agent_vm("connect", "--command", "printenv GEMINI_API_KEY") == f"{ROTATED}\n"
    assert ssh(vm, "printenv GEMINI_API_KEY") == f"{ROTATED}\n"
    assert ssh(vm, f"test -e {INSIDE} || echo gone") == "gone\n"
    assert vm.agent_vm("connect", "--", "printenv", "GEMINI_API_KEY") == f"{CANARY}\n"


def test_no_command_line_on_either_side_has_them(vm: User) -> None:
    vm.agent_vm("secrets", "--clear")
    argv, looks = [PROGRAM, "connect", "--command", "sleep 5"], 0
    with subprocess.Popen(argv, env=vm.env, cwd=vm.home) as child:
        while child.poll() is None:
            assert CANARY not in host_command_lines()
            looks += 1
            time.sleep(0.05)
            if looks == 20:
                assert "sleep 5" in host_command_lines()
                assert CANARY not in ssh(vm, "ps -A -ww -o args=")
    assert looks > 20
    assert ssh(vm, "printenv GEMINI_API_KEY") == f"{CANARY}\n"


def host_command_lines() -> str:
    argv = ["ps", "-A", "-ww", "-o", "args="]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_they_are_on_no_disk_and_in_no_file_of_lima(vm: User, user: User) -> None:
    folder = lima_home(user) / NAME
    ssh(vm, f"echo {MARKER} > ~/marker; sudo sync; logger -t test {MARKER}")
    assert folder / "disk" in holding(folder, MARKER)  # so a search finds what is there
    assert holding(folder, CANARY) == []
    assert holding(folder, ROTATED) == []


def test_they_are_in_no_log_of_the_guest(vm: User) -> None:
    known = "<(printenv GEMINI_API_KEY)"  # its command line is not to have it either
    assert ssh(vm, f"echo {MARKER} > /tmp/known; sudo journalctl | grep -cF -f /tmp/known") != "0\n"
    assert ssh(vm, f"sudo journalctl | grep -cF -f {known} || true") == "0\n"
    logs = "/var/log /etc /root /home /var/lib/agent-vm /var/lib/cloud"
    search = f"printenv GEMINI_API_KEY | sudo grep -rlaF -D skip -f - {logs} || true"
    assert ssh(vm, search) == ""


def test_a_disk_kept_from_a_vm_that_had_them_has_none(vm: User, project: Path) -> None:
    (folder,) = kept_disks(project)
    assert holds(folder / "disk.qcow2", "AGENT_VM_ENV_TOKEN")  # the loader: a search finds things
    assert holding(folder, CANARY) == []


def test_nothing_on_the_host_has_them_but_their_source(vm: User, key_file: Path) -> None:
    known = {vm.home / ".agent-vm-mounts"}
    files = [path for path in vm.home.iterdir() if path not in known]
    found = [path for path in files if path.is_file() and holds(path, CANARY)]
    found += [path for each in files if each.is_dir() for path in holding(each, CANARY)]
    assert found == [key_file]


def test_after_a_stop_they_are_gone(vm: User, user: User, project: Path) -> None:
    vm.agent_vm("stop")
    assert holding(lima_home(user) / NAME, CANARY) == []
    user.agent_vm("start", cwd=project)
    ask = "echo ${GEMINI_API_KEY-none} ${GOOGLE_APPLICATION_CREDENTIALS-none}"
    assert ssh(vm, ask) == "none none\n"
    assert ssh(vm, f"test -e {INSIDE} || echo gone") == "gone\n"
    assert vm.agent_vm("connect", "--", "printenv", "GEMINI_API_KEY") == f"{CANARY}\n"
    assert "GEMINI_API_KEY" in vm.agent_vm("secrets")
    vm.agent_vm("secrets", "--clear")
    assert ssh(vm, "echo ${GEMINI_API_KEY-none}") == "none\n"
