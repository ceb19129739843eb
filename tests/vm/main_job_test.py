"""The main job on a real VM, as a person does it; the tests build on each other in this order."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING

import pytest

from .conftest import CHECKOUT, INVOKE, NAME, PROGRAM, User, inside, lima_home

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def project(user: User) -> Path:
    return user.repository("project")


def test_status_without_a_vm_says_so_and_creates_none(user: User) -> None:
    assert user.agent_vm("status").strip() == "State: Does not exist"


def test_commands_for_workspaces_do_not_create_a_vm_to_say_no(user: User, project: Path) -> None:
    assert "there is no VM" in user.fails("fetch", "nothing", cwd=project)
    assert user.agent_vm("status").strip() == "State: Does not exist"


def test_a_lima_override_that_adds_to_the_vm_is_refused_before_the_first_boot(user: User) -> None:
    folder = lima_home(user) / "_config"
    folder.mkdir(exist_ok=True)
    override = folder / "override.yaml"
    assert not override.exists()
    override.write_text(
        "provision: [{mode: system, script: 'true'}]\n"
        "portForwards: [{guestPort: 8080, hostPort: 8080, static: true}]\n"
    )
    try:
        said = user.fails("start")
    finally:
        override.unlink()
    assert "with other portForwards, provision than asked for" in said
    assert user.agent_vm("status").strip() == "State: Does not exist"


def test_a_commit_made_in_the_vm_lands_in_the_repository(vm: User, project: Path) -> None:
    inside(vm, "echo work > work.txt; git add -A; git commit -qm 'Made inside'", project, "fix")
    vm.agent_vm("fetch", "fix", cwd=project)
    assert vm.git("log", "-1", "--format=%s", "fix", cwd=project) == "Made inside"
    assert vm.git("show", "fix:work.txt", cwd=project) == "work"
    assert vm.git("branch", "--show-current", cwd=project) == "main"


def test_new_commits_on_the_host_reach_the_workspace_with_their_files(
    vm: User, project: Path
) -> None:
    vm.git("checkout", "--quiet", "fix", cwd=project)
    (project / "more.txt").write_text("more\n")
    vm.git("add", "more.txt", cwd=project)
    vm.git("commit", "--quiet", "--message=more", cwd=project)
    vm.agent_vm("push", "fix", cwd=project)
    assert inside(vm, "cat more.txt; git status --porcelain", project, "fix") == "more\n"


def test_fetch_updates_the_files_of_the_checked_out_branch(vm: User, project: Path) -> None:
    inside(vm, "echo 2 > work.txt; git commit -qam second", project, "fix")
    vm.agent_vm("fetch", "fix", cwd=project)
    assert (project / "work.txt").read_text() == "2\n"


def test_an_edit_through_the_mount_is_seen_inside_and_back(vm: User, project: Path) -> None:
    folder = vm.home / ".agent-vm-mounts" / "workspace" / "project-fix"
    (folder / "edited.txt").write_text("from the host\n")
    assert inside(vm, "cat edited.txt", project, "fix") == "from the host\n"
    inside(vm, "echo from inside > edited.txt", project, "fix")
    deadline = time.monotonic() + 30  # the kernel caches attributes for a while
    while (folder / "edited.txt").read_text() != "from inside\n":
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_status_shows_the_vm_and_what_a_workspace_holds(vm: User, project: Path) -> None:
    now = json.loads(vm.agent_vm("status", "--json", cwd=project))
    assert (now["state"], now["mounted"], now["disk"]) == ("Running", True, 100 * 1024)
    row = next(row for row in now["workspaces"] if row["folder"] == "project-fix")
    assert (row["repository"], row["branch"]) == ("project", "fix")
    assert (row["unfetched"], row["uncommitted"], row["untracked"]) == (0, 0, 1)
    text = vm.agent_vm("status")
    assert "State: Running" in text
    assert "Disk: 100 GiB" in text


def test_clean_refuses_without_a_terminal_and_names_what_would_be_lost(
    vm: User, project: Path
) -> None:
    said = vm.fails("clean", "fix", cwd=project)
    assert "project-fix: 1 file untracked" in said
    assert "--force" in said
    assert inside(vm, "cat edited.txt", project, "fix") == "from inside\n"


def test_connect_without_a_branch_is_a_shell_in_the_vm(vm: User) -> None:
    assert inside(vm, "pwd; hostname; id -un") == f"/home/agent\nlima-{NAME}\nagent\n"


def test_a_commands_words_and_status_pass_through(vm: User, project: Path) -> None:
    argv = ["connect", "fix", "--", "sh", "-c", 'printf "%s|" "$@"; exit 7', "sh", "a b", "$HOME"]
    done = vm.run(PROGRAM, *argv, cwd=project)
    assert (done.returncode, done.stdout) == (7, "a b|$HOME|")


def test_the_vm_sees_nothing_of_the_host(vm: User) -> None:
    assert inside(vm, "findmnt -t 9p,virtiofs,fuse.sshfs || true") == ""
    assert inside(vm, "ssh-add -l 2>&1 || true").startswith("Could not open a connection")
    assert str(vm.home) not in inside(vm, "env; cat /etc/passwd; mount")


def test_the_home_files_are_there_with_their_modes(vm: User) -> None:
    wanted = CHECKOUT / "common" / "homedir"
    for path in (path for path in wanted.rglob("*") if path.is_file()):
        name = path.relative_to(wanted)
        mode = "755" if path.stat().st_mode & 0o100 else "644"
        assert inside(vm, f"stat -c '%a %U' ~/{name}").strip() == f"{mode} agent"


@pytest.mark.parametrize("agent", ["claude", "gemini", "opencode", "copilot"])
def test_each_agent_starts_in_a_login_shell_and_in_a_plain_command(vm: User, agent: str) -> None:
    assert any(map(str.isdigit, inside(vm, f"{agent} --version")))
    assert any(map(str.isdigit, inside(vm, f"bash -lc '{agent} --version'")))


@pytest.mark.parametrize(
    "tool", ["pre-commit", "hadolint", "pipenv", "poetry", "ruff", "dvc", "prettier", "node"]
)
def test_each_tool_starts(vm: User, tool: str) -> None:
    assert any(map(str.isdigit, inside(vm, f"{tool} --version")))


def test_go_is_there(vm: User) -> None:
    assert inside(vm, "go version").startswith("go version go1.")


def test_containers_run_as_the_ordinary_user_without_sudo(vm: User) -> None:
    assert "docker" in inside(vm, "id -nG").split()
    assert inside(vm, "docker version --format '{{.Server.Os}}'").strip() == "linux"
    assert inside(vm, "podman info --format '{{.Host.Security.Rootless}}'").strip() == "true"


def test_the_packages_are_installed_and_the_marker_is_set(vm: User) -> None:
    listed = (CHECKOUT / "common" / "packages" / "apt-packages.txt").read_text().splitlines()
    names = [line.split("#")[0].strip() for line in listed]
    have = inside(vm, "dpkg-query -W -f '${Package} ${Status}\\n' | grep ' installed$'")
    packages = {line.split()[0] for line in have.splitlines()}
    assert {name for name in names if name} <= packages
    assert inside(vm, "cat /etc/agent-environment").strip() == "agent-vm"


def test_a_second_start_installs_nothing_and_is_quick(vm: User) -> None:
    done = vm.run(PROGRAM, "start")
    assert done.returncode == 0
    assert "installing" not in done.stderr


def test_flags_for_an_existing_vm_are_told(vm: User) -> None:
    done = vm.run(PROGRAM, "start", "--disk", "200")
    assert done.returncode == 0
    assert "100 GiB disk, not 200 GiB" in done.stderr


@pytest.mark.parametrize("name", ["run-tests", "fetch-and-check"])
def test_the_examples_work_as_their_repositories_own_tasks(vm: User, name: str) -> None:
    top = vm.home / name
    shutil.copytree(CHECKOUT / "examples" / name, top)
    vm.git("init", "--quiet", "--initial-branch=main", cwd=top)
    vm.git("add", "--all", cwd=top)
    vm.git("commit", "--quiet", "--message=first", cwd=top)
    if name == "run-tests":
        assert "OK" in (done := vm.run(INVOKE, "test", "--branch", "try", cwd=top)).stderr
    else:
        change = "printf 'x \\n' > x; git add x; git commit -qm spaces"
        vm.run(INVOKE, "connect", "--branch", "try", "--command", change, cwd=top)
        done = vm.run(INVOKE, "fetch", "--branch", "try", cwd=top)
        assert "trailing whitespace" in done.stdout
    assert ("OK" in done.stderr) == (done.returncode == 0)


def test_a_stop_unmounts_and_is_shown(vm: User) -> None:
    vm.agent_vm("stop")
    assert "State: Stopped" in vm.agent_vm("status")
    assert not (vm.home / ".agent-vm-mounts" / "workspace" / "project-fix").exists()


def test_a_guest_that_panics_is_told_at_once_and_stopped(vm: User) -> None:
    cmdline = lima_home(vm) / NAME / "kernel.cmdline"
    if not cmdline.exists():
        pytest.skip("the cloud image boots by its own loader")
    good = cmdline.read_text()
    cmdline.write_text("rdinit=/nonexistent root=/dev/nope console=ttyS0")
    began = time.monotonic()
    try:
        said = vm.fails("start")
    finally:
        cmdline.write_text(good)
    assert "the guest's kernel panicked" in said
    assert f"{NAME}/serial.log" in said
    assert time.monotonic() - began < 120
    assert "State: Stopped" in vm.agent_vm("status")


def test_a_stopped_vm_still_has_the_workspace_and_its_uncommitted_files(
    vm: User, project: Path
) -> None:
    assert inside(vm, "cat edited.txt", project, "fix") == "from inside\n"
    assert (vm.home / ".agent-vm-mounts" / "workspace" / "project-fix" / "edited.txt").exists()


def test_clean_with_force_deletes_the_workspace_and_keeps_the_branch(
    vm: User, project: Path
) -> None:
    vm.agent_vm("clean", "fix", "--force", cwd=project)
    assert "missing" in inside(vm, "test -e ~/workspace/project-fix || echo missing")
    assert vm.git("log", "-1", "--format=%s", "fix", cwd=project) == "second"


def test_undo_brings_a_deleted_workspace_back(vm: User, project: Path) -> None:
    assert "project-fix" in vm.agent_vm("undo")
    assert vm.agent_vm("undo", "project-fix") == "project-fix is in the VM again.\n"
    assert inside(vm, "cat edited.txt", project, "fix") == "from inside\n"
    vm.agent_vm("clean-all", "--force")
    assert "Workspaces: none" in vm.agent_vm("status")
