"""undo: what was deleted from the VM, listed and brought back."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from invoke.context import Context  # noqa: TC002  Invoke reads signatures
from invoke.tasks import task

from agent_vm_tasks import settings as configuration
from agent_vm_tasks import undo as kept
from agent_vm_tasks.console import as_json, one_line, table, warn

from ._edge import guarded
from .work import existing

if TYPE_CHECKING:
    from collections.abc import Sequence


@task(
    help={
        "workspace": "bring this one back: an ID of the list, or a workspace (its newest copy)",
        "json": "print the list as JSON",
    }
)
@guarded
def undo(c: Context, workspace: str | None = None, json: bool = False) -> None:
    """List deleted workspaces that are kept on this machine, or bring one back into the VM.

    Example: undo --workspace app-fix-login
    """
    chosen = configuration.load()
    name = chosen.vm.name
    kept.expire(name, chosen.workspace.keep_days)
    if workspace is None:
        found = kept.listed(name)
        for folder in kept.strange(name):
            warn(f"{folder} is half a copy of a workspace, or one of another version of agent-vm")
        print(_as_json(name, found) if json else _as_text(name, found))
        return
    wanted = kept.find(name, workspace)
    existing(chosen, c)
    kept.restore(name, wanted)
    print(one_line(f"{wanted.folder} is in the VM again."))


def _as_json(name: str, found: Sequence[kept.Kept]) -> str:
    return as_json([{**asdict(each), "bytes": kept.size(name, each)} for each in found])


def _as_text(name: str, found: Sequence[kept.Kept]) -> str:
    if not found:
        return "No deleted workspaces are kept."
    rows = [
        (each.id, each.folder, each.branch, f"{kept.size(name, each) / 2**20:.1f}", _lost(each))
        for each in found
    ]
    return table(("ID", "WORKSPACE", "BRANCH", "MIB", "ONLY HERE"), rows)


def _lost(each: kept.Kept) -> str:
    return ", ".join(each.lost) or "ignored files"
