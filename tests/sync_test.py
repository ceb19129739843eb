"""Push and fetch, with real git and ssh."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import process, sync, workspaces
from agent_vm_tasks.errors import AgentVMError

from .clones import at, commit_inside, fetch, new_commit, push, workspace
from .conftest import VM, commit, git, leading, make_repository, wait_until
from .programs import calls, script

if TYPE_CHECKING:
    from pathlib import Path

    from agent_vm_tasks.workspaces import Workspace

    from .conftest import Guest

pytestmark = pytest.mark.usefixtures("warm")


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
    assert sync._origin(repository) == inside


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


def test_a_push_that_was_cut_off_before_the_files_is_taken_up(
    guest: Guest, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, inside = workspace(repository), guest.workspaces / "app-fix"
    (repository / "extra").touch()
    run = ssh_guest.script
    with monkeypatch.context() as patch:
        patch.setattr(
            ssh_guest, "script",
            lambda vm, file, *args, **more: (interrupt if file == "workspace-update.sh" else run)(
                vm, file, *args, **more
            ),
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            sync.push(ws, lambda _line: None, ["extra"])
    assert workspaces.inspect(ws) is None
    with pytest.raises(AgentVMError, match="no workspace of fix in the VM; make it"):
        fetch(ws)
    sync.push(ws, lambda _line: None, ["extra"])
    assert sorted(path.name for path in inside.iterdir()) == [".git", "README", "extra"]


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_push_says_that_it_made_the_branch(guest: Guest, repository: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        sync.push(workspace(repository), said.append)
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


@pytest.mark.parametrize(
    ("command", "state"),
    [
        ("git merge other", "MERGE_HEAD"),
        ("git rebase other", "rebase-merge"),
        ("git rebase --apply other", "rebase-apply"),
        ("git cherry-pick other", "CHERRY_PICK_HEAD"),
        ("git cherry-pick other~ other; git commit -qam both", "sequencer"),
        ("git commit -qam c; git revert HEAD~", "REVERT_HEAD"),
        ("git format-patch -1 --stdout other | git am", "rebase-apply"),
        ("git bisect start HEAD HEAD~", "BISECT_LOG"),
    ],
)
def test_push_leaves_what_goes_on_inside_alone(
    guest: Guest, ws: Workspace, inside: Path, command: str, state: str
) -> None:
    guest.run("git checkout -qb other && echo 1 > README && git commit -qam 1", cwd=inside)
    guest.run("echo 2 > README && git commit -qam 2 && git checkout -q fix", cwd=inside)
    guest.run("echo b > README && git commit -qam b && echo c > README", cwd=inside)
    if "commit -qam c" not in command:
        guest.run("git checkout README", cwd=inside)
    guest.run(command, cwd=inside, check=False)
    before = (inside / "README").read_text(), at(guest, inside, "HEAD")
    new_commit(ws.repository.path, "new")
    assert push(ws) == ("busy", state)
    assert ((inside / "README").read_text(), at(guest, inside, "HEAD")) == before
    assert not (inside / "new").exists()


@pytest.mark.parametrize("lock", ["index.lock", "HEAD.lock", "refs/heads/fix.lock"])
def test_push_leaves_what_is_locked_inside_alone(
    guest: Guest, repository: Path, ws: Workspace, inside: Path, lock: str
) -> None:
    before = at(guest, inside, "HEAD")
    (inside / ".git" / lock).touch()
    new_commit(repository, "new")
    assert push(ws) == ("locked", f".git/{lock}")
    assert (inside / ".git" / lock).exists()
    assert (at(guest, inside, "HEAD"), (inside / "new").exists()) == (before, False)
    assert guest.run("git status --porcelain", cwd=inside) == ""
    (inside / ".git" / lock).unlink()
    assert push(ws) == ("updated", "")


def test_push_says_what_else_keeps_git_inside_from_it(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    before = at(guest, inside, "HEAD")
    (inside / ".git/index").write_text("garbage")
    new_commit(repository, "new")
    outcome, detail = push(ws)
    assert outcome == "refused"
    assert "index file" in detail
    assert (at(guest, inside, "HEAD"), (inside / "new").exists()) == (before, False)


@pytest.mark.parametrize(
    "setting", ["merge.autoStash true", "merge.verifySignatures true", "merge.ff false"]
)
def test_settings_inside_do_not_change_what_a_push_does(
    guest: Guest, repository: Path, ws: Workspace, inside: Path, setting: str
) -> None:
    guest.run(f"git config {setting}", cwd=inside)
    new_commit(repository, "new")
    assert push(ws) == ("updated", "")
    (inside / "README").write_text("edited inside\n")
    new_commit(repository, "README")
    assert push(ws) == ("blocked", "README")
    assert (inside / "README").read_text() == "edited inside\n"
    assert guest.run("git stash list", cwd=inside) == ""


@pytest.mark.parametrize("state", ["-b other", "--orphan other", "--detach"])
def test_push_leaves_another_checkout_alone(
    guest: Guest, ws: Workspace, inside: Path, state: str
) -> None:
    guest.run(f"git checkout -q {state}", cwd=inside)
    told = "other" if "other" in state else at(guest, inside, "HEAD")
    before = guest.run("git status --porcelain", cwd=inside)
    made = new_commit(ws.repository.path, "new")
    assert push(ws) == ("elsewhere", told)
    assert not (inside / "new").exists()
    assert guest.run("git status --porcelain", cwd=inside) == before
    assert at(guest, inside, "refs/agent-vm/in/fix") == made


@pytest.mark.parametrize("command", ["git update-ref -d HEAD", "git pack-refs --all"])
@pytest.mark.parametrize("file", ["README", "new"])
def test_push_leaves_the_files_of_a_branch_deleted_inside(
    guest: Guest, ws: Workspace, inside: Path, command: str, file: str
) -> None:
    """Its files are all as if new, so a checkout would be free to write over ignored ones."""
    (inside / ".git/info/exclude").write_text("new\n")
    guest.run(command, cwd=inside)
    new_commit(ws.repository.path, "other")
    new_commit(ws.repository.path, file)
    (inside / file).write_text("work of the agent\n")
    outcome, detail = push(ws)
    assert (inside / file).read_text() == "work of the agent\n"
    if "pack" in command:
        assert (outcome, detail) == ("blocked", file)
        return
    assert (outcome, detail) == ("gone", "")
    assert not (inside / "other").exists()
    guest.run("git branch fix refs/agent-vm/in/fix", cwd=inside)
    assert (inside / file).read_text() == "work of the agent\n"
    assert push(ws) == ("current", "")


@pytest.mark.parametrize(("target", "told"), [("fix", ""), ("other", "other")])
def test_push_takes_a_head_that_is_a_link(
    guest: Guest, ws: Workspace, inside: Path, target: str, told: str
) -> None:
    """The form of old versions of git."""
    guest.run("git branch other", cwd=inside)
    (inside / ".git/HEAD").unlink()
    (inside / ".git/HEAD").symlink_to(f"refs/heads/{target}")
    new_commit(ws.repository.path, "new")
    assert push(ws) == ("elsewhere" if told else "updated", told)
    assert (inside / "new").exists() is not bool(told)


@pytest.mark.parametrize("head", ["rubbish", "link", "folder", "gone", "no .git"])
def test_push_tells_of_a_workspace_that_git_cannot_use(
    guest: Guest, ws: Workspace, inside: Path, head: str
) -> None:
    (inside / "work").write_text("work of the agent\n")
    (inside / ".git/HEAD").unlink()
    if head == "rubbish":
        (inside / ".git/HEAD").write_text("rubbish\n")
    elif head == "link":
        (inside / ".git/HEAD").symlink_to("/etc/hostname")
    elif head == "folder":
        (inside / ".git/HEAD").mkdir()
    elif head == "no .git":
        (inside / ".git").rename(inside / "git")
    with pytest.raises(AgentVMError, match=r"workspace/app-fix has lost its .git.*save its files"):
        push(ws)
    assert (inside / "work").read_text() == "work of the agent\n"


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


@pytest.mark.parametrize(
    "setting",
    [
        "push.pushOption=ci.skip",
        "push.gpgSign=true",
        "push.default=nothing",
        "remote.pushDefault=nowhere",
        "branch.fix.pushRemote=nowhere",
        "url./nowhere/.insteadOf=agent-vm:",
        "url./nowhere/.pushInsteadOf=agent-vm:",
        "core.sshCommand=false",
        "core.hooksPath=.husky",
        "push.recurseSubmodules=check",
        "push.recurseSubmodules=on-demand",
        "push.recurseSubmodules=only",
        "submodule.recurse=true",
    ],
)
def test_the_repositorys_settings_for_pushes_elsewhere_do_not_count(
    guest: Guest, repository: Path, home: Path, setting: str
) -> None:
    """Its submodule has a commit that is nowhere else, its hook says no."""
    make_repository(home / "lib")
    git(home / "lib", "checkout", "--quiet", "-b", "away")
    allow = ("-c", "protocol.file.allow=always")
    git(repository, *allow, "submodule", "--quiet", "add", "-b", "main", str(home / "lib"), "sub")
    commit(repository / "sub", "own")
    (repository / ".husky").mkdir()
    (repository / ".husky/pre-push").write_text(f"#!/bin/sh\ntouch {home}/ran; exit 1\n")
    (repository / ".husky/pre-push").chmod(0o755)
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "a submodule")
    git(repository, "config", *setting.split("=", 1))
    before = git(home / "lib", "for-each-ref")
    assert push(workspace(repository)) == ("updated", "")
    assert (guest.workspaces / "app-fix/.gitmodules").exists()
    assert git(home / "lib", "for-each-ref") == before
    assert not (home / "ran").exists()


def test_files_of_git_lfs_are_not_uploaded(
    guest: Guest, home: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bin_folder = home / "bin"
    bin_folder.mkdir()
    script(bin_folder, "git-lfs", "cat")
    monkeypatch.setenv("PATH", f"{bin_folder}:{os.environ['PATH']}")
    git(repository, "config", "filter.lfs.clean", "git-lfs clean")
    commit(repository, ".gitattributes", "*.bin filter=lfs\n")
    commit(repository, "a.bin")
    hook = repository / ".git/hooks/pre-push"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text('#!/bin/sh\ngit lfs pre-push "$@"\n')
    hook.chmod(0o755)
    assert push(workspace(repository)) == ("updated", "")
    assert (guest.workspaces / "app-fix/a.bin").exists()
    assert {call.split()[1] for call in calls(bin_folder)} == {"clean"}


def test_tags_of_what_is_sent_come_along(guest: Guest, repository: Path, home: Path) -> None:
    git(repository, "tag", "light")
    git(repository, "tag", "--annotate", "--message", "one", "v1")
    git(repository, "tag", "--annotate", "--message", "two", "signed-off", "v1")
    git(repository, "tag", "tree", "HEAD^{tree}")
    git(repository, "checkout", "--quiet", "-b", "private")
    private = commit(repository, "secret")
    git(repository, "tag", "--annotate", "--message", "secret", "later")
    git(repository, "checkout", "--quiet", "main")
    commit(repository, "second")
    push(workspace(repository))
    inside = guest.workspaces / "app-fix"
    assert guest.run("git tag", cwd=inside).split() == ["light", "signed-off", "v1"]
    assert guest.run("git describe", cwd=inside) == git(repository, "describe")
    assert guest.run("git tag -l --format='%(subject)' v1", cwd=inside) == "one"
    assert guest.run(f"git cat-file -e {private} || echo absent", cwd=inside) == "absent"


def test_a_new_tag_comes_without_new_commits(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    git(repository, "tag", "v1")
    assert push(ws) == ("current", "")
    assert at(guest, inside, "v1") == git(repository, "rev-parse", "v1")


def test_a_tag_that_is_another_one_inside_stays_and_stops_nothing(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    theirs = commit_inside(guest, inside)
    guest.run("git tag v1 && git tag v2 && git reset -q --hard HEAD~", cwd=inside)
    made = new_commit(repository, "new")
    for tag in ("v1", "v2/x", "v3"):
        git(repository, "tag", tag, "fix")
    assert push(ws) == ("updated", "")
    tags = guest.run("git for-each-ref --format='%(refname) %(objectname)' refs/tags", cwd=inside)
    assert dict(line.split() for line in tags.splitlines()) == {
        "refs/tags/v1": theirs, "refs/tags/v2": theirs, "refs/tags/v3": made,
    }  # fmt: skip
    assert git(repository, "rev-parse", "v1") == made


def test_only_the_newest_tags_are_sent(
    guest: Guest, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "MOST_TAGS", 2)
    for name, year in (("c", 2020), ("a", 2022), ("b", 2021)):
        monkeypatch.setenv("GIT_COMMITTER_DATE", f"{year}-01-01T00:00:00Z")
        git(repository, "tag", "--annotate", "--message", name, name)
    push(workspace(repository))
    assert guest.run("git tag", cwd=guest.workspaces / "app-fix").split() == ["a", "b"]


def test_tags_that_cannot_be_sent_stop_nothing(guest: Guest, repository: Path) -> None:
    git(repository, "tag", "good")
    subprocess.run([b"git", b"tag", b"v\xff"], cwd=repository, check=True)
    (repository / ".git/refs/tags/bad").write_text("0123456789" * 4 + "\n")
    assert push(workspace(repository))[0] == "updated"
    assert guest.run("git tag", cwd=guest.workspaces / "app-fix") == "good"


def test_a_tag_of_replaced_history_stays_home(guest: Guest, repository: Path) -> None:
    git(repository, "checkout", "--quiet", "--orphan", "private")
    private = commit(repository, "secret")
    git(repository, "tag", "secret")
    git(repository, "checkout", "--quiet", "main")
    git(repository, "replace", "--graft", "main", "private")
    push(workspace(repository))
    inside = guest.workspaces / "app-fix"
    assert guest.run("git tag", cwd=inside) == ""
    assert guest.run(f"git cat-file -e {private} || echo absent", cwd=inside) == "absent"


def test_tags_that_arrive_do_not_hide_that_the_branch_did_not(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    hook = inside / ".git/hooks/update"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ncase $1 in refs/tags/*) ;; *) exit 1 ;; esac\n")
    hook.chmod(0o755)
    new_commit(repository, "new")
    git(repository, "tag", "v1")
    with pytest.raises(AgentVMError, match="pushing fix failed: remote: error: hook declined"):
        push(ws)
    assert guest.run("git tag", cwd=inside) == "v1"
    assert not (inside / "new").exists()


def test_branch_and_tags_go_over_one_connection(
    guest: Guest, repository: Path, ws: Workspace
) -> None:
    (guest.home / "bin").mkdir()
    script(guest.home / "bin", "git-receive-pack", 'exec git receive-pack "$@"')
    script(guest.home / "bin", "bash", 'exec /bin/bash "$@"')
    new_commit(repository, "new")
    git(repository, "tag", "v1")
    assert push(ws) == ("updated", "")
    asked = [call.split()[0] for call in calls(guest.home / "bin") if " -c " not in call]
    assert asked == ["git-receive-pack", "bash"]


def test_a_small_push_shows_no_progress(repository: Path, ws: Workspace) -> None:
    new_commit(repository, "new")
    said: list[str] = []
    sync.push(ws, said.append)
    assert said == []


def test_a_push_that_takes_long_shows_gits_progress(
    guest: Guest, repository: Path, ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WATCH", 0.05)
    (guest.home / "bin").mkdir()
    script(guest.home / "bin", "git-receive-pack", 'git receive-pack "$@"; sleep 1')
    new_commit(repository, "new")
    said: list[str] = []
    sync.push(ws, said.append)
    assert re.fullmatch(PROGRESS, said[-2])
    assert said[-1] == "\r"


def test_a_fetch_that_takes_long_shows_gits_progress(
    guest: Guest, ws: Workspace, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WATCH", 0.05)
    (guest.home / "bin").mkdir()
    script(guest.home / "bin", "git-upload-pack", 'git upload-pack "$@"; sleep 1')
    commit_inside(guest, inside)
    said: list[str] = []
    sync.fetch(ws, said.append)
    assert re.fullmatch(PROGRESS, said[-3])
    assert said[-2:] == ["\r", "fetched 1 commit"]


PROGRESS = r"(remote: )?[A-Z][a-z ]+: +100% \(\d+/\d+\).*\r"
CUT = 'head -c 100000 | git receive-pack "$@"'
STALLED = (
    "{ head -c 100000; touch ~/stalled; sh -c 'echo $$ > ~/pid; exec sleep 100'; }"
    ' | git receive-pack "$@"'
)
PUSHES = (
    "from pathlib import Path; from agent_vm_tasks import sync, workspaces as w;"
    "sync.push(w.workspace('agent-vm', w.repository(Path.cwd()), 'fix'), print)"
)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL, "cut"])
def test_a_push_that_was_cut_off_changes_nothing_and_the_next_one_works(
    guest: Guest, repository: Path, ws: Workspace, inside: Path, end: signal.Signals | str
) -> None:
    before = guest.run("git for-each-ref", cwd=inside)
    git(repository, "checkout", "--quiet", "fix")
    (repository / "large").write_bytes(os.urandom(1_000_000))
    git(repository, "add", "large")
    git(repository, "commit", "--quiet", "--message", "large")
    (guest.home / "bin").mkdir()
    script(guest.home / "bin", "git-receive-pack", CUT if end == "cut" else STALLED)
    with leading(sys.executable, "-c", PUSHES, stderr=subprocess.DEVNULL) as child:
        if isinstance(end, signal.Signals):
            wait_until((guest.home / "stalled").exists, "nothing was sent")
            child.send_signal(end)
        assert child.wait(20) != 0
    assert guest.run("git for-each-ref", cwd=inside) == before
    assert guest.run("git status --porcelain", cwd=inside) == ""
    (guest.home / "bin/git-receive-pack").unlink()
    assert push(ws) == ("updated", "")
    assert (inside / "large").stat().st_size == 1_000_000
    if end != "cut":
        os.kill(int((guest.home / "pid").read_text()), signal.SIGKILL)
    wait_until(lambda: not rest_after_prune(guest, inside), "git does not tidy it up")


def rest_after_prune(guest: Guest, inside: Path) -> list[Path]:
    """What of an unfinished push is left in a workspace once git has tidied up."""
    guest.run("git prune --expire=now", cwd=inside)
    return list((inside / ".git/objects").rglob("*tmp*"))


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
    sync.ensure_branch(ws, lambda _line: None)
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
    look = f"sleep 0.5; ls {guest.workspaces} > {guest.home}/seen"
    with subprocess.Popen(["flock", guest.home / ".agent-vm/lock", "sh", "-c", look]) as other:
        time.sleep(0.1)
        assert push(ws)[0] in {"current", "updated"}
        assert other.poll() == 0
    assert (guest.home / "seen").read_text().split() == [ws.folder] * there


# Fetch


def test_fetch_forwards_a_branch_that_is_not_checked_out(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    made = commit_inside(guest, inside)
    said: list[str] = []
    fetched, contents = sync.fetch(ws, said.append)
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
    fetched, _ = sync.fetch(ws, said.append)
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


ELSEWHERE = "git switch -q main; git worktree add -q ../tree fix; "
HERE = {
    "changed": "echo mine > README",
    "staged": "echo mine > README; git add README",
    "its index is locked": "touch .git/index.lock",
    "its index is broken": "echo garbage > .git/index",
    "a file is in the way": "echo mine > work",
    "an ignored file is in the way": "echo mine > work; echo work > .git/info/exclude",
    "a merge goes on": "git merge -q --no-commit other || true",
    "a rebase goes on": "git rebase -q other || true",
    "a bisection goes on": "git bisect start; git bisect bad; git bisect good HEAD~3",
    "diverged": "git commit -q --allow-empty -m mine",
    "another worktree, changed": ELSEWHERE + "echo mine > ../tree/README",
    "another worktree, its index locked": ELSEWHERE + "touch .git/worktrees/tree/index.lock",
}


@pytest.mark.parametrize("state", HERE)
def test_where_the_branch_cannot_move_the_work_arrives_and_nothing_else_changes(
    guest: Guest, home: Path, ws: Workspace, inside: Path, state: str
) -> None:
    repository = ws.repository.path
    git(repository, "switch", "--quiet", "--create", "other")
    commit(repository, "README", "of the other\n")
    git(repository, "switch", "--quiet", "fix")
    for number in range(3):
        commit(repository, "README", f"of fix {number}\n")
    push(ws)
    made = commit_inside(guest, inside)
    subprocess.run(["bash", "-c", HERE[state]], check=True, cwd=repository, capture_output=True)
    os.utime(repository / "README", (0, 0))  # git would note in the index that it has not changed
    before = everything(home / "src")
    fetched, _ = fetch(ws)
    assert everything(home / "src") == before
    assert not fetched.merged
    assert fetched.ref == ws.ref
    assert ws.ref in fetched.advice or "index file" in fetched.advice
    assert git(repository, "for-each-ref", "--format=%(objectname)", ws.ref) == made


def everything(folder: Path) -> dict[str, bytes]:
    """All files, those of git included, but for what a fetch is to bring and a merge's old HEAD."""
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    new = ("/.git/objects/", "/refs/agent-vm/", "/ORIG_HEAD")
    return {name: path.read_bytes() for name, path in files.items()
            if not any(part in f"/{name}" for part in new)}  # fmt: skip


def test_a_locked_index_is_named(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    git(repository, "checkout", "--quiet", "fix")
    commit_inside(guest, inside)
    lock = repository / ".git/index.lock"
    lock.touch()
    assert f"Unable to create '{lock}': File exists" in fetch(ws)[0].advice
    lock.unlink()
    assert fetch(ws)[0].merged


def test_a_file_that_is_in_the_way_is_named(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    git(repository, "checkout", "--quiet", "fix")
    commit_inside(guest, inside)
    (repository / "work").touch()
    assert "would be overwritten by merge: work; then" in fetch(ws)[0].advice


def test_what_was_fetched_stays_in_reach_when_the_guest_rewrites_it(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    seen = []
    for number in range(3):
        guest.run(f"git commit -q --amend --allow-empty -m {number}", cwd=inside)
        fetched, _ = fetch(ws)
        seen.append(at(guest, inside, "HEAD"))
        assert fetched.earlier == (ws.earlier(seen[number - 1]) if number else "")
    git(repository, "branch", "--quiet", "-D", "fix")
    git(repository, "reflog", "expire", "--expire=now", "--expire-unreachable=now", "--all")
    git(repository, "gc", "--quiet", "--prune=now")
    for commit_ in seen:
        assert git(repository, "cat-file", "-t", commit_) == "commit"
    assert git(repository, "rev-parse", ws.earlier(seen[0])) == seen[0]


def test_a_fetch_that_adds_keeps_no_second_ref(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    for message in ("one", "two"):
        guest.run(f"git commit -q --allow-empty -m {message}", cwd=inside)
        assert fetch(ws)[0].earlier == ""
    listed = git(repository, "for-each-ref", "--format=%(refname)").splitlines()
    assert listed == [ws.ref, "refs/heads/fix", "refs/heads/main"]


def test_work_arrives_also_from_a_workspace_that_cannot_be_looked_at(
    guest: Guest, repository: Path, ws: Workspace, inside: Path
) -> None:
    made = commit_inside(guest, inside)
    (inside / ".git/index").write_text("garbage")
    fetched, contents = fetch(ws)
    assert fetched.merged
    assert git(repository, "rev-parse", "fix") == made
    (said,) = contents.losses
    assert said.startswith("contents that could not be looked at: ")


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
    assert fetch(ws)[1].losses == ["1 commit on no branch"]
    assert workspaces.inventory(VM)[0].losses == ["1 commit not fetched (1 on no branch)"]


def test_fetch_without_a_workspace(guest: Guest, repository: Path) -> None:
    git(repository, "branch", "fix")
    with pytest.raises(AgentVMError, match="no workspace of fix in the VM; make it with"):
        fetch(workspace(repository))


def test_fetch_of_a_branch_deleted_inside(guest: Guest, ws: Workspace, inside: Path) -> None:
    guest.run("git checkout -q --detach && git branch -qD fix", cwd=inside)
    with pytest.raises(AgentVMError, match="fetching fix failed: error: no such remote ref"):
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


def test_a_fetch_that_was_cut_off_is_told_of_by_the_next(
    guest: Guest, ws: Workspace, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(inside, ".envrc")
    with monkeypatch.context() as patch:
        patch.setattr(sync, "_forward", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch(ws)
    told, _ = fetch(ws)
    assert told.merged
    assert told.runs == (".envrc (the shell that enters the folder)",)
    assert fetch(ws)[0].runs == ()
