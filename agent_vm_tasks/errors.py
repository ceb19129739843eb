"""The one kind of error a user sees."""

from __future__ import annotations


class AgentVMError(Exception):
    """Something the user can act on: what is wrong, and what to do next.

    `status` is the exit status of the command: 1, or that of a remote command passed through.
    """

    def __init__(self, message: str, hint: str = "", status: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.status = status

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(AgentVMError):
    """The command line or a settings file asks for something that cannot be (exit status 2)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint, status=2)
