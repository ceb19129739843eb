"""The home files in the VM: put there once, brought up to date when asked to."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from . import data, guest, process, stages
from .errors import AgentVMError

if TYPE_CHECKING:
    from .settings import Settings


def refresh(settings: Settings, *, force: bool = False) -> list[tuple[str, str]]:
    """Update the files that nobody has changed inside; pairs of outcome and path.

    Outcomes are those of common/scripts/home-files.sh: new, same, updated, kept, replaced. With
    `force` also the changed ones, after a copy inside. Raises AgentVMError.
    """
    files = {**stages.home_files(), **stages.own_home_files(settings)}
    script = (
        "set -e; folder=$(mktemp -d); trap 'rm -rf \"$folder\"' EXIT; "
        'tar -xf - -C "$folder"; '
        f"bash -c {shlex.quote(data.script('home-files.sh'))} home-files.sh "
        f'"$folder" {"force" if force else "refresh"}'
    )
    ssh = [*guest.ssh(settings.vm.name), script]
    result = process.run(ssh, stdin=stages.tar(files), check=False, timeout=120)
    fields = result.stdout.split("\0")[:-1]
    if not result.ok or len(fields) % 2:
        raise AgentVMError(f"the home files could not be put in place: {result.reason}")
    return list(zip(fields[::2], fields[1::2], strict=True))
