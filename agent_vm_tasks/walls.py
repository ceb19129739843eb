"""Walls between workspaces: a walled one has a guest user of its own, who has no sudo.

Its files lie in that user's home; the folder among agent's workspaces only shows them. Whatever
runs in it runs as that user: git, run there by `agent`, who has sudo, would obey the other side.
Which workspaces are walled is noted here. The guest may add to that, never take away.
"""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from . import guest, state

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SHOWN = "shown"


def named(key: str) -> str:
    """The guest user that a workspace of that key has behind a wall; raises ValueError."""
    if not re.fullmatch("[0-9a-f]{16}", key):
        raise ValueError(key)
    return f"ws-{key[:12]}"


def user(vm: str, key: str) -> str:
    """Who works in the workspace; "" where that is agent, as there is no wall."""
    found = named(key)
    return found if (_notes(vm) / found).exists() else ""


def users(vm: str) -> list[str]:
    """Every guest user of a walled workspace that is known here."""
    return sorted(path.name for path in _notes(vm).glob("ws-*"))


def up(vm: str, key: str, folders: Sequence[str]) -> str:
    """Give the workspace its user, or find it; its folder, or "" where it is there without a wall.

    Raises AgentVMError.
    """
    made = named(key)
    with guest.understood():
        (folder,) = guest.script(vm, "workspace-wall.sh", made, key, *folders, timeout=600)
        if not folder:
            return ""
        folder = folders[folders.index(folder)]
    state.write(_notes(vm) / made, "")
    return folder


def show(vm: str, user: str) -> None:
    """Show a new workspace's files among those of agent, and so on the mount."""
    note = _notes(vm) / user
    if state.read(note) != SHOWN:
        guest.script(vm, "workspace-show.sh")
        state.write(note, SHOWN)


def down(vm: str, user: str) -> None:
    """Forget the wall of a workspace that was deleted; its user and that one's home stay."""
    guest.script(vm, "workspace-unwall.sh", user)
    (_notes(vm) / user).unlink(missing_ok=True)


def forget(vm: str) -> None:
    """Forget all walls of a VM that is no more."""
    shutil.rmtree(_notes(vm), ignore_errors=True)


def _notes(vm: str) -> Path:
    return state.folder(vm) / "walled"
