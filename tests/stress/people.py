"""What people and agents do beside agent-vm, on the host and in the VM."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FILES = ("README", "a", "c.o")
"""Few, so that both sides often change the same; the last is ignored."""


class Act(NamedTuple):
    """A shell line for a clone, and which kinds of things it may lose: on purpose.

    It may fail. $file is one of FILES; $text and $new are unlike any before. Git by itself
    overwrites ignored files.
    """

    line: str
    may_lose: frozenset[str] = frozenset()


def _act(line: str, *may_lose: str) -> Act:
    return Act(line, frozenset(may_lose))


_COMMIT = 'echo $text > $file && git add --force $file && git commit --quiet --message "$text"'
EDITS = ("file", "staged")
ALL = (*EDITS, "commit", "stash")
WORK = {
    "commit": _act(_COMMIT, *EDITS),
    "commit all": _act("git add --all; git commit --quiet --message $text", *EDITS),
    "rewrite": _act(f"{_COMMIT} --amend", "commit", *EDITS),
    "edit": _act("echo $text > $file", "file"),
    "stage": _act("echo $text > $file && git add --force $file", *EDITS),
    "make a file": _act("echo $text > $new"),
    "make an ignored file": _act("echo $text > $new.o"),
    "delete a file": _act("rm -f $file", "file"),
    "discard": _act("git reset --quiet --hard", *EDITS),
    "stash": _act("git stash push --quiet --include-untracked", *EDITS),
    "unstash": _act("git stash pop --quiet", "stash", "staged"),
    "tidy up": _act("git gc --quiet --prune=now"),
    "return": _act("git merge --abort; git checkout --quiet --force $branch", *EDITS, "commit"),
}  # fmt: skip
INSIDE = {
    **WORK,
    "branch off": _act(f"git checkout --quiet -b other-$new; {_COMMIT}", *EDITS),
    "detach": _act(f"git checkout --quiet --detach; {_COMMIT}", *EDITS),
    "merge": _act("git merge --quiet --no-edit refs/agent-vm/in/$branch", *EDITS),
    "lose .git": _act("rm -rf .git", *ALL),
    "break the index": _act("mv .git/index .git/good && echo garbage > .git/index", *EDITS),
    "leave a lock": _act("touch .git/index.lock"),
    "repair": _act("rm -f .git/index.lock; [ ! -e .git/good ] || mv .git/good .git/index", *EDITS),
    "delete the workspace": _act("rm -rf $PWD", *ALL),
}  # fmt: skip
"""For an agent."""
HERE = {
    **WORK,
    "merge": _act(
        "git checkout --quiet $branch; git merge --quiet --no-edit -X ours $fetched", *EDITS
    ),
    "change branch": _act("git checkout --quiet $branch || git checkout --quiet main", *EDITS),
    "commit elsewhere": _act(
        f"git checkout --quiet $branch; {_COMMIT}; git checkout --quiet main", *EDITS
    ),
    "delete the branch": _act("git branch --quiet -D $branch", "commit"),
}
"""For a person on the host."""
UNREADABLE = ("repair", "lose .git", "delete the workspace")
"""What can be done where git does not work."""


class Person:
    """Somebody with a git identity; each commit and file is unlike any other."""

    def __init__(self, home: Path) -> None:
        self.home, self.count, self.began = home, 0, int(time.time()) - 100_000

    def does(self, act: Act, folder: Path, words: Mapping[str, str]) -> None:
        """Do it in a clone."""
        self.count += 1
        when = f"{self.began + self.count} +0000"
        env = {
            **words,
            "new": f"new-{self.count}",
            "text": f"{self.home.name}-{self.count}",
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "GIT_AUTHOR_DATE": when,
            "GIT_COMMITTER_DATE": when,
            "GIT_CEILING_DIRECTORIES": str(folder.parent),
        }
        argv = ["bash", "-c", act.line]
        subprocess.run(argv, cwd=folder, env=env, check=False, capture_output=True)
