"""secrets: what the host hands over, put into the VM now."""

from __future__ import annotations

from invoke.context import Context  # noqa: TC002  Invoke reads signatures
from invoke.tasks import task

from agent_vm_tasks import secrets as memory
from agent_vm_tasks import settings as configuration
from agent_vm_tasks import vm
from agent_vm_tasks.console import table, warn

from ._edge import guarded


@task(
    help={
        "clear": "remove them from the VM instead; the next start or connect brings them again",
        "json": "print JSON",
    }
)
@guarded
def secrets(_context: Context, clear: bool = False, json: bool = False) -> None:
    """Hand your variables and credential files to the VM now, and list their names.

    `start` and `connect` do it by themselves. Example: secrets --clear
    """
    chosen = configuration.load()
    given = memory.Secrets({}, {}) if clear else memory.collect(chosen)
    vm.require_running(chosen.vm.name)
    if clear:
        memory.clear(chosen.vm.name)
    else:
        memory.push(chosen.vm.name, given)
    for line in given.warnings:
        warn(line)
    print(_as_json(given) if json else _as_text(given))


def _as_json(given: memory.Secrets) -> str:
    import json

    return json.dumps({"variables": sorted(given.variables), "files": sorted(given.files)})


def _as_text(given: memory.Secrets) -> str:
    rows = [("variable", name) for name in sorted(given.variables)]
    rows += [("file", name) for name in sorted(given.files)]
    return table(("KIND", "NAME"), rows) if rows else "The VM has no variables and files of yours."
