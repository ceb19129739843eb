"""Names that a shell would run: no shell ever reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from invoke.context import Context

from agent_vm_tasks import composition, sync, workspaces
from tests.conftest import VM, make_repository

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Guest

NAMES = [
    "$(touch${IFS}canary)",
    "`touch${IFS}canary`",
    ";touch${IFS}canary;",
    ">canary",
    "'>canary'",
    '"$(>canary)"',
]


@pytest.fixture
def guest(guest: Guest, warm: None) -> Guest:
    return guest


@pytest.mark.parametrize("name", NAMES)
def test_names_run_nothing(
    guest: Guest, home: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = home / name
    make_repository(folder)
    monkeypatch.chdir(folder)
    ws = workspaces.workspace(VM, workspaces.repository(folder), name)
    assert sync.push(ws, print).outcome == "updated"
    guest.run("git commit -q --allow-empty -m x", cwd=guest.workspaces / ws.folder)
    assert sync.fetch(ws, print)[0].merged
    assert workspaces.enter(VM, ws, None, ["true", name]) == 0
    assert [row.branch for row in workspaces.inventory(VM)] == [name]
    with composition.workspace(Context(), name) as made:
        assert made.run("cat README", hide=True, in_stream=False).stdout == "hello\n"
    workspaces.remove(VM, [ws.folder])
    assert not list(guest.workspaces.iterdir())
    assert not [*home.rglob("canary"), *guest.home.rglob("canary")]


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_would_run_them(guest: Guest, name: str) -> None:
    """Bare, or between the quotes that somebody may have put around them."""
    for line in (f"true {name}", f"true '{name}'"):
        guest.run(line, check=False)
    assert (guest.home / "canary").exists()
