"""Processes by descent: sshd gives each connection a session of its own."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def family(pid: int) -> list[int]:
    """A process and all that descend from it, the oldest first."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(") ")[2].split()[1])
    found = [pid]
    for each in found:  # grows meanwhile
        found += [child for child, parent in parents.items() if parent == each]
    return found


def send(number: int, pid: int) -> None:
    """Send a signal to all of a family."""
    for each in family(pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)
