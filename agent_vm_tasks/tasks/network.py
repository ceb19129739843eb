"""network: what the VM may reach."""

from __future__ import annotations

from invoke.context import Context  # noqa: TC002  Invoke reads signatures
from invoke.tasks import task

from agent_vm_tasks import network as net
from agent_vm_tasks import settings as configuration
from agent_vm_tasks import vm
from agent_vm_tasks.console import as_json
from agent_vm_tasks.errors import UsageError

from ._edge import guarded

MEANS = {
    "offline": "nothing but agent-vm's own connection",
    "internet": "the internet, not the services of this machine's loopback",
    "open": "the internet and the services of this machine's loopback, at 192.168.5.2",
}


@task(help={"mode": "offline, internet or open: what the VM may reach from its next boot on",
            "json": "print JSON"})  # fmt: skip
@guarded
def network(_context: Context, mode: str | None = None, json: bool = False) -> None:
    """Tell what the VM may reach, or change it.

    Example: network offline
    """
    chosen = configuration.load()
    name = chosen.vm.name
    if mode is not None:
        if mode not in MEANS:
            raise UsageError(f"there is no network mode {mode!r:.40}", f"known: {', '.join(MEANS)}")
        net.choose(name, mode)
    running = vm.made_here(name) and (found := vm.find(name)) is not None and found.running
    has, wanted = net.in_force(name) if running else "", net.wanted(chosen)
    if json:
        print(as_json({"in_force": has, "wanted": wanted}))
        return
    print(f"Network: {has or wanted}: {MEANS[has or wanted]}")
    if has and has != wanted:
        print(f"Wanted: {wanted}: {MEANS[wanted]}; `agent-vm restart` brings that")
    if mode not in {None, wanted}:
        print(f"{chosen.sources['network.mode']} asks for {wanted}, which counts here")
