"""provision, tools, refresh-home, bake, prune, render, logs, ssh-config: looking after the VM."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

from invoke.context import Context  # noqa: TC002  Invoke reads signatures
from invoke.tasks import task

from agent_vm_tasks import checks, creation, guest, lima, vm
from agent_vm_tasks import settings as configuration
from agent_vm_tasks.console import as_json, one_line, printable, say, table
from agent_vm_tasks.errors import AgentVMError, UsageError

from ._edge import guarded


@task(help={"upgrade": "bring what is there to its newest allowed version; shows what changed"})
@guarded
def provision(c: Context, upgrade: bool = False) -> None:
    """Install what is missing in the VM; finished stages are skipped.

    Example: provision --upgrade
    """
    from agent_vm_tasks import tools as tools_core

    chosen = configuration.load()
    vm.require_running(chosen.vm.name)
    before = tools_core.installed(chosen.vm.name) if upgrade else {}
    vm.install(chosen, say, c, upgrade=upgrade)
    if not upgrade:
        print("The VM is provisioned.")
        return
    changed = tools_core.changes(before, tools_core.installed(chosen.vm.name))
    if changed:
        print(
            table(
                ("NAME", "BEFORE", "NOW"), [(n, old or "-", new or "-") for n, old, new in changed]
            )
        )
    else:
        print("Everything is as new as it may be.")


@task(help={"json": "print one JSON list: [{name, package, source, kind, wanted, installed}]"})
@guarded
def tools(_context: Context, json: bool = False) -> None:
    """List the agents and tools in the VM: the version that is wanted and the one installed.

    Example: tools --json
    """
    from agent_vm_tasks import tools as tools_core

    chosen = configuration.load()
    vm.require_running(chosen.vm.name)
    found = tools_core.listed(chosen)
    if json:
        print(as_json([{**asdict(tool), "kind": tool.kind} for tool in found]))
        return
    rows = [(tool.name, tool.wanted or "any", tool.installed or "-", tool.kind) for tool in found]
    print(table(("NAME", "WANTED", "INSTALLED", "KIND"), rows))


_OUTCOMES = {
    "new": "added",
    "updated": "updated",
    "replaced": "replaced; a copy is in ~/.agent-vm/home-before of the VM",
    "kept": "left: changed inside (--force replaces it, after a copy)",
}


@task(name="refresh-home", help={"force": "replace files that were changed inside, after a copy"})
@guarded
def refresh_home(_context: Context, force: bool = False) -> None:
    """Bring the home files in the VM up to date; what was changed inside stays.

    Example: refresh-home --force
    """
    from agent_vm_tasks import home

    chosen = configuration.load()
    vm.require_running(chosen.vm.name)
    done = home.refresh(chosen, force=force)
    for outcome, path in done:
        if outcome != "same":
            print(one_line(f"{path}: {_OUTCOMES.get(outcome, outcome)}"))
    print(f"{sum(outcome == 'same' for outcome, _ in done)} files are up to date.")


@task(help={"list": "show the kept disks instead"})
@guarded
def bake(c: Context, list: bool = False) -> None:  # noqa: A002  the flag's name
    """Prepare a disk for later VMs: make one, provision it, keep its disk, remove it.

    `start` keeps one by itself after a first success. Example: bake --list
    """
    from agent_vm_tasks import golden

    if list:
        rows = [
            (kept.folder.name, kept.made, f"{kept.used / 2**30:.1f}")
            for kept in golden.kept_disks()
        ]
        print(table(("DISK", "MADE", "GIB"), rows))
        return
    print("Kept." if golden.bake(configuration.load(), say, c) else "There is such a disk already.")


@task
@guarded
def prune(_context: Context) -> None:
    """Remove kept disks that the next VM would not be made from. Says how much that frees.

    Example: prune
    """
    from agent_vm_tasks import golden

    freed = golden.prune(configuration.load())
    print(f"Freed {freed / 2**30:.1f} GiB.")


@task(help={"output": "write the files into this folder instead of printing them"})
@guarded
def render(_context: Context, output: str | None = None) -> None:
    """Show what the VM would be made from; creates nothing.

    Example: render --output /tmp/vm
    """
    if output == "":
        raise UsageError("--output is empty", "name a folder")
    for name, text in creation.rendered(configuration.load(), say).items():
        if output is None:
            print(f"# ---- {name}\n{text}")
        else:
            print(printable(str(_written(Path(output) / name, text))))


def _written(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise AgentVMError(f"{path} cannot be written: {error.strerror}") from error
    return path


@task(help={"name": "serial, ha.stderr or ha.stdout", "lines": "how many of its last lines"})
@guarded
def logs(_context: Context, name: str = "serial", lines: str = "50") -> None:
    """Show the end of one of the VM's logs.

    Example: logs --name ha.stderr
    """
    count = checks.integer(1, 10**6)(
        "--lines", int(lines) if re.fullmatch("[0-9]{1,9}", lines) else lines
    )
    found = vm.require_exists(configuration.load().vm.name)
    print(printable(lima.log_tail(found.dir, name, count)))


@task
@guarded
def ssh_config(_context: Context) -> None:
    """Print an ssh configuration to include.

    Example: ssh-config >> ~/.ssh/config
    """
    name = configuration.load().vm.name
    vm.require_running(name)
    print(guest.config(name).read_text("utf-8"), end="")
