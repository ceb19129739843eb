"""Walls between workspaces on the real guest: hostile code in one tries to get at another.

Each attack is made without walls, too, where it has to succeed: else it shows nothing.
"""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING

import pytest

from .conftest import PROGRAM, User, inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm

CANARY = f"canary-{secrets.token_hex(8)}"
WALLS = {"agent-vm.toml": "[workspace]\nwalls = true\n", "README": "hello\n"}
# What the other workspace has: files, a secret, and a process with the canary wherever it can be.
VICTIM = """
echo {canary} > secret.txt
for copy in ~/note /tmp/{name} /dev/shm/{name}; do cp secret.txt $copy; done
chmod -R a+rX . ~/note /tmp/{name} /dev/shm/{name}
TAKEN={canary} setsid bash -c 'exec -a "{canary}" sleep 3000' \\
    9< secret.txt > /dev/null 2>&1 < /dev/null &
echo $!
"""
MEMORY = """
import re, sys
maps = open(f"/proc/{sys.argv[1]}/maps")
first, last = next(line.split()[0].split("-") for line in maps if "stack" in line)
memory = open(f"/proc/{sys.argv[1]}/mem", "rb")
memory.seek(int(first, 16))
print(re.findall(rb"canary-[0-9a-f]+", memory.read(int(last, 16) - int(first, 16))))
"""
# Such a login has the folders that agent has, too, and what plain-b has put there.
LOGIN = """
mkdir -p -m 700 ~/.ssh && ssh-keygen -q -t ed25519 -N '' -f ~/own < /dev/null
cat ~/own.pub >> ~/.ssh/authorized_keys
ssh -i ~/own -o BatchMode=yes -o StrictHostKeyChecking=no localhost 'cat /tmp/*-b' < /dev/null
"""
ATTACKS = {
    "files": "cat /home/*/workspace/$B/secret.txt /home/*/note",
    "the view of agent": "cat /home/agent/workspace/$B/secret.txt",
    "the root of a process": "cat /proc/$PID/root/home/*/workspace/$B/secret.txt",
    "the folder of a process": "cat /proc/$PID/cwd/secret.txt",
    "an open file": "cat /proc/$PID/fd/9",
    "the environment": "tr '\\0' '\\n' < /proc/$PID/environ",
    "the command line": "cat /proc/$PID/cmdline; ps -ef",
    "the command line from systemd": "systemctl status --no-pager --full user.slice",
    "the memory": f"python3 -c '{MEMORY}' $PID",
    "temporary files": "cat /tmp/*-b /var/tmp/*-b /dev/shm/*-b /tmp/.agent-vm/*/*-b",
    "temporary files by a login of its own": LOGIN,
    "secrets": "cat /run/agent-vm-secrets/current/env /run/agent-vm-walls/*/current/env",
    "sudo": "sudo -n cat /home/*/workspace/$B/secret.txt",
    "su": "sudo -n su -c 'cat /home/*/note' || su -c 'cat /home/*/note' < /dev/null",
    "docker": "curl -s --unix-socket /run/docker.sock http://d/version | grep -o ApiVersion |"
    f" sed 's/.*/{'X' * 6}/'",
    "a hard link": "ln /home/*/workspace/$B/secret.txt hard && cat hard; rm -f hard",
}
# What git is told to run, wherever a configuration or a hook can tell it so.
TRAP = """
printf '#!/bin/sh\\nid -un >> %s/ran\\ncat > /dev/null 2>&1 < /dev/null\\nexit 0\\n' ~ > ~/trap
chmod 755 ~/trap; : > ~/ran
git config core.fsmonitor ~/trap
git config filter.trap.clean ~/trap; echo '* filter=trap' > .git/info/attributes
mkdir -p ~/hooks; git config core.hooksPath ~/hooks
for hook in pre-receive update post-receive post-update reference-transaction post-index-change \
    push-to-checkout proc-receive post-checkout post-merge; do cp ~/trap ~/hooks/$hook; done
git config gc.auto 1; git config core.pager ~/trap; git config diff.external ~/trap
echo more >> README
"""


@pytest.fixture(scope="module")
def walled(vm: User) -> Path:
    return vm.repository("walled", WALLS)


@pytest.fixture(scope="module")
def plain(vm: User) -> Path:
    return vm.repository("plain")


@pytest.fixture(scope="module")
def victims(vm: User, walled: Path, plain: Path) -> Iterator[dict[Path, str]]:
    """Workspaces a and b of both repositories; for each the process in b."""
    pids = {}
    for top in (walled, plain):
        text = VICTIM.format(canary=CANARY, name=f"{top.name}-b")
        with_key = vm.having(ANTHROPIC_API_KEY=CANARY)
        pids[top] = inside(with_key, text, top, "b").strip()
        inside(vm, "true", top, "a")
    # All of agent have the same secrets: the last connection's.
    inside(vm.having(ANTHROPIC_API_KEY=CANARY), "true", plain, "b")
    yield pids
    vm.agent_vm("clean-all", "--force", cwd=plain)


def attack(vm: User, top: Path, pid: str, script: str) -> str:
    """What code in workspace a prints that tries to get at b."""
    key = {"ANTHROPIC_API_KEY": CANARY} if top.name == "plain" else {}
    text = f"exec 2>&1; PID={pid} B={top.name}-b\n{script}\ntrue"
    return inside(vm.having(**key), text, top, "a")


@pytest.mark.parametrize("way", ATTACKS)
def test_code_in_one_workspace_gets_at_another_only_without_walls(
    vm: User, walled: Path, plain: Path, victims: dict[Path, str], way: str
) -> None:
    sign = "XXXXXX" if way == "docker" else CANARY
    assert sign in attack(vm, plain, victims[plain], ATTACKS[way])
    assert sign not in attack(vm, walled, victims[walled], ATTACKS[way])


def test_code_in_one_workspace_ends_no_process_of_another(
    vm: User, walled: Path, plain: Path, victims: dict[Path, str]
) -> None:
    for top, lives in ((walled, "lives"), (plain, "ended")):
        pid = inside(vm, "setsid sleep 3000 > /dev/null 2>&1 < /dev/null & echo $!", top, "b")
        attack(vm, top, pid.strip(), "kill -KILL $PID")
        said = inside(vm, f"kill -0 {pid.strip()} && echo lives || echo ended", top, "b")
        assert said.strip().splitlines()[-1] == lives


def test_what_a_workspace_tells_git_to_run_runs_as_its_own_user(
    vm: User, walled: Path, plain: Path, victims: dict[Path, str]
) -> None:
    ran = {}
    for top in (walled, plain):
        inside(vm, TRAP, top, "a")
        vm.git("checkout", "--quiet", "a", cwd=top)
        vm.git("commit", "--quiet", "--allow-empty", "--message=more", cwd=top)
        vm.git("checkout", "--quiet", "main", cwd=top)
        vm.run(PROGRAM, "push", "a", cwd=top)
        vm.run(PROGRAM, "fetch", "a", cwd=top)
        vm.run(PROGRAM, "git", "a", "--", "status", cwd=top)
        vm.agent_vm("status", cwd=top)
        vm.agent_vm("clean", "a", "--force", cwd=top)
        vm.agent_vm("undo", f"{top.name}-a", cwd=top)
        vm.agent_vm("status", cwd=top)
        ran[top] = set(inside(vm, "cat ~/ran", top, "a").split())
    assert ran[plain] == {"agent"}
    (own,) = ran[walled]
    assert own.startswith("ws-")


def test_links_into_another_workspace_lead_nowhere_for_agent(
    vm: User, walled: Path, plain: Path, victims: dict[Path, str]
) -> None:
    for top, found in ((walled, False), (plain, True)):
        inside(vm, f"ln -sfn /home/agent/workspace/{top.name}-b way", top, "a")
        said = inside(vm, f"cat ~/workspace/{top.name}-a/way/secret.txt 2>&1; true")
        assert (CANARY in said) is found


def test_the_audit_tells_whether_walls_stand(
    vm: User, walled: Path, victims: dict[Path, str]
) -> None:
    def told() -> dict[str, object]:
        said = json.loads(vm.run(PROGRAM, "audit", "--json").stdout)
        (found,) = (each for each in said["findings"] if each["promise"] == "walls")
        return dict(found)

    assert told()["held"] is True
    inside(vm, "sudo mount -o remount,hidepid=off /proc; chmod 755 ~")
    found = told()
    inside(vm, "sudo systemctl restart agent-vm-walls; chmod 700 ~")
    assert found["held"] is False
    assert "/home/agent, other processes" in str(found["detail"])
    assert told()["held"] is True


def test_the_main_job_is_done_behind_a_wall(vm: User, walled: Path) -> None:
    shown = vm.home / ".agent-vm-mounts" / "workspace" / "walled-job"
    inside(vm, "echo made inside > inside.txt", walled, "job")
    assert (shown / "inside.txt").read_text() == "made inside\n"
    (shown / "outside.txt").write_text("made outside\n")
    commit = "cat outside.txt && stat -c %U outside.txt && git add . && git commit -qm both"
    said = inside(vm, commit, walled, "job").splitlines()
    assert said[0] == "made outside"
    assert said[1].startswith("ws-")
    assert "job is up to date" in vm.agent_vm("fetch", "job", cwd=walled)
    assert vm.git("show", "job:outside.txt", cwd=walled) == "made outside"


def test_a_deleted_workspace_comes_back_behind_its_wall(vm: User, walled: Path) -> None:
    inside(vm, "echo left > left.txt", walled, "back")
    before = inside(vm, "id -un", walled, "back")
    vm.agent_vm("clean", "back", "--force", cwd=walled)
    assert "no" in inside(vm, "[ -e ~/workspace/walled-back ] || echo no")
    vm.agent_vm("undo", "walled-back", cwd=walled)
    assert inside(vm, "cat left.txt; id -un", walled, "back") == f"left\n{before}"
    shown = vm.home / ".agent-vm-mounts" / "workspace" / "walled-back" / "left.txt"
    assert shown.read_text() == "left\n"


def test_containers_without_root_work_behind_a_wall(vm: User, walled: Path) -> None:
    probe = 'int main(void) { return puts("ran") < 0; }'
    said = inside(
        vm,
        f"exec < /dev/null; echo '#include <stdio.h>\n{probe}' > probe.c; mkdir -p root/made"
        " && gcc -static -o root/probe probe.c && podman run --rm --rootfs $PWD/root /probe"
        " && podman unshare chown 1000 root/made && podman unshare chmod 700 root/made",
        walled, "box",
    )  # fmt: skip
    assert said == "ran\n"
    vm.agent_vm("clean", "box", "--force", cwd=walled)
    assert "no" in inside(vm, "[ -e ~/workspace/walled-box ] || echo no")


@pytest.mark.parametrize(
    "program", ["claude", "gemini", "opencode", "copilot", "uv", "node", "npm", "go"]
)
def test_agents_and_tools_start_behind_a_wall(vm: User, walled: Path, program: str) -> None:
    version = "version" if program == "go" else "--version"
    assert inside(vm, f"{program} {version}", walled, "job").strip()


def test_after_a_restart_the_walls_stand_and_the_files_are_shown(
    vm: User, walled: Path, victims: dict[Path, str]
) -> None:
    trick = "mv ~/workspace/walled-trick ~/kept; ln -s ~agent ~/workspace/walled-trick"
    inside(vm, trick, walled, "trick")
    inside(vm, "rm -rf ~/workspace/walled-job", walled, "job")
    vm.agent_vm("restart")
    shown = vm.home / ".agent-vm-mounts" / "workspace"
    assert (shown / "walled-b" / "secret.txt").read_text() == f"{CANARY}\n"
    assert list((shown / "walled-trick").iterdir()) == []
    inside(vm, "true", walled, "job")
    assert (shown / "walled-job" / "outside.txt").is_file()
    inside(vm, "sudo bash -c 'rm /home/ws-*/workspace/walled-trick'")
    assert inside(vm, "findmnt -no OPTIONS /proc").strip().endswith("hidepid=invisible")
    for way in ("files", "sudo", "the view of agent"):
        assert CANARY not in attack(vm, walled, "0", ATTACKS[way])
