"""Home files inside: put there once, and brought up to date without losing what was changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import home as files
from agent_vm_tasks import stages
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.settings import Home, Settings

from .programs import script

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Guest


@pytest.fixture
def mine(home: Path) -> Path:
    """A folder with one home file of the user's own."""
    folder = home / "agents"
    (folder / ".config").mkdir(parents=True)
    (folder / ".config" / "own").write_text("one\n")
    return folder


OWN = Settings(home=Home("~/agents"))


def outcomes(settings: Settings, *, force: bool = False) -> dict[str, str]:
    return {path: outcome for outcome, path in files.refresh(settings, force=force)}


def test_every_file_is_put_in_place_and_then_the_same(guest: Guest, warm: None) -> None:
    (guest.home / ".gitconfig").unlink()
    wanted = stages.home_files()
    assert outcomes(Settings()) == dict.fromkeys(wanted, "new")
    for path, (content, mode) in wanted.items():
        assert (guest.home / path).read_bytes() == content
        assert (guest.home / path).stat().st_mode & 0o777 == mode
    assert set(outcomes(Settings()).values()) == {"same"}


def test_a_file_that_nobody_changed_inside_is_updated(guest: Guest, warm: None, mine: Path) -> None:
    outcomes(OWN)
    (mine / ".config" / "own").write_text("two\n")
    assert outcomes(OWN)[".config/own"] == "updated"
    assert (guest.home / ".config" / "own").read_text() == "two\n"


@pytest.mark.parametrize("change", ["echo inside > .config/own", "rm .config/own",
                                    "touch x; ln -sf ../x .config/own"])  # fmt: skip
def test_what_was_changed_inside_stays_until_it_is_forced(
    guest: Guest, warm: None, mine: Path, change: str
) -> None:
    outcomes(OWN)
    guest.run(change)
    (mine / ".config" / "own").write_text("two\n")
    before = guest.run("ls -l .config; cat .config/own", check=False)
    assert outcomes(OWN)[".config/own"] == "kept"
    assert guest.run("ls -l .config; cat .config/own", check=False) == before
    forced = outcomes(OWN, force=True)[".config/own"]
    assert (guest.home / ".config" / "own").read_text() == "two\n"
    assert not (guest.home / ".config" / "own").is_symlink()
    kept = (guest.home / ".agent-vm" / "home-before").rglob("*")
    copies = [path for path in kept if path.name == "own"]
    assert (forced, len(copies)) == (("new", 0) if change.startswith("rm") else ("replaced", 1))
    if change.startswith("echo"):
        assert copies[0].read_text() == "inside\n"


def test_a_file_that_was_there_before_us_stays(guest: Guest, warm: None) -> None:
    (guest.home / ".gitconfig").write_text("[user]\nname = me\n")
    assert outcomes(Settings())[".gitconfig"] == "kept"
    assert (guest.home / ".gitconfig").read_text() == "[user]\nname = me\n"


def test_the_users_own_file_takes_the_place_of_ours(guest: Guest, warm: None, mine: Path) -> None:
    (guest.home / ".gitconfig").unlink()
    outcomes(Settings())
    (mine / ".gitconfig").write_text("[user]\nname = me\n")
    assert outcomes(OWN)[".gitconfig"] == "updated"
    assert (guest.home / ".gitconfig").read_text() == "[user]\nname = me\n"
    assert outcomes(OWN)[".gitconfig"] == "same"


@pytest.mark.parametrize("name", [" space", "two\nlines", "qu'ote", "ünï", "-dash", "$(id)"])
def test_odd_names_arrive(guest: Guest, warm: None, mine: Path, name: str) -> None:
    (mine / name).write_text("x\n")
    assert outcomes(OWN)[name] == "new"
    assert (guest.home / name).read_text() == "x\n"
    assert outcomes(OWN)[name] == "same"


def test_a_folder_in_the_way_stays_even_by_force(guest: Guest, warm: None, mine: Path) -> None:
    (guest.home / ".config" / "own").mkdir(parents=True)
    assert outcomes(OWN, force=True)[".config/own"] == "kept"


def test_a_disk_with_somebodys_files_is_marked(guest: Guest, warm: None) -> None:
    """Such a disk must not be kept for other VMs; common/scripts/golden-freeze.sh looks for it."""
    files.refresh(Settings())
    assert (guest.home / ".agent-vm" / "used").exists()


def test_trouble_inside_is_an_error(guest: Guest, warm: None) -> None:
    (guest.home / "bin").mkdir()
    script(guest.home / "bin", "tar", 'echo "tar: No space left on device" >&2; exit 2')
    with pytest.raises(AgentVMError, match="could not be put in place: tar: No space left"):
        files.refresh(Settings())
