"""Workspaces: a branch's own clone in the VM. Names, identity, push, fetch, clean, inventory."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import secrets
import shlex
from dataclasses import dataclass, replace
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
LARGEST_CHECKOUT = 2**30
"""Bytes of files that a fetch writes unasked: a small pack may hold gigabytes of zeros."""
NOT_THERE = 213
"""Exit status of common/scripts/workspace-enter.sh for a workspace that does not exist."""


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
    """What a workspace holds besides its branch; `others` has commits that branch does not have."""

    head: str
    uncommitted: int
    untracked: int
    stashes: int
    others: tuple[tuple[str, int], ...] = ()

    @property
    def losses(self) -> list[str]:
        """What would be gone with the workspace, in words."""
        counts = [
            (self.uncommitted, "file", "with uncommitted changes"),
            (self.untracked, "file", "untracked"),
            (self.stashes, "stash", "kept"),
        ]
        found = [f"{_many(n, noun)} {state}" for n, noun, state in counts if n]
        return found + [f"{_many(n, 'commit')} on branch {name}" for name, n in self.others]


@dataclass(frozen=True)
class Row:
    """A line of the inventory; counts are None where the guest could not tell."""

    folder: str
    key: str
    repository: str
    branch: str
    unfetched: int | None
    uncommitted: int | None
    untracked: int | None
    stashes: int | None

    @property
    def losses(self) -> list[str]:
        if None in (self.unfetched, self.uncommitted, self.untracked, self.stashes):
            return ["contents that could not be looked at"]
        files = Contents("", self.uncommitted or 0, self.untracked or 0, self.stashes or 0).losses
        return (
            [f"{_many(self.unfetched, 'commit')} not fetched"] if self.unfetched else []
        ) + files


@dataclass(frozen=True)
class Fetched:
    """What a fetch brought; `merged`: the local branch holds it, else `advice` says what to do.

    `runs`: files of it that programs on the host would run.
    """

    ref: str
    commits: int
    merged: bool
    advice: str = ""
    runs: tuple[str, ...] = ()


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
        raise AgentVMError(f"{start} is not in a git repository", "cd into one, or run `git init`")
    if not asked.ok:
        raise AgentVMError(f"{lines[1]} has no working tree", "use a normal clone of it")
    object_format, common, top = lines[0], Path(lines[1]), Path(lines[2])
    name = common.parent.name if common.name == ".git" else common.name.removesuffix(".git")
    return Repository(top, common, name, *_recorded(top), object_format)


def workspace(vm: str, repo: Repository, branch: str) -> Workspace:
    """Name the workspace; raises UsageError for a bad branch name before anything is written."""
    git.check_branch(branch)
    return Workspace(vm, _identified(repo), branch)


def around(settings: Settings, folder: Path, branch: str) -> Workspace:
    """Name the workspace of the repository around `folder`, which may not lie in the mount.

    Raises UsageError for a bad branch name before any other program is started.
    """
    git.check_branch(branch)
    mount.refuse_inside(settings, folder)
    return Workspace(settings.vm.name, _identified(repository(folder)), branch)


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


def require_branchable(ws: Workspace) -> str:
    """The commit that a push would send: the branch's, else HEAD's.

    Asked before a VM is started for it. Raises AgentVMError in a repository without commits.
    """
    repo = ws.repository.path
    commit = _commit(repo, f"refs/heads/{ws.branch}") or _commit(repo, "HEAD")
    if not commit:
        raise AgentVMError(f"{repo} has no commits yet", "commit something first")
    return commit


def ensure_branch(ws: Workspace, say: Say) -> str:
    """Create the branch from HEAD when it does not exist; its commit. The user's checkout stays."""
    repo = ws.repository.path
    if commit := _commit(repo, f"refs/heads/{ws.branch}"):
        return commit
    commit = require_branchable(ws)
    made = git.run(repo, "branch", "--no-track", "--", ws.branch, commit, check=False)
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
    from concurrent.futures import ThreadPoolExecutor

    repo = ws.repository.path
    branch, before = _commits(ws)
    with ThreadPoolExecutor() as side_by_side:
        looking = side_by_side.submit(inspect, ws)
        result = git.transfer(
            repo, ws.vm, *_naming(branch, before), "--no-tags", "--no-recurse-submodules",
            "--no-write-fetch-head", "--no-auto-maintenance", "--refmap=", "--progress", "--",
            ws.url, f"+refs/heads/{ws.branch}:{ws.ref}", say=say,
        )  # fmt: skip
        contents = looking.result()
    if contents is None:
        raise AgentVMError(
            f"there is no workspace of {ws.branch} in the VM",
            f"make it with `agent-vm connect {ws.branch}`",
        )
    if not result.ok:
        raise git.explain(result, f"fetching {ws.branch}")
    branch, new = _commits(ws)
    state.write(_fetched(ws.vm, ws.key), new)
    count = _new_commits(repo, new, before, branch) if new != before else 0
    runs = tuple(review.what_runs(repo, before or branch, new)) if count else ()
    merged, advice = _forward(ws, branch, new)
    say(f"fetched {_many(count, 'commit')}" if count else "nothing new")
    return Fetched(ws.ref, count, merged, advice, runs), contents


def inspect(ws: Workspace) -> Contents | None:
    """What the workspace holds besides commits on its branch, or None when there is none."""
    known = _known(_fetched(ws.vm, ws.key))
    fields = guest.script(ws.vm, "workspace-inspect.sh", ws.key, ws.branch, *known)
    if fields == ["missing"]:
        return None
    with _sense():
        uncommitted, untracked, stashes = map(int, fields[2:5])
        others = tuple(zip(fields[5::2], map(int, fields[6::2]), strict=True))
        return Contents(fields[1], uncommitted, untracked, stashes, others)


def inventory(vm: str) -> list[Row]:
    """Every workspace in the VM, by folder."""
    records = _fetched(vm, "").glob("*")
    known = [f"{path.name}={commit}" for path in records for commit in _known(path)]
    fields = guest.script(vm, "workspace-list.sh", *known)
    with _sense():
        rows = [_row(fields[at : at + 8]) for at in range(0, len(fields), 8)]
    return sorted(rows, key=lambda row: row.folder)


def _fetched(vm: str, key: str) -> Path:
    """Where the host keeps the commit it fetched last: the guest's word for it would not do."""
    folder = state.folder(vm) / "fetched"
    folder.mkdir(exist_ok=True)
    return folder / key


def _known(record: Path) -> list[str]:
    try:
        return [record.read_text("utf-8")]
    except OSError:
        return []


def _row(fields: list[str]) -> Row:
    folder, key, repository, branch, *counts = fields
    numbers = (int(field) if field.isdecimal() else None for field in counts)
    return Row(folder, key, repository, branch, *numbers)


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

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in paths:
            path = top / name
            if not path.resolve().is_relative_to(top.resolve()) or not path.is_file():
                raise AgentVMError(f"workspace.include: {name} is not a file of {top}")
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = path.stat().st_size, path.stat().st_mode & 0o777
            with path.open("rb") as file:
                archive.addfile(entry, file)
    return buffer.getvalue()


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
            git.run(repo.path, "config", "--local", "agent-vm.id", found)
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
    repo, branch = ws.repository.path, f"refs/heads/{ws.branch}"
    ours, theirs = _apart(repo, old, new)
    if not theirs:
        return True, ""
    if ours:
        return False, f"{ws.branch} has diverged; merge it with `git merge {ws.ref}`"
    tree = _checked_out(repo, branch)
    if tree is None:  # git refuses where a rebase is about to move it
        moved = git.run(repo, "branch", "--force", "--no-track", "--", ws.branch, new, check=False)
    elif git.output(tree, "status", "--porcelain", "--untracked-files=no"):
        return (
            False,
            f"{tree} has uncommitted changes: stash, then `git merge --ff-only {ws.ref}` there",
        )
    elif (size := review.written(repo, old, new)) > LARGEST_CHECKOUT:
        return False, f"its files take {size >> 20} MiB; `git merge --ff-only {ws.ref}` writes them"
    else:
        how = ("merge", "--quiet", "--ff-only", "--no-overwrite-ignore")
        moved = git.run(tree, *how, new, check=False)
    return moved.ok, "" if moved.ok else f"{moved.reason}; then `git merge --ff-only {ws.ref}`"


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
    branch = f"refs/heads/{ws.branch}"
    listed = git.output(
        ws.repository.path, "for-each-ref", "--format=%(refname) %(objectname)", branch, ws.ref
    )
    refs = dict(line.rsplit(" ", 1) for line in listed.splitlines())
    return refs.get(branch, ""), refs.get(ws.ref, "")


def _commit(repo: Path, ref: str) -> str:
    asked = git.run(repo, "rev-parse", "--quiet", "--verify", f"{ref}^{{commit}}", check=False)
    return asked.stdout.strip()


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


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('sh') else 's'}"
