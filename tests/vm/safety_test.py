"""What leaves a real guest, and what is deleted in it: git, root's files, mounts, a full disk."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from .conftest import User, inside

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def project(vm: User) -> Path:
    return vm.repository("safe")


def row(vm: User, folder: str) -> dict[str, object] | None:
    rows = json.loads(vm.agent_vm("status", "--json"))["workspaces"]
    return next((each for each in rows if each["folder"] == folder), None)


def test_a_history_that_is_rewritten_inside_stays_here(vm: User, project: Path) -> None:
    inside(vm, "echo 1 > work; git add work; git commit -qm one", project, "rewrite")
    vm.agent_vm("fetch", "rewrite", cwd=project)
    old = vm.git("rev-parse", "rewrite", cwd=project)
    inside(vm, "git commit -q --amend -m other", project, "rewrite")
    assert "what was fetched before is at" in vm.fails("fetch", "rewrite", cwd=project)
    ref = f"refs/agent-vm-earlier/safe-rewrite/{old[:12]}"
    assert vm.git("rev-parse", ref, cwd=project) == old
    vm.agent_vm("clean", "rewrite", "--force", cwd=project)


def test_a_path_into_git_does_not_come_out(vm: User, project: Path) -> None:
    vm.agent_vm("push", "evil", cwd=project)
    make = (
        "blob=$(git hash-object -w README);"
        " evil=$(printf '100644 blob %s\\tconfig\\n' $blob | git mktree);"
        " tree=$(printf '040000 tree %s\\t.git\\n' $evil | git mktree);"
        " git update-ref refs/heads/evil $(git commit-tree -p HEAD -m x $tree)"
    )
    inside(vm, make, project, "evil")
    assert "hasDotgit" in vm.fails("fetch", "evil", cwd=project)
    vm.agent_vm("clean", "evil", "--force", cwd=project)


def test_work_of_each_kind_is_listed_deleted_and_brought_back(vm: User, project: Path) -> None:
    vm.agent_vm("push", "kinds", cwd=project)
    make = (
        "git init -q own; git -C own commit -q --allow-empty -m x;"
        " git add own 2> /dev/null; git commit -qm own;"
        " git checkout -q -b idea; git commit -q --allow-empty -m i; git checkout -q kinds;"
        " echo 1 > README; git stash -q; echo 2 > README; touch new;"
        " echo /.env > .git/info/exclude; echo KEY=1 > .env"
    )
    inside(vm, make, project, "kinds")
    said = vm.fails("clean", "kinds", cwd=project)
    for loss in (
        "2 commits not fetched (1 on branch idea)",
        "1 file with uncommitted changes",
        "1 file untracked",
        "1 stash kept",
        "1 commit in submodules or other repositories inside",
    ):
        assert f"would be lost: safe-kinds: {loss}\n" in said
    vm.agent_vm("clean", "kinds", "--force", cwd=project)
    assert row(vm, "safe-kinds") is None
    vm.agent_vm("undo", "safe-kinds", cwd=project)
    look = "cat README .env; git stash list | wc -l; git -C own log --format=%s; git branch"
    assert inside(vm, look, project, "kinds").split() == [
        "2", "KEY=1", "1", "x", "idea", "*", "kinds",
    ]  # fmt: skip
    vm.agent_vm("clean", "kinds", "--force", cwd=project)


def test_files_of_root_are_kept_and_deleted(vm: User, project: Path) -> None:
    make = "sudo sh -c 'mkdir -m 700 secret; echo mine > secret/file; chmod 000 secret/file'"
    inside(vm, make, project, "roots")
    said = vm.fails("clean", "roots", cwd=project)
    assert "safe-roots: contents that could not be looked at" in said
    vm.agent_vm("clean", "roots", "--force", cwd=project)
    assert row(vm, "safe-roots") is None
    vm.agent_vm("undo", "safe-roots", cwd=project)
    assert inside(vm, "sudo cat secret/file", project, "roots") == "mine\n"
    vm.agent_vm("clean", "roots", "--force", cwd=project)


def test_what_is_mounted_in_a_workspace_is_not_deleted_with_it(vm: User, project: Path) -> None:
    make = "mkdir ~/precious data; echo mine > ~/precious/file; sudo mount --bind ~/precious data"
    inside(vm, make, project, "mounted")
    assert vm.fails("clean", "mounted", "--force", cwd=project)
    assert inside(vm, "cat ~/precious/file") == "mine\n"
    inside(vm, "sudo umount ~/workspace/safe-mounted/data; rm -r ~/precious")
    vm.agent_vm("clean", "mounted", "--force", cwd=project)
    assert row(vm, "safe-mounted") is None


def test_a_full_guest_disk_does_not_keep_work_in(vm: User, project: Path) -> None:
    inside(vm, "echo 1 > work; git add work; git commit -qm one", project, "full")
    fill = "sudo sh -c 'fallocate -l $(($(df --output=avail -B1 / | tail -n 1))) /filled'"
    inside(vm, f"{fill}; ! echo x > more 2> /dev/null || echo not full", project, "full")
    try:
        assert "space" in vm.fails("push", "more", cwd=project)
        vm.agent_vm("fetch", "full", cwd=project)
        assert vm.git("show", "full:work", cwd=project) == "1"
        vm.agent_vm("clean", "full", "--force", cwd=project)
        assert row(vm, "safe-full") is None
    finally:
        inside(vm, "sudo rm /filled")
