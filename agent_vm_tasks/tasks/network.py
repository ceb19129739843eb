"""network and network-log: what the VM may reach, and what it tried to."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from invoke.context import Context  # noqa: TC002  Invoke reads signatures
from invoke.tasks import task

from agent_vm_tasks import console, vm
from agent_vm_tasks import network as net
from agent_vm_tasks import settings as configuration
from agent_vm_tasks.errors import UsageError
from agent_vm_tasks.workspaces import many

from ._edge import guarded

if TYPE_CHECKING:
    from agent_vm_tasks.proxy import Decision

MEANS = {
    "offline": "nothing but agent-vm's own connection",
    "allowlist": "the hosts on its list, over http and https (see `agent-vm network-log`)",
    "internet": "the internet, not the services of this machine's loopback",
    "open": "the internet and the services of this machine's loopback, at 192.168.5.2",
}


@task(help={"mode": "offline, allowlist, internet or open: what it may reach from the next boot on",
            "json": "print JSON"})  # fmt: skip
@guarded
def network(_context: Context, mode: str | None = None, json: bool = False) -> None:
    """Tell what the VM may reach, or change it.

    With allowlist, what has changed in network.allow is in force when this ends.

    Example: network offline
    """
    chosen = configuration.load()
    name = chosen.vm.name
    if mode is not None:
        if mode not in MEANS:
            raise UsageError(f"there is no network mode {mode!r:.40}", f"known: {', '.join(MEANS)}")
        net.require_enforceable(chosen, mode)
        net.choose(name, mode)
    running = vm.made_here(name) and (found := vm.find(name)) is not None and found.running
    has, wanted = net.in_force(name) if running else "", net.wanted(chosen)
    for line in vm.ensure_way_out(chosen, console.say) if running else ():
        console.warn(line)
    if json:
        print(console.as_json({"in_force": has, "wanted": wanted}))
        return
    print(f"Network: {has or wanted}: {MEANS[has or wanted]}")
    if has and has != wanted:
        print(f"Wanted: {wanted}: {MEANS[wanted]}; `agent-vm restart` brings that")
    if mode not in {None, wanted}:
        print(f"{chosen.sources['network.mode']} asks for {wanted}, which counts here")


@task(help={"learn": "print what to add to network.allow, for what was not on the list",
            "json": "print JSON"})  # fmt: skip
@guarded
def network_log(_context: Context, learn: bool = False, json: bool = False) -> None:
    """Tell what the VM tried to reach with network mode allowlist, and what became of it.

    A connection that was let through is told when it has ended. Program, method and host are the
    guest's words.

    Example: network-log --learn
    """
    from agent_vm_tasks import proxy

    chosen = configuration.load()
    if not vm.made_here(chosen.vm.name):
        vm.require_exists(chosen.vm.name)
    found = proxy.decisions(chosen.vm.name)
    if learn:
        print(_lesson(proxy.learned(found, chosen)))
    elif json:
        print(console.as_json([proxy.plain(each) for each in found]))
    elif found:
        print(console.table(("TIME", "DECISION", "HOST", "METHOD", "PROGRAM"), map(_row, found)))
    else:
        print("Nothing was asked of the proxy (network mode allowlist).")


def _row(each: Decision) -> tuple[object, ...]:
    when = datetime.fromtimestamp(each.time).astimezone().isoformat(" ", "seconds")
    outcome = f"refused: {each.refused}" if each.refused else f"allowed: {each.status}"
    return when, outcome, f"{each.host}:{each.port}", each.method, _program(each)


def _lesson(entries: dict[str, list[Decision]]) -> str:
    """What to paste; the guest chose the names, and only what a setting may hold is in them."""
    if not entries:
        return "# Nothing was refused that network.allow could let through."
    lines = [
        f'    "{entry}",  # {many(len(made), "time")}, last by {_program(made[-1])}'
        for entry, made in entries.items()
    ]
    head = ["# Look at each: the VM can send to it what it knows.", "[network]", "allow = ["]
    return "\n".join([*head, *lines, "]"])


def _program(each: Decision) -> str:
    return console.one_line(each.program[:40]) or "-"
