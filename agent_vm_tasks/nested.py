"""What VMs inside the VM need: Lima, and agent-vm itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from . import data, lima_archive, stages
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .console import Say
    from .settings import Packages
    from .stages import Files, Stage

STAGE = "nested"


def supplied(due: Sequence[Stage], packages: Packages, say: Say) -> list[Stage]:
    """The stages that will run, ours with its files; without it where Lima cannot be had.

    The files are large, so they are looked for only now. The rest of the VM is good without, and
    the stage is due again at the next start.
    """
    found = []
    for stage in due:
        if stage.name != STAGE:
            found.append(stage)
            continue
        try:
            found.append(replace(stage, files=_files(packages, say)))
        except AgentVMError as error:
            why = f"{error.message}; the next `agent-vm start` tries again"
            say(f"the VM gets no Lima for VMs inside it: {why}")
    return found


def source() -> Files:
    """What agent-vm can be built from: the same from a checkout and from a wheel."""
    package = data.package()
    files = {f"agent_vm_tasks/{name}": file for name, file in stages.files_in(package).items()
             if not name.startswith("_data/")}  # fmt: skip
    for folder in ("templates", "common"):
        top = data.root() / folder
        files |= {f"{folder}/{name}": file for name, file in stages.files_in(top).items()}
    for name in ("pyproject.toml", "README.md"):
        files[name] = ((data.root() / name).read_bytes(), 0o644)
    return {name: file for name, file in files.items() if "__pycache__" not in name}


def _files(packages: Packages, say: Say) -> Mapping[str, bytes]:
    return {
        "lima.tar.gz": lima_archive.archive(packages, say).read_bytes(),
        "agent-vm.tar": stages.tar(source()),
    }
