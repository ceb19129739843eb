"""Attacks on a branch that is checked out here: its files are what a fetch writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import git

if TYPE_CHECKING:
    from pathlib import Path

    from agent_vm_tasks.workspaces import Workspace


@pytest.fixture
def ws(ws: Workspace, repository: Path) -> Workspace:
    """The workspace of branch fix, which is checked out here."""
    git(repository, "checkout", "--quiet", "fix")
    return ws
