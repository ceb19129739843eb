"""What people and agents do to a workspace, for tests."""

from __future__ import annotations

import os
import uuid
from typing import TYPE_CHECKING

from agent_vm_tasks import sync, workspaces

from .conftest import VM, commit, git

if TYPE_CHECKING:
    from pathlib import Path

    from agent_vm_tasks.sync import Fetched
    from agent_vm_tasks.workspaces import Contents, Workspace

    from .conftest import Guest


def workspace(folder: Path, branch: str = "fix") -> Workspace:
    return workspaces.workspace(VM, workspaces.repository(folder), branch)


def push(ws: Workspace) -> tuple[str, str]:
    update = sync.push(ws, lambda _line: None)
    return update.outcome, update.detail


def fetch(ws: Workspace) -> tuple[Fetched, Contents]:
    return sync.fetch(ws, lambda _line: None)


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
