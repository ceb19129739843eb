"""Commands that make the host ready and tell what is the matter with it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from invoke.context import Context  # noqa: TC002  Invoke reads signatures
from invoke.tasks import task

from agent_vm_tasks import console, host, process
from agent_vm_tasks import settings as configuration
from agent_vm_tasks.errors import AgentVMError

from ._edge import guarded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from agent_vm_tasks.host import Check
    from agent_vm_tasks.settings import Settings


@task
@guarded
def setup(_context: Context) -> None:
    """Install what is missing: QEMU, Lima, sshfs, and for root the account that runs the VM.

    Tells each command before it runs it. Example: agent-vm setup
    """
    from agent_vm_tasks import install

    found = install.setup(configuration.load().packages, console.say)
    for check in found:
        if not check.ok:
            print(console.printable(_told(check)))
    _fail_if_unusable(found)
    print("the host is ready")


@task(help={"json": "print one JSON object: {ok, checks}", "fix": "put right what can be"})
@guarded
def doctor(_context: Context, json: bool = False, fix: bool = False) -> None:
    """Check this machine and the VM and say what to do; exit status 1 when one does not work.

    Example: agent-vm doctor --fix
    """
    chosen = configuration.load()
    host_found, vm_found = _repaired(chosen) if fix else _looked(chosen)
    found = [*host_found, *vm_found]
    if json:
        usable = not _missing(found)
        print(console.as_json({"ok": usable, "checks": [asdict(check) for check in found]}))
    else:
        print(console.printable("\n".join(_told(check) for check in found)))
    _fail_if_unusable(host_found)
    if faults := _missing(vm_found):
        raise AgentVMError(f"the VM does not work: {', '.join(faults)}", "do what is said above")


def _looked(chosen: Settings) -> tuple[list[Check], list[Check]]:
    """Look at the host and at the VM, at the same time: either may take seconds."""
    from agent_vm_tasks import doctor as faults

    with process.side_by_side() as threads:
        host_found = threads.submit(host.checks)
        vm_found = faults.checks(chosen)
        return host_found.result(), vm_found


def _repaired(chosen: Settings) -> tuple[list[Check], list[Check]]:
    from agent_vm_tasks import doctor as faults
    from agent_vm_tasks import install

    try:
        host_found = install.setup(chosen.packages, console.say)
    except AgentVMError as error:  # the VM may be helped all the same
        console.warn(str(error))
        host_found = host.checks()
    return host_found, faults.repair(chosen, console.say)


def _told(check: Check) -> str:
    word = "ok" if check.ok else "PROBLEM" if check.required else "warning"
    line = f"{word:8} {check.name:14} {check.detail}"
    return line if check.ok else f"{line}\n{'':23} {check.fix}"


def _missing(found: Sequence[Check]) -> list[str]:
    return [check.name for check in found if check.required and not check.ok]


def _fail_if_unusable(found: Sequence[Check]) -> None:
    if missing := _missing(found):
        raise AgentVMError(f"no VM can run yet: {', '.join(missing)}", "do what is said above")
