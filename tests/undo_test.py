"""What is kept of deleted workspaces, with real git and ssh."""

from __future__ import annotations

import json
import os
import resource
import shutil
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import state, sync, undo, workspaces
from agent_vm_tasks.errors import AgentVMError

from .conftest import VM, commit
from .programs import script

if TYPE_CHECKING:
    from pathlib import Path

    from agent_vm_tasks.workspaces import Workspace

    from .conftest import Guest

DAYS = 14

pytestmark = pytest.mark.usefixtures("warm")


def delete(days: int = DAYS) -> list[undo.Kept]:
    rows = workspaces.inventory(VM)
    kept = undo.keep(VM, rows, undo.weigh(VM, rows), days, print)
    workspaces.remove(VM, [row.folder for row in rows])
    return kept


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def there(guest: Guest) -> list[Path]:
    return list(guest.workspaces.iterdir())


def archives() -> list[Path]:
    return list((state.folder(VM) / "undo").glob("*/workspace.tar"))


def test_a_deleted_workspace_comes_back_as_it_was(guest: Guest, inside: Path) -> None:
    commit(inside, "committed")
    (inside / "README").write_text("changed\n")
    (inside / "new file\n").write_text("untracked\n")
    (inside / "run").write_text("#!/bin/sh\n")
    (inside / "run").chmod(0o755)
    guest.run("echo /built > .gitignore; mkdir built; echo 1 > built/a", cwd=inside)
    guest.run("git add README; echo more >> README; ln -s README link", cwd=inside)
    guest.run("git checkout -qb other; git init -q nested; echo 1 > nested/x", cwd=inside)
    before, status = files(inside), guest.run("git status --porcelain=v2 --branch", cwd=inside)
    (kept,) = delete()
    assert there(guest) == []
    undo.restore(VM, undo.find(VM, kept.id))
    assert files(inside) == before
    assert guest.run("git status --porcelain=v2 --branch", cwd=inside) == status
    assert os.access(inside / "run", os.X_OK)
    assert (inside / "link").readlink().name == "README"


def test_stashes_and_a_merge_that_goes_on_come_back(guest: Guest, inside: Path) -> None:
    guest.run("echo 1 > README; git stash -q; git checkout -qb a; echo a > README", cwd=inside)
    guest.run("git commit -qam a; git checkout -q fix; echo b > README", cwd=inside)
    guest.run("git commit -qam b; git merge -q a || true", cwd=inside)
    (kept,) = delete()
    undo.restore(VM, kept)
    assert guest.run("git stash list | wc -l", cwd=inside) == "1"
    assert guest.run("git rev-parse -q --verify MERGE_HEAD", cwd=inside)


def test_a_workspace_that_is_back_can_be_pushed_to_and_fetched(
    guest: Guest, ws: Workspace, inside: Path, repository: Path
) -> None:
    made = commit(inside, "work")
    (kept,) = delete()
    undo.restore(VM, kept)
    fetched, _ = sync.fetch(ws, print)
    assert fetched.commits == 1
    assert sync.push(ws, print).outcome == "current"
    assert guest.run("git rev-parse HEAD", cwd=inside) == made


def test_what_the_host_has_all_of_is_not_kept(guest: Guest, inside: Path) -> None:
    assert delete() == []
    assert archives() == []


def test_a_file_that_git_ignores_is_kept(guest: Guest, inside: Path) -> None:
    guest.run("echo .env > .git/info/exclude; echo KEY=1 > .env", cwd=inside)
    (kept,) = delete()
    assert kept.lost == ()
    undo.restore(VM, kept)
    assert (inside / ".env").read_text() == "KEY=1\n"


@pytest.mark.parametrize("kind", ["untracked", "ignored"])
def test_too_large_files_are_named_and_left_out(
    guest: Guest, inside: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(undo, "LARGEST_EXTRA", 2**20)
    if kind == "ignored":
        guest.run("echo /large > .git/info/exclude", cwd=inside)
    (inside / "README").write_text("changed\n")
    (inside / "large").mkdir()
    for name in ("a", "b"):
        (inside / "large" / name).write_bytes(bytes(2**20))
    rows = workspaces.inventory(VM)
    told = undo.losses(rows, undo.weigh(VM, rows))
    assert any(f"{kind} files, for good: 2 MiB are not kept" in line for line in told)
    (kept,) = delete()
    undo.restore(VM, kept)
    assert (inside / "README").read_text() == "changed\n"
    assert not (inside / "large").exists()


def test_a_folder_that_lost_its_git_is_kept_too(guest: Guest, inside: Path) -> None:
    guest.run("rm -rf .git; echo mine > notes", cwd=inside)
    (kept,) = delete()
    undo.restore(VM, kept)
    assert (inside / "notes").read_text() == "mine\n"


INNER = {
    "a submodule's commits": (
        "git -C sub commit -q --allow-empty -m x; git add sub; git commit -qm moved",
        "1 commit in submodules or other repositories inside",
    ),
    "those of one that is not checked out": (
        "git -C sub commit -q --allow-empty -m x; git add sub; git commit -qm moved;"
        " git submodule --quiet deinit --force sub",
        "1 commit in submodules or other repositories inside",
    ),
    "a submodule's stash": (
        "cd sub; echo 1 > README; git stash -q",
        "2 commits in submodules or other repositories inside",
    ),
    "what a submodule ignores": (
        "echo .env > .git/modules/sub/info/exclude; echo KEY=1 > sub/.env",
        "1 file that its git does not look at",
    ),
    "a repository that was added": (
        "git init -q own; git -C own commit -q --allow-empty -m x;"
        " git add own 2> /dev/null; git commit -qm own",
        "1 commit in submodules or other repositories inside",
    ),
    "changes that git shall not see": (
        "git update-index --skip-worktree README; echo mine > README",
        "1 file that its git does not look at",
    ),
    "changes that git shall assume away": (
        "git update-index --assume-unchanged README; echo mine > README",
        "1 file that its git does not look at",
    ),
}


@pytest.mark.parametrize("fields", [0, 5, 7, 12])
def test_a_strange_weight_is_an_error(
    guest: Guest, inside: Path, monkeypatch: pytest.MonkeyPatch, fields: int
) -> None:
    rows = workspaces.inventory(VM)
    monkeypatch.setattr(ssh_guest, "script", lambda *_, **__: ["1"] * fields)
    with pytest.raises(AgentVMError, match="strange answer"):
        undo.weigh(VM, rows)


@pytest.mark.parametrize("what", INNER)
def test_what_its_own_git_does_not_show_is_told_and_kept(
    guest: Guest, ws: Workspace, inside: Path, what: str
) -> None:
    guest.run("git init -q lib; git -C lib commit -q --allow-empty -m lib; touch lib/README")
    guest.run("git -C lib add .; git -C lib commit -qm lib")
    guest.run(
        "git -c protocol.file.allow=always submodule --quiet add ~/lib sub; git commit -qm sub",
        cwd=inside,
    )
    command, told = INNER[what]
    sync.fetch(ws, print)
    assert (weights := undo.weigh(VM, workspaces.inventory(VM)))["app-fix"].losses == []
    assert not weights["app-fix"].extra
    guest.run(command, cwd=inside)
    sync.fetch(ws, print)
    rows = workspaces.inventory(VM)
    assert undo.losses(rows, undo.weigh(VM, rows)) == [f"app-fix: {told}"]
    before = files(inside)
    (kept,) = delete()
    undo.restore(VM, kept)
    assert files(inside) == before


@pytest.mark.parametrize("command", ["ls-files", "--git-dir"])
def test_what_cannot_be_weighed_is_told_and_kept(guest: Guest, inside: Path, command: str) -> None:
    guest.run("git init -q own; git -C own commit -q --allow-empty -m x", cwd=inside)
    guest.run("git add own 2> /dev/null; git commit -qm own", cwd=inside)
    (guest.home / "bin").mkdir()
    body = f'case "$*" in *{command}*) exit 1 ;; esac; PATH=${{PATH#*:}}; exec git "$@"'
    script(guest.home / "bin", "git", body)
    rows = workspaces.inventory(VM)
    assert undo.losses(rows, undo.weigh(VM, rows)) == [
        "app-fix: 1 commit not fetched",
        "app-fix: contents that could not be looked at",
    ]
    (kept,) = delete()
    undo.restore(VM, kept)
    assert (inside / "own").is_dir()


def test_an_unreadable_workspace_is_kept_though_nothing_seems_lost(
    guest: Guest, inside: Path
) -> None:
    (guest.home / "bin").mkdir()
    body = 'case "$*" in *--others*) exit 1 ;; esac; PATH=${PATH#*:}; exec git "$@"'
    script(guest.home / "bin", "git", body)
    assert [row.losses for row in workspaces.inventory(VM)] == [[]]
    assert len(delete()) == 1


@pytest.mark.parametrize("broken", ["index", "HEAD", "objects", "config"])
def test_a_broken_repository_is_kept(guest: Guest, inside: Path, broken: str) -> None:
    commit(inside, "work")
    guest.run(f"rm -rf .git/{broken}; echo garbage > .git/{broken}", cwd=inside)
    assert [row.losses for row in workspaces.inventory(VM)] == [
        ["contents that could not be looked at"]
    ]
    before = files(inside)
    (kept,) = delete()
    undo.restore(VM, kept)
    assert files(inside) == before


def test_nothing_is_kept_for_no_days(guest: Guest, inside: Path) -> None:
    commit(inside, "work")
    assert delete(days=0) == []
    assert archives() == []


def test_a_copy_beyond_the_limit_stops_the_deletion(
    guest: Guest, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(inside, "work")
    monkeypatch.setattr(undo, "LARGEST", 4096)
    said = "nothing was deleted, because no copy of app-fix could be kept: it is too large"
    with pytest.raises(AgentVMError, match=said):
        delete()
    assert (inside / "work").exists()
    assert archives() == []


def test_one_that_cannot_be_kept_stops_the_deletion_of_all(
    guest: Guest, inside: Path, repository: Path
) -> None:
    other = workspaces.workspace(VM, workspaces.repository(repository), "other")
    sync.push(other, print)
    for folder in (inside, guest.workspaces / other.folder):
        commit(folder, "work")
    (guest.home / "bin").mkdir()
    script(guest.home / "bin", "sudo", "exit 1")
    body = 'case $PWD in *-other) exit 2 ;; esac; PATH=${PATH#*:}; exec tar "$@"'
    script(guest.home / "bin", "tar", body)
    with pytest.raises(AgentVMError, match="no copy of app-other could be kept"):
        delete()
    assert (inside / "work").exists()
    assert (guest.workspaces / other.folder / "work").exists()
    assert undo.listed(VM) == []
    assert archives() == []


def test_a_full_disk_of_this_host_stops_the_deletion(guest: Guest, inside: Path) -> None:
    (inside / "work").write_bytes(os.urandom(2**20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, limits[1]))
    try:
        with pytest.raises(AgentVMError) as caught:
            delete()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value) == (
        "nothing was deleted, because no copy of app-fix could be kept: File too large; "
        "delete inside the VM what is not wanted, or make room on this machine"
    )
    assert (inside / "work").exists()
    assert archives() == []


def test_a_copy_does_not_fill_this_hosts_disk(
    guest: Guest, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(inside, "work")
    usage = shutil.disk_usage(inside)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=8192))
    with pytest.raises(AgentVMError, match="could be kept: it is too large"):
        delete()
    assert (inside / "work").exists()


def test_what_a_link_leads_to_is_not_copied(guest: Guest, inside: Path) -> None:
    (guest.home / "private").mkdir()
    (guest.workspaces / "link").symlink_to(guest.home / "private")
    with pytest.raises(AgentVMError, match=f"link is a link in the VM, to {guest.home}/private"):
        delete()
    assert archives() == []


def test_a_packing_that_dies_stops_the_deletion(guest: Guest, inside: Path) -> None:
    commit(inside, "work")
    (guest.home / "bin").mkdir()
    script(guest.home / "bin", "sudo", "exit 1")
    script(guest.home / "bin", "tar", "kill -9 $PPID")
    with pytest.raises(AgentVMError, match="nothing was deleted"):
        delete()
    assert (inside / "work").exists()
    assert archives() == []


def test_an_end_that_is_missing_is_noticed(
    guest: Guest, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(inside, "work")
    monkeypatch.setattr(ssh_guest, "receive", lambda *_a, into, **_k: into.write(b"half"))
    with pytest.raises(AgentVMError, match="the copy was cut short"):
        delete()


def test_an_interrupt_leaves_no_half_of_a_copy(
    guest: Guest, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    commit(inside, "work")
    monkeypatch.setattr(ssh_guest, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        delete()
    assert (inside / "work").exists()
    assert list((state.folder(VM) / "undo").iterdir()) == []


def test_a_workspace_that_was_made_again_is_not_overwritten(
    guest: Guest, ws: Workspace, inside: Path
) -> None:
    commit(inside, "work")
    (kept,) = delete()
    sync.push(ws, print)
    (inside / "later").write_text("later\n")
    with pytest.raises(AgentVMError, match="there is a workspace app-fix again"):
        undo.restore(VM, kept)
    assert (inside / "later").read_text() == "later\n"
    assert len(archives()) == 1


def test_one_that_is_back_is_nobody_elses(guest: Guest, ws: Workspace, inside: Path) -> None:
    (inside / "new").touch()
    (kept,) = delete()
    gone = guest.home / ".agent-vm/workspaces/0123456789abcdef"
    gone.symlink_to(f"../../workspace/{ws.folder}")
    undo.restore(VM, kept)
    assert (guest.home / ws.path / "new").exists()
    assert not gone.exists()


def test_the_newest_copy_of_a_folder_is_found(guest: Guest, ws: Workspace, inside: Path) -> None:
    commit(inside, "one")
    (first,) = delete()
    sync.push(ws, print)
    commit(inside, "two")
    (second,) = delete()
    assert first.id != second.id
    assert undo.find(VM, "app-fix") == second
    assert undo.find(VM, first.id) == first
    with pytest.raises(AgentVMError, match="nothing is kept under 'x'"):
        undo.find(VM, "x")


def test_copies_of_the_same_moment_leave_each_other_alone(
    guest: Guest, ws: Workspace, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Stopped:
            return cls(2026, 1, 2, 3, 4, 5, 999_000, tz)

    monkeypatch.setattr(undo, "datetime", Stopped)
    for number in range(3):
        commit(inside, str(number))
        (kept,) = delete()
        undo.restore(VM, kept)
    assert len(undo.listed(VM)) == len(archives()) == 3
    assert undo.find(VM, ws.folder) == kept


@pytest.mark.parametrize("wanted", ["..", "../..", ".", "", "/", "*", "../undo", "workspace.tar"])
def test_only_what_is_listed_can_be_named(guest: Guest, inside: Path, wanted: str) -> None:
    commit(inside, "work")
    delete()
    with pytest.raises(AgentVMError, match="nothing is kept under"):
        undo.find(VM, wanted)


def test_copies_are_forgotten_when_their_time_is_over(guest: Guest, inside: Path) -> None:
    commit(inside, "work")
    (kept,) = delete()
    undo.expire(VM, DAYS)
    assert undo.listed(VM) == [kept]
    facts = state.folder(VM) / "undo" / kept.id / "kept.json"
    old = datetime.now(UTC) - timedelta(days=DAYS, minutes=1)
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "made": old.isoformat()}))
    undo.expire(VM, DAYS)
    assert undo.listed(VM) == []
    assert archives() == []


def test_copies_are_private(guest: Guest, inside: Path) -> None:
    commit(inside, "work")
    delete()
    (archive,) = archives()
    assert archive.parent.stat().st_mode & 0o077 == 0


def test_a_damaged_list_does_not_hide_the_rest(guest: Guest, inside: Path) -> None:
    commit(inside, "work")
    (kept,) = delete()
    odd = state.folder(VM) / "undo" / "20260101-000000"
    odd.mkdir()
    (odd / "kept.json").write_text('{"id"')
    assert undo.listed(VM) == [kept]
