"""Fabric connections for other people's tasks."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from . import guest, secrets, settings, sync, vm, workspaces
from .console import say, warn
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fabric import Connection
    from invoke.context import Context

    from .workspaces import Workspace


@contextlib.contextmanager
def connection(c: Context) -> Iterator[Connection]:
    chosen = settings.load()
    if vm.ready(chosen.vm.name):
        given = secrets.collect(chosen)
        warnings = [*given.warnings, *vm.look_after(chosen, say)]
        secrets.push(chosen.vm.name, given)
    else:
        warnings = [*vm.start(chosen, say, c).warnings]
    for line in warnings:
        warn(line)
    with guest.connection(chosen.vm.name, c) as made:
        yield made


@contextlib.contextmanager
def workspace(c: Context, branch: str) -> Iterator[Connection]:
    chosen = settings.load()
    ws = workspaces.around(chosen, Path.cwd(), branch, sending=True)
    if ws.user:
        raise _walled(ws)
    with connection(c) as made:
        if workspaces.inspect(ws) is None:
            if chosen.workspace.walls:
                raise _walled(ws)
            sync.push(ws, say, chosen.workspace.include)
        with made.cd(ws.path):
            yield made


def _walled(ws: Workspace) -> AgentVMError:
    has = "has" if ws.user else "gets"
    return AgentVMError(
        f"{ws.folder} {has} a wall, and tasks of yours run as the user outside of it",
        f"run `agent-vm connect {ws.branch} -- COMMAND`",
    )
