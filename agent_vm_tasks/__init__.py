"""Run coding agents in an isolated Lima VM, as Invoke tasks.

In a tasks.py: `from agent_vm_tasks import ns`, or `ns.add_collection(agent_vm_tasks.ns, "vm")`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

from .tasks import ns

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fabric import Connection
    from invoke.context import Context

__all__ = ["connection", "ns", "workspace"]


def connection(c: Context) -> AbstractContextManager[Connection]:
    """Open a Fabric Connection into the VM, which is started when it is not running.

    >>> with connection(c) as guest:  # doctest: +SKIP
    ...     guest.run("uname -a")
    """
    from .composition import connection as made  # Fabric costs 60 ms to import

    return made(c)


def workspace(c: Context, branch: str) -> AbstractContextManager[Connection]:
    """Open a Fabric Connection whose commands run in the branch's workspace; made when missing.

    >>> with workspace(c, branch="fix-login") as guest:  # doctest: +SKIP
    ...     guest.run("make test")
    """
    from .composition import workspace as made

    return made(c, branch)
