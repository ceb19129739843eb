"""connect, git, push, fetch, clean, clean-all: a branch's way into the VM and back."""

from __future__ import annotations

import os
import select
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from invoke.context import Context  # noqa: TC002  Invoke reads signatures
from invoke.exceptions import Exit
from invoke.tasks import task

from agent_vm_tasks import guest, secrets, sync, undo, vm, workspaces
from agent_vm_tasks import mount as sshfs
from agent_vm_tasks import settings as configuration
from agent_vm_tasks.console import escaped, reset, say, warn
from agent_vm_tasks.errors import AgentVMError, UsageError

from ._edge import confirm, guarded

if TYPE_CHECKING:
    from agent_vm_tasks.secrets import Secrets
    from agent_vm_tasks.workspaces import Workspace

TRIES = 4
"""How often to enter at most: without the variables, without the workspace, and beside others."""
MOST_TOLD = 20
"""How many of the files that could run here `fetch` names."""
BRANCH = {"branch": "the branch, for example fix-login"}

_AFTER_PUSH = {
    "updated": "",
    "current": "",
    "ahead": "the workspace has {detail} commits that are not here yet; "
    "`agent-vm fetch {branch}` brings them",
    "diverged": "{branch} has new commits here and in the workspace; "
    "`agent-vm fetch {branch}`, merge here, then push again",
    "elsewhere": "the workspace is on {detail}, so its files stay; "
    "`git checkout {branch}` and `git merge {ref}` there bring them",
    "busy": "a merge, rebase or bisect goes on in the workspace ({detail}); end it, "
    "then `git merge {ref}` there",
    "locked": "git is at work in the workspace, or was cut off there; when none runs, "
    "delete {detail} there, then push again",
    "gone": "the branch {branch} was deleted in the workspace, so its files stay; "
    "`git branch {branch} {ref}` there brings it back",
    "blocked": "files in the workspace are in the way, so they stay: {detail}; commit them, "
    "then `git merge {ref}` there",
    "refused": "git in the workspace does not take them: {detail}; see to that, "
    "then `git merge {ref}` there",
}


@task(
    help={
        **BRANCH,
        "command": "run this shell command line instead of a shell; or put a command after --",
    }
)
@guarded
def connect(c: Context, branch: str | None = None, command: str | None = None) -> None:
    """Open a shell in the branch's workspace; make what is missing, VM included.

    Without a branch, a shell in the VM. Example: connect --branch fix-login -- make test
    """
    chosen, argv = configuration.load(), _after_dashes()
    if command is not None and argv:
        raise UsageError("--command and a command after -- cannot both be run", "leave one out")
    given = secrets.collect(chosen)
    ws = _workspace(chosen, branch, sending=True) if branch is not None else None
    if running(chosen, c):
        for line in (*given.warnings, *vm.catch_up(chosen, say, c)):
            warn(line)
    if ws and chosen.workspace.walls and workspaces.unwalled(ws):
        warn(f"{ws.folder} has no wall, as it was made before: fetch, clean and connect again")
    status = _enter(chosen, ws, given, command, argv)
    if status:
        raise Exit(code=status)


@task(help=BRANCH)
@guarded
def git(c: Context, branch: str | None = None) -> None:
    """Run git in a branch's workspace, its output escaped: git here refuses to, in the mount.

    No terminal, pager or input. Example: git --branch fix-login -- log --oneline
    """
    chosen, argv = configuration.load(), _after_dashes()
    ws = _workspace(chosen, branch)
    if not argv:
        raise UsageError("no git command is named", "put one after --, for example -- status")
    existing(chosen, c)
    status = workspaces.git_inside(ws, argv, escaped(sys.stdout), escaped(sys.stderr))
    if status == workspaces.NOT_THERE and workspaces.inspect(ws) is None:
        raise AgentVMError(f"there is no workspace of {ws.branch}",
                           f"`agent-vm connect {ws.branch}` makes it")  # fmt: skip
    if status == guest.SSH_FAILED and not guest.connected(ws.vm):
        raise AgentVMError("the connection was lost", "see `agent-vm status`")
    if status:
        raise Exit(code=status)


@task(help=BRANCH)
@guarded
def push(c: Context, branch: str | None = None) -> None:
    """Send a branch's new commits into its workspace.

    Example: push --branch fix-login
    """
    chosen = configuration.load()
    ws = _workspace(chosen, branch, sending=True)
    running(chosen, c)
    _push(chosen, ws)
    print(f"{ws.branch} is in the VM.")


@task(help=BRANCH)
@guarded
def fetch(c: Context, branch: str | None = None) -> None:
    """Bring a workspace's commits to this repository.

    Example: fetch --branch fix-login
    """
    chosen = configuration.load()
    ws = _workspace(chosen, branch)
    existing(chosen, c)
    fetched, contents = sync.fetch(ws, say)
    for line in contents.losses:
        warn(f"left in the workspace: {line}")
    if fetched.earlier:
        warn(
            f"{ws.branch} was rewritten in the VM; what was fetched before is at {fetched.earlier}"
        )
    for line in fetched.clashes[:MOST_TOLD]:
        warn(f"one file where case is ignored: {line}")
    for line in fetched.runs[:MOST_TOLD]:
        warn(f"runs on this machine, so look at it first: {line}")
    if more := len(fetched.runs[MOST_TOLD:]):
        warn(f"and {more} more such files")
    if not fetched.merged:
        raise AgentVMError(
            f"the work is at {fetched.ref}, {ws.branch} was not moved", fetched.advice
        )
    print(f"{ws.branch} is up to date with the VM.")


@task(help={**BRANCH, "force": "do not ask, whatever would be lost"})
@guarded
def clean(c: Context, branch: str | None = None, force: bool = False) -> None:
    """Delete one workspace; the branch here stays.

    Example: clean --branch fix-login
    """
    chosen = configuration.load()
    ws = _workspace(chosen, branch)
    existing(chosen, c)
    rows = [row for row in workspaces.inventory(ws.vm) if row.key == ws.key or _lost(row, ws)]
    if not rows:
        print(f"There is no workspace of {ws.branch}.")
        return
    _remove(chosen, rows, force=force)


@task(help={"force": "do not ask, whatever would be lost"})
@guarded
def clean_all(c: Context, force: bool = False) -> None:
    """Delete every workspace; the VM keeps running.

    Example: clean-all --force
    """
    chosen = configuration.load()
    existing(chosen, c)
    _remove(chosen, workspaces.inventory(chosen.vm.name), force=force)


def _lost(row: workspaces.Row, ws: Workspace) -> bool:
    """Whether it is the workspace's folder without a .git that could tell so."""
    return not row.key and row.folder in ws.folders


def _workspace(
    chosen: configuration.Settings, branch: str | None, *, sending: bool = False
) -> Workspace:
    if branch is None:
        raise UsageError("no branch is named", "add --branch NAME")
    if sending and not vm.made_here(chosen.vm.name):
        vm.look_over(chosen)
    return workspaces.around(chosen, Path.cwd(), branch, sending=sending)


def running(chosen: configuration.Settings, c: Context) -> bool:
    """Start what is missing; with the VM warm (then True), `vm.look_after` is all."""
    ready = vm.ready(chosen.vm.name)
    for line in vm.look_after(chosen, say) if ready else vm.start(chosen, say, c).warnings:
        warn(line)
    return ready


def existing(chosen: configuration.Settings, c: Context) -> None:
    """Like `running`, but no VM is created to say that nothing is in it."""
    if not vm.ready(chosen.vm.name):
        vm.require_exists(chosen.vm.name)
        running(chosen, c)


def _enter(
    chosen: configuration.Settings,
    ws: Workspace | None,
    given: Secrets,
    command: str | None,
    argv: list[str],
) -> int:
    name, token = chosen.vm.name, secrets.token(chosen.vm.name, given)
    waits = _input_waits()
    if waits:
        _supply(chosen, ws, given, secrets.STALE)
    # A new one is not tried first: made by another command at that time, it would end this one.
    if waits or (ws and not workspaces.known(ws)):
        _supply(chosen, ws, given, workspaces.NOT_THERE)
    for _ in range(TRIES):
        status = workspaces.enter(name, ws, command, argv, token)
        if not _supply(chosen, ws, given, status):
            break
    else:
        raise AgentVMError("other commands keep changing what is in the VM", "try again")
    if status == guest.SSH_FAILED and not guest.connected(name):
        reset()
        again = f" {ws.branch}" if ws else ""
        raise AgentVMError("the connection was lost", f"return with `agent-vm connect{again}`")
    return status


def _supply(
    chosen: configuration.Settings, ws: Workspace | None, given: Secrets, status: int
) -> bool:
    """Bring what the VM lacks by this status of `workspaces.enter`; False when it lacks nothing."""
    if status == secrets.STALE:
        return secrets.push(chosen.vm.name, given, ws.user if ws else "")
    if status != workspaces.NOT_THERE or not ws or workspaces.inspect(ws) is not None:
        return False
    folder = _push(chosen, ws)
    if folder and sys.stdout.isatty():
        say(f"the files are at {sshfs.point(chosen) / folder}")
    return True


def _input_waits() -> bool:
    """Whether stdin has, or may have, what is gone for a second try once ssh has read it."""
    try:
        typed = os.isatty(0) and bool(select.select([0], [], [], 0)[0])
        return typed or not stat.S_ISCHR(os.fstat(0).st_mode)
    except OSError:  # it is closed
        return False


def _push(chosen: configuration.Settings, ws: Workspace) -> str:
    """Push; the folder of a workspace that was made for it."""
    update = sync.push(ws, say, chosen.workspace.include, walled=chosen.workspace.walls)
    advice = _AFTER_PUSH.get(update.outcome, "the workspace gave a strange answer")
    if advice:
        detail = ", ".join(filter(None, update.detail.split("\n")))
        ref = f"refs/agent-vm/in/{ws.branch}"
        raise AgentVMError(advice.format(detail=detail, ref=ref, branch=ws.branch))
    return update.folder


def _remove(chosen: configuration.Settings, rows: list[workspaces.Row], *, force: bool) -> None:
    name, days = chosen.vm.name, chosen.workspace.keep_days
    weights = undo.weigh(name, rows)
    if rows and not force:
        names = ", ".join(row.folder for row in rows)
        confirm(f"delete {names}", undo.losses(rows, weights))
    kept = undo.keep(name, rows, weights, days, say)
    if not force:
        workspaces.require_unchanged(name, rows)
    gone = [
        folder
        for user, folders in workspaces.by_user(rows).items()
        for folder in workspaces.remove(name, folders, user)
    ]
    back = "; `agent-vm undo` lists what can be brought back" if kept else ""
    print(f"Deleted {len(gone)} workspace{'' if len(gone) == 1 else 's'}{back}.")


def _after_dashes() -> list[str]:
    """The command after `--`, as typed: Invoke joins it with spaces and loses the quoting."""
    return sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
