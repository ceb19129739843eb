"""The `agent-vm` program, run in this process as a person would call it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agent_vm_tasks.main import program

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class Said:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line that a failed command may say at its end; progress may come before."""
        assert "Traceback" not in self.err, self.err
        return self.err.splitlines()[-1]


def run(monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str], *argv: str) -> Said:
    """Run `agent-vm` with these words; what children print is captured as well."""
    capture.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["agent-vm", *argv])
        patch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)  # Invoke sets it
        status = _status()
    printed = capture.readouterr()
    return Said(status, printed.out, printed.err)


def _status() -> int:
    try:
        program.run()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
