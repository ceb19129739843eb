"""Installing Lima by the first way that works: Homebrew, else the archive of lima_archive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from . import host, lima_archive, steps
from .errors import AgentVMError
from .lima_archive import VERSION

if TYPE_CHECKING:
    from .console import Say
    from .settings import Packages


def install(packages: Packages, say: Say) -> None:
    """Install Lima, unless there is one that is new enough.

    Goes to /usr/local for root, else to ~/.local. Raises AgentVMError when no way works.
    """
    if _new_enough(None):
        return
    prefix = Path("/usr/local") if os.geteuid() == 0 else Path.home() / ".local"
    if not _new_enough(str(prefix / "bin" / "limactl")):
        _first_that_works(prefix, packages, say)
    if not _new_enough(None):
        raise AgentVMError(
            f"{host.limactl()} is older than Lima {VERSION} and comes first on PATH",
            f"remove it, or put {prefix / 'bin'} before it on PATH",
        )


def _first_that_works(prefix: Path, packages: Packages, say: Say) -> None:
    trouble = AgentVMError("no way is known for this system", f"install Lima {VERSION} yourself")
    for way in (_by_homebrew, _by_archive):
        try:
            if limactl := way(prefix, packages, say):
                host.require_lima(str(limactl))
                return
            continue
        except AgentVMError as error:
            trouble = error
        except OSError as error:
            trouble = steps.trouble(f"{error.filename or 'a file'}", str(error.strerror))
        say(f"  {trouble.message}")
    raise AgentVMError(f"Lima could not be installed: {trouble.message}", trouble.hint)


def _new_enough(limactl: str | None) -> bool:
    try:
        host.require_lima(limactl)
    except AgentVMError:
        return False
    return True


def _by_homebrew(_prefix: Path, _packages: Packages, say: Say) -> Path | None:
    brew = host.which("brew")
    if brew and os.geteuid() != 0:
        steps.run([brew, "install", "lima"], say)
        return Path(brew).parent / "limactl"
    if host.is_macos():
        raise AgentVMError("there is no Homebrew", f"install it, {steps.AGAIN}")
    return None


def _by_archive(prefix: Path, packages: Packages, say: Say) -> Path | None:
    if host.is_macos():
        return None
    archive = lima_archive.archive(packages, say)
    prefix.mkdir(parents=True, exist_ok=True)
    steps.run(["tar", "-xzf", str(archive), "-C", str(prefix), "--no-same-owner",
               "--no-overwrite-dir"], say)  # fmt: skip
    return prefix / "bin" / "limactl"
