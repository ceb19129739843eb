"""What is kept of deleted workspaces, with real git and ssh."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import state, undo, workspaces
from agent_vm_tasks.errors import AgentVMError

from .conftest import VM, commit
from .programs import script

if TYPE_CHECKING:
    from pathlib import Path

    from agent_vm_tasks.workspaces import Workspace

    from .conftest import Guest

DAYS = 14


@pytest.fixture
def guest(guest: Guest, warm: None) -> Guest:
    return guest


@pytest.fixture
def ws(guest: Guest, repository: Path) -> Workspace:
    made = workspaces.workspace(VM, workspaces.repository(repository), "fix")
    workspaces.push(made, print)
    return made


@pytest.fixture
def inside(guest: Guest, ws: Workspace) -> Path:
    return guest.workspaces / ws.folder


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
    fetched, _ = workspaces.fetch(ws, print)
    assert fetched.commits == 1
    assert workspaces.push(ws, print).outcome == "current"
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


def test_a_workspace_that_was_made_again_is_not_overwritten(
    guest: Guest, ws: Workspace, inside: Path
) -> None:
    commit(inside, "work")
    (kept,) = delete()
    workspaces.push(ws, print)
    (inside / "later").write_text("later\n")
    with pytest.raises(AgentVMError, match="there is a workspace app-fix again"):
        undo.restore(VM, kept)
    assert (inside / "later").read_text() == "later\n"
    assert len(archives()) == 1


def test_the_newest_copy_of_a_folder_is_found(guest: Guest, ws: Workspace, inside: Path) -> None:
    commit(inside, "one")
    (first,) = delete()
    workspaces.push(ws, print)
    commit(inside, "two")
    (second,) = delete()
    assert first.id != second.id
    assert undo.find(VM, "app-fix") == second
    assert undo.find(VM, first.id) == first
    with pytest.raises(AgentVMError, match="nothing is kept under 'x'"):
        undo.find(VM, "x")


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
