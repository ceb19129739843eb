"""Workspaces, with real git and ssh: names, inventory, entering, removal."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_vm_tasks import sync, workspaces
from agent_vm_tasks.errors import AgentVMError, UsageError
from agent_vm_tasks.workspaces import Workspace, folder_name

from .clones import at, commit_inside, fetch, new_commit, push, workspace
from .conftest import VM, commit, git, make_repository

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Guest

pytestmark = pytest.mark.usefixtures("warm")

NAMES = [
    "fix-login",
    "feature/x",
    "feature-x",
    "main",
    "it's",
    'say"hi"',
    "$(id)",
    "`id`;id&",
    "é/日本",
    "+plus",
    "#1",
    "v1.2/x.y",
    "x" * 200,
    "é" * 100,
    "日" * 66,
    "😀" * 50,
    "/".join("é" * 66),
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=150)


# Names and identity


def test_plain_names_stay_as_promised() -> None:
    assert (
        folder_name("agent-container-lima", "feature-auth") == "agent-container-lima-feature-auth"
    )


@given(TEXT, TEXT)
def test_a_folder_is_one_safe_path_component(repository: str, branch: str) -> None:
    folder = folder_name(repository, branch)
    assert folder.isascii()
    assert folder[0].isalnum() or folder[0] == "_"
    assert not set(folder) & set("/\\ \t\n\"'`$;&|<>(){}*?[]~!#")
    assert ".." not in folder
    assert len(folder) <= 110


@given(TEXT, TEXT, TEXT)
def test_odd_branches_of_a_repository_have_folders_of_their_own(
    repository: str, one: str, two: str
) -> None:
    assert one == two or folder_name(repository, one) != folder_name(repository, two)


def test_slash_and_dash_are_two_folders() -> None:
    names = {folder_name("app", branch) for branch in ("feature/x", "feature-x", "feature")}
    assert len(names) == 3


@pytest.mark.parametrize("branch", NAMES, ids=lambda name: name[:10])
def test_any_branch_git_allows_comes_in_and_back(
    guest: Guest, repository: Path, branch: str
) -> None:
    ws = workspace(repository, branch)
    assert push(ws)[0] in {"updated", "current"}
    inside = guest.workspaces / ws.folder
    assert guest.run("git symbolic-ref HEAD", cwd=inside) == f"refs/heads/{branch}"
    assert (inside / "README").read_text() == "hello\n"
    made = commit_inside(guest, inside)
    fetched, _ = fetch(ws)
    assert fetched.merged
    assert git(repository, "rev-parse", f"refs/heads/{branch}") == made
    assert [(row.branch, row.unfetched) for row in workspaces.inventory(VM)] == [(branch, 0)]
    assert workspaces.remove(VM, [ws.folder]) == [ws.folder]
    assert not inside.exists()


def test_two_branches_of_alike_names_do_not_mix(guest: Guest, repository: Path) -> None:
    for branch in ("feature/x", "feature-x"):
        push(workspace(repository, branch))
    assert len(list(guest.workspaces.iterdir())) == 2


def test_three_branches_of_one_beginning_are_three_workspaces(
    guest: Guest, repository: Path
) -> None:
    """Git has `feature` and `feature/x` in one repository only one after the other."""
    wanted = {}
    for branch in ("feature", "feature/x", "feature-x"):
        if branch == "feature/x":
            git(repository, "branch", "--move", "feature", "renamed")
        git(repository, "checkout", "--quiet", "-b", branch, "main")
        wanted[branch] = commit(repository, "which", branch)
        assert push(workspace(repository, branch))[0] == "updated"
    found = {row.branch: row.folder for row in workspaces.inventory(VM)}
    heads = {name: at(guest, guest.workspaces / found[name], "HEAD") for name in found}
    assert heads == wanted


def test_names_that_join_to_one_folder_are_two_workspaces(guest: Guest, home: Path) -> None:
    made = {}
    for place, branch in (("a-b", "c"), ("a", "b-c")):
        make_repository(home / place)
        git(home / place, "checkout", "--quiet", "-b", branch)
        commit(home / place, "place", place)
        update = sync.push(workspace(home / place, branch), lambda _line: None)
        made[place] = update.folder
    assert made == {"a-b": "a-b-c", "a": f"a-b-c-{workspace(home / 'a', 'b-c').key[:8]}"}
    for place, folder in made.items():
        assert (guest.workspaces / folder / "place").read_text() == place


def test_names_that_differ_in_case_or_coding_are_two_workspaces_and_told(
    guest: Guest, repository: Path
) -> None:
    said: list[str] = []
    for branch in ("fix", "Fix", "caf\u00e9", "cafe\u0301"):
        sync.push(workspace(repository, branch), said.append)
    assert len(list(guest.workspaces.iterdir())) == 4
    assert said == [
        "created branch fix from HEAD",
        "created branch Fix from HEAD",
        "there is a branch 'fix', too: only upper case or the coding of accents differs",
        "created branch caf\u00e9 from HEAD",
        "created branch cafe\u0301 from HEAD",
        "there is a branch 'caf\\xe9', too: only upper case or the coding of accents differs",
    ]


@pytest.mark.parametrize("name", ["日" * 85, "x" * 255])
def test_a_repositorys_name_may_be_as_long_as_a_folders_can_be(
    guest: Guest, home: Path, name: str
) -> None:
    for place in (home, home / "x"):
        make_repository(place / name)
        ws = workspace(place / name, "é" * 100)
        assert push(ws)[0] == "updated"
        commit_inside(guest, guest.home / ws.path)
        assert fetch(ws)[0].merged
    assert len(list(guest.workspaces.iterdir())) == 2


def test_a_branch_below_another_is_gits_own_complaint(guest: Guest, repository: Path) -> None:
    push(workspace(repository, "feature"))
    with pytest.raises(
        AgentVMError, match="there is a branch feature, beside which git can make no feature/x"
    ):
        push(workspace(repository, "feature/x"))


def test_a_branch_that_names_another_one_is_not_fetched(guest: Guest, repository: Path) -> None:
    """What was done to it would be done to the other one, which may be checked out."""
    ws = workspace(repository)
    push(ws)
    before = git(repository, "rev-parse", "main")
    commit_inside(guest, guest.workspaces / ws.folder)
    git(repository, "symbolic-ref", "refs/heads/fix", "refs/heads/main")
    with pytest.raises(
        AgentVMError, match="the branch fix is a symbolic ref; name refs/heads/main"
    ):
        fetch(ws)
    assert git(repository, "rev-parse", "main") == before


@pytest.mark.parametrize("branch", ["", "-x", "@", "HEAD", "refs/heads/x", "a b", "x" * 201])
def test_what_is_no_branch_name_is_a_usage_error(repository: Path, branch: str) -> None:
    with pytest.raises(UsageError):
        workspace(repository, branch)


def test_repositories_of_one_name_have_workspaces_of_their_own(guest: Guest, home: Path) -> None:
    made = [home / place / "app" for place in ("x", "y")]
    for folder in made:
        make_repository(folder)
        commit(folder, "place", str(folder))
        push(workspace(folder))
    folders = sorted(path.name for path in guest.workspaces.iterdir())
    assert folders == ["app-fix", f"app-fix-{workspace(made[1]).key[:8]}"]
    texts = {(path / "place").read_text() for path in guest.workspaces.iterdir()}
    assert texts == set(map(str, made))
    assert push(workspace(made[1])) == ("current", "")


def test_a_folder_that_was_deleted_inside_leads_nobody_into_anothers_workspace(
    guest: Guest, home: Path
) -> None:
    made = [home / place / "app" for place in ("x", "y")]
    for folder in made:
        make_repository(folder)
    first, other = map(workspace, made)
    push(first)
    shutil.rmtree(guest.workspaces / "app-fix")
    push(other)
    assert (guest.workspaces / "app-fix").is_dir()
    assert workspaces.inspect(first) is None
    assert push(first) == ("updated", "")
    assert workspaces.inspect(other) is not None


def test_worktrees_of_a_repository_share_a_workspace(repository: Path, home: Path) -> None:
    git(repository, "worktree", "add", "--quiet", str(home / "other"), "-b", "fix")
    assert workspace(home / "other").key == workspace(repository).key
    assert workspace(home / "other").folder == "app-fix"


def test_a_copy_of_a_repository_gets_a_workspace_of_its_own(
    guest: Guest, repository: Path, home: Path
) -> None:
    ws = workspace(repository)
    push(ws)
    shutil.copytree(repository, home / "copy" / "app")
    copied = workspace(home / "copy" / "app")
    assert copied.key != ws.key
    assert copied == workspace(home / "copy" / "app")
    assert workspace(repository) == ws
    new_commit(home / "copy" / "app", "other")
    assert push(copied) == ("updated", "")
    assert not (guest.workspaces / ws.folder / "other").exists()


def test_a_moved_repository_keeps_its_workspace(repository: Path, home: Path) -> None:
    key = workspace(repository).key
    repository.rename(home / "moved")
    assert workspace(home / "moved").key == key
    shutil.copytree(home / "moved", repository)
    assert workspace(repository).key != key
    assert workspace(home / "moved").key == key


def test_another_repository_in_the_place_of_a_moved_one_takes_nothing(
    repository: Path, home: Path
) -> None:
    key = workspace(repository).key
    repository.rename(home / "moved")
    git(home, "clone", "--quiet", str(home / "moved"), str(repository))
    assert workspace(repository).key != key
    assert workspace(home / "moved").key == key


def test_a_repository_by_two_paths_has_one_workspace(repository: Path, home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a folder a second time")
    key = workspace(repository).key
    (home / "again").mkdir()
    subprocess.run(["mount", "--bind", str(repository), str(home / "again")], check=True)
    try:
        assert workspace(home / "again").key == key
    finally:
        subprocess.run(["umount", str(home / "again")], check=True)


def test_an_id_that_is_no_ones_own_is_not_taken(repository: Path, home: Path) -> None:
    git(home, "config", "--global", "agent-vm.id", "0" * 32)
    assert workspace(repository).repository.id != "0" * 32


def test_commands_at_the_same_time_give_a_repository_one_id(repository: Path) -> None:
    with ThreadPoolExecutor(8) as many:
        made = many.map(lambda _: workspace(repository).key, range(8))
    assert len(set(made)) == 1


def test_a_worktree_of_a_bare_repository_has_its_name(repository: Path, home: Path) -> None:
    git(home, "clone", "--quiet", "--bare", str(repository), "tool.git")
    git(home / "tool.git", "worktree", "add", "--quiet", str(home / "tree"), "main")
    assert workspaces.repository(home / "tree").name == "tool"


@pytest.mark.parametrize(
    "place",
    ["my app", "it's", 'a"b', "$(touch canary)", "a..b", "-x", ".dot", "日本", "tab\there", "end "],
)
def test_a_repository_may_be_anywhere(guest: Guest, home: Path, place: str) -> None:
    folder = home / place
    make_repository(folder)
    ws = workspace(folder)
    assert push(ws)[0] == "updated"
    commit_inside(guest, guest.workspaces / ws.folder)
    assert fetch(ws)[0].merged
    assert not list(home.rglob("canary"))
    assert not list(guest.home.rglob("canary"))


def test_a_line_break_in_the_path_is_told(home: Path) -> None:
    make_repository(home / "a\nb")
    with pytest.raises(AgentVMError, match="line break"):
        workspaces.repository(home / "a\nb")


def test_a_subfolder_is_the_same_repository(repository: Path) -> None:
    (repository / "sub").mkdir()
    assert workspaces.repository(repository / "sub") == workspaces.repository(repository)


def test_outside_of_a_repository(home: Path) -> None:
    with pytest.raises(AgentVMError, match="is not in a git repository; cd into one"):
        workspaces.repository(home)


def test_a_repository_of_another_user(repository: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a repository to another user")
    os.chown(repository, 65534, 65534)
    with pytest.raises(AgentVMError, match=r"belongs to another user.*safe\.directory"):
        workspaces.repository(repository)


def test_bare_repositories_are_refused(repository: Path, home: Path) -> None:
    git(home, "clone", "--quiet", "--bare", str(repository), "bare.git")
    for place in (home / "bare.git", repository / ".git"):
        with pytest.raises(AgentVMError, match="has no working tree"):
            workspaces.repository(place)


def test_a_repository_without_commits_is_refused_before_anything_is_made(
    guest: Guest, home: Path
) -> None:
    git(home, "init", "--quiet", "empty")
    ws = workspace(home / "empty")
    with pytest.raises(AgentVMError, match="has no commits yet"):
        workspaces.require_branchable(ws.repository.path, ws.branch)
    with pytest.raises(AgentVMError, match="has no commits yet"):
        push(ws)
    assert not list(guest.workspaces.iterdir())


def test_shallow_clones_work(guest: Guest, repository: Path, home: Path) -> None:
    commit(repository, "second")
    git(home, "clone", "--quiet", "--depth=1", f"file://{repository}", "shallow")
    ws = workspace(home / "shallow")
    assert push(ws)[0] == "updated"
    made = commit_inside(guest, guest.workspaces / ws.folder)
    assert fetch(ws)[0].merged
    assert git(home / "shallow", "rev-parse", "fix") == made


def test_a_partial_clone_is_told_how_to_become_whole(
    guest: Guest, repository: Path, home: Path
) -> None:
    commit(repository, "README", "second\n")
    git(repository, "config", "uploadpack.allowFilter", "true")
    git(home, "clone", "--quiet", "--filter=blob:none", f"file://{repository}", "partial")
    with pytest.raises(AgentVMError, match="a partial clone that lacks files of fix") as raised:
        push(workspace(home / "partial"))
    git(home / "partial", *raised.value.hint.split("`")[1].split()[1:])
    assert push(workspace(home / "partial"))[0] == "updated"


def test_a_clone_that_borrows_objects_works(guest: Guest, repository: Path, home: Path) -> None:
    git(home, "clone", "--quiet", "--shared", str(repository), "shared")
    borrowed = home / "shared/.git/objects/info/alternates"
    borrowed.write_text("../../../src/app/.git/objects\n")
    assert push(workspace(home / "shared"))[0] == "updated"
    assert (guest.workspaces / "shared-fix/README").read_text() == "hello\n"


def test_sha256_repositories_work(guest: Guest, home: Path) -> None:
    make_repository(home / "new", "--object-format=sha256")
    ws = workspace(home / "new")
    assert push(ws)[0] == "updated"
    made = commit_inside(guest, guest.workspaces / ws.folder)
    assert len(made) == 64
    assert fetch(ws)[0].merged


def test_from_a_detached_head_the_branch_starts_there(guest: Guest, repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    commit(repository, "second")
    git(repository, "checkout", "--quiet", first)
    push(workspace(repository))
    assert git(repository, "rev-parse", "fix") == first
    assert git(repository, "rev-parse", "HEAD") == first


def test_submodules_are_repositories_of_their_own(
    guest: Guest, repository: Path, home: Path
) -> None:
    make_repository(home / "lib")
    allow = ("-c", "protocol.file.allow=always")
    git(repository, *allow, "submodule", "--quiet", "add", str(home / "lib"), "sub")
    git(repository, "commit", "--quiet", "--message", "a submodule")
    for ws in (workspace(repository), workspace(repository / "sub")):
        assert push(ws)[0] == "updated"
    assert {path.name for path in guest.workspaces.iterdir()} == {"app-fix", "sub-fix"}


# Inventory and clean


def test_the_inventory_counts(guest: Guest, repository: Path, ws: Workspace, inside: Path) -> None:
    push(workspace(repository, "feature/y"))
    commit_inside(guest, inside)
    guest.run("git checkout -q -b idea && git commit -q --allow-empty -m i", cwd=inside)
    (inside / "README").write_text("a\n")
    guest.run("git stash -q", cwd=inside)
    (inside / "README").write_text("b\n")
    (inside / "odd\nname").touch()
    clean, dirty = sorted(workspaces.inventory(VM), key=lambda row: row.branch == "fix")
    assert (clean.branch, clean.repository, clean.losses) == ("feature/y", "app", [])
    assert (dirty.folder, dirty.key, dirty.branch) == (ws.folder, ws.key, "fix")
    counts = (dirty.unfetched, dirty.uncommitted, dirty.untracked, dirty.stashes)
    assert counts == (2, 1, 1, 1)


def test_an_empty_inventory(guest: Guest) -> None:
    assert workspaces.inventory(VM) == []


def test_what_cannot_be_looked_at_counts_as_work(guest: Guest, ws: Workspace, inside: Path) -> None:
    (inside / ".git/index").write_text("garbage")
    (guest.workspaces / "notes of an agent").mkdir()
    lost = {row.folder: row.losses for row in workspaces.inventory(VM)}
    unknown = ["contents that could not be looked at"]
    assert lost == {ws.folder: unknown, "notes of an agent": unknown}


def test_commits_are_counted_by_branch(guest: Guest, ws: Workspace, inside: Path) -> None:
    commit_inside(guest, inside)
    guest.run("git checkout -q -b idea && git commit -q --allow-empty -m i", cwd=inside)
    odd = "é/日\u3000本\u2028"
    guest.run(f"git commit -q --allow-empty -m i && git checkout -q -b {odd} fix", cwd=inside)
    guest.run("git commit -q --allow-empty -m j && git checkout -q fix", cwd=inside)
    (row,) = workspaces.inventory(VM)
    assert row.losses == [f"4 commits not fetched (2 on branch idea, 1 on branch {odd})"]


@pytest.mark.parametrize(
    "setting", ["status.showUntrackedFiles no", "diff.ignoreSubmodules all", "status.short true"]
)
def test_settings_of_the_guests_git_hide_nothing(
    guest: Guest, ws: Workspace, inside: Path, setting: str
) -> None:
    guest.run("git init -q sub && cd sub && git commit -q --allow-empty -m x", cwd=inside)
    guest.run("git add sub && git commit -qm sub 2> /dev/null", cwd=inside)
    fetch(ws)
    guest.run(f"git config {setting}; touch new sub/new", cwd=inside)
    wanted = ["1 file with uncommitted changes", "1 file untracked"]
    assert workspaces.inventory(VM)[0].losses == wanted
    assert fetch(ws)[1].losses == wanted


BROKEN = {
    "its git is missing": "exit 127",
    "its git is killed": "kill -9 $$",
    "what looks is killed": "kill -9 $PPID",
    "a folder cannot be read": "echo 'warning: could not open directory: no permission' >&2",
}


@pytest.mark.parametrize("state", BROKEN)
@pytest.mark.parametrize("verb", ["status", "rev-list"])
def test_whatever_fails_while_looking_counts_as_work(
    guest: Guest, repository: Path, ws: Workspace, *, state: str, verb: str
) -> None:
    push(workspace(repository, "other"))
    if (state, verb) == ("a folder cannot be read", "rev-list"):
        pytest.skip("it reads none")
    script = f'case "$*" in *"{verb}"*) case $PWD in *-fix) {BROKEN[state]} ;; esac ;; esac'
    wrap(guest, "git", script)
    rows = {row.folder: row.losses for row in workspaces.inventory(VM)}
    assert rows == {ws.folder: ["contents that could not be looked at"], "app-other": []}


def wrap(guest: Guest, program: str, script: str) -> None:
    """Have this run before a program of the guest."""
    path = guest.home / "bin" / program
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'#!/bin/bash\n{script}\nPATH=${{PATH#*:}}; exec {program} "$@"\n')
    path.chmod(0o755)


def test_an_inventory_that_is_cut_off_is_an_error(guest: Guest, ws: Workspace) -> None:
    (guest.home / ".bashrc").write_text("( sleep 0.2; kill -9 $$ ) > /dev/null 2>&1 &\n")
    wrap(guest, "git", "sleep 1")
    with pytest.raises(AgentVMError):
        workspaces.inventory(VM)


# What the host has, and no longer has


def test_what_was_merged_squashed_is_no_loss(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    squash(guest, repository, ws, inside)
    assert workspaces.inventory(VM)[0].losses == []


@pytest.mark.parametrize("later", [False, True])
def test_of_a_squashed_merge_the_files_are_enough(
    guest: Guest, repository: Path, ws: Workspace, inside: Path, later: bool
) -> None:
    squash(guest, repository, ws, inside)
    git(repository, "update-ref", "-d", ws.ref)
    if later:
        commit(repository, "later")
    assert workspaces.inventory(VM)[0].losses == []
    git(repository, "reset", "--quiet", "--hard", "HEAD~2" if later else "HEAD~")
    assert workspaces.inventory(VM)[0].losses == ["2 commits not fetched"]


def squash(guest: Guest, repository: Path, ws: Workspace, inside: Path) -> None:
    """Fetch two commits, merge them as one, delete the branch."""
    commit_inside(guest, inside)
    guest.run("git commit -q --allow-empty -m more", cwd=inside)
    fetch(ws)
    git(repository, "merge", "--quiet", "--squash", "fix")
    git(repository, "commit", "--quiet", "--message", "squashed")
    git(repository, "branch", "--quiet", "-D", "fix")


def test_what_the_host_has_lost_counts_as_work_again(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    commit_inside(guest, inside)
    fetch(ws)
    git(repository, "branch", "--quiet", "-D", "fix")
    assert workspaces.inventory(VM)[0].losses == []
    git(repository, "update-ref", "-d", ws.ref)
    assert workspaces.inventory(VM)[0].losses == ["1 commit not fetched"]
    shutil.rmtree(repository)
    assert workspaces.inventory(VM)[0].losses == ["2 commits not fetched"]


def test_the_guests_word_for_what_the_host_has_does_not_count(
    guest: Guest, ws: Workspace, inside: Path
) -> None:
    commit_inside(guest, inside)
    guest.run("git update-ref refs/agent-vm/in/fix HEAD", cwd=inside)
    assert workspaces.inventory(VM)[0].losses == ["1 commit not fetched"]


def test_a_damaged_note_of_what_the_host_has_counts_for_nothing(
    guest: Guest, home: Path, ws: Workspace
) -> None:
    note = home / ".agent-vm" / VM / "shared" / ws.key
    assert workspaces.inventory(VM)[0].losses == []
    for text in ("", "[]", "{", "\0"):
        note.write_text(text)
        assert workspaces.inventory(VM)[0].losses == ["1 commit not fetched"]
    assert push(ws) == ("current", "")
    assert workspaces.inventory(VM)[0].losses == []


def test_notes_of_years_do_not_stop_the_inventory(home: Path, ws: Workspace) -> None:
    notes = home / ".agent-vm" / VM / "shared"
    text = (notes / ws.key).read_text()
    for number in range(3000):
        (notes / f"{number:016}").write_text(text)
        os.utime(notes / f"{number:016}", (number, number))
    assert workspaces.inventory(VM)[0].losses == []


def test_what_a_tag_alone_holds_counts_as_work(guest: Guest, ws: Workspace, inside: Path) -> None:
    guest.run("git checkout -q --detach && git commit -q --allow-empty -m i", cwd=inside)
    guest.run("git tag kept && git checkout -q fix", cwd=inside)
    assert workspaces.inventory(VM)[0].losses == ["1 commit not fetched"]


def test_fetched_work_is_no_loss(guest: Guest, ws: Workspace, inside: Path) -> None:
    commit_inside(guest, inside)
    assert workspaces.inventory(VM)[0].losses == ["1 commit not fetched"]
    fetch(ws)
    assert workspaces.inventory(VM)[0].losses == []


def test_clean_removes_only_what_is_named(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    push(workspace(repository, "other"))
    (inside / "cache").mkdir()
    (inside / "cache/file").touch()
    (inside / "cache").chmod(0o500)
    assert workspaces.remove(VM, [ws.folder, "..", ".", "", "a/b"]) == [ws.folder]
    assert [path.name for path in guest.workspaces.iterdir()] == ["app-other"]
    assert workspaces.inspect(ws) is None
    assert git(repository, "rev-parse", "fix")
    assert push(ws)[0] == "updated"


def test_clean_deletes_a_link_and_not_what_it_leads_to(
    guest: Guest, ws: Workspace, inside: Path
) -> None:
    (guest.home / "precious").mkdir()
    (guest.workspaces / "link").symlink_to(guest.home / "precious")
    folders = sorted(row.folder for row in workspaces.inventory(VM))
    assert folders == [ws.folder, "link"]
    assert workspaces.remove(VM, ["link"]) == ["link"]
    assert [path.name for path in guest.workspaces.iterdir()] == [ws.folder]
    assert (guest.home / "precious").is_dir()


# Commands inside


def test_commands_run_in_the_workspace(
    guest: Guest, ws: Workspace, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert workspaces.enter(VM, ws, "pwd; exit 7", []) == 7
    assert workspaces.enter(VM, ws, None, ["pwd"]) == 0
    assert workspaces.enter(VM, None, None, ["pwd"]) == 0
    assert capfd.readouterr().out.splitlines() == [str(inside), str(inside), str(guest.home)]


def test_a_workspace_that_is_not_there_has_a_status_of_its_own(
    guest: Guest, repository: Path
) -> None:
    assert workspaces.enter(VM, workspace(repository), "true", []) == workspaces.NOT_THERE


def test_an_answer_that_makes_no_sense_is_an_error(guest: Guest, ws: Workspace) -> None:
    (guest.home / ".bashrc").write_text("printf 'welcome\\0'\n")
    for ask in (lambda: push(ws), lambda: workspaces.inspect(ws), lambda: workspaces.inventory(VM)):
        with pytest.raises(AgentVMError, match="strange answer"):
            ask()
