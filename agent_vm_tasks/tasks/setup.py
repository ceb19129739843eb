"""Commands that make the host ready and tell what is the matter with it."""

from __future__ import annotations

from dataclasses import asdict
from json import dumps
from typing import TYPE_CHECKING

from invoke.context import Context  # noqa: TC002  Invoke reads signatures
from invoke.tasks import task

from agent_vm_tasks import console, host
from agent_vm_tasks import settings as configuration
from agent_vm_tasks.errors import AgentVMError

from ._edge import guarded

if TYPE_CHECKING:
    from collections.abc import Sequence


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


@task(help={"json": "print one JSON object: {ok, checks}", "fix": "run setup first"})
@guarded
def doctor(_context: Context, json: bool = False, fix: bool = False) -> None:
    """Check what the host must have and say what to do; exit status 1 when no VM can run.

    Example: agent-vm doctor --json
    """
    from agent_vm_tasks import install

    found = install.setup(configuration.load().packages, console.say) if fix else host.checks()
    if json:
        usable = not _missing(found)
        print(dumps({"ok": usable, "checks": [asdict(check) for check in found]}, indent=2))
    else:
        print(console.printable("\n".join(_told(check) for check in found)))
    _fail_if_unusable(found)


def _told(check: host.Check) -> str:
    word = "ok" if check.ok else "PROBLEM" if check.required else "warning"
    line = f"{word:8} {check.name:14} {check.detail}"
    return line if check.ok else f"{line}\n{'':23} {check.fix}"


def _missing(found: Sequence[host.Check]) -> list[str]:
    return [check.name for check in found if check.required and not check.ok]


def _fail_if_unusable(found: Sequence[host.Check]) -> None:
    if missing := _missing(found):
        raise AgentVMError(f"no VM can run yet: {', '.join(missing)}", "do what is said above")
