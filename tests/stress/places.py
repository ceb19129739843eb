"""Where work is: what each repository, workspace and kept copy holds, and what has gone missing.

Git reads them directly, without agent-vm and without the way through ssh.
"""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

OWN = "refs/agent-vm"
"""agent-vm's refs. Inside a push makes them: what only they hold there is the host's."""
_ENV = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_OPTIONAL_LOCKS": "0",
    "LC_ALL": "C.UTF-8",
}


@dataclass(frozen=True)
class Place:
    """What a clone holds. In one that git cannot read (`broken`), all files count.

    commits: those that its refs and HEAD lead to; refs: but for agent-vm's. files: changed,
    untracked and ignored ones, with their content, or None where one is deleted. staged: blobs that
    the index has and HEAD has not.
    """

    folder: Path = field(compare=False)
    head: str = ""
    refs: Mapping[str, str] = field(default_factory=dict)
    commits: frozenset[str] = field(default=frozenset(), compare=False)
    stashes: tuple[str, ...] = ()
    files: Mapping[str, bytes | None] = field(default_factory=dict)
    staged: Mapping[str, str] = field(default_factory=dict)
    counts: tuple[int, int] = (0, 0)
    """How many files are changed, and how many are untracked."""
    broken: bool = False

    def has(self, path: str, content: bytes | None) -> bool:
        """Whether a file is there with this content, be it changed or committed."""
        return _read(self.folder / path) == content


@dataclass(frozen=True)
class Copy:
    """A workspace that was deleted and is kept."""

    key: str
    folder: str
    place: Place


@dataclass(frozen=True)
class Everything:
    """All places at one time: repositories by name, workspaces by key, kept copies by id.

    owners: the repository that a workspace of that key belongs to.
    """

    owners: Mapping[str, str]
    hosts: Mapping[str, Place]
    spaces: Mapping[str, Place]
    copies: Mapping[str, Copy]


class Loss(NamedTuple):
    """Something that was in a place, and is now in none where it may be."""

    place: str
    kind: str
    item: str


def losses(before: Everything, after: Everything) -> set[Loss]:
    """What is gone. A repository has to keep everything.

    Of a workspace, commits may be in its repository or in a kept copy instead, all else in a copy.
    """
    lost = {Loss("undo", "copy", name) for name in set(before.copies) - set(after.copies)}
    for name, place in before.hosts.items():
        lost |= _lost(name, place, [after.hosts[name]], frozenset())
    for key, place in before.spaces.items():
        homes = [copy.place for copy in after.copies.values()
                 if key == copy.key or place.folder.name == copy.folder]  # fmt: skip
        homes += [after.spaces[key]] if key in after.spaces else []
        host = after.hosts[before.owners[key]].commits if key in before.owners else frozenset()
        lost |= _lost(key, place, homes, host)
    return lost


def _lost(name: str, place: Place, homes: list[Place], host: frozenset[str]) -> set[Loss]:
    commits = host.union(*(home.commits for home in homes))
    stashes = {stash for home in homes for stash in home.stashes}
    return {
        *(Loss(name, "commit", commit) for commit in place.commits - commits),
        *(Loss(name, "stash", stash) for stash in set(place.stashes) - stashes),
        *(Loss(name, "file", path) for path, content in place.files.items()
          if content is not None and not any(home.has(path, content) for home in homes)),
        *(Loss(name, "staged", path) for path, blob in place.staged.items()
          if not any(home.staged.get(path) == blob for home in homes)),
    }  # fmt: skip


def changed(before: Everything, after: Everything) -> set[str]:
    """The places that are not as they were, but for agent-vm's own refs; "undo" is one."""
    one, other = ({**each.hosts, **each.spaces} for each in (before, after))
    names = {name for name in one.keys() | other if one.get(name) != other.get(name)}
    return names | ({"undo"} if before.copies.keys() != after.copies.keys() else set())


def contains(place: Place, new: str, old: str) -> bool:
    """Whether commit `new` contains `old`, as far as a clone can tell."""
    return _git(place.folder, "merge-base", "--is-ancestor", old, new).returncode == 0


def look(folder: Path, *, inside: bool = False) -> Place:
    """What is in a clone."""
    listed = _git(folder, "for-each-ref", "--format=%(refname) %(objectname)")
    refs = dict(line.split(" ") for line in listed.stdout.splitlines())
    head = (_read(folder / ".git/HEAD") or b"").decode().strip().removeprefix("ref: ")
    hidden = [f"--exclude={name}*" for name in ("refs/stash", OWN)[: 2 if inside else 1]]
    tips = ["--all"] if head.startswith("refs/") and head not in refs else ["--all", "HEAD"]
    commits = _git(folder, "rev-list", *hidden, *tips).stdout.split()
    log = ["--walk-reflogs", "refs/stash"] if "refs/stash" in refs else []
    stashes = _git(folder, "rev-list", *log).stdout.split() if log else []
    status = _git(folder, "status", "--porcelain=v2", "-z", "--no-renames", "--ignored",
                  "--untracked-files=all")  # fmt: skip
    entries = status.stdout.split("\0")[:-1]
    broken = status.returncode != 0
    files = _all_files(folder) if broken else _changed(entries)
    return Place(
        folder, head, {name: commit for name, commit in refs.items() if not name.startswith(OWN)},
        frozenset(commits), tuple(stashes), {path: _read(folder / path) for path in files},
        dict(_staged(entries)),
        (sum(each[0] in "1u" for each in entries), sum(each[0] == "?" for each in entries)), broken,
    )  # fmt: skip


def copies(store: Path, unpacked: Path, known: Mapping[str, Copy]) -> dict[str, Copy]:
    """The kept copies in the tool's folder; each is unpacked once, as none ever changes."""
    names = sorted(facts.parent.name for facts in store.glob("*/kept.json"))
    return {name: known.get(name) or _unpack(store / name, unpacked / name) for name in names}


def workspaces(home: Path) -> dict[str, Path]:
    """The folders of the VM's workspaces by key; a folder without one has its name for it."""
    links = {path.resolve(): path.name for path in (home / ".agent-vm/workspaces").glob("*")}
    found = {}
    for folder in sorted((home / "workspace").iterdir()):
        record = (_read(folder / ".git/agent-vm") or b"").decode().partition("\n")[0]
        found[links.get(folder.resolve()) or record or folder.name] = folder
    return found


def _git(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**_ENV, "GIT_CEILING_DIRECTORIES": str(folder.parent)}
    argv = ["git", "-C", str(folder), *args]
    return subprocess.run(argv, env=env, check=False, capture_output=True, text=True)


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() and not path.is_symlink() else None


def _changed(entries: list[str]) -> Iterator[str]:
    for entry in entries:
        kind, _, rest = entry.partition(" ")
        if kind in "?!":
            yield rest
        elif kind == "u" or (kind == "1" and rest[1] != "."):
            yield rest.split(" ", 9 if kind == "u" else 7)[-1]


def _staged(entries: list[str]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        if entry.startswith("1 ") and entry[2] != ".":
            fields = entry.split(" ", 8)
            yield fields[8], fields[7]


def _all_files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file() and f"{OWN}/in/" not in str(path):
            yield str(path.relative_to(folder))


def _unpack(kept: Path, into: Path) -> Copy:
    into.mkdir(parents=True)
    with tarfile.open(kept / "workspace.tar") as archive:
        archive.extractall(into, filter="fully_trusted")  # noqa: S202
    facts = json.loads((kept / "kept.json").read_text())
    return Copy(facts["key"], facts["folder"], look(into, inside=True))
