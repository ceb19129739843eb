"""The home files in the VM: put there once, brought up to date when asked to."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from . import data, guest, process, stages, walls
from .errors import AgentVMError

if TYPE_CHECKING:
    from .settings import Settings


def refresh(settings: Settings, *, force: bool = False) -> list[tuple[str, str]]:
    """Update the files that nobody has changed inside; pairs of outcome and path.

    Outcomes are those of common/scripts/home-files.sh: new, same, updated, kept, replaced. With
    `force` also the changed ones, after a copy inside. Raises AgentVMError.
    """
    archive = stages.tar({**stages.home_files(), **stages.own_home_files(settings)})
    name = settings.vm.name
    done = _refreshed(name, archive, force=force)
    for user in walls.users(name):
        theirs = _refreshed(name, archive, user, force=force)
        done += [(outcome, f"~{user}/{path}") for outcome, path in theirs]
    return done


def _refreshed(name: str, archive: bytes, user: str = "", *, force: bool) -> list[tuple[str, str]]:
    script = (
        "set -e; folder=$(mktemp -d); trap 'rm -rf \"$folder\"' EXIT; "
        'tar -xf - -C "$folder"; '
        f"bash -c {shlex.quote(data.script('home-files.sh'))} home-files.sh "
        f'"$folder" {"force" if force else "refresh"}'
    )
    ssh = [*guest.ssh(name), guest.text_as(user, script)]
    result = process.run(ssh, stdin=archive, check=False, timeout=120)
    fields = result.stdout.split("\0")[:-1]
    if not result.ok or len(fields) % 2:
        raise AgentVMError(f"the home files could not be put in place: {result.reason}")
    return list(zip(fields[::2], fields[1::2], strict=True))
