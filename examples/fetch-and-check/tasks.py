"""A repository where work from the VM is checked as it comes in: `invoke fetch --branch x`."""

import shlex

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

from agent_vm_tasks import ns as vm
from agent_vm_tasks.tasks import lifecycle, work


@task(help={"branch": "the branch to fetch"}, post=[lifecycle.status])
def fetch(c: Context, branch: str) -> None:
    """Fetch, then look for whitespace errors; nothing that came in is run. Shows what is left."""
    work.fetch(c, branch=branch)
    c.run(f"git show --check --oneline {shlex.quote(f'refs/heads/{branch}')}", in_stream=False)


@task(pre=[lifecycle.start])
def ready(_c: Context) -> None:
    """Have the VM up before the working day."""


ns = Collection(*vm.tasks.values())
ns.add_task(fetch)
ns.add_task(ready)
