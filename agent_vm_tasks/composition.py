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
    with connection(c) as made:
        if workspaces.inspect(ws) is None:
            sync.push(ws, say, chosen.workspace.include, walled=chosen.workspace.walls)
        if ws.user:
            raise AgentVMError(
                f"{ws.folder} has a wall, and tasks of yours run as the user outside of it",
                f"run `agent-vm connect {branch} -- COMMAND`",
            )
        with made.cd(ws.path):
            yield made
