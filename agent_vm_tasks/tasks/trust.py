"""trust: what a repository's settings loosen, shown, approved, listed and revoked."""

from __future__ import annotations

from pathlib import Path

from invoke.context import Context  # noqa: TC002  Invoke reads signatures
from invoke.tasks import task

from agent_vm_tasks import mount, settings
from agent_vm_tasks import trust as approvals
from agent_vm_tasks.console import as_json, one_line, say, table
from agent_vm_tasks.errors import AgentVMError, UsageError

from ._edge import agreed, guarded


@task(
    help={
        "repository": "the folder of another repository than this one",
        "list": "list what is approved, for all repositories",
        "revoke": "take an approval back",
        "force": "approve without being asked",
        "json": "print the list as JSON",
    }
)
@guarded
def trust(
    _context: Context,
    repository: str | None = None,
    list_: bool = False,
    revoke: bool = False,
    force: bool = False,
    json: bool = False,
) -> None:
    """Show what the repository's agent-vm.toml loosens, and approve exactly that.

    Example: trust
    """
    where = settings.here(Path(repository) if repository else None)
    if revoke and (list_ or json):
        raise UsageError("--revoke lists nothing", "leave out --list and --json")
    if list_ or json:
        print(_as_json() if json else _as_text())
    elif revoke:
        _revoke(where)
    else:
        _approve(where, force=force)


def _approve(where: Path, *, force: bool) -> None:
    found, wanted = settings.requested(where)
    mount.refuse_inside(found, where)
    if not where.is_dir():
        raise UsageError(f"there is no folder {where}")
    if wanted is None:
        print(one_line(f"Nothing in {where} needs to be approved."))
    elif approvals.approved(wanted):
        print(one_line(f"What {wanted.file} loosens is approved."))
    else:
        _show(wanted)
        if not force and not agreed(f"approve what {wanted.file} loosens"):
            raise AgentVMError("nothing was approved")
        approvals.approve(wanted, say)
        print("Approved; `agent-vm trust --revoke` takes it back.")


def _show(wanted: approvals.Loosened) -> None:
    """On stderr, where the question comes."""
    for line in (f"{wanted.file} wants:", *approvals.changes(wanted), f"sha256 {wanted.sha256}"):
        say(one_line(line))  # escaped first: to `say` a carriage return at the end has a meaning


def _revoke(where: Path) -> None:
    folder = approvals.revoke(settings.folders(where), say)
    if not folder:
        raise AgentVMError(f"nothing is approved for {where}", "`agent-vm trust --list` lists it")
    print(one_line(f"Revoked what was approved for {folder}."))


def _as_json() -> str:
    return as_json([{"folder": folder, **entry} for folder, entry in approvals.known().items()])


def _as_text() -> str:
    known = approvals.known()
    if not known:
        return "Nothing is approved."
    rows = [(folder, e["sha256"][:12], ", ".join(e["values"])) for folder, e in known.items()]
    return table(("FOLDER", "SHA256", "KEYS"), rows)
