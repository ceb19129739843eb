"""Workspaces, with real git and ssh: names, push, fetch, inventory, clean."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
import uuid
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_vm_tasks import workspaces
from agent_vm_tasks.errors import AgentVMError, UsageError
from agent_vm_tasks.workspaces import Contents, Fetched, Workspace, folder_name

from .conftest import VM, commit, git, make_repository

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Guest

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
    "x" * 200,
    "é" * 100,
]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=150)


def workspace(folder: Path, branch: str = "fix") -> Workspace:
    return workspaces.workspace(VM, workspaces.repository(folder), branch)


def push(ws: Workspace) -> tuple[str, str]:
    update = workspaces.push(ws, lambda _line: None)
    return update.outcome, update.detail


def fetch(ws: Workspace) -> tuple[Fetched, Contents]:
    return workspaces.fetch(ws, lambda _line: None)


@pytest.fixture
def guest(guest: Guest, warm: None) -> Guest:
    return guest


@pytest.fixture
def ws(guest: Guest, repository: Path) -> Workspace:
    """A workspace of branch fix, just pushed; the host has main checked out."""
    made = workspace(repository)
    assert push(made)[0] == "updated"
    return made


@pytest.fixture
def inside(guest: Guest, ws: Workspace) -> Path:
    """The workspace's folder as the guest has it."""
    return guest.workspaces / ws.folder


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


def test_a_branch_that_names_another_one_is_not_fetched(guest: Guest, repository: Path) -> None:
    """What was done to it would be done to the other one, which may be checked out."""
    ws = workspace(repository)
    push(ws)
    before = git(repository, "rev-parse", "main")
    commit_inside(guest, guest.workspaces / ws.folder)
    git(repository, "symbolic-ref", "refs/heads/fix", "refs/heads/main")
    with pytest.raises(AgentVMError, match="the branch fix is a symbolic ref; name refs/heads/main"):
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


def test_worktrees_of_a_repository_share_a_workspace(repository: Path, home: Path) -> None:
    git(repository, "worktree", "add", "--quiet", str(home / "other"), "-b", "fix")
    assert workspace(home / "other").key == workspace(repository).key
    assert workspace(home / "other").folder == "app-fix"


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


@pytest.mark.parametrize(
    ("url", "inside"),
    [
        ("https://me:secret@example.com:8443/a/b.git", "https://example.com:8443/a/b.git"),
        ("https://token@example.com/b", "https://example.com/b"),
        ("ssh://git:secret@example.com:22/b", "ssh://git@example.com:22/b"),
        ("git@example.com:a/b.git", "git@example.com:a/b.git"),
        ("/home/me/b.git", ""),
        ("file:///home/me/b.git", ""),
        ("../b", ""),
        ("https://[broken", ""),
    ],
)
def test_origin_comes_along_without_credentials(repository: Path, url: str, inside: str) -> None:
    git(repository, "config", "remote.origin.url", url)
    assert workspaces._origin(repository) == inside


def test_origin_is_set_inside(guest: Guest, repository: Path) -> None:
    git(repository, "config", "remote.origin.url", "https://me:secret@example.com/a.git")
    push(workspace(repository))
    inside = guest.workspaces / "app-fix"
    assert guest.run("git remote get-url origin", cwd=inside) == "https://example.com/a.git"
    assert "secret" not in (inside / ".git/config").read_text()


# Push


def test_push_makes_the_branch_and_leaves_the_checkout(ws: Workspace, repository: Path) -> None:
    assert git(repository, "symbolic-ref", "--short", "HEAD") == "main"
    assert git(repository, "rev-parse", "fix") == git(repository, "rev-parse", "main")


def test_push_says_that_it_made_the_branch(guest: Guest, repository: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        workspaces.push(workspace(repository), said.append)
    assert said == ["created branch fix from HEAD"]


def test_new_commits_arrive_with_their_files(repository: Path, ws: Workspace, inside: Path) -> None:
    git(repository, "checkout", "--quiet", "fix")
    commit(repository, "dir/new file", "new\n")
    assert push(ws) == ("updated", "")
    assert (inside / "dir/new file").read_text() == "new\n"
    assert push(ws) == ("current", "")


def test_push_keeps_changes_of_other_files(repository: Path, ws: Workspace, inside: Path) -> None:
    (inside / "README").write_text("edited inside\n")
    new_commit(repository, "other")
    assert push(ws) == ("updated", "")
    assert (inside / "README").read_text() == "edited inside\n"
    assert (inside / "other").exists()


@pytest.mark.parametrize("state", ["changed", "staged", "untracked", "ignored"])
def test_push_stops_at_files_in_the_way(
    guest: Guest, repository: Path, ws: Workspace, inside: Path, state: str
) -> None:
    file = "README" if state in {"changed", "staged"} else "new"
    if state == "ignored":
        (inside / ".git/info/exclude").write_text("new\n")
    (inside / file).write_text("work of the agent\n")
    if state == "staged":
        guest.run("git add README", cwd=inside)
    new_commit(repository, file)
    outcome, detail = push(ws)
    assert outcome == "blocked"
    assert file in detail
    assert (inside / file).read_text() == "work of the agent\n"
    assert at(guest, inside, "refs/agent-vm/in/fix") == git(repository, "rev-parse", "fix")


def test_push_stops_where_the_workspace_is_newer(guest: Guest, ws: Workspace, inside: Path) -> None:
    made = commit_inside(guest, inside)
    assert push(ws) == ("ahead", "1")
    assert at(guest, inside, "HEAD") == made


def test_push_stops_where_both_sides_have_commits(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    made = commit_inside(guest, inside)
    new_commit(repository, "other")
    assert push(ws) == ("diverged", "")
    assert at(guest, inside, "HEAD") == made
    assert not (inside / "other").exists()


def test_push_of_rewritten_commits_is_no_update(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    before = at(guest, inside, "HEAD")
    git(repository, "checkout", "--quiet", "fix")
    git(repository, "commit", "--quiet", "--amend", "--message", "rewritten")
    assert push(ws) == ("diverged", "")
    assert at(guest, inside, "HEAD") == before


def test_push_leaves_a_merge_alone(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    guest.run("git checkout -q -b other && echo a > README && git commit -qam a", cwd=inside)
    guest.run("git checkout -q fix && echo b > README && git commit -qam b", cwd=inside)
    guest.run("git merge other", cwd=inside, check=False)
    new_commit(repository, "new")
    assert push(ws) == ("busy", "MERGE_HEAD")
    assert "<<<<<<<" in (inside / "README").read_text()


@pytest.mark.parametrize("state", ["-b other", "--detach"])
def test_push_leaves_another_checkout_alone(
    guest: Guest, ws: Workspace, inside: Path, state: str
) -> None:
    guest.run(f"git checkout -q {state}", cwd=inside)
    made = new_commit(ws.repository.path, "new")
    told = "other" if "other" in state else at(guest, inside, "HEAD")
    assert push(ws) == ("elsewhere", told)
    assert not (inside / "new").exists()
    assert at(guest, inside, "refs/agent-vm/in/fix") == made


@pytest.mark.parametrize("place", ["hooks", "src/app/.git/hooks"])
def test_hooks_and_signing_of_the_host_do_not_run(
    guest: Guest, home: Path, repository: Path, place: str
) -> None:
    hooks = home / place
    hooks.mkdir(exist_ok=True)
    for name in ("pre-push", "reference-transaction", "post-merge", "post-checkout"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {home}/ran-{name}\n")
        (hooks / name).chmod(0o755)
    for key, value in (
        ("core.hooksPath", str(hooks)),
        ("push.gpgSign", "true"),
        ("commit.gpgSign", "true"),
        ("gpg.program", f"touch {home}/ran-gpg; false"),
    ):
        git(home, "config", "--global", key, value)
    git(repository, "checkout", "--quiet", "--no-guess", "-b", "fix")
    for trace in home.glob("ran-*"):
        trace.unlink()
    ws = workspace(repository)
    assert push(ws)[0] == "updated"
    commit_inside(guest, guest.workspaces / ws.folder)
    assert fetch(ws)[0].merged
    assert (repository / "work").exists()
    assert not list(home.glob("ran-*"))


def test_tags_stay_home(repository: Path, guest: Guest, home: Path) -> None:
    git(home, "config", "--global", "push.followTags", "true")
    git(repository, "tag", "--annotate", "--message", "one", "v1")
    push(workspace(repository))
    assert guest.run("git tag", cwd=guest.workspaces / "app-fix") == ""


def test_a_deleted_folder_is_made_again(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    shutil.rmtree(inside)
    assert push(ws) == ("updated", "")
    assert (inside / "README").exists()


def test_an_interrupted_creation_is_taken_over(guest: Guest, ws: Workspace, inside: Path) -> None:
    (guest.home / ws.path).unlink()
    assert push(ws) == ("current", "")
    assert [path.name for path in guest.workspaces.iterdir()] == [ws.folder]


def test_a_taken_folder_is_not_touched(guest: Guest, repository: Path) -> None:
    ws = workspace(repository)
    for name in (ws.folder, f"{ws.folder}-{ws.key[:8]}"):
        (guest.workspaces / name).mkdir()
    with pytest.raises(AgentVMError, match=r"both ~/workspace/app-fix and .* are taken"):
        push(ws)


def test_pushes_at_the_same_time_end_well(guest: Guest, repository: Path) -> None:
    ws = workspace(repository)
    workspaces.ensure_branch(ws, lambda _line: None)
    outcomes: list[str] = []
    threads = [threading.Thread(target=lambda: outcomes.append(push(ws)[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 3
    assert set(outcomes) <= {"updated", "current"}
    assert (guest.workspaces / ws.folder / "README").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_push_waits_for_another_in_the_vm(guest: Guest, repository: Path, there: bool) -> None:
    ws = workspace(repository)
    if there:
        push(ws)
    (guest.home / ".agent-vm").mkdir(exist_ok=True)
    hold = ["flock", str(guest.home / ".agent-vm/lock"), "sleep", "0.5"]
    with subprocess.Popen(hold) as other:
        time.sleep(0.1)
        assert push(ws)[0] in {"current", "updated"}
        assert other.poll() == 0


# Fetch


def test_fetch_forwards_a_branch_that_is_not_checked_out(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    made = commit_inside(guest, inside)
    said: list[str] = []
    fetched, contents = workspaces.fetch(ws, said.append)
    assert (fetched.merged, fetched.commits, said) == (True, 1, ["fetched 1 commit"])
    assert git(repository, "rev-parse", "fix") == made == git(repository, "rev-parse", ws.ref)
    assert contents.losses == []
    assert not (repository / "work").exists()


def test_fetch_updates_the_files_of_a_clean_checkout(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    git(repository, "checkout", "--quiet", "fix")
    commit_inside(guest, inside)
    assert fetch(ws)[0].merged
    assert (repository / "work").read_text() == "done\n"
    assert git(repository, "status", "--porcelain") == ""


def test_fetch_of_nothing_new(ws: Workspace) -> None:
    said: list[str] = []
    fetched, _ = workspaces.fetch(ws, said.append)
    assert (fetched.merged, fetched.commits, said) == (True, 0, ["nothing new"])


@pytest.mark.parametrize("state", ["changed", "staged", "untracked", "ignored"])
def test_fetch_keeps_what_is_not_committed_here(
    guest: Guest, repository: Path, ws: Workspace, inside: Path, state: str
) -> None:
    git(repository, "checkout", "--quiet", "fix")
    made = commit_inside(guest, inside)
    if state == "ignored":
        (repository / ".git/info/exclude").write_text("work\n")
    file = repository / ("README" if state in {"changed", "staged"} else "work")
    file.write_text("mine\n")
    if state == "staged":
        git(repository, "add", "README")
    fetched, _ = fetch(ws)
    assert not fetched.merged
    assert fetched.advice.endswith(f"`git merge --ff-only {ws.ref}`{tail(state)}")
    assert file.read_text() == "mine\n"
    assert git(repository, "rev-parse", ws.ref) == made
    file.unlink() if file.name == "work" else git(repository, "reset", "--quiet", "--hard")
    assert fetch(ws)[0].merged


def tail(state: str) -> str:
    return " there" if state in {"changed", "staged"} else ""


def test_fetch_leaves_a_diverged_branch(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    theirs = commit_inside(guest, inside)
    mine = new_commit(repository, "other")
    fetched, _ = fetch(ws)
    assert not fetched.merged
    assert f"git merge {ws.ref}" in fetched.advice
    assert git(repository, "rev-parse", "fix") == mine
    assert git(repository, "rev-parse", ws.ref) == theirs


def test_fetch_where_the_host_is_ahead(repository: Path, ws: Workspace) -> None:
    mine = new_commit(repository, "other")
    assert fetch(ws)[0].merged
    assert git(repository, "rev-parse", "fix") == mine


@pytest.mark.parametrize("dirty", [False, True])
def test_fetch_updates_another_worktree(
    guest: Guest, home: Path, ws: Workspace, inside: Path, dirty: bool
) -> None:
    tree = home / "other tree"
    git(ws.repository.path, "worktree", "add", "--quiet", str(tree), "fix")
    if dirty:
        (tree / "README").write_text("mine\n")
    commit_inside(guest, inside)
    fetched, _ = fetch(ws)
    assert fetched.merged is not dirty
    assert (tree / "work").exists() is not dirty
    assert not dirty or str(tree) in fetched.advice


def test_fetch_does_not_disturb_a_rebase(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    commit(repository, "README", "on main\n")
    mine = new_commit(repository, "README")
    push(ws)
    commit_inside(guest, inside)
    git(repository, "checkout", "--quiet", "fix")
    subprocess.run(["git", "rebase", "--quiet", "main"], check=False, capture_output=True)
    fetched, _ = fetch(ws)
    assert not fetched.merged
    assert f"then `git merge --ff-only {ws.ref}`" in fetched.advice
    assert git(repository, "rev-parse", "fix") == mine
    (repository / "README").write_text("both\n")
    git(repository, "add", "README")
    git(repository, "-c", "core.editor=true", "rebase", "--continue")


def test_fetch_past_a_worktree_that_is_gone(
    guest: Guest, home: Path, ws: Workspace, inside: Path
) -> None:
    git(ws.repository.path, "worktree", "add", "--quiet", str(home / "tree"), "fix")
    shutil.rmtree(home / "tree")
    made = commit_inside(guest, inside)
    fetched, _ = fetch(ws)
    assert fetched.merged or "checked out at" in fetched.advice
    assert git(ws.repository.path, "rev-parse", ws.ref) == made


def test_fetch_of_rewritten_commits_keeps_the_branch(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    commit_inside(guest, inside)
    fetch(ws)
    before = git(repository, "rev-parse", "fix")
    guest.run("git commit -q --amend -m rewritten", cwd=inside)
    fetched, _ = fetch(ws)
    assert not fetched.merged
    assert git(repository, "rev-parse", "fix") == before
    assert git(repository, "rev-parse", ws.ref) == at(guest, inside, "HEAD")


def test_fetch_makes_a_branch_that_is_gone_here(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    made = commit_inside(guest, inside)
    git(repository, "branch", "--delete", "--force", "fix")
    assert fetch(ws)[0].merged
    assert git(repository, "rev-parse", "fix") == made


def test_fetch_tells_what_stays_inside(guest: Guest, ws: Workspace, inside: Path) -> None:
    guest.run("echo a > README && git stash -q", cwd=inside)
    guest.run("git checkout -q -b idea && git commit -q --allow-empty -m i", cwd=inside)
    guest.run("git checkout -q fix", cwd=inside)
    (inside / "README").write_text("changed\n")
    (inside / "odd\nname").touch()
    (inside / "?? other").touch()
    _, contents = fetch(ws)
    assert contents.losses == [
        "1 file with uncommitted changes",
        "2 files untracked",
        "1 stash kept",
        "1 commit on branch idea",
    ]


def test_fetch_tells_of_commits_on_no_branch(guest: Guest, ws: Workspace, inside: Path) -> None:
    guest.run("git checkout -q --detach && git commit -q --allow-empty -m i", cwd=inside)
    assert fetch(ws)[1].losses == ["1 commit on branch HEAD"]
    assert workspaces.inventory(VM)[0].losses == ["1 commit not fetched"]


def test_fetch_without_a_workspace(guest: Guest, repository: Path) -> None:
    git(repository, "branch", "fix")
    with pytest.raises(AgentVMError, match="no workspace of fix in the VM; make it with"):
        fetch(workspace(repository))


def test_fetch_of_a_branch_deleted_inside(guest: Guest, ws: Workspace, inside: Path) -> None:
    guest.run("git checkout -q --detach && git branch -qD fix", cwd=inside)
    with pytest.raises(AgentVMError, match="fetching fix failed: fatal: couldn't find remote ref"):
        fetch(ws)


def test_fetch_refuses_broken_objects(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    guest.run(
        "blob=$(git hash-object -w README)"
        " && evil=$(printf '100644 blob %s\\tconfig\\n' $blob | git mktree)"
        " && tree=$(printf '040000 tree %s\\t.git\\n' $evil | git mktree)"
        " && git update-ref refs/heads/fix $(git commit-tree -p HEAD -m x $tree)",
        cwd=inside,
    )
    before = git(repository, "for-each-ref")
    with pytest.raises(AgentVMError, match=r"fetching fix failed: .*(hasDotgit|fsck)"):
        fetch(ws)
    assert git(repository, "for-each-ref") == before


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


def commit_inside(guest: Guest, inside: Path) -> str:
    """An agent's commit of the file `work`; its id."""
    (inside / "work").write_text("done\n")
    guest.run(f"git add -f work && git commit -q -m {uuid.uuid4()}", cwd=inside)
    return at(guest, inside, "HEAD")


def new_commit(repository: Path, file: str) -> str:
    """A commit on the host's branch fix, while main stays checked out."""
    git(repository, "checkout", "--quiet", "fix")
    made = commit(repository, file, f"from the host {os.getpid()}\n")
    git(repository, "checkout", "--quiet", "main")
    return made


def at(guest: Guest, inside: Path, ref: str) -> str:
    return guest.run(f"git rev-parse {ref}", cwd=inside)
