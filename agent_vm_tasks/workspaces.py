"""Workspaces: a branch's own clone in the VM. Names, identity, inventory, entering, removal."""

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

from . import data, git, guest, mount, process, state, walls
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .process import Result
    from .settings import Settings

LONGEST_FOLDER = 100
MOST_KNOWN = 500
"""Workspaces of which the guest is told what the host has: it all goes in one command line."""
NOT_THERE = 213
"""Exit status of common/scripts/workspace-enter.sh for a workspace that does not exist."""
_AT_ONCE = 8
"""How many walled workspaces are looked at side by side."""
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
    def folders(self) -> tuple[str, str]:
        """The folder it gets, and the one it gets where another repository has that."""
        return self.folder, f"{self.folder}-{self.key[:8]}"

    @property
    def user(self) -> str:
        """The guest user who works in it, behind a wall; "" for agent."""
        return walls.user(self.vm, self.key)

    @property
    def path(self) -> str:
        """Where it is, from its user's home: a link by key, so no answer of the guest decides."""
        return f".agent-vm/workspaces/{self.key}"

    @property
    def url(self) -> str:
        return f"{self.vm}:{self.path}"

    @property
    def ref(self) -> str:
        """Where fetched commits are kept on the host, whatever becomes of the branch."""
        return f"refs/agent-vm/{self.folder}/{self.branch}"

    def earlier(self, commit: str) -> str:
        """Where a commit stays that was fetched before the guest rewrote the branch."""
        return f"refs/agent-vm-earlier/{self.folder}/{commit[:12]}"


@dataclass(frozen=True)
class Contents:
    """What a workspace holds besides its branch; `others` has commits that branch does not have.

    `trouble`: why it could not be looked at.
    """

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
    branch does not have either, by branch. `seen`: when, in seconds since 1970 in the guest.
    `user`: the guest user who works in it, behind a wall.
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
    seen: str = ""
    user: str = ""

    @property
    def losses(self) -> list[str]:
        if None in (self.unfetched, self.uncommitted, self.untracked, self.stashes):
            return [UNKNOWN]
        files = Contents(self.uncommitted or 0, self.untracked or 0, self.stashes or 0).losses
        if not self.unfetched:
            return files
        others = ", ".join(f"{number} on {_place(name)}" for name, number in self.others)
        commits = f"{many(self.unfetched, 'commit')} not fetched"
        return [f"{commits} ({others})" if others else commits, *files]


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
        require_files(repo.path, settings.workspace.include)
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
            raise symbolic(branch, link)
        if ref == heads[-1]:
            return commit
        if ref in heads or ref.startswith(f"{heads[-1]}/"):
            clash = ref.removeprefix("refs/heads/")
            raise AgentVMError(f"there is a branch {clash}, beside which git can make no {branch}",
                               "choose another name")  # fmt: skip
    commit = git.commit(repo, "HEAD")
    if not commit and git.run(repo, "rev-parse", "--quiet", "--verify", "HEAD", check=False).ok:
        raise AgentVMError(f"{repo} has lost the commit of its HEAD", "`git fsck` there tells more")
    if not commit:
        raise AgentVMError(f"{repo} has no commits yet", "commit something first")
    return commit


def symbolic(branch: str, link: str) -> AgentVMError:
    """Whatever is done to such a branch is done to another one."""
    return AgentVMError(f"the branch {branch} is a symbolic ref", f"name {link} itself")


def inspect(ws: Workspace) -> Contents | None:
    """What the workspace holds besides commits on its branch, or None when there is none."""
    known = _seen(_record(ws.vm, ws.key))
    fields = guest.script(ws.vm, "workspace-inspect.sh", ws.key, ws.branch, *known, user=ws.user)
    if fields == ["missing"]:
        return None
    with guest.understood():
        uncommitted, untracked, stashes = map(int, fields[1:4])
        others = tuple(zip(fields[4::2], map(int, fields[5::2]), strict=True))
        return Contents(uncommitted, untracked, stashes, others)


def known(ws: Workspace) -> bool:
    """Whether this machine has sent something there; asks no guest."""
    return _record(ws.vm, ws.key).exists()


def unwalled(ws: Workspace) -> bool:
    """Whether it is there without a wall; what was never pushed is not asked for."""
    return not ws.user and known(ws) and inspect(ws) is not None


def inventory(vm: str) -> list[Row]:
    """Every workspace in the VM, by folder."""
    known = [f"{key}={commit}" for key, commit in _held(vm)]
    rows = _rows(vm, known)
    behind = [row for row in rows if row.user]
    if behind:
        with process.side_by_side(_AT_ONCE) as threads:
            told = threads.map(lambda row: _behind_wall(vm, row, known), behind)
            rows = [*(row for row in rows if not row.user), *told]
    return sorted(rows, key=lambda row: row.folder)


def _rows(vm: str, known: Sequence[str], user: str = "") -> list[Row]:
    fields = guest.script(vm, "workspace-list.sh", *known, user=user)
    with guest.understood():
        seen = fields[0]
        if not re.fullmatch(r"[0-9]{1,12}\.[0-9]{6}", seen):
            raise ValueError(seen)
        return [_row(fields[at : at + 9], seen) for at in range(1, len(fields), 9)]


def _behind_wall(vm: str, row: Row, known: Sequence[str]) -> Row:
    """What the workspace's own user says of it, and of no other; else it stays unknown.

    One that was deleted inside has nothing to lose.
    """
    try:
        rows = _rows(vm, known, row.user)
    except AgentVMError:
        return row
    gone = replace(row, unfetched=0, uncommitted=0, untracked=0, stashes=0)
    ours = [found for found in rows if found.folder == row.folder]
    if ours and ours[0].key != row.key:
        return row
    return replace((*ours, gone)[0], seen=row.seen, user=row.user)


def require_unchanged(vm: str, rows: Sequence[Row]) -> None:
    """Raise AgentVMError where something was written in a workspace since it was looked at."""
    if not rows:
        return
    changed = [
        folder
        for user, folders in by_user(rows).items()
        for folder in guest.script(
            vm, "workspace-changed.sh", rows[0].seen, *folders, user=user, timeout=600
        )
    ]
    if changed:
        raise AgentVMError(
            f"nothing was deleted, as something writes in {', '.join(changed)}",
            "end what runs there, or add --force",
        )


def by_user(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The folders of workspaces, by the guest user who works in them."""
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.user, []).append(row.folder)
    return found


def _row(fields: list[str], seen: str) -> Row:
    folder, key, repository, branch, *counts, listed = fields
    unfetched, changed, untracked, stashes = (
        int(field) if re.fullmatch("[0-9]{1,18}", field) else None for field in counts
    )
    pairs = (line.split(" ", 1) for line in listed.split("\n") if line)
    others = tuple((name, int(number)) for number, name in pairs)
    user = walls.named(key) if counts[0] == "walled" else ""
    return Row(
        folder, key, repository, branch, unfetched, changed, untracked, stashes, others, seen, user
    )


def _record(vm: str, key: str) -> Path:
    """Where the host notes what it has of a workspace: the guest's word for it would not do."""
    folder = state.folder(vm) / "shared"
    state.make(folder)
    return folder / key


def remember(ws: Workspace, **commits: str) -> None:
    """Note the commits that were `sent` or `fetched`, and the repository that has them."""
    record = _record(ws.vm, ws.key)
    facts = {**_facts(record), "repository": str(ws.repository.path), **commits}
    state.write(record, json.dumps(facts))


def forget(ws: Workspace) -> None:
    """Drop the note on a workspace that is no more."""
    _record(ws.vm, ws.key).unlink(missing_ok=True)


def _facts(record: Path) -> dict[str, str]:
    try:
        facts = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    known = facts if isinstance(facts, dict) else {}
    return {what: text for what, text in known.items() if isinstance(text, str)}


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
    tree = git.object_id(repo, f"{commit}^{{tree}}")
    return (apart.ok and not apart.stdout.strip()) or (
        bool(tree) and tree in git.output(repo, "rev-list", "--all", "--format=%T").split()
    )


def remove(vm: str, folders: list[str], user: str = "") -> list[str]:
    """Delete workspaces of one guest user with all that is in them; the folders that are gone."""
    gone = guest.script(vm, "workspace-remove.sh", *folders, user=user, timeout=600)
    if user and gone:
        walls.down(vm, user)
    return gone


def enter(
    vm: str, ws: Workspace | None, command: str | None, argv: list[str], token: str = ""
) -> int:
    """Run a shell or a command in the workspace (or the home folder) on this terminal; its status.

    NOT_THERE when the workspace does not exist, secrets.STALE when the variables in the VM are not
    those of `token` (or the command itself ended with that).
    """
    what = ["line", command] if command is not None else ["argv", *argv] if argv else ["shell"]
    words = shlex.join([token, ws.key if ws else "", *what])
    text = f"set -- {words}\n{data.script('workspace-enter.sh')}"
    return guest.enter(vm, text, ws.user if ws else "")


def git_inside(
    ws: Workspace, argv: list[str], out: Callable[[str], None], err: Callable[[str], None]
) -> int:
    """Run git in the workspace without terminal, pager and input; its status.

    What it prints is handed on as it comes. It takes no lock only to look (git-status(1)).
    NOT_THERE when the workspace does not exist, or git itself ended with that.
    """
    words = shlex.join(["", ws.key, "argv", "git", "--no-pager", *argv])
    remote = f"export GIT_OPTIONAL_LOCKS=0\nset -- {words}\n{data.script('workspace-enter.sh')}"
    return guest.relay(ws.vm, remote, out, err, ws.user)


def require_files(top: Path, paths: Sequence[str]) -> None:
    for name in paths:
        path = top / name
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(top))
        if not inside or not path.is_file():
            raise AgentVMError(f"workspace.include: {name} is not a file of {top}")


def _identified(repo: Repository) -> Repository:
    """The repository with an id of its own: made for a new one and for a copy by `cp -r`."""
    if repo.id and repo.place == str(repo.common):
        return repo
    with _alone(repo.common):  # another command may be at the same
        found, place = _recorded(repo.path)
        if not found or _lives(place, found, repo):
            found = secrets.token_hex(16)
            kept = git.change(repo.path, "config", "--local", "agent-vm.id", found)
            if not kept.ok:
                raise git.explain(kept, f"writing into the git configuration of {repo.path}")
        git.change(repo.path, "config", "--local", "agent-vm.place", str(repo.common))
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


def _hash(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:digits]


def _place(branch: str) -> str:
    return "no branch" if branch == "HEAD" else f"branch {branch}"


def many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('sh') else 's'}"
