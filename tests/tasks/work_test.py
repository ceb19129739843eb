"""connect, push, fetch, clean and clean-all as they are typed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import settings, workspaces
from agent_vm_tasks import vm as life
from tests.conftest import VM, commit, git

if TYPE_CHECKING:
    from tests.cli import Said
    from tests.conftest import Guest, Limactl

    from .conftest import Command

WITH_BRANCH = ["connect", "push", "fetch", "clean"]


def untouched(home: Path, limactl: Limactl, repository: Path | None = None) -> bool:
    """Whether a command made nothing: no VM, no file of one, no branch."""
    branches = git(repository, "for-each-ref", "refs/heads") if repository else ""
    files = [path for path in (home / ".agent-vm").glob("*/*") if path.name != "lock"]
    return not (limactl.calls() or files or len(branches.splitlines()) > 1)


def one_line(said: Said, status: int) -> str:
    """What a failed command said, which has to be all that it printed."""
    assert (said.status, said.out) == (status, "")
    assert said.err == f"{said.error}\n"
    return said.error.removeprefix("agent-vm: ")


@pytest.mark.parametrize("verb", [["connect", "fix"], ["connect", "--branch", "fix"]])
def test_connect_makes_what_is_missing_and_runs_in_the_workspace(
    vm: Guest, repository: Path, agent_vm: Command, verb: list[str]
) -> None:
    said = agent_vm(*verb, "--", "pwd")
    assert (said.status, said.out) == (0, f"{vm.home}/workspace/app-fix\n")
    assert "created branch fix from HEAD" in said.err
    assert git(repository, "rev-parse", "fix") == git(repository, "rev-parse", "main")
    assert (vm.workspaces / "app-fix" / "README").read_text() == "hello\n"
    assert git(repository, "branch", "--show-current") == "main"


def test_connect_warns_of_what_could_not_be_installed_and_goes_in(
    vm: Guest, repository: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_vm("connect", "--", "true")
    monkeypatch.setattr(life, "catch_up", lambda *_: ["provisioning failed in stage script-1"])
    said = agent_vm("connect", "fix", "--command", "cat README; exit 5")
    assert (said.status, said.out) == (5, "hello\n")
    assert "warning: provisioning failed in stage script-1\n" in said.err


def test_connect_creates_the_vm_as_well(
    limactl: Limactl, repository: Path, agent_vm: Command
) -> None:
    assert agent_vm("connect", "fix", "--", "cat", "README").out == "hello\n"
    assert [call[0] for call in limactl.calls()] == ["create", "start"]


def test_a_second_connect_goes_in_without_asking_lima(
    vm: Guest, limactl: Limactl, repository: Path, agent_vm: Command
) -> None:
    agent_vm("connect", "fix", "--", "true")
    (limactl.folder / "calls").unlink()
    said = agent_vm("connect", "fix", "--", "true")
    assert (said.status, said.out, said.err) == (0, "", "")
    assert not (limactl.folder / "calls").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["two  words", "", "$HOME", "*", "it's", 'say "x"', "back\\slash", "new\nline", "ünï"],
        ["--branch", "main", "--", "push", "status"],
        ["-la", "--help", "--version"],
    ],
)
def test_words_after_the_dashes_arrive_as_they_were_typed(
    vm: Guest, repository: Path, agent_vm: Command, argv: list[str]
) -> None:
    said = agent_vm("connect", "fix", "--", "printf", "%s\\0", *argv)
    assert said.out.split("\0")[:-1] == argv


def test_connect_with_only_a_command_runs_it_in_the_vms_home(
    vm: Guest, home: Path, agent_vm: Command
) -> None:
    assert agent_vm("connect", "--", "pwd").out == f"{vm.home}\n"


def test_a_command_line_is_the_shells(vm: Guest, repository: Path, agent_vm: Command) -> None:
    said = agent_vm("connect", "fix", "--command", 'echo "$((6 * 7))" > n; cat n; exit 3')
    assert (said.status, said.out) == (3, "42\n")
    assert (vm.workspaces / "app-fix" / "n").exists()


@pytest.mark.parametrize("status", [1, 2, 42, 130, 213, 255])
def test_the_commands_status_is_ours(
    vm: Guest, repository: Path, agent_vm: Command, status: int
) -> None:
    agent_vm("push", "fix")
    said = agent_vm("connect", "fix", "--", "sh", "-c", f"exit {status}")
    assert (said.status, said.err) == (status, "")


def test_a_command_that_does_not_exist(vm: Guest, repository: Path, agent_vm: Command) -> None:
    said = agent_vm("connect", "fix", "--", "no-such-command")
    assert said.status == 127
    assert "no-such-command" in said.err


def test_push_and_fetch_in_one_line(vm: Guest, repository: Path, agent_vm: Command) -> None:
    said = agent_vm("push", "fix", "fetch", "fix")
    assert said.status == 0
    assert said.out == "fix is in the VM.\nfix is up to date with the VM.\n"
    inside = vm.workspaces / "app-fix"
    new = commit(inside, "work")
    assert agent_vm("fetch", "fix").out == "fix is up to date with the VM.\n"
    assert git(repository, "rev-parse", "fix") == new


def test_fetch_names_what_stays_inside(vm: Guest, repository: Path, agent_vm: Command) -> None:
    agent_vm("push", "fix")
    inside = vm.workspaces / "app-fix"
    (inside / "README").write_text("changed\n")
    (inside / "new").touch()
    said = agent_vm("fetch", "fix")
    assert said.status == 0
    assert "warning: left in the workspace: 1 file with uncommitted changes\n" in said.err
    assert "warning: left in the workspace: 1 file untracked\n" in said.err


def test_both_sides_have_new_commits(vm: Guest, repository: Path, agent_vm: Command) -> None:
    agent_vm("push", "fix")
    commit(vm.workspaces / "app-fix", "theirs")
    git(repository, "switch", "--quiet", "fix")
    mine = commit(repository, "mine")
    pushed = agent_vm("push", "fix")
    assert (pushed.status, pushed.out) == (1, "")
    assert pushed.error == (
        "agent-vm: fix has new commits here and in the workspace; "
        "`agent-vm fetch fix`, merge here, then push again"
    )
    fetched = agent_vm("fetch", "fix")
    assert (fetched.status, fetched.out) == (1, "")
    assert "git merge refs/agent-vm/app-fix/fix" in fetched.error
    assert git(repository, "rev-parse", "fix") == mine


def test_clean_refuses_without_a_terminal_and_says_what_would_be_lost(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix")
    commit(vm.workspaces / "app-fix", "work")
    said = agent_vm("clean", "fix")
    assert (said.status, said.out) == (1, "")
    assert "warning: would be lost: app-fix: 1 commit not fetched\n" in said.err
    assert said.error == ("agent-vm: will not delete app-fix without being asked to; add --force")
    assert (vm.workspaces / "app-fix").exists()
    back = "; `agent-vm undo` lists what can be brought back"
    assert agent_vm("clean", "fix", "--force").out == f"Deleted 1 workspace{back}.\n"
    assert not (vm.workspaces / "app-fix").exists()
    assert git(repository, "rev-parse", "fix")


def test_clean_takes_one_workspace_only(vm: Guest, repository: Path, agent_vm: Command) -> None:
    agent_vm("push", "one", "push", "two")
    agent_vm("clean", "one", "--force")
    assert [path.name for path in vm.workspaces.iterdir()] == ["app-two"]
    assert agent_vm("clean", "one", "--force").out == "There is no workspace of one.\n"


def test_clean_all(vm: Guest, repository: Path, agent_vm: Command) -> None:
    agent_vm("push", "one", "push", "two")
    said = agent_vm("clean-all")
    assert said.status == 1
    assert said.error.endswith(
        "will not delete app-one, app-two without being asked to; add --force"
    )
    assert agent_vm("clean-all", "--force").out == "Deleted 2 workspaces.\n"
    assert list(vm.workspaces.iterdir()) == []


def test_clean_all_with_nothing_to_delete_asks_nothing(vm: Guest, agent_vm: Command) -> None:
    said = agent_vm("clean-all")
    assert (said.status, said.out, said.err) == (0, "Deleted 0 workspaces.\n", "")


@pytest.mark.parametrize("verb", ["fetch", "clean"])
def test_no_vm_is_made_to_say_that_nothing_is_in_it(
    home: Path, limactl: Limactl, repository: Path, agent_vm: Command, verb: str
) -> None:
    error = one_line(agent_vm(verb, "fix"), 1)
    assert error == "there is no VM agent-vm; `agent-vm start` creates it"
    assert untouched(home, limactl, repository)


def test_clean_all_without_a_vm(home: Path, limactl: Limactl, agent_vm: Command) -> None:
    error = one_line(agent_vm("clean-all", "--force"), 1)
    assert error == "there is no VM agent-vm; `agent-vm start` creates it"
    assert untouched(home, limactl)


def test_fetch_of_a_branch_without_a_workspace(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    error = agent_vm("fetch", "fix").error
    assert error == (
        "agent-vm: there is no workspace of fix in the VM; make it with `agent-vm connect fix`"
    )
    assert agent_vm("fetch", "fix").status == 1


def test_a_lost_connection_says_how_to_return(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix")
    breaks = (
        "pid=$$; until [ $(cat /proc/$pid/comm) = sshd ]; "
        "do pid=$(cut -d' ' -f4 /proc/$pid/stat); done; kill -9 $pid"
    )
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    said = agent_vm("connect", "fix", "--command", breaks)
    assert said.status == 1
    assert said.error == "agent-vm: the connection was lost; return with `agent-vm connect fix`"
    assert agent_vm("connect", "fix", "--", "true").status == 0


def test_the_folder_of_a_workspace_is_as_promised(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix-login", "push", "feature/x")
    ws = workspaces.workspace(VM, workspaces.repository(repository), "feature/x")
    assert {path.name for path in vm.workspaces.iterdir()} == {"app-fix-login", ws.folder}
    assert settings.load().vm.name == VM
    assert ssh_guest.connected(VM)
