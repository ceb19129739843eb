"""Disks that are full or read-only, here and in the VM: told in one line, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import VM, commit, git

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.cli import Said
    from tests.conftest import Guest, Limactl

    from .conftest import Command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a file system"),
]
Full = Callable[..., Callable[[], None]]
NO_SPACE = "No space left on device"


def one_line(said: Said) -> str:
    """The error of a command that failed as it should."""
    assert said.status == 1, said
    assert "Traceback" not in said.err
    assert said.error.startswith("agent-vm: ")
    return said.error


def is_named(home: Path, said: Said) -> bool:
    """Whether the error names the file of ours that found no room."""
    error = one_line(said)
    return error.startswith(f"agent-vm: {home}/.agent-vm/") and error.endswith(NO_SPACE)


@pytest.fixture
def full(limactl: Limactl) -> Iterator[Full]:
    """Put a folder on a small disk of its own that is full; what is given back makes room."""
    mounted: list[Path] = []

    def fill(folder: Path, left: int = 0) -> Callable[[], None]:
        here, kept = Path.cwd(), folder.with_name(f"{folder.name}.kept")
        folder.mkdir(parents=True, exist_ok=True)
        folder.rename(kept)
        folder.mkdir(mode=0o700)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "none", str(folder)], check=True)
        mounted.append(folder)
        subprocess.run(["cp", "-a", f"{kept}/.", str(folder)], check=True)
        os.chdir(here)  # what has that name now
        filler = folder / "filler"
        subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], check=False)
        os.truncate(filler, filler.stat().st_size - left)
        return filler.unlink

    yield fill
    os.chdir("/")
    for folder in reversed(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder.with_name(f"{folder.name}.kept"))


@pytest.fixture
def inside(limactl: Limactl, guest_home: Path, repository: Path, agent_vm: Command) -> Path:
    """A workspace with work, in a VM that runs."""
    assert agent_vm("connect", "fix", "--command", "echo mine > mine").status == 0
    return guest_home / "workspace" / "app-fix"


def large(folder: Path) -> str:
    """A commit of a file that does not get smaller."""
    (folder / "large").write_bytes(os.urandom(2**20))
    git(folder, "add", "large")
    git(folder, "commit", "--quiet", "--message", "large")
    return git(folder, "rev-parse", "HEAD")


def sound(repository: Path) -> bool:
    return git(repository, "fsck", "--strict", "--no-dangling") == ""


def test_a_creation_without_room_for_what_is_kept_of_it(
    limactl: Limactl, home: Path, agent_vm: Command, full: Full
) -> None:
    make_room = full(home / ".agent-vm")
    assert is_named(home, agent_vm("start"))
    assert limactl.calls() == []
    make_room()
    assert agent_vm("start").status == 0
    assert agent_vm("destroy", "--force").status == 0


def test_a_creation_without_room_for_temporary_files(
    limactl: Limactl, home: Path, agent_vm: Command, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_room = full(home / "tmp")
    monkeypatch.setattr("tempfile.tempdir", str(home / "tmp"))
    assert NO_SPACE in one_line(agent_vm("start"))
    assert limactl.calls() == []
    make_room()
    assert list((home / "tmp").iterdir()) == []
    assert agent_vm("start").status == 0


def test_lima_without_room(limactl: Limactl, home: Path, agent_vm: Command, full: Full) -> None:
    limactl.does("create", f"echo 'level=fatal msg=\"write disk: {NO_SPACE}\"' >&2; exit 1")
    assert one_line(agent_vm("start")) == (
        f"agent-vm: limactl could not create {VM}: write disk: {NO_SPACE}; make room and try again"
    )
    limactl.repair("create")
    assert agent_vm("start").status == 0


def test_without_room_for_notes_the_vm_is_there_for_all_that_needs_none(
    inside: Path, home: Path, agent_vm: Command, full: Full
) -> None:
    make_room = full(home / ".agent-vm")
    assert "app-fix" in agent_vm("status").out
    assert agent_vm("connect", "fix", "--", "cat", "mine").out == "mine\n"
    for verb in ("stop", "start"):
        assert agent_vm(verb).status == 0
    assert agent_vm("connect", "fix", "--", "cat", "mine").out == "mine\n"
    make_room()


@pytest.mark.parametrize("verb", [["clean", "fix"], ["clean-all"], ["destroy"]])
def test_nothing_is_deleted_of_which_no_copy_can_be_kept(
    inside: Path, home: Path, agent_vm: Command, full: Full, verb: list[str]
) -> None:
    make_room = full(home / ".agent-vm")
    said = one_line(agent_vm(*verb, "--force"))
    assert said.startswith(
        "agent-vm: nothing was deleted, because no copy of app-fix could be kept"
    )
    assert said.endswith("or make room on this machine")
    assert (inside / "mine").read_text() == "mine\n"
    undo = agent_vm("undo")
    assert (undo.out, undo.err) == ("No deleted workspaces are kept.\n", "")
    make_room()
    assert agent_vm(*verb, "--force").status == 0
    assert "app-fix" in agent_vm("undo").out


def test_a_push_that_cannot_be_noted(
    inside: Path, home: Path, repository: Path, agent_vm: Command, full: Full
) -> None:
    git(repository, "checkout", "--quiet", "fix")
    new = commit(repository, "new")
    make_room = full(home / ".agent-vm")
    assert is_named(home, agent_vm("push", "fix"))
    make_room()
    assert agent_vm("push", "fix").status == 0
    assert git(inside, "rev-parse", "fix") == new
    assert (inside / "mine").exists()


def test_a_fetch_that_cannot_be_noted(
    inside: Path, home: Path, repository: Path, agent_vm: Command, full: Full
) -> None:
    new = commit(inside, ".envrc")
    make_room = full(home / ".agent-vm")
    assert is_named(home, agent_vm("fetch", "fix"))
    make_room()
    said = agent_vm("fetch", "fix")
    assert (said.status, git(repository, "rev-parse", "fix")) == (0, new)
    assert "look at it first: .envrc" in said.err


def test_a_push_without_room_for_temporary_files(
    inside: Path, home: Path, agent_vm: Command, full: Full, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_room = full(home / "tmp")
    monkeypatch.setattr("tempfile.tempdir", str(home / "tmp"))
    assert NO_SPACE in one_line(agent_vm("push", "fix"))
    make_room()
    assert list((home / "tmp").iterdir()) == []
    assert agent_vm("push", "fix").status == 0


@pytest.mark.parametrize("left", [0, 3 * 2**19])
def test_a_fetch_without_room(
    inside: Path, repository: Path, agent_vm: Command, full: Full, left: int
) -> None:
    """First for the objects, then for the files."""
    git(repository, "checkout", "--quiet", "fix")
    before, new = git(repository, "rev-parse", "fix"), large(inside)
    make_room = full(repository, left)
    said = one_line(agent_vm("fetch", "fix"))
    assert (f"MiB, for which {repository} has no room" if left else NO_SPACE) in said
    assert ("refs/agent-vm/app-fix/fix" in said) is bool(left)
    assert git(repository, "rev-parse", "fix") == before
    assert not list((repository / ".git/objects/pack").glob("tmp_*"))
    make_room()
    assert sound(repository)
    assert agent_vm("fetch", "fix").status == 0
    assert git(repository, "rev-parse", "fix") == new
    assert git(repository, "status", "--porcelain") == ""


def test_a_full_disk_in_the_vm(
    inside: Path, guest_home: Path, repository: Path, agent_vm: Command, full: Full
) -> None:
    work = commit(inside, "work")
    git(repository, "checkout", "--quiet", "-b", "new")
    new = large(repository)
    make_room = full(guest_home)
    full(guest_home / ".secrets", 2**20)  # a disk of its own, as in the VM
    for verb in (["push", "new"], ["connect", "new", "--", "true"]):
        assert one_line(agent_vm(*verb))
    assert git(repository, "rev-parse", "new") == new
    assert agent_vm("connect", "fix", "--", "cat", "mine").out == "mine\n"
    assert agent_vm("fetch", "fix").status == 0
    assert git(repository, "rev-parse", "fix") == work
    assert "app-fix" in agent_vm("status").out
    make_room()
    assert agent_vm("connect", "new", "--", "git", "rev-parse", "HEAD").out == f"{new}\n"
    assert agent_vm("connect", "new", "--", "git", "status", "--porcelain").out == ""


def test_an_update_that_does_not_fit_in_the_vm(
    inside: Path, guest_home: Path, repository: Path, agent_vm: Command, full: Full
) -> None:
    """There is room for its objects, but not for its files: one that changes, and a new one."""
    before = git(inside, "rev-parse", "HEAD")
    git(repository, "checkout", "--quiet", "fix")
    commit(repository, "README", "changed\n")
    new = large(repository)
    make_room = full(guest_home, 3 * 2**19)
    assert "unable to write file large" in one_line(agent_vm("push", "fix"))
    assert git(inside, "rev-parse", "HEAD") == before
    assert (inside / "mine").read_text() == "mine\n"
    assert git(inside, "status", "--porcelain") == "?? mine"
    make_room()
    assert agent_vm("push", "fix").status == 0
    assert git(inside, "rev-parse", "HEAD") == new


def test_a_new_workspace_whose_files_do_not_fit_in_the_vm(
    inside: Path, guest_home: Path, repository: Path, agent_vm: Command, full: Full
) -> None:
    git(repository, "checkout", "--quiet", "-b", "new")
    new = large(repository)
    make_room = full(guest_home, 3 * 2**19)
    for _ in range(2):
        said = one_line(agent_vm("connect", "new", "--", "true"))
        assert "unable to write file large" in said
    make_room()
    assert agent_vm("connect", "new", "--", "git", "rev-parse", "HEAD").out == f"{new}\n"
    assert agent_vm("connect", "new", "--", "git", "status", "--porcelain").out == ""
    assert (inside / "mine").exists()


def test_a_full_vm_is_cleaned_and_what_was_there_comes_back_when_it_fits(
    inside: Path, guest_home: Path, agent_vm: Command, full: Full
) -> None:
    (inside / "data").write_bytes(os.urandom(2**20))
    full(guest_home)
    assert agent_vm("clean", "fix", "--force").status == 0
    assert not inside.exists()
    again = guest_home / "again"
    subprocess.run(["dd", "if=/dev/zero", f"of={again}", "bs=4k"], check=False)
    make_room = again.unlink
    assert NO_SPACE in one_line(agent_vm("undo", "app-fix"))
    assert not inside.exists()
    make_room()
    assert list((guest_home / ".agent-vm").glob("new.*")) == []
    assert agent_vm("undo", "app-fix").status == 0
    assert (inside / "mine").read_text() == "mine\n"


@pytest.fixture
def read_only(home: Path) -> Iterator[Callable[..., None]]:
    """Have the home folder, as it is now, read-only; or take that back."""
    subprocess.run(["mount", "--bind", str(home), str(home)], check=True)

    def remount(how: str = "ro") -> None:
        subprocess.run(["mount", "-o", f"remount,bind,{how}", str(home)], check=True)

    yield remount
    os.chdir("/")
    subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_home_that_is_read_only_makes_no_vm(
    limactl: Limactl, home: Path, agent_vm: Command, read_only: Callable[..., None]
) -> None:
    read_only()
    for argv in (["start"], ["connect"]):
        assert one_line(agent_vm(*argv)).endswith("Read-only file system")
    assert limactl.calls() == []
    assert agent_vm("status").out == "State: Does not exist\n"
    read_only("rw")
    assert agent_vm("start").status == 0


def test_a_home_that_becomes_read_only(
    guest: Guest, limactl: Limactl, repository: Path, agent_vm: Command,
    read_only: Callable[..., None],
) -> None:  # fmt: skip
    limactl.adopt(guest)
    assert agent_vm("connect", "fix", "--command", "echo mine > mine").status == 0
    inside = guest.workspaces / "app-fix"
    new = commit(inside, "work")
    read_only()
    assert "app-fix" in agent_vm("status").out
    assert agent_vm("connect", "fix", "--", "cat", "mine").out == "mine\n"
    for argv in (["push", "fix"], ["fetch", "fix"], ["clean", "fix", "--force"], ["stop"],
                 ["destroy", "--force"]):  # fmt: skip
        assert "Read-only file system" in one_line(agent_vm(*argv)), argv
    assert limactl.instance()
    assert (inside / "mine").exists()
    read_only("rw")
    assert agent_vm("fetch", "fix").status == 0
    assert git(repository, "rev-parse", "fix") == new
