"""Push and fetch: a branch's way into its workspace and back, as commits."""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import git, guest, process, review, state, walls
from .errors import AgentVMError
from .workspaces import (
    Contents,
    inspect,
    many,
    remember,
    require_branchable,
    require_files,
    symbolic,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .console import Say
    from .process import Result
    from .workspaces import Workspace

MOST_TAGS = 2000
"""How many tags a push sends at most."""
LARGEST_CHECKOUT = 2**30
"""Bytes of files that a fetch writes unasked: a small pack may hold gigabytes of zeros."""


@dataclass(frozen=True)
class Update:
    """What a push did to the files inside: updated, current, ahead, elsewhere, busy and so on.

    `folder` is that of a workspace that was made for it.
    """

    outcome: str
    detail: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Fetched:
    """What a fetch brought; `merged`: the local branch holds it, else `advice` says what to do.

    `runs`: files of it that programs on the host would run. `clashes`: names of it that are one
    where case is ignored. `earlier`: the ref of what was fetched before, which it no longer has.
    """

    ref: str
    commits: int
    merged: bool
    advice: str = ""
    runs: tuple[str, ...] = ()
    clashes: tuple[str, ...] = ()
    earlier: str = ""


def ensure_branch(ws: Workspace, say: Say) -> str:
    """Create the branch from HEAD when it does not exist; its commit. The user's checkout stays."""
    repo = ws.repository.path
    if commit := git.commit(repo, f"refs/heads/{ws.branch}"):
        return commit
    commit = require_branchable(repo, ws.branch)
    made = git.change(repo, "branch", "--no-track", "--", ws.branch, commit)
    if not made.ok and (another := git.commit(repo, f"refs/heads/{ws.branch}")):
        return another  # a command beside this one has made it
    if not made.ok:
        raise git.explain(made, f"creating branch {ws.branch}")
    say(f"created branch {ws.branch} from HEAD")
    for other in _alike(repo, ws.branch):
        say(f"there is a branch {other!a}, too: only upper case or the coding of accents differs")
    return commit


def push(ws: Workspace, say: Say, include: Sequence[str] = (), *, walled: bool = False) -> Update:
    """Send the branch's commits and tags in, and update the files there when that loses nothing.

    Makes the branch and the workspace where they are missing; a new workspace also gets the
    untracked files named in `include`, and with `walled` a wall. Raises AgentVMError when git
    fails.
    """
    extra = _included(ws.repository.path, include)
    commit, folder = ensure_branch(ws, say), ""
    refs = f"{commit} refs/heads/{ws.branch}\n{_tags(ws.repository.path, commit)}"
    result = _send(ws, refs, say)
    if not result.ok:
        with state.lock(ws.vm, say, "push-lock"):  # another command may be at the same
            folder = create(ws, walled=walled)
            result = _send(ws, refs, say)
            if "cannot lock ref" in result.stderr:  # one that is at its first try was quicker
                result = _send(ws, refs, say)
    if not result.ok:
        raise _unsent(ws, result)
    user = ws.user
    if user:
        walls.show(ws.vm, user)
    with guest.understood():
        outcome, detail, new = guest.script(
            ws.vm, "workspace-update.sh", ws.key, ws.branch, user=user
        )
    remember(ws, sent=commit)  # not before there is something to enter: see tasks/work.py
    if new and include:
        guest.unpack(ws.vm, ws.path, extra, user)
    return Update(outcome, detail, folder)


def _unsent(ws: Workspace, result: Result) -> AgentVMError:
    """Why a push failed; a partial clone cannot send what it never had."""
    promised = ("config", "--get-regexp", r"^remote\..*\.promisor$", "true")
    if "unable to read" in result.stderr and git.run(ws.repository.path, *promised, check=False).ok:
        return AgentVMError(
            f"{ws.repository.path} is a partial clone that lacks files of {ws.branch}",
            "`git fetch --refetch --no-filter` there gets them",
        )
    return git.explain(result, f"pushing {ws.branch}")


def create(ws: Workspace, *, walled: bool = False) -> str:
    """Make the empty workspace in the guest; its folder, or "" when it was there.

    One that is walled stays so.
    """
    repo, folders, user = ws.repository, ws.folders, ws.user
    if (walled or user) and (folder := walls.up(ws.vm, ws.key, folders)):
        folders, user = (folder, folder), ws.user
    with guest.understood():
        made, folder = guest.script(
            ws.vm, "workspace-create.sh",
            ws.key, *folders, repo.name, ws.branch, repo.object_format, _origin(repo.path),
            user=user,
        )  # fmt: skip
        if made == "walled" and not user:  # the note of it here was lost
            return create(ws, walled=True)
        return folders[folders.index(folder)] if made == "made" else ""


def fetch(ws: Workspace, say: Say) -> tuple[Fetched, Contents]:
    """Bring the branch's commits to the host, under `ws.ref`, and forward the local branch.

    The branch moves only when that loses nothing; where it cannot, `Fetched.advice` says what to
    do. Raises AgentVMError when there is no such workspace or git fails.
    """
    new, before, contents = _bring(ws, say)
    branch = _commits(ws)[0]
    earlier = _settle(ws, before, new)
    remember(ws, fetched=new)
    count = _new_commits(ws.repository.path, new, before, branch) if new != before else 0
    say(f"fetched {many(count, 'commit')}" if count else "nothing new")
    since = (before or branch) if count else branch  # a fetch that was cut off has told nothing
    try:
        ours, theirs = _apart(ws.repository.path, branch, new)
        untold = count or (theirs and not ours)
        changed = (ws.repository.path, since, new) if untold else None
        runs = tuple(review.what_runs(*changed)) if changed else ()
        clashes = tuple(review.clashes(*changed)) if changed else ()
        merged, advice = _forward(ws, branch, new)
    except AgentVMError as error:  # what was fetched is there, and has to be named
        return Fetched(ws.ref, count, False, str(error), earlier=earlier), contents
    return Fetched(ws.ref, count, merged, advice, runs, clashes, earlier), contents


def _bring(ws: Workspace, say: Say) -> tuple[str, str, Contents]:
    """Fetch the branch's commit; with the one of `ws.ref` so far, and what else is in there."""
    branch, before = _commits(ws)
    known, repo = list(filter(None, (branch, before))), ws.repository
    refs = "".join(f"{commit} refs/known/{at}\n" for at, commit in enumerate(known))
    with (
        process.side_by_side() as threads,
        git.exchange(repo.common, repo.object_format, refs, taking=True) as apart,
    ):
        looking = threads.submit(_look, ws)
        # Not by `git fetch`: it also takes what is told as a change of an object that only we have.
        wanted = (*_by(ws, "upload-pack"), ws.url, f"refs/heads/{ws.branch}")
        result = git.transfer(apart, ws.vm, "fetch-pack", "--keep", *wanted, say=say)
        contents = _there(ws, looking.result(), result)
        new = _taken(ws, apart, result, known)
    return new, before, contents


def _there(ws: Workspace, contents: Contents | None, result: Result) -> Contents:
    """What is in the workspace that was fetched from; raises AgentVMError where that failed."""
    if contents is None:
        raise AgentVMError(
            f"there is no workspace of {ws.branch} in the VM",
            f"make it with `agent-vm connect {ws.branch}`",
        )
    if not result.ok and contents.trouble:  # which says more than a failed transfer
        raise AgentVMError(f"fetching {ws.branch} failed: {contents.trouble}")
    if not result.ok:
        raise git.explain(result, f"fetching {ws.branch}")
    return contents


def _taken(ws: Workspace, apart: Path, result: Result, known: Sequence[str]) -> str:
    """The commit that came in, once it is among the repository's objects."""
    told = re.search(
        rf"^(\S+) {re.escape(f'refs/heads/{ws.branch}')}$", result.stdout, re.MULTILINE
    )
    new = told[1] if told else ""
    if new in known:
        return new
    try:
        git.take(apart, ws.repository.common, new, known)
    except AgentVMError as error:
        raise AgentVMError(f"fetching {ws.branch} failed: {error}") from None
    found = git.commit(ws.repository.path, new)
    if not found:
        raise AgentVMError(f"fetching {ws.branch} failed: the VM sent something else than commits")
    return found


def _look(ws: Workspace) -> Contents | None:
    """Like `inspect`, but a workspace that cannot be looked at may still be fetched from."""
    try:
        return inspect(ws)
    except AgentVMError as error:
        return Contents(trouble=str(error))


def _settle(ws: Workspace, before: str, new: str) -> str:
    """Move `ws.ref` from one commit to another; the ref of what it had and lost ("": none).

    All or nothing: what was fetched once stays in reach whatever the guest does to its branch.
    """
    repo = ws.repository.path
    earlier = ws.earlier(before) if before and _apart(repo, before, new)[0] else ""
    steps = [f"update {ws.ref} {new} {before or '0' * len(new)}"]
    if earlier:
        steps.append(f"update {earlier} {before}")
    moved = git.change(repo, "update-ref", "--stdin", stdin="\n".join([*steps, ""]))
    if not moved.ok:
        raise git.explain(moved, f"fetching {ws.branch}")
    return earlier


def _included(top: Path, paths: Sequence[str]) -> bytes:
    """A tar of untracked files of the repository; raises AgentVMError for one that is not there."""
    import io
    import tarfile

    require_files(top, paths)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in paths:
            path = top / name
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = path.stat().st_size, path.stat().st_mode & 0o777
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return buffer.getvalue()


def _alike(repo: Path, branch: str) -> list[str]:
    """Other branches of a name that many a file system, and eyes, take for the same."""
    listed = git.output(repo, "for-each-ref", "--format=%(refname:lstrip=2)", "refs/heads")
    return [
        name for name in listed.split("\n") if name != branch and _plain(name) == _plain(branch)
    ]


def _plain(name: str) -> str:
    import unicodedata

    return unicodedata.normalize("NFC", name).casefold()


def _tags(repo: Path, commit: str) -> str:
    """The newest tags on a commit and what led to it, as lines of packed-refs.

    With them `git describe` works inside. A replaced parent would let in those of other history.
    """
    listed = git.run(
        repo, "--no-replace-objects", "for-each-ref", "--sort=-creatordate",
        f"--count={MOST_TAGS}", f"--merged={commit}", "--format=%(objectname) %(refname)",
        "refs/tags",
    )  # fmt: skip
    # What is no UTF-8 would come by another name.
    return "\n".join(line for line in listed.stdout.split("\n") if "\ufffd" not in line)


def _send(ws: Workspace, refs: str, say: Say) -> Result:
    """Push the branch, and the tags that are not there; judged by the branch alone."""
    branch = f"refs/heads/{ws.branch}:refs/agent-vm/in/{ws.branch}"
    with git.exchange(ws.repository.common, ws.repository.object_format, refs) as repo:
        result = git.transfer(
            repo, ws.vm, "push", "--porcelain", "--progress", *_by(ws, "receive-pack"),
            "--", ws.url, f"+{branch}", "refs/tags/*:refs/tags/*", say=say,
        )  # fmt: skip
    # Git fails, too, where a tag is another one inside, which then stays.
    arrived = re.search(rf"^[ +*=]\t{re.escape(branch)}\t", result.stdout, re.MULTILINE)
    return replace(result, status=0) if arrived else result


def _by(ws: Workspace, service: str) -> list[str]:
    """The option by which git's other side runs as the workspace's own user."""
    if not (user := ws.user):
        return []
    argv = [*guest.acting(user), "bash", "-c", f'exec git {service} "$1"', "git"]
    return [f"--{service}={shlex.join(argv)}"]


def _forward(ws: Workspace, old: str, new: str) -> tuple[bool, str]:
    """Fast-forward the local branch from `old` to `new` if that loses nothing; (done, advice)."""
    repo, branch, merge = ws.repository.path, f"refs/heads/{ws.branch}", f"merge --ff-only {ws.ref}"
    ours, theirs = _apart(repo, old, new)
    if not theirs:
        return True, ""
    if ours:
        return False, f"{ws.branch} has diverged; merge it with `git merge {ws.ref}`"
    tree = _checked_out(repo, branch)
    if tree is None:  # git refuses where a rebase is about to move it
        moved = git.change(repo, "branch", "--force", "--no-track", "--", ws.branch, new)
    # Files of submodules are not ours to change, nor does a merge.
    elif git.output(tree, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules"):
        return False, f"{tree} has uncommitted changes: stash, then `git {merge}` there"
    elif why := _too_large(tree, review.written(repo, old, new)):
        return False, f"{why}; `git {merge}` writes them"
    elif names := ", ".join(review.trusted(tree, old, new)):
        return False, f"your git runs or reads {names} in {tree}: look first, then `git {merge}`"
    else:
        how = ("merge", "--quiet", "--ff-only", "--no-overwrite-ignore")
        moved = git.change(tree, *how, new)
    return moved.ok, "" if moved.ok else f"{git.reason(moved)}; then `git {merge}`"


def _too_large(tree: Path, size: int) -> str:
    """Why files are not written there; where there is no room, git leaves some in its own way."""
    no_room = size > shutil.disk_usage(tree).free
    if size <= LARGEST_CHECKOUT and not no_room:
        return ""
    where = f", for which {tree} has no room" if no_room else ""
    return f"its files take {size >> 20} MiB{where}"


def _checked_out(repo: Path, branch: str) -> Path | None:
    """The working tree that has the branch checked out; one whose folder is gone does not count."""
    tree = None
    for entry in git.output(repo, "worktree", "list", "--porcelain").splitlines():
        if entry.startswith("worktree "):
            tree = Path(entry.removeprefix("worktree "))
        if entry == f"branch {branch}":
            return tree if tree and tree.is_dir() else None
    return None


def _commits(ws: Workspace) -> tuple[str, str]:
    """The commits of the local branch and of what was fetched last; "" for none."""
    branch, how = f"refs/heads/{ws.branch}", "--format=%(refname) %(objectname) %(symref)"
    listed = git.run(ws.repository.path, "for-each-ref", how, branch, ws.ref).stdout
    refs = {}
    for line in listed.splitlines():
        name, refs[name], link = line.split(" ")
        if name == branch and link:
            raise symbolic(ws.branch, link)
    return refs.get(branch, ""), refs.get(ws.ref, "")


def _apart(repo: Path, old: str, new: str) -> tuple[int, int]:
    """How many commits only `old` has, and how many only `new` has."""
    if old in {"", new}:
        return 0, 0 if old else 1
    counts = git.output(repo, "rev-list", "--left-right", "--count", f"{old}...{new}")
    ours, theirs = counts.split()
    return int(ours), int(theirs)


def _new_commits(repo: Path, new: str, *known: str) -> int:
    exclude = [f"^{commit}" for commit in known if commit]
    return int(git.output(repo, "rev-list", "--count", new, *exclude))


def _config(top: Path, key: str) -> str:
    return git.run(top, "config", "--get", key, check=False).stdout.strip()


def _origin(top: Path) -> str:
    """The URL of origin without credentials; nothing where it is a path on this host."""
    from urllib.parse import urlsplit, urlunsplit

    url = _config(top, "remote.origin.url")
    if "://" in url:
        try:
            parts = urlsplit(url)
        except ValueError:
            return ""
        keep_user = parts.username if parts.scheme == "ssh" else None
        host = parts.netloc.rpartition("@")[2]
        return (
            urlunsplit(parts._replace(netloc=f"{keep_user}@{host}" if keep_user else host))
            if parts.scheme != "file"
            else ""
        )
    return url if re.match(r"[\w.-]+(@[\w.-]+)?:(?!\\)", url) else ""
