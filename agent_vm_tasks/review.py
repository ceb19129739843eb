"""What a fetch brought that matters here before anybody opens it.

Files that programs on the host would run, some without being asked to; sizes; names that clash.
"""

from __future__ import annotations

import functools
import json
import os
import posixpath
import re
import unicodedata
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from . import git

if TYPE_CHECKING:
    from collections.abc import Iterator

_RUNS = (
    (r"(^|/)(\.githooks|\.husky|hooks)/.", "git hooks"),
    (r"(^|/)(lefthook|\.lefthook)\.\w+$|(^|/)\.pre-commit-config\.ya?ml$", "git hooks"),
    (r"(^|/)\.gitattributes$", "git's filters"),
    (r"(^|/)(\.gitmodules|\.lfsconfig|\.gitconfig)$", "git's settings"),
    (r"(^|/)(\.envrc|\.?mise\.toml|\.tool-versions)$", "the shell that enters the folder"),
    (r"(^|/)\.vscode/(tasks|settings|launch)\.json$|\.code-workspace$", "the editor"),
    (r"(^|/)(\.idea|\.devcontainer)/.|(^|/)(\.nvimrc|\.exrc|\.nvim\.lua)$", "the editor"),
    (r"(^|/)(\.claude/.*\.json|\.mcp\.json|\.(gemini|cursor|opencode)/.*\.jsonc?)$|(^|/)opencode\.jsonc?$",
     "coding agents here"),
    (r"^(\.github/(workflows|actions)/.|\.gitlab-ci\.yml$|\.circleci/.|Jenkinsfile$)", "the CI"),
    (r"^agent-vm\.toml$|^tasks\.py$", "agent-vm and invoke"),
)  # fmt: skip
_SCRIPTS = re.compile(r"(^|/)package\.json$")
_LARGEST_PACKAGE = 2**20
_LARGEST_LIST = 64 * 2**20
"""Bytes of file names: a few small objects can make a tree of as many files as they like."""
_NONE, _EXECUTABLE, _LINK = "000000", "100755", "120000"


class _Change(NamedTuple):
    old_mode: str
    new_mode: str
    old: str
    new: str
    path: str


def what_runs(repository: Path, base: str, new: str) -> list[str]:
    """The files of `new`, changed since `base`, that something here would run, and what would."""
    patterns = [*_hooks_folder(repository), *_RUNS]
    found = []
    for change in _changes(repository, base, new):
        # A link that takes the place of a folder of hooks brings all of its target's files.
        names = [change.path, *([f"{change.path}/link"] if change.new_mode == _LINK else [])]
        why = [who for pattern, who in patterns
               if any(re.search(pattern, name, re.IGNORECASE) for name in names)]  # fmt: skip
        if _SCRIPTS.search(change.path) and _other_scripts(repository, change):
            why.append("npm")
        if change.new_mode == _EXECUTABLE != change.old_mode:
            why.append("whoever starts it: it is executable now")
        if why:
            found.append(f"{change.path} ({why[0]})")
    return found


def _hooks_folder(repository: Path) -> list[tuple[str, str]]:
    """The pattern of the folder of hooks that the user's configuration names in the tree."""
    asked = git.run(repository, "config", "-z", "--get-all", "core.hooksPath", check=False)
    folders = asked.stdout.split("\0")[:-2]  # the last is ours
    inside = [posixpath.normpath(folder) for folder in folders[-1:] if folder[:1] not in {"/", "~"}]
    return [(f"^{re.escape(folder)}/." if folder != "." else ".", "git hooks") for folder in inside]


def clashes(repository: Path, base: str, new: str) -> list[str]:
    """Names of `new` that are one on a disk which ignores case, where one came since `base`."""
    added = {
        str(path)
        for change in _changes(repository, base, new)
        if change.old_mode == _NONE
        for path in (PurePosixPath(change.path), *PurePosixPath(change.path).parents)
    }
    if not added:
        return []
    alike: dict[str, list[str]] = {}
    for path in _names(repository, new):
        alike.setdefault(unicodedata.normalize("NFC", path).casefold(), []).append(path)
    return [" and ".join(paths) for paths in alike.values() if len(paths) > 1 and added & {*paths}]


def trusted(tree: Path, base: str, new: str) -> list[str]:
    """Files of the working tree that the user's own git runs as filters, or reads settings from.

    A checkout of `new` would let the guest write them. Settings count when they change.
    """
    changed = {change.path for change in _changes(tree, base, new)}
    listed = git.run(tree, "config", "--list", "--show-origin", "-z", check=False)
    fields = listed.stdout.split("\0")
    found = set()
    for origin, setting in zip(fields[::2], fields[1::2], strict=False):
        key, _, value = setting.partition("\n")
        found |= set(_inside(tree, [origin.removeprefix("file:")])) & changed
        if re.search(r"^filter\..*\.(clean|smudge|process)$", key):
            found |= set(_inside(tree, re.split(r"[^\w./~-]+", value)))
    return sorted(name for name in found if not name.startswith(".git/"))


def _inside(tree: Path, words: list[str]) -> Iterator[str]:
    """Those of the words that name a file of the tree, from its top."""
    for word in words:
        for name in (word, word.lstrip("./")):
            path = Path(os.path.normpath(tree / name))
            if path.is_relative_to(tree) and path.is_file():
                yield str(path.relative_to(tree))


def written(repository: Path, base: str, new: str) -> int:
    """Bytes of the files that a checkout of `new` over `base` would write."""
    blobs = [change.new for change in _changes(repository, base, new)]
    asked = git.run(
        repository, "cat-file", "--batch-check=%(objectsize)", stdin="\n".join([*blobs, ""])
    )
    return sum(int(line) for line in asked.stdout.splitlines() if line.isdecimal())


@functools.lru_cache
def _changes(repository: Path, base: str, new: str) -> tuple[_Change, ...]:
    """What was added or changed since `base` left the line of `new`; deletions run nothing."""
    _names(repository, new)  # git would take any amount of memory for the difference
    how = ("--raw", "-z", "--no-abbrev", "--no-renames",
           "--ignore-submodules=none", "--diff-filter=d")  # fmt: skip
    shown = git.run(repository, "diff", *how, f"{base}...{new}", check=False)
    if not base or not shown.ok:  # they share no commit: all of it is new
        shown = git.run(repository, "diff", *how, _EMPTY_TREE[len(new)], new)
    fields = shown.stdout.split("\0")
    return tuple(map(_change, fields[:-1:2], fields[1::2]))


def _change(entry: str, path: str) -> _Change:
    old_mode, new_mode, old, new, _ = entry.lstrip(":").split(" ")
    return _Change(old_mode, new_mode, old, new, path)


@functools.lru_cache
def _names(repository: Path, commit: str) -> tuple[str, ...]:
    """The files and folders of a commit; raises AgentVMError where they are too many."""
    how = ("ls-tree", "-r", "-t", "-z", "--name-only")
    return tuple(git.run(repository, *how, commit, most=_LARGEST_LIST).stdout.split("\0")[:-1])


_EMPTY_TREE = {
    40: "4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    64: "6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
"""The id of a tree without files, by the length of ids; git knows it without having it."""


def _other_scripts(repository: Path, change: _Change) -> bool:
    return _scripts(repository, change.old) != _scripts(repository, change.new)


def _scripts(repository: Path, blob: str) -> object:
    """What package.json would have npm run; the id itself where that cannot be told."""
    if not blob.strip("0"):
        return {}
    size = git.run(repository, "cat-file", "-s", blob, check=False)
    if not size.ok or int(size.stdout) > _LARGEST_PACKAGE:
        return blob
    try:
        return json.loads(git.run(repository, "cat-file", "blob", blob).stdout).get("scripts", {})
    except (ValueError, AttributeError, RecursionError):
        return blob
