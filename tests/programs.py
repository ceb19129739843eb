"""Programs made for a test: a folder on PATH with scripts that record how they were called."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SHELL_TOOLS = (
    "cat", "chmod", "cp", "dirname", "env", "find", "id", "install", "kill", "ln", "mkdir", "mv",
    "printf", "readlink", "rm", "sh", "sleep", "tar", "test", "touch", "true",
)  # fmt: skip


def script(folder: Path, name: str, body: str = "") -> Path:
    """Write an executable that appends its name and arguments to folder/calls, then runs `body`."""
    path = folder / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >> "{folder}/calls"\n{body}\n', "utf-8")
    path.chmod(0o755)
    return path


def calls(folder: Path) -> list[str]:
    """What was called, in order: one line each."""
    record = folder / "calls"
    return record.read_text("utf-8").splitlines() if record.exists() else []


def only_tools(folder: Path, *more: str) -> Path:
    """Make a folder with links to plain shell tools, so that PATH holds nothing else."""
    folder.mkdir()
    for name in (*SHELL_TOOLS, *more):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder
