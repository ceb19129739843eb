"""A guest whose git is hostile: nothing of it runs here, and it learns nothing it was not given."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import git as host_git
from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import review, sync, workspaces
from tests.conftest import VM, commit, git, leading, make_repository, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from agent_vm_tasks.process import Result
    from agent_vm_tasks.workspaces import Workspace
    from tests.conftest import Guest

HOOKS = (
    "applypatch-msg", "post-checkout", "post-commit", "post-index-change", "post-merge",
    "post-rewrite", "post-update", "pre-auto-gc", "pre-commit", "pre-merge-commit", "pre-push",
    "pre-rebase", "proc-receive", "push-to-checkout", "reference-transaction", "update",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("warm")


def push(ws: Workspace) -> str:
    return sync.push(ws, lambda _line: None).outcome


def fetch(ws: Workspace) -> sync.Fetched:
    return sync.fetch(ws, lambda _line: None)[0]


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_hooks_that_the_guest_commits_do_not_run(
    *, calm: bool, guest: Guest, home: Path, repository: Path, ws: Workspace, inside: Path
) -> None:
    git(repository, "config", "core.hooksPath", ".husky")
    for name in HOOKS:
        executable(inside / ".husky" / name, f"touch {home}/ran-{name}")
    guest.run("git add . && git commit -q -m hooks", cwd=inside)
    assert fetch(ws).merged
    assert (repository / ".husky/post-merge").exists()
    push(ws)
    guest.run("git commit -q --allow-empty -m more", cwd=inside)
    assert fetch(ws).merged
    assert bool(list(home.glob("ran-*"))) is not calm


def test_the_users_filters_are_told_not_to_follow_the_guest(
    *,
    on: bool,
    guest: Guest,
    home: Path,
    ws: Workspace,
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """.lfsconfig names a server of the guest's choice; git-lfs is asked not to go there."""
    if not on:
        monkeypatch.delitem(host_git._QUIET, "GIT_LFS_SKIP_SMUDGE")
    executable(home / "smudge", f'echo "skip=$GIT_LFS_SKIP_SMUDGE" > {home}/asked; cat')
    git(home, "config", "--global", "filter.lfs.smudge", str(home / "smudge"))
    (inside / ".gitattributes").write_text("*.bin filter=lfs\n")
    (inside / "a.bin").write_text("pointer\n")
    guest.run("git add . && git commit -q -m lfs", cwd=inside)
    assert fetch(ws).merged
    assert (home / "asked").read_text() == ("skip=1\n" if on else "skip=\n")


def test_a_watcher_of_the_users_that_lies_in_the_tree_does_not_run(
    *, calm: bool, guest: Guest, home: Path, repository: Path, ws: Workspace, inside: Path
) -> None:
    executable(repository / "watch", "exit 1")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "watch")
    git(repository, "config", "core.fsmonitor", "./watch")
    push(ws)
    executable(inside / "watch", f"touch {home}/ran")
    for message in ("first", "second"):
        guest.run(f"git add . && git commit -q --allow-empty -m {message}", cwd=inside)
        assert fetch(ws).merged
    assert (repository / "watch").read_text() == (inside / "watch").read_text()
    assert (home / "ran").exists() is not calm


@pytest.mark.parametrize(
    "command",
    ["tools/smudge", "sh ./tools/smudge %f", '"$(git rev-parse --show-toplevel)/tools/smudge"'],
)
def test_a_filter_of_the_users_that_lies_in_the_tree_does_not_run(
    guest: Guest, home: Path, ws: Workspace, inside: Path, command: str
) -> None:
    repository = ws.repository.path
    executable(repository / "tools/smudge", "cat")
    commit(repository, ".gitattributes", "*.txt filter=own\n")
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "filter")
    git(repository, "config", "filter.own.smudge", command)
    push(ws)
    executable(inside / "tools/smudge", f"touch {home}/ran; cat")
    (inside / "z.txt").write_text("filtered\n")
    guest.run("git add . && git commit -q -m filter", cwd=inside)
    fetched = fetch(ws)
    assert not (home / "ran").exists()
    assert fetched.advice == (
        f"your git runs or reads tools/smudge in {repository}: look first, "
        f"then `git merge --ff-only {ws.ref}`"
    )
    git(repository, "merge", "--quiet", "--ff-only", ws.ref)
    assert (home / "ran").exists()  # which is why


def test_settings_of_the_users_that_lie_in_the_tree_are_not_replaced(
    *,
    on: bool,
    guest: Guest,
    home: Path,
    repository: Path,
    ws: Workspace,
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not on:
        monkeypatch.setattr(review, "trusted", lambda *_: [])
    commit(repository, ".gitconfig", "[alias]\n\tst = status\n")
    git(repository, "config", "include.path", "../.gitconfig")
    push(ws)
    guest.run("git commit -q --allow-empty -m harmless", cwd=inside)
    assert fetch(ws).merged
    (inside / ".gitconfig").write_text(f"[core]\n\tfsmonitor = touch {home}/ran\n")
    guest.run("git commit -qam evil", cwd=inside)
    assert ("your git runs or reads .gitconfig in" in fetch(ws).advice) is on
    git(repository, "status")
    assert (home / "ran").exists() is not on


def test_a_converter_of_the_users_that_lies_in_the_tree_does_not_run(
    guest: Guest, home: Path, repository: Path, ws: Workspace, inside: Path
) -> None:
    for key in ("diff.own.textconv", "diff.own.command", "diff.external"):
        git(repository, "config", key, f"touch {home}/ran; cat")
    (inside / ".gitattributes").write_text("* diff=own\n")
    (inside / "README").write_text("changed\n")
    guest.run("git add . && git commit -q -m convert", cwd=inside)
    assert fetch(ws).merged
    assert not (home / "ran").exists()
    argv = ["git", "-C", str(repository), "diff", "HEAD~"]  # where one asks for the changes alone
    subprocess.run(argv, check=False, capture_output=True)
    assert (home / "ran").exists()


def test_a_fetch_leaves_the_rest_of_the_repository_alone(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    """Not even what the guest's repository has for itself: alternates, hooks, settings, grafts."""
    git(repository, "checkout", "--quiet", "main")
    git(repository, "update-index", "--refresh")
    before = own_files(repository)
    guest.run("git commit -q --allow-empty -m x; git config core.fsmonitor 'touch x'", cwd=inside)
    (inside / ".git/objects/info/alternates").write_text(f"{repository}/.git/objects\n")
    (inside / ".git/objects/info/http-alternates").write_text("http://127.0.0.1:1/objects\n")
    executable(inside / ".git/hooks/post-checkout", "touch ran")
    assert fetch(ws).merged
    assert own_files(repository) == before
    plain_fetch(repository, ws)
    assert own_files(repository) != before


def plain_fetch(repository: Path, ws: Workspace) -> None:
    """What git does that is told nothing."""
    ssh = f"ssh -F {ssh_guest.config(VM)}"
    git(repository, "-c", f"core.sshCommand={ssh}", "fetch", "--quiet", ws.url, f"fix:{ws.ref}")


def own_files(repository: Path) -> dict[str, bytes]:
    """What is in .git besides the branch, the ref of the workspace, their logs and objects."""
    top = repository / ".git"
    files = {str(path.relative_to(top)): path for path in top.rglob("*") if path.is_file()}
    objects = re.compile(r"objects/(..|pack)/")
    named = re.compile(r"refs/(heads/fix|agent-vm/.*)$")
    return {name: path.read_bytes() for name, path in files.items()
            if not objects.match(name) and not named.search(name)}  # fmt: skip


def test_tags_and_other_refs_do_not_come_in(
    *, fetching: bool, guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    git(repository, "tag", "v1")
    git(repository, "config", "fetch.prune", "true")
    git(repository, "config", "fetch.pruneTags", "true")
    before = refs(repository)
    guest.run("git commit -q --allow-empty -m x && git tag main && git tag -f v1", cwd=inside)
    guest.run("git branch other && git update-ref refs/notes/commits HEAD", cwd=inside)
    guest.run("git update-ref refs/agent-vm/in/evil HEAD", cwd=inside)
    fetch(ws)
    new = git(repository, "rev-parse", "fix")
    came = {"refs/heads/fix": new, ws.ref: new}
    came |= {} if fetching else {"refs/tags/main": new}
    assert refs(repository) == {**before, **came}


def refs(repository: Path) -> dict[str, str]:
    listed = git(repository, "for-each-ref", "--format=%(refname) %(objectname)")
    return dict(line.split(" ") for line in listed.splitlines())


@pytest.mark.parametrize("branch_is_here", [True, False])
def test_commits_of_other_branches_are_not_named(
    *,
    fetching: bool,
    guest: Guest,
    repository: Path,
    ws: Workspace,
    inside: Path,
    branch_is_here: bool,
) -> None:
    """The guest's upload-pack listens: an id it learns it could claim as its own and be given."""
    given = git(repository, "rev-list", "fix").splitlines()
    git(repository, "checkout", "--quiet", "-b", "private")
    for number in range(3):
        commit(repository, f"secret{number}")
    if not branch_is_here:
        git(repository, "branch", "--quiet", "-D", "fix")
    executable(guest.home / "bin/git-upload-pack", 'tee -a ~/heard | git upload-pack "$@"')
    guest.run("git commit -q --allow-empty -m x", cwd=inside)
    assert fetch(ws).merged
    heard = (guest.home / "heard").read_bytes().decode("ascii", "replace")
    assert "want " in heard
    named = set(re.findall(r"have ([0-9a-f]{40})", heard))
    assert (named <= set(given)) is fetching
    assert not fetching or bool(named) is branch_is_here


def test_only_the_branch_is_sent(
    on: bool, repository: Path, guest: Guest, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not on:
        monkeypatch.setattr(sync, "_send", send_all)
    private = commit(repository, "secret")
    git(repository, "branch", "private")
    git(repository, "tag", "private")
    git(repository, "reset", "--quiet", "--hard", "HEAD~")
    ws = workspaces.workspace(VM, workspaces.repository(repository), "fix")
    push(ws)
    inside = guest.workspaces / ws.folder
    absent = guest.run(f"git cat-file -e {private} || echo absent", cwd=inside) == "absent"
    assert absent is on


def send_all(ws: Workspace, *_: object) -> Result:
    """What a push from the user's repository by a pattern sends."""
    refs = "+refs/heads/*:refs/agent-vm/in/*"
    return host_git.transfer(ws.repository.path, ws.vm, "push", "--", ws.url, refs)


def test_a_submodule_of_the_guest_is_not_cloned(
    guest: Guest, home: Path, repository: Path, ws: Workspace, inside: Path
) -> None:
    for key in ("submodule.recurse", "fetch.recurseSubmodules"):
        git(home, "config", "--global", key, "true")
    (inside / ".gitmodules").write_text(
        f'[submodule "x"]\n\tpath = x\n\turl = ext::touch {home}/ran\n\tupdate = checkout\n'
    )
    guest.run(
        "git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),x"
        " && git add .gitmodules && git commit -q -m sub",
        cwd=inside,
    )
    assert fetch(ws).merged
    assert not (home / "ran").exists()
    assert not list((repository / ".git").glob("modules/*"))
    allow = ("-c", "protocol.ext.allow=always")
    argv = ["git", "-C", str(repository), *allow, "submodule", "update", "--init"]
    subprocess.run(argv, check=False, capture_output=True)  # as it would where git went on alone
    assert (home / "ran").exists()


def test_the_files_of_a_submodule_stay_whatever_the_guest_points_it_to(
    guest: Guest, home: Path, repository: Path, ws: Workspace, inside: Path
) -> None:
    second = with_submodule(home, repository)
    git(repository / "sub", "checkout", "--quiet", "HEAD~")
    git(repository, "commit", "--quiet", "--all", "--message", "a submodule")
    git(repository, "config", "submodule.recurse", "true")
    push(ws)
    before = git(repository / "sub", "rev-parse", "HEAD")
    for target in (second, before, "1" * 40, second):
        guest.run(f"git update-index --cacheinfo 160000,{target},sub", cwd=inside)
        guest.run("git commit -q -m moved", cwd=inside)
        assert fetch(ws).merged
        assert git(repository / "sub", "rev-parse", "HEAD") == before
        assert not (repository / "sub/second").exists()
    git(repository, "reset", "--quiet", "--hard")  # as it would with git that follows submodules
    assert git(repository / "sub", "rev-parse", "HEAD") == second


def with_submodule(home: Path, repository: Path) -> str:
    """Add a submodule of two commits; the second, which is checked out."""
    make_repository(home / "lib")
    second = commit(home / "lib", "second")
    allow = ("-c", "protocol.file.allow=always")
    git(repository, *allow, "submodule", "--quiet", "add", str(home / "lib"), "sub")
    return second


def test_branches_of_a_submodule_stay_whatever_the_guest_points_it_to(
    guest: Guest, home: Path, repository: Path, ws: Workspace, inside: Path, *, calm: bool
) -> None:
    with_submodule(home, repository)
    git(repository, "commit", "--quiet", "--all", "--message", "a submodule")
    for key in ("submodule.recurse", "submodule.propagateBranches"):
        git(repository, "config", key, "true")
    push(ws)
    git(repository, "-c", "submodule.recurse=false", "checkout", "--quiet", "main")
    before = git(repository / "sub", "for-each-ref")
    guest.run("git commit -q --allow-empty -m x", cwd=inside)
    fetched = fetch(ws)
    assert fetched.merged is calm
    assert ("submodule 'sub'" in fetched.advice) is not calm  # where git has gone
    assert git(repository / "sub", "for-each-ref") == before


def test_a_peer_that_never_answers_ends_with_an_interrupt(
    guest: Guest, repository: Path, ws: Workspace
) -> None:
    executable(guest.home / "bin/git-upload-pack", "touch ~/called; exec sleep 100")
    code = (
        "from pathlib import Path; from agent_vm_tasks import sync, workspaces as w;"
        "sync.fetch(w.workspace('agent-vm', w.repository(Path.cwd()), 'fix'), print)"
    )
    with leading(sys.executable, "-c", code, stderr=subprocess.DEVNULL) as child:
        wait_until((guest.home / "called").exists, "upload-pack was not called")
        assert asking(ws.key)
        os.kill(child.pid, signal.SIGINT)
        assert child.wait(10)
    wait_until(lambda: not asking(ws.key), "ssh still asks")


def asking(key: str) -> list[str]:
    """What of this machine, and not of the guest, fetches from that workspace."""
    listed = subprocess.run(["ps", "-ewwo", "args"], check=True, capture_output=True, text=True)
    return [line for line in listed.stdout.splitlines() if line.startswith("ssh ") and key in line]
