"""A repository whose tests run in the VM: `invoke test --branch fix-login`."""

from invoke.collection import Collection
from invoke.context import Context
from invoke.tasks import task

import agent_vm_tasks


@task(help={"branch": "the branch to test"})
def test(c: Context, branch: str) -> None:
    """Run the branch's tests inside the VM; the exit status is theirs."""
    with agent_vm_tasks.workspace(c, branch=branch) as guest:
        guest.run("python3 -m unittest --quiet")


ns = Collection(test)
ns.add_collection(agent_vm_tasks.ns, name="vm")
