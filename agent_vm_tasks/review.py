"""What a fetch brought that programs on the host would run, some without being asked to."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

from . import git

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
_EXECUTABLE = "100755"


class _Change(NamedTuple):
    old_mode: str
    new_mode: str
    old: str
    new: str
    path: str


def what_runs(repository: Path, base: str, new: str) -> list[str]:
    """The files of `new`, changed since `base`, that something here would run, and what would."""
    found = []
    for change in _changes(repository, base, new):
        why = [who for pattern, who in _RUNS if re.search(pattern, change.path)]
        if _SCRIPTS.search(change.path) and _other_scripts(repository, change):
            why.append("npm")
        if change.new_mode == _EXECUTABLE != change.old_mode:
            why.append("whoever starts it: it is executable now")
        if why:
            found.append(f"{change.path} ({why[0]})")
    return found


def written(repository: Path, base: str, new: str) -> int:
    """Bytes of the files that a checkout of `new` over `base` would write."""
    blobs = [change.new for change in _changes(repository, base, new)]
    asked = git.run(
        repository, "cat-file", "--batch-check=%(objectsize)", stdin="\n".join([*blobs, ""])
    )
    return sum(int(size) for size in asked.stdout.split() if size.isdecimal())


def _changes(repository: Path, base: str, new: str) -> Iterator[_Change]:
    """What was added or changed since `base` left the line of `new`; deletions run nothing."""
    how = ("--raw", "-z", "--no-abbrev", "--no-renames", "--no-ext-diff",
           "--ignore-submodules=none", "--diff-filter=d")  # fmt: skip
    shown = git.run(repository, "diff", *how, f"{base}...{new}", check=False)
    if not base or not shown.ok:  # they share no commit: all of it is new
        shown = git.run(repository, "diff", *how, _EMPTY_TREE[len(new)], new)
    fields = shown.stdout.split("\0")
    for entry, path in zip(fields[::2], fields[1::2], strict=False):
        old_mode, new_mode, old, new_id, _ = entry.lstrip(":").split(" ", 4)
        yield _Change(old_mode, new_mode, old, new_id, path)


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
