"""Workspaces: a branch's own clone in the VM. Names, identity, push, fetch, clean, inventory."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shlex
from dataclasses import dataclass, replace
from os.path import lexists
from pathlib import Path
from typing import TYPE_CHECKING

from . import data, git, guest, mount, review, state
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .console import Say
    from .process import Result
    from .settings import Settings

LONGEST_FOLDER = 100
MOST_TAGS = 2000
"""How many tags a push sends at most."""
MOST_KNOWN = 500
"""Workspaces of which the guest is told what the host has: it all goes in one command line."""
LARGEST_CHECKOUT = 2**30
"""Bytes of files that a fetch writes unasked: a small pack may hold gigabytes of zeros."""
NOT_THERE = 213
"""Exit status of common/scripts/workspace-enter.sh for a workspace that does not exist."""
UNKNOWN = "contents that could not be looked at"


@dataclass(frozen=True)
class Repository:
    """The user's repository. `id` is random and kept in its git config; worktrees share it.

    `common` is its .git folder, `place` where that was when it last named a workspace.
    """

    path: Path
    common: Path
    name: str
    id: str
    place: str
    object_format: str


@dataclass(frozen=True)
class Workspace:
    """One branch of one repository inside one VM. Its folder may get a suffix; its key never."""

    vm: str
    repository: Repository
    branch: str

    @property
    def key(self) -> str:
        return _hash(f"{self.repository.id}\0{self.branch}", 16)

    @property
    def folder(self) -> str:
        return folder_name(self.repository.name, self.branch)

    @property
    def path(self) -> str:
        """Where it is, from the guest's home: a link by key, so no answer of the guest decides."""
        return f".agent-vm/workspaces/{self.key}"

    @property
    def url(self) -> str:
        return f"{self.vm}:{self.path}"

    @property
    def ref(self) -> str:
        """Where fetched commits are kept on the host, whatever becomes of the branch."""
        return f"refs/agent-vm/{self.folder}/{self.branch}"

    @property
    def incoming(self) -> str:
        """Where a fetch puts what comes in, until `ref` moves."""
        return f"refs/agent-vm-incoming/{self.folder}/{self.branch}"

    def earlier(self, commit: str) -> str:
        """Where a commit stays that was fetched before the guest rewrote the branch."""
        return f"refs/agent-vm-earlier/{self.folder}/{commit[:12]}"


@dataclass(frozen=True)
class Update:
    """What a push did to the files inside: updated, current, ahead, elsewhere, busy and so on.

    `folder` is that of a workspace that was made for it.
    """

    outcome: str
    detail: str = ""
    folder: str = ""


@dataclass(frozen=True)
class Contents:
    """What a workspace holds besides its branch; `others` has commits that branch does not have.

    `trouble`: why it could not be looked at.
    """

    head: str = ""
    uncommitted: int = 0
    untracked: int = 0
    stashes: int = 0
    others: tuple[tuple[str, int], ...] = ()
    trouble: str = ""

    @property
    def losses(self) -> list[str]:
        """What would be gone with the workspace, in words."""
        if self.trouble:
            return [f"{UNKNOWN}: {self.trouble}"]
        counts = [
            (self.uncommitted, "file", "with uncommitted changes"),
            (self.untracked, "file", "untracked"),
            (self.stashes, "stash", "kept"),
        ]
        found = [f"{many(n, noun)} {state}" for n, noun, state in counts if n]
        return found + [f"{many(n, 'commit')} on {_place(name)}" for name, n in self.others]


@dataclass(frozen=True)
class Row:
    """A line of the inventory; counts are None where the guest could not tell.

    `unfetched` are the commits that the host does not have, `others` those of them that its own
    branch does not have either, by branch.
    """

    folder: str
    key: str
    repository: str
    branch: str
    unfetched: int | None
    uncommitted: int | None
    untracked: int | None
    stashes: int | None
    others: tuple[tuple[str, int], ...] = ()

    @property
    def losses(self) -> list[str]:
        if None in (self.unfetched, self.uncommitted, self.untracked, self.stashes):
            return [UNKNOWN]
        files = Contents("", self.uncommitted or 0, self.untracked or 0, self.stashes or 0).losses
        if not self.unfetched:
            return files
        others = ", ".join(f"{number} on {_place(name)}" for name, number in self.others)
        commits = f"{many(self.unfetched, 'commit')} not fetched"
        return [f"{commits} ({others})" if others else commits, *files]


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


def repository(start: Path) -> Repository:
    """The repository around `start`; raises AgentVMError outside of one."""
    asked = git.run(start, "rev-parse", "--show-object-format", "--path-format=absolute",
                    "--git-common-dir", "--show-toplevel", check=False)  # fmt: skip
    lines = asked.stdout.removesuffix("\n").split("\n")
    if len(lines) > 3:  # noqa: PLR2004
        raise AgentVMError(f"{start!s:.200} has a line break in its path", "rename that folder")
    if "dubious ownership" in asked.stderr:
        raise AgentVMError(f"{start} belongs to another user, so git does not work in it",
                           "see safe.directory in git-config(1)")  # fmt: skip
    if not asked.ok and len(lines) < 2:  # noqa: PLR2004
        raise _no_repository(start, asked)
    if not asked.ok:
        raise AgentVMError(f"{lines[1]} has no working tree", "use a normal clone of it")
    object_format, common, top = lines[0], Path(lines[1]), Path(lines[2])
    name = common.parent.name if common.name == ".git" else common.name.removesuffix(".git")
    return Repository(top, common, name, *_recorded(top), object_format)


def _no_repository(start: Path, asked: Result) -> AgentVMError:
    """Tell a repository that git cannot read from none at all."""
    if "not a git repository (or any" not in asked.stderr:
        return git.explain(asked, f"looking for the git repository around {start}")
    broken = next((path for path in (start, *start.parents) if lexists(path / ".git")), None)
    if broken:
        return AgentVMError(f"{broken / '.git'} is no git repository", "restore it, or remove it")
    return AgentVMError(f"{start} is not in a git repository", "cd into one, or run `git init`")


def workspace(vm: str, repo: Repository, branch: str) -> Workspace:
    """Name the workspace; raises UsageError for a bad branch name before anything is written."""
    git.check_branch(branch)
    return Workspace(vm, _identified(repo), branch)


def around(settings: Settings, folder: Path, branch: str, *, sending: bool = False) -> Workspace:
    """Name the workspace of the repository around `folder`, which may not lie in the mount.

    When commits are to go in (`sending`), what cannot be sent is refused, before a VM is started
    for it, and a repository that has no id gets one; without an id it has no workspaces. Raises
    UsageError for a bad branch name before any other program is started.
    """
    git.check_branch(branch)
    mount.refuse_inside(settings, folder)
    repo = repository(folder)
    if sending:
        require_branchable(repo.path, branch)
        _require_files(repo.path, settings.workspace.include)
    named = _identified(repo) if sending or repo.id else repo
    return Workspace(settings.vm.name, named, branch)


def folder_name(repository: str, branch: str) -> str:
    """`<repository>-<branch>`; what cannot be a plain file name becomes a slug and 8 hex digits.

    >>> folder_name("app", "fix-login")
    'app-fix-login'
    >>> folder_name("app", "feature/x")
    'app-feature-x-f21671d2'
    """
    plain = f"{repository}-{branch}"
    slug = re.sub(r"[^A-Za-z0-9._-]+|\.{2,}", "-", plain).lstrip("-.")
    if slug == plain and len(plain) <= LONGEST_FOLDER:
        return plain
    return f"{slug[:LONGEST_FOLDER]}-{_hash(f'{repository}/{branch}', 8)}".lstrip("-")


def require_branchable(repo: Path, branch: str) -> str:
    """The commit that a push would send: the branch's, else HEAD's.

    Raises AgentVMError for a branch that cannot be read or made, and where there is no commit.
    """
    words = branch.split("/")
    heads = ["/".join(["refs/heads", *words[: n + 1]]) for n in range(len(words))]
    how = "--format=%(refname) %(objectname) %(objecttype) %(symref)"
    asked = git.run(repo, "for-each-ref", how, *heads, check=False)
    if not asked.ok or "broken ref" in asked.stderr:
        raise AgentVMError(f"the branch {branch} cannot be read: {asked.reason}", "mend it first")
    for line in asked.stdout.splitlines():
        ref, commit, _, link = line.split(" ", 3)
        if ref == heads[-1] and link:
            raise _symbolic(branch, link)
        if ref == heads[-1]:
            return commit
        if ref in heads or ref.startswith(f"{heads[-1]}/"):
            clash = ref.removeprefix("refs/heads/")
            raise AgentVMError(f"there is a branch {clash}, beside which git can make no {branch}",
                               "choose another name")  # fmt: skip
    commit = _commit(repo, "HEAD")
    if not commit and git.run(repo, "rev-parse", "--quiet", "--verify", "HEAD", check=False).ok:
        raise AgentVMError(f"{repo} has lost the commit of its HEAD", "`git fsck` there tells more")
    if not commit:
        raise AgentVMError(f"{repo} has no commits yet", "commit something first")
    return commit


def _symbolic(branch: str, link: str) -> AgentVMError:
    """Whatever is done to such a branch is done to another one."""
    return AgentVMError(f"the branch {branch} is a symbolic ref", f"name {link} itself")


def ensure_branch(ws: Workspace, say: Say) -> str:
    """Create the branch from HEAD when it does not exist; its commit. The user's checkout stays."""
    repo = ws.repository.path
    if commit := _commit(repo, f"refs/heads/{ws.branch}"):
        return commit
    commit = require_branchable(repo, ws.branch)
    made = git.run(repo, "branch", "--no-track", "--", ws.branch, commit, check=False)
    if not made.ok and (another := _commit(repo, f"refs/heads/{ws.branch}")):
        return another  # a command beside this one has made it
    if not made.ok:
        raise git.explain(made, f"creating branch {ws.branch}")
    say(f"created branch {ws.branch} from HEAD")
    for other in _alike(repo, ws.branch):
        say(f"there is a branch {other!a}, too: only upper case or the coding of accents differs")
    return commit


def push(ws: Workspace, say: Say, include: Sequence[str] = ()) -> Update:
    """Send the branch's commits and tags in, and update the files there when that loses nothing.

    Makes the branch and the workspace where they are missing; a new workspace also gets the
    untracked files named in `include`. Raises AgentVMError when git fails.
    """
    extra = _included(ws.repository.path, include)
    commit, folder = ensure_branch(ws, say), ""
    refs = f"{commit} refs/heads/{ws.branch}\n{_tags(ws.repository.path, commit)}"
    result = _send(ws, refs, say)
    if not result.ok:
        with state.lock(ws.vm, say):  # another command may be at the same
            folder = create(ws)
            result = _send(ws, refs, say)
    if not result.ok:
        raise git.explain(result, f"pushing {ws.branch}")
    _remember(ws, sent=commit)
    with _sense():
        outcome, detail = guest.script(ws.vm, "workspace-update.sh", ws.key, ws.branch)
    if folder and include:
        guest.unpack(ws.vm, ws.path, extra)
    return Update(outcome, detail, folder)


def create(ws: Workspace) -> str:
    """Make the empty workspace in the guest; its folder, or "" when it was there."""
    repo, folders = ws.repository, (ws.folder, f"{ws.folder}-{ws.key[:8]}")
    with _sense():
        made, folder = guest.script(
            ws.vm, "workspace-create.sh",
            ws.key, *folders, repo.name, ws.branch, repo.object_format, _origin(repo.path),
        )  # fmt: skip
        return folders[folders.index(folder)] if made == "made" else ""


def fetch(ws: Workspace, say: Say) -> tuple[Fetched, Contents]:
    """Bring the branch's commits to the host, under `ws.ref`, and forward the local branch.

    The branch moves only when that loses nothing; where it cannot, `Fetched.advice` says what to
    do. Raises AgentVMError when there is no such workspace or git fails.
    """
    before, contents = _bring(ws, say)
    branch = _commits(ws)[0]
    new, earlier = _settle(ws, before)
    _remember(ws, fetched=new)
    count = _new_commits(ws.repository.path, new, before, branch) if new != before else 0
    say(f"fetched {many(count, 'commit')}" if count else "nothing new")
    try:
        changed = (ws.repository.path, before or branch, new) if count else None
        runs = tuple(review.what_runs(*changed)) if changed else ()
        clashes = tuple(review.clashes(*changed)) if changed else ()
        merged, advice = _forward(ws, branch, new)
    except AgentVMError as error:  # what was fetched is there, and has to be named
        return Fetched(ws.ref, count, False, str(error), earlier=earlier), contents
    return Fetched(ws.ref, count, merged, advice, runs, clashes, earlier), contents


def _bring(ws: Workspace, say: Say) -> tuple[str, Contents]:
    """Fetch to `ws.incoming`; the commit of `ws.ref` so far, and what else is in the workspace."""
    from concurrent.futures import ThreadPoolExecutor

    branch, before = _commits(ws)
    with ThreadPoolExecutor() as side_by_side:
        looking = side_by_side.submit(_look, ws)
        result = git.transfer(
            ws.repository.path, ws.vm, *_naming(branch, before), "--no-tags",
            "--no-recurse-submodules", "--no-write-fetch-head", "--no-auto-maintenance",
            "--refmap=", "--progress", "--", ws.url, f"+refs/heads/{ws.branch}:{ws.incoming}",
            say=say,
        )  # fmt: skip
        contents = looking.result()
    if contents is None:
        raise AgentVMError(
            f"there is no workspace of {ws.branch} in the VM",
            f"make it with `agent-vm connect {ws.branch}`",
        )
    if not result.ok and contents.trouble:  # which says more than a failed transfer
        raise AgentVMError(f"fetching {ws.branch} failed: {contents.trouble}")
    if not result.ok:
        raise git.explain(result, f"fetching {ws.branch}")
    return before, contents


def _look(ws: Workspace) -> Contents | None:
    """Like `inspect`, but a workspace that cannot be looked at may still be fetched from."""
    try:
        return inspect(ws)
    except AgentVMError as error:
        return Contents(trouble=str(error))


def _settle(ws: Workspace, before: str) -> tuple[str, str]:
    """Move `ws.ref` to what came in; its commit, and the ref of what it had and lost ("": none).

    All or nothing: what was fetched once stays in reach whatever the guest does to its branch.
    """
    repo = ws.repository.path
    new = _commit(repo, ws.incoming)
    if not new:
        git.run(repo, "update-ref", "-d", ws.incoming)
        raise AgentVMError(f"fetching {ws.branch} failed: the VM sent something else than commits")
    earlier = ws.earlier(before) if before and _apart(repo, before, new)[0] else ""
    steps = [f"update {ws.ref} {new} {before or '0' * len(new)}", f"delete {ws.incoming}"]
    if earlier:
        steps.append(f"update {earlier} {before}")
    moved = git.run(repo, "update-ref", "--stdin", stdin="\n".join([*steps, ""]), check=False)
    if not moved.ok:
        raise git.explain(moved, f"fetching {ws.branch}")
    return new, earlier


def inspect(ws: Workspace) -> Contents | None:
    """What the workspace holds besides commits on its branch, or None when there is none."""
    known = _seen(_record(ws.vm, ws.key))
    fields = guest.script(ws.vm, "workspace-inspect.sh", ws.key, ws.branch, *known)
    if fields == ["missing"]:
        return None
    with _sense():
        uncommitted, untracked, stashes = map(int, fields[2:5])
        others = tuple(zip(fields[5::2], map(int, fields[6::2]), strict=True))
        return Contents(fields[1], uncommitted, untracked, stashes, others)


def inventory(vm: str) -> list[Row]:
    """Every workspace in the VM, by folder."""
    known = [f"{key}={commit}" for key, commit in _held(vm)]
    fields = guest.script(vm, "workspace-list.sh", *known)
    with _sense():
        rows = [_row(fields[at : at + 9]) for at in range(0, len(fields), 9)]
    return sorted(rows, key=lambda row: row.folder)


def _row(fields: list[str]) -> Row:
    folder, key, repository, branch, *counts, listed = fields
    unfetched, changed, untracked, stashes = (
        int(field) if re.fullmatch("[0-9]{1,18}", field) else None for field in counts
    )
    pairs = (line.split(" ", 1) for line in listed.split("\n") if line)
    others = tuple((name, int(number)) for number, name in pairs)
    return Row(folder, key, repository, branch, unfetched, changed, untracked, stashes, others)


def _record(vm: str, key: str) -> Path:
    """Where the host notes what it has of a workspace: the guest's word for it would not do."""
    folder = state.folder(vm) / "shared"
    state.make(folder)
    return folder / key


def _remember(ws: Workspace, **commits: str) -> None:
    """Note the commits that were `sent` or `fetched`, and the repository that has them."""
    record = _record(ws.vm, ws.key)
    facts = {**_facts(record), "repository": str(ws.repository.path), **commits}
    state.write(record, json.dumps(facts))


def _facts(record: Path) -> dict[str, str]:
    try:
        facts = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _seen(record: Path) -> list[str]:
    facts = _facts(record)
    return [facts[what] for what in ("sent", "fetched") if what in facts]


def _held(vm: str) -> Iterator[tuple[str, str]]:
    """The keys of workspaces, each with a commit of it that its repository still has."""
    records = sorted(_record(vm, "").glob("[!.]*"), key=lambda path: path.stat().st_mtime)
    by_repository: dict[str, list[tuple[str, str]]] = {}
    for record in records[-MOST_KNOWN:]:
        seen = [(record.name, commit) for commit in _seen(record)]
        by_repository.setdefault(_facts(record).get("repository", "/"), []).extend(seen)
    for path, seen in by_repository.items():
        tips = git.run(Path(path), "for-each-ref", "--format=%(objectname)", check=False)
        here = set(tips.stdout.split())
        yield from (pair for pair in seen if pair[1] in here or _holds(Path(path), pair[1]))


def _holds(repo: Path, commit: str) -> bool:
    """Whether some branch contains a commit, or one with all its files (a squashed merge)."""
    apart = git.run(repo, "rev-list", "--max-count=1", commit, "--not", "--all", check=False)
    tree = _object(repo, f"{commit}^{{tree}}")
    return (apart.ok and not apart.stdout.strip()) or (
        bool(tree) and tree in git.output(repo, "rev-list", "--all", "--format=%T").split()
    )


def remove(vm: str, folders: list[str]) -> list[str]:
    """Delete workspaces with all that is in them; the folders that are gone."""
    return guest.script(vm, "workspace-remove.sh", *folders, timeout=600)


def enter(
    vm: str, ws: Workspace | None, command: str | None, argv: list[str], token: str = ""
) -> int:
    """Run a shell or a command in the workspace (or the home folder) on this terminal; its status.

    NOT_THERE when the workspace does not exist, secrets.STALE when the variables in the VM are not
    those of `token` (or the command itself ended with that).
    """
    what = ["line", command] if command is not None else ["argv", *argv] if argv else ["shell"]
    words = shlex.join([token, ws.key if ws else "", *what])
    return guest.enter(vm, f"set -- {words}\n{data.script('workspace-enter.sh')}")


def _included(top: Path, paths: Sequence[str]) -> bytes:
    """A tar of untracked files of the repository; raises AgentVMError for one that is not there."""
    import io
    import tarfile

    _require_files(top, paths)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in paths:
            path = top / name
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = path.stat().st_size, path.stat().st_mode & 0o777
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return buffer.getvalue()


def _require_files(top: Path, paths: Sequence[str]) -> None:
    for name in paths:
        path = top / name
        if not path.resolve().is_relative_to(top.resolve()) or not path.is_file():
            raise AgentVMError(f"workspace.include: {name} is not a file of {top}")


@contextlib.contextmanager
def _sense() -> Iterator[None]:
    """An answer that cannot be taken apart is an error: the guest may say anything."""
    try:
        yield
    except (ValueError, TypeError, IndexError):
        raise AgentVMError(
            "the VM gave a strange answer", "its ~/.bashrc may not print anything here"
        ) from None


def _identified(repo: Repository) -> Repository:
    """The repository with an id of its own: made for a new one and for a copy by `cp -r`."""
    if repo.id and repo.place == str(repo.common):
        return repo
    with _alone(repo.common):  # another command may be at the same
        found, place = _recorded(repo.path)
        if not found or _lives(place, found, repo):
            found = secrets.token_hex(16)
            kept = git.run(repo.path, "config", "--local", "agent-vm.id", found, check=False)
            if not kept.ok:
                raise git.explain(kept, f"writing into the git configuration of {repo.path}")
        git.run(repo.path, "config", "--local", "agent-vm.place", str(repo.common), check=False)
    return replace(repo, id=found, place=str(repo.common))


def _recorded(top: Path) -> tuple[str, str]:
    """The id in a repository's own config, and where its .git was then; "" for none."""
    said = git.run(top, "config", "--local", "-z", "--get-regexp", r"^agent-vm\.", check=False)
    found = dict(entry.partition("\n")[::2] for entry in said.stdout.split("\0"))
    known = re.fullmatch(r"[0-9a-f]{32}", found.get("agent-vm.id", ""))
    return known[0] if known else "", found.get("agent-vm.place", "")


def _lives(place: str, known: str, repo: Repository) -> bool:
    """Whether another repository of that id is still where this one, its copy, says to be."""
    try:
        if not place or Path(place).samefile(repo.common):
            return False
    except OSError:
        return False
    config = ("config", "--file", str(Path(place) / "config"), "--get", "agent-vm.id")
    return git.run(repo.path, *config, check=False).stdout.strip() == known


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other commands from doing the same to a folder; the kernel frees it at any end."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no such locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


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
        "refs/tags", check=False,
    )  # fmt: skip
    # What is no UTF-8 would come by another name.
    return "\n".join(line for line in listed.stdout.split("\n") if "\ufffd" not in line)


def _send(ws: Workspace, refs: str, say: Say) -> Result:
    """Push the branch, and the tags that are not there; judged by the branch alone."""
    branch = f"refs/heads/{ws.branch}:refs/agent-vm/in/{ws.branch}"
    with git.exchange(ws.repository.common, ws.repository.object_format, refs) as repo:
        result = git.transfer(
            repo, ws.vm, "push", "--porcelain", "--progress", "--", ws.url, f"+{branch}",
            "refs/tags/*:refs/tags/*", say=say,
        )  # fmt: skip
    # Git fails, too, where a tag is another one inside, which then stays.
    arrived = re.search(rf"^[ +*=]\t{re.escape(branch)}\t", result.stdout, re.MULTILINE)
    return replace(result, status=0) if arrived else result


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
        moved = git.run(repo, "branch", "--force", "--no-track", "--", ws.branch, new, check=False)
    # Files of submodules are not ours to change, nor does a merge.
    elif git.output(tree, "status", "--porcelain", "--untracked-files=no", "--ignore-submodules"):
        return False, f"{tree} has uncommitted changes: stash, then `git {merge}` there"
    elif (size := review.written(repo, old, new)) > LARGEST_CHECKOUT:
        return False, f"its files take {size >> 20} MiB; `git {merge}` writes them"
    elif names := ", ".join(review.trusted(tree, old, new)):
        return False, f"your git runs or reads {names} in {tree}: look first, then `git {merge}`"
    else:
        how = ("merge", "--quiet", "--ff-only", "--no-overwrite-ignore")
        moved = git.run(tree, *how, new, check=False)
    return moved.ok, "" if moved.ok else f"{git.reason(moved)}; then `git {merge}`"


def _checked_out(repo: Path, branch: str) -> Path | None:
    """The working tree that has the branch checked out; one whose folder is gone does not count."""
    tree = None
    for entry in git.output(repo, "worktree", "list", "--porcelain").splitlines():
        if entry.startswith("worktree "):
            tree = Path(entry.removeprefix("worktree "))
        if entry == f"branch {branch}":
            return tree if tree and tree.is_dir() else None
    return None


def _naming(*commits: str) -> list[str]:
    """A fetch that names to the VM only what it was given: other branches are not its business."""
    tips = [f"--negotiation-tip={commit}" for commit in commits if commit]
    return ["fetch", *tips] if tips else ["-c", "fetch.negotiationAlgorithm=noop", "fetch"]


def _commits(ws: Workspace) -> tuple[str, str]:
    """The commits of the local branch and of what was fetched last; "" for none."""
    branch, how = f"refs/heads/{ws.branch}", "--format=%(refname) %(objectname) %(symref)"
    listed = git.run(ws.repository.path, "for-each-ref", how, branch, ws.ref).stdout
    refs = {}
    for line in listed.splitlines():
        name, refs[name], link = line.split(" ")
        if name == branch and link:
            raise _symbolic(ws.branch, link)
    return refs.get(branch, ""), refs.get(ws.ref, "")


def _commit(repo: Path, ref: str) -> str:
    return _object(repo, f"{ref}^{{commit}}")


def _object(repo: Path, name: str) -> str:
    """Its id; "" where the repository has no such object."""
    return git.run(repo, "rev-parse", "--quiet", "--verify", name, check=False).stdout.strip()


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


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:digits]


def _place(branch: str) -> str:
    return "no branch" if branch == "HEAD" else f"branch {branch}"


def many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('sh') else 's'}"
