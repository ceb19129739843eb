"""start, stop, restart, status, destroy, mount, unmount."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from invoke.context import Context  # noqa: TC002  Invoke reads signatures
from invoke.tasks import task

from agent_vm_tasks import console, secrets, undo, vm, workspaces
from agent_vm_tasks import mount as sshfs
from agent_vm_tasks import settings as configuration
from agent_vm_tasks.console import say, warn

from ._edge import confirm, guarded
from .network import MEANS

if TYPE_CHECKING:
    from agent_vm_tasks.vm import Status
    from agent_vm_tasks.workspaces import Row


@task(
    help={
        "memory": "memory in GiB (16) or with a unit (512MiB); counts at creation",
        "vcpu": "number of CPUs; counts at creation",
        "disk": "disk in GiB; counts at creation",
    }
)
@guarded
def start(
    c: Context, memory: str | None = None, vcpu: str | None = None, disk: str | None = None
) -> None:
    """Start the VM; create it when there is none.

    Example: start --memory 16 --vcpu 8
    """
    wanted = configuration.with_vm(configuration.load(), cpus=vcpu, memory=memory, disk=disk)
    _start(wanted, c)


@task
@guarded
def stop(_context: Context) -> None:
    """Power the VM down; workspaces stay.

    Example: stop
    """
    stopped = vm.stop(configuration.load(), say)
    print("The VM is stopped." if stopped else "The VM was not running.")


@task
@guarded
def restart(c: Context) -> None:
    """Stop the VM and start it again.

    Example: restart
    """
    chosen = configuration.load()
    secrets.collect(chosen)  # a start would refuse what this does, when the VM is down already
    vm.stop(chosen, say)
    _start(chosen, c)


@task(help={"json": "print JSON"})
@guarded
def status(_context: Context, json: bool = False) -> None:
    """Show the VM, the mount and every workspace.

    Example: status --json
    """
    now = vm.status(configuration.load())
    print(_as_json(now) if json else _as_text(now))


@task(help={"force": "do not ask, whatever would be lost"})
@guarded
def destroy(_context: Context, force: bool = False) -> None:
    """Delete the VM with all workspaces in it.

    Example: destroy --force
    """
    chosen = configuration.load()
    name = chosen.vm.name
    rows, trouble = vm.contents(chosen)
    weights = undo.weigh(name, rows)
    if not force and vm.find(name):
        unknown = [f"workspaces that could not be looked at: {trouble}"] if trouble else []
        confirm("destroy the VM", [*undo.losses(rows, weights), *unknown])
    if trouble:
        warn(f"workspaces were not looked at and no copy is kept of them: {trouble}")
    kept = undo.keep(name, rows, weights, chosen.workspace.keep_days, say)
    if not force:
        workspaces.require_unchanged(name, rows)
    back = "; `agent-vm undo` lists what can be brought back" if kept else ""
    print(f"The VM is destroyed{back}." if vm.destroy(chosen, say) else "No VM exists.")


@task
@guarded
def mount(_context: Context) -> None:
    """Show the workspaces on this machine, by SSHFS.

    Example: mount
    """
    chosen = configuration.load()
    vm.require_running(chosen.vm.name)
    sshfs.mount(chosen)
    print(f"The workspaces are at {sshfs.point(chosen)}.")


@task(help={"force": "also when it is busy or does not answer"})
@guarded
def unmount(_context: Context, force: bool = False) -> None:
    """Take the workspaces off this machine's file system.

    Example: unmount --force
    """
    done = sshfs.unmount(configuration.load(), force=force)
    print("Unmounted." if done else "Was not mounted.")


def _start(chosen: configuration.Settings, c: Context) -> None:
    started = vm.start(chosen, say, c)
    for line in started.warnings:
        warn(line)
    print(f"The VM {chosen.vm.name} is running.")


def _as_json(now: Status) -> str:
    return console.as_json(asdict(now))


def _as_text(now: Status) -> str:
    lines = [f"State: {now.state}"]
    if now.state != vm.ABSENT:
        lines += [
            f"CPUs: {now.cpus}",
            f"Memory: {_gib(now.memory)}",
            f"Disk: {_gib(now.disk)}",
            f"Mount: {now.mount} ({'mounted' if now.mounted else 'not mounted'})",
        ]
    if now.network:
        lines.append(f"Network: {now.network}: {MEANS[now.network]}")
    if now.trouble:
        lines.append(f"Workspaces: unknown ({now.trouble})")
    elif now.workspaces:
        lines += ["", _table(now.workspaces)]
    elif now.state == "Running":
        lines.append("Workspaces: none")
    return console.printable("\n".join(lines))


def _table(rows: tuple[Row, ...]) -> str:
    head = ("WORKSPACE", "REPOSITORY", "BRANCH", "NOT FETCHED", "UNCOMMITTED", "UNTRACKED")
    cells: list[tuple[Any, ...]] = [
        (r.folder, r.repository, r.branch, r.unfetched, r.uncommitted, r.untracked) for r in rows
    ]
    return console.table(head, cells)


def _gib(mib: int) -> str:
    return f"{mib / 1024:g} GiB"
