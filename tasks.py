"""The tasks of this repository: the product's, plus test, lint and bench."""

from agent_vm_tasks import ns

namespace = ns
