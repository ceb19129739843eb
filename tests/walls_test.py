"""Walled workspaces, with real git and ssh; only the accounts are played.

The stand-in for sudo gives each user a home of its own and for the rest runs as before. So what is
shown is who runs what, not that the kernel keeps users apart: tests/vm/walls_test.py does that.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from invoke.context import Context

from agent_vm_tasks import (
    audit,
    composition,
    git,
    secrets,
    stages,
    state,
    sync,
    undo,
    vm,
    walls,
    workspaces,
)
from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import home as home_files
from agent_vm_tasks import settings as configuration
from agent_vm_tasks.audit_scene import Scene
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.intact import NotTriedError
from agent_vm_tasks.settings import Settings

from .clones import commit_inside, fetch, new_commit, workspace
from .conftest import VM, commit
from .programs import script

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from agent_vm_tasks.workspaces import Workspace

    from .conftest import Guest

pytestmark = pytest.mark.usefixtures("warm")

SUDO = r"""
user=
while :; do
    case $1 in
        -n | -H) shift ;;
        -u) user=$2; shift 2 ;;
        BASH_ENV=*) shift ;;
        *) break ;;
    esac
done
if [ -n "$user" ]; then
    cd "$HOME/users/$user" 2> /dev/null || { echo "sudo: unknown user $user" >&2; exit 1; }
    export HOME=$PWD AGENT_VM_SECRETS=$PWD/.secrets
    [ ! -x hostile ] || exec ./hostile "$@"
    exec "$@"
fi
case $* in
    'test -e /usr/local/lib/agent-vm/walls-boot.sh') [ -d "$HOME/users" ]; exit ;;
    'bash /usr/local/lib/agent-vm/walls-boot.sh'*) shift 2 ;;
    *) exit 1 ;;
esac
[ -z "$1" ] || { mkdir -p "$HOME/users/$1" && cp "$HOME/.gitconfig" "$HOME/users/$1"; }
for record in "$HOME"/.agent-vm/walled/ws-*; do
    { read -r _; read -r folder; } < "$record"
    tree=$HOME/users/${record##*/}/workspace/$folder view=$HOME/workspace/$folder
    [ ! -d "$tree" ] || [ -L "$view" ] || { rmdir "$view" && ln -s "$tree" "$view"; }
done
"""
TRAP = """
printf '#!/bin/sh\\necho "$HOME" >> {ran}; printf "all\\\\0/\\\\0"\\n' > {trap}; chmod 755 {trap}
git config core.fsmonitor {trap}
mkdir {trap}-hooks; cp {trap} {trap}-hooks/pre-receive; git config core.hooksPath {trap}-hooks
"""


@pytest.fixture
def users(guest: Guest) -> Path:
    """The homes of walled users; that it is there says that walls are installed."""
    folder = guest.home / "users"
    folder.mkdir()
    (guest.home / "bin").mkdir()
    script(guest.home / "bin", "sudo", SUDO)
    return folder


def put(ws: Workspace, *, walled: bool = True) -> Workspace:
    sync.push(ws, print, walled=walled)
    return ws


@pytest.fixture
def walled(users: Path, repository: Path) -> Workspace:
    return put(workspace(repository, "fix"))


def tree(users: Path, ws: Workspace) -> Path:
    """The workspace's files in its user's home."""
    return users / walls.named(ws.key) / "workspace" / ws.folder


def rows() -> dict[str, workspaces.Row]:
    return {row.branch or row.folder: row for row in workspaces.inventory(VM)}


def delete() -> list[undo.Kept]:
    found = workspaces.inventory(VM)
    kept = undo.keep(VM, found, undo.weigh(VM, found), 14, print)
    for user, folders in workspaces.by_user(found).items():
        workspaces.remove(VM, folders, user)
    return kept


def test_a_walled_workspace_is_in_its_users_home(
    guest: Guest, users: Path, walled: Workspace
) -> None:
    assert (tree(users, walled) / "README").read_text() == "hello\n"
    assert not (guest.home / walled.path).exists()
    assert (guest.workspaces / walled.folder / "README").is_file()


def test_files_that_git_does_not_have_come_along(users: Path, repository: Path) -> None:
    (repository / ".env").write_text("A=1\n")
    ws = workspace(repository, "fix")
    sync.push(ws, print, [".env"], walled=True)
    assert (tree(users, ws) / ".env").read_text() == "A=1\n"


def test_without_being_asked_for_there_is_no_wall(
    guest: Guest, users: Path, repository: Path
) -> None:
    put(workspace(repository, "fix"), walled=False)
    assert list(users.iterdir()) == []
    assert not (guest.workspaces / "app-fix").is_symlink()


def test_work_goes_in_and_comes_back(users: Path, walled: Workspace, repository: Path) -> None:
    new_commit(repository, "ours")
    put(walled, walled=False)
    commit(tree(users, walled), "theirs")
    assert rows()["fix"].unfetched == 1
    assert fetch(walled)[0].merged
    assert rows()["fix"].losses == []
    assert git.commit(repository, "fix") == git.commit(tree(users, walled), "fix")


def back(ws: Workspace) -> None:
    undo.restore(VM, delete()[0])
    workspaces.inspect(ws)


WAYS: dict[str, Callable[[Workspace], object]] = {
    "push": lambda ws: (new_commit(ws.repository.path, "ours"), put(ws, walled=False)),
    "fetch": fetch,
    "list": lambda _ws: workspaces.inventory(VM),
    "inspect": workspaces.inspect,
    "weigh": lambda _ws: undo.weigh(VM, workspaces.inventory(VM)),
    "clean": lambda _ws: delete(),
    "git": lambda ws: workspaces.git_inside(ws, ["status"], print, print),
    "connect": lambda ws: workspaces.enter(VM, ws, "git status", []),
    "undo": back,
}


@pytest.mark.parametrize("walled", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_what_a_workspace_tells_git_to_run_runs_as_its_own_user(
    guest: Guest, users: Path, repository: Path, tmp_path: Path, way: str, *, walled: bool
) -> None:
    ws = put(workspace(repository, "fix"), walled=walled)
    ran = tmp_path / "ran"
    inside = tree(users, ws) if walled else guest.workspaces / ws.folder
    (inside / "untracked").touch()
    guest.run(TRAP.format(ran=ran, trap=tmp_path / "trap"), cwd=inside)
    WAYS[way](ws)
    own = users / walls.named(ws.key) if walled else guest.home
    assert set(ran.read_text().split()) == {str(own)}


def test_a_user_says_nothing_of_anothers_workspace(users: Path, repository: Path) -> None:
    mine = put(workspace(repository, "mine"))
    theirs = put(workspace(repository, "theirs"))
    (tree(users, mine) / "work").touch()
    lie = f"1.000000 {mine.folder} {mine.key} app mine 0 0 0 0 ''"
    script(users / walls.named(theirs.key), "hostile", rf"printf '%s\0' {lie}")
    found = {row.key: row for row in workspaces.inventory(VM)}
    assert found[mine.key].losses == ["1 file untracked"]
    assert found[theirs.key].losses == []


def test_one_that_was_deleted_inside_is_cleaned_and_made_again(
    guest: Guest, users: Path, walled: Workspace
) -> None:
    shutil.rmtree(tree(users, walled))
    (guest.workspaces / walled.folder).unlink()  # it is no link in a VM
    (guest.workspaces / walled.folder).mkdir()
    assert rows()[walled.folder].losses == []
    assert delete() == []
    assert list(guest.workspaces.iterdir()) == []
    put(walled)
    shutil.rmtree(tree(users, walled))
    put(walled)
    assert (guest.workspaces / walled.folder / "README").is_file()


def test_one_that_lost_its_git_counts_as_work(users: Path, walled: Workspace) -> None:
    shutil.rmtree(tree(users, walled) / ".git")
    (row,) = workspaces.inventory(VM)
    assert (row.key, row.losses) == (walled.key, [workspaces.UNKNOWN])
    (kept,) = delete()
    undo.restore(VM, kept)
    assert (tree(users, walled) / "README").is_file()


@pytest.mark.parametrize("answer", ["exit 255", "echo x", r"printf 'a\\0'"])
def test_a_user_who_gives_no_answer_keeps_no_others_from_being_deleted(
    users: Path, repository: Path, answer: str
) -> None:
    mine, other = (put(workspace(repository, branch)) for branch in ("mine", "other"))
    script(users / walls.named(other.key), "hostile", answer)
    found = {row.key: row for row in workspaces.inventory(VM)}
    assert found[mine.key].losses == []
    assert found[other.key].losses == [workspaces.UNKNOWN]
    weights = undo.weigh(VM, list(found.values()))
    assert [weights[ws.folder].unknown for ws in (mine, other)] == [False, True]


def test_a_user_who_lies_about_a_wall_ends_nothing(users: Path, walled: Workspace) -> None:
    script(users / walls.named(walled.key), "hostile", r"printf 'walled\0\0'")
    assert sync.create(walled) == ""
    assert [row.losses for row in workspaces.inventory(VM)] == [[workspaces.UNKNOWN]]


def test_a_lost_note_of_a_wall_takes_none_away(
    guest: Guest, users: Path, walled: Workspace
) -> None:
    shutil.rmtree(state.folder(VM) / "walled")
    assert rows()["fix"].user == walls.named(walled.key)
    assert workspaces.enter(VM, walled, "true", []) == workspaces.NOT_THERE
    put(walled, walled=False)
    assert walled.user == walls.named(walled.key)
    assert [path.name for path in guest.workspaces.iterdir()] == [walled.folder]
    assert len(list(users.iterdir())) == 1


def test_a_workspace_that_is_there_stays_without_a_wall_and_that_is_known(
    guest: Guest, users: Path, repository: Path
) -> None:
    ws = put(workspace(repository, "fix"), walled=False)
    assert workspaces.unwalled(ws)
    put(ws)
    sync.create(ws, walled=True)
    assert ws.user == ""
    assert list(users.iterdir()) == []
    assert not workspaces.unwalled(workspace(repository, "new"))
    assert not workspaces.unwalled(put(workspace(repository, "apart")))
    assert (guest.workspaces / "app-fix" / "README").is_file()


def test_a_wall_that_was_cut_off_is_finished_by_the_next_push(
    guest: Guest, users: Path, repository: Path
) -> None:
    ws = workspace(repository, "fix")
    walls.up(VM, ws.key, ws.folders)  # and killed
    assert workspaces.enter(VM, ws, "true", []) == workspaces.NOT_THERE
    put(ws, walled=False)
    assert (guest.workspaces / ws.folder / "README").is_file()
    assert workspaces.enter(VM, ws, "true", []) == 0
    assert tree(users, ws).is_dir()


def test_a_vm_without_walls_installed_says_so(users: Path, repository: Path) -> None:
    users.rmdir()
    with pytest.raises(AgentVMError, match="walls are not installed"):
        put(workspace(repository, "fix"))


def test_a_deleted_one_comes_back_behind_its_wall(
    guest: Guest, users: Path, walled: Workspace
) -> None:
    (tree(users, walled) / "left").write_text("left\n")
    (kept,) = delete()
    assert list(guest.workspaces.iterdir()) == []
    assert not tree(users, walled).exists()
    assert walled.user == ""
    undo.restore(VM, undo.find(VM, kept.id))
    assert (tree(users, walled) / "left").read_text() == "left\n"
    assert (guest.workspaces / walled.folder / "left").is_file()
    assert walled.user == walls.named(walled.key)
    with pytest.raises(AgentVMError, match="again"):
        undo.restore(VM, kept)


def test_one_without_a_wall_in_its_place_is_left_alone(
    guest: Guest, users: Path, walled: Workspace
) -> None:
    (tree(users, walled) / "left").touch()
    (kept,) = delete()
    put(walled, walled=False)
    with pytest.raises(AgentVMError, match="again"):
        undo.restore(VM, kept)
    assert not (guest.workspaces / walled.folder / "left").exists()
    assert not tree(users, walled).exists()


def test_another_in_its_place_is_left_alone(guest: Guest, users: Path, walled: Workspace) -> None:
    (tree(users, walled) / "left").touch()
    (kept,) = delete()
    (guest.workspaces / walled.folder).mkdir()
    with pytest.raises(AgentVMError, match="taken in ~/workspace of the VM: app-fix"):
        undo.restore(VM, kept)
    assert list((guest.workspaces / walled.folder).iterdir()) == []


def test_a_copy_of_before_there_were_walls_comes_back(guest: Guest, ws: Workspace) -> None:
    commit_inside(guest, guest.workspaces / ws.folder)
    (kept,) = delete()
    file = state.folder(VM) / "undo" / kept.id / "kept.json"
    facts = json.loads(file.read_text())
    del facts["walled"]
    file.write_text(json.dumps(facts))
    undo.restore(VM, undo.find(VM, kept.id))
    assert (guest.workspaces / ws.folder / "README").is_file()


def test_what_is_written_behind_a_wall_stops_a_deletion(
    guest: Guest, users: Path, walled: Workspace
) -> None:
    (guest.workspaces / walled.folder).unlink()  # where it is shown
    (guest.workspaces / walled.folder).mkdir()
    found = workspaces.inventory(VM)
    (tree(users, walled) / "new").touch()
    with pytest.raises(AgentVMError, match="writes in app-fix"):
        workspaces.require_unchanged(VM, found)


def test_keys_are_each_users_own(guest: Guest, users: Path, repository: Path) -> None:
    one, other = (put(workspace(repository, branch)) for branch in ("one", "other"))
    secrets.push(VM, secrets.Secrets({"KEY": b"canary"}, {}), one.user)
    holding = [path for path in guest.home.rglob("env") if "canary" in path.read_text()]
    assert [path.is_relative_to(users / one.user) for path in holding] == [True]
    assert not list((users / other.user).rglob("env"))


def test_home_files_are_brought_up_to_date_for_all(users: Path, walled: Workspace) -> None:
    done = home_files.refresh(Settings())
    user = walls.named(walled.key)
    assert ("new", ".claude.json") in done
    assert ("new", f"~{user}/.claude.json") in done
    assert (users / user / ".claude.json").is_file()


def test_a_vm_that_is_gone_has_no_walls(walled: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_guest, "disconnect", lambda _name: None)  # other tests share it
    vm.forget(VM)
    assert walled.user == ""


def test_tasks_of_ones_own_do_not_work_in_a_walled_one(
    users: Path, walled: Workspace, repository: Path
) -> None:
    with (
        pytest.raises(AgentVMError, match="app-fix has a wall"),
        composition.workspace(Context(), "fix"),
    ):
        pass


def test_tasks_of_ones_own_make_no_walled_one(users: Path, repository: Path) -> None:
    (repository / "agent-vm.toml").write_text("[workspace]\nwalls = true\n")
    with (
        pytest.raises(AgentVMError, match="app-new gets a wall"),
        composition.workspace(Context(), "new"),
    ):
        pass
    assert not walls.users(VM)
    assert not git.commit(repository, "refs/heads/new")


def test_a_repository_may_ask_for_walls(repository: Path) -> None:
    (repository / "agent-vm.toml").write_text("[workspace]\nwalls = true\n")
    assert configuration.load().workspace.walls
    assert not Settings().workspace.walls


def test_walls_are_installed_where_they_are_asked_for(home: Path) -> None:
    asked = Settings(workspace=configuration.Workspace(walls=True))
    assert [stage.name for stage in stages.personal(asked)] == ["walls"]
    assert stages.personal(Settings()) == ()


def test_no_file_of_a_stage_takes_the_place_of_its_script(home: Path) -> None:
    asked = Settings(workspace=configuration.Workspace(walls=True))
    for stage in (*stages.stages(asked), *stages.personal(asked)):
        assert f"{stage.name}.sh" not in stage.files


def test_the_audit_tells_what_gets_through(users: Path, walled: Workspace) -> None:
    scene = Scene(Settings(), users, "", 0, {})
    (attack,) = (each for each in audit.ATTACKS if each.promise == "walls")
    said = f"printf '%s\\0' sudo '{'x' * 500}'"
    script(users / walls.named(walled.key), "hostile", said)
    assert attack.make(scene).startswith(f"{walls.named(walled.key)} gets at sudo, x")
    script(users / walls.named(walled.key), "hostile", "exit 0")
    assert attack.make(scene) == ""


def test_the_audit_tries_no_walls_where_there_are_none(home: Path) -> None:
    scene = Scene(Settings(), home, "", 0, {})
    (attack,) = (each for each in audit.ATTACKS if each.promise == "walls")
    with pytest.raises(NotTriedError, match="no workspace has walls"):
        attack.make(scene)
