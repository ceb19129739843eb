"""undo, as a person at a terminal or a script calls it."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.conftest import commit, git

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Guest, Limactl

    from .conftest import Command


@pytest.fixture
def deleted(vm: Guest, repository: Path, agent_vm: Command) -> Guest:
    """A VM from which a workspace with a commit was deleted."""
    agent_vm("push", "fix")
    commit(vm.workspaces / "app-fix", "work")
    agent_vm("clean", "fix", "--force")
    assert not (vm.workspaces / "app-fix").exists()
    return vm


def test_without_anything_deleted(vm: Guest, agent_vm: Command) -> None:
    assert agent_vm("undo").out == "No deleted workspaces are kept.\n"
    assert json.loads(agent_vm("undo", "--json").out) == []


def test_what_was_deleted_is_listed_and_comes_back(deleted: Guest, agent_vm: Command) -> None:
    head, row = agent_vm("undo").out.splitlines()
    assert head.split() == ["ID", "WORKSPACE", "BRANCH", "MIB", "ONLY", "HERE"]
    assert row.split()[1:3] == ["app-fix", "fix"]
    assert row.endswith("1 commit not fetched")
    assert agent_vm("undo", "app-fix").out == "app-fix is in the VM again.\n"
    assert (deleted.workspaces / "app-fix" / "work").exists()


def test_the_list_for_machines(deleted: Guest, agent_vm: Command) -> None:
    (kept,) = json.loads(agent_vm("undo", "--json").out)
    assert (kept["folder"], kept["branch"]) == ("app-fix", "fix")
    assert kept["lost"] == ["1 commit not fetched"]
    assert kept["bytes"] > 10_000
    assert agent_vm("undo", kept["id"]).status == 0


def test_a_name_that_is_not_kept(deleted: Guest, agent_vm: Command) -> None:
    said = agent_vm("undo", "nothing")
    assert said.status == 1
    assert said.error == "agent-vm: nothing is kept under 'nothing'; `agent-vm undo` lists it"


def test_a_workspace_that_is_there_again_stays(
    deleted: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix")
    said = agent_vm("undo", "app-fix")
    assert said.status == 1
    assert said.error == (
        "agent-vm: there is a workspace app-fix again; fetch what it has, clean it, then undo"
    )


def test_how_long_copies_are_kept_is_the_users_to_say(
    deleted: Guest, home: Path, repository: Path, agent_vm: Command
) -> None:
    (repository / "agent-vm.toml").write_text("[workspace]\nkeep_days = 0\n")
    assert "workspace.keep_days" in agent_vm("undo").error
    (repository / "agent-vm.toml").unlink()
    config = home / ".config" / "agent-vm" / "config.toml"
    config.write_text(config.read_text() + "[workspace]\nkeep_days = 0\n")
    assert agent_vm("undo").out == "No deleted workspaces are kept.\n"


def test_no_vm_is_made_to_say_what_is_kept(home: Path, limactl: Limactl, agent_vm: Command) -> None:
    assert agent_vm("undo").status == 0
    assert limactl.calls() == []


def test_bringing_back_makes_no_vm(deleted: Guest, limactl: Limactl, agent_vm: Command) -> None:
    agent_vm("destroy", "--force")
    said = agent_vm("undo", "app-fix")
    assert said.status == 1
    assert said.error == "agent-vm: there is no VM agent-vm; `agent-vm start` creates it"
    assert [call[0] for call in limactl.calls()] == ["stop", "delete"]


def test_a_new_vm_gets_back_what_was_destroyed_with_the_old(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix")
    new = commit(vm.workspaces / "app-fix", "work")
    agent_vm("destroy", "--force")
    for folder in (".agent-vm", "workspace"):
        shutil.rmtree(vm.home / folder)
    agent_vm("start")
    assert agent_vm("undo", "app-fix").out == "app-fix is in the VM again.\n"
    assert agent_vm("fetch", "fix").status == 0
    assert git(repository, "rev-parse", "fix") == new


def test_a_stopped_vm_is_started_to_bring_it_back(
    limactl: Limactl, guest_home: Path, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix")
    commit(guest_home / "workspace/app-fix", "work")
    agent_vm("clean", "fix", "--force")
    agent_vm("stop")
    assert agent_vm("undo", "app-fix").out == "app-fix is in the VM again.\n"
    assert (guest_home / "workspace/app-fix/work").exists()


def test_a_fetch_names_what_would_run_here(vm: Guest, repository: Path, agent_vm: Command) -> None:
    agent_vm("push", "fix")
    for number in range(21):
        commit(vm.workspaces / "app-fix", f"{number:02}/.envrc")
    said = agent_vm("fetch", "fix")
    assert said.status == 0
    line = "warning: runs on this machine, so look at it first: 00/.envrc (the shell that"
    assert line in said.err
    assert said.err.count("look at it first") == 20
    assert "warning: and 1 more such files\n" in said.err
    assert "look at it first" not in agent_vm("fetch", "fix").err
