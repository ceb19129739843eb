"""audit: the promises, attacked here and now."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from invoke.context import Context  # noqa: TC002  Invoke reads signatures
from invoke.tasks import task

from agent_vm_tasks import console
from agent_vm_tasks import settings as configuration
from agent_vm_tasks.errors import AgentVMError

from ._edge import guarded

if TYPE_CHECKING:
    from agent_vm_tasks.intact import Finding

_WORDS = {True: "held", False: "BROKEN", None: "not tried"}


@task(
    help={
        "quick": "only look whether the VM is what was created, as each start does",
        "json": "print one JSON object: {ok, findings}",
    }
)
@guarded
def audit(_context: Context, quick: bool = False, json: bool = False) -> None:
    """Attack the VM's isolation with canaries; exit status 1 when something gets through.

    Example: audit --json
    """
    from agent_vm_tasks import audit as attacks

    chosen = configuration.load()
    found = attacks.quick(chosen) if quick else attacks.run(chosen)
    broken = list(dict.fromkeys(each.promise for each in found if each.held is False))
    if json:
        print(console.as_json({"ok": not broken, "findings": [asdict(each) for each in found]}))
    else:
        print("\n".join(_told(each) for each in found))
    if broken:
        raise AgentVMError(f"the isolation does not hold: {', '.join(broken)}", "do what is said")


def _told(found: Finding) -> str:
    line = f"{_WORDS[found.held]:10} {found.promise:10} {found.tried}"
    more = console.one_line("; ".join(filter(None, (found.detail, found.fix))))
    return f"{line}\n{'':21} {more}" if more else line
