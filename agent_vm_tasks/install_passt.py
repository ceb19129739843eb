"""Building passt where Debian's own is too old: what keeps the host's loopback from the VM."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import host, steps
from .errors import AgentVMError

if TYPE_CHECKING:
    from .console import Say

BUILT_ON = ("bookworm", "trixie")
"""Debian's releases whose own passt may not be used."""
SUITE = "trixie-backports"
"""Debian's suite whose source is built; apt checks it by the archive's signature."""
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
COMPILER = {"gcc": "gcc", "libc6-dev": "gencat", "make": "make"}
"""Debian's packages that building it needs, with a program of each."""


def wanted(codename: str) -> bool:
    """Whether it is to be built: for a Debian that has none of its own that may be used."""
    old = host.passt_day() < host.PASST_MINIMUM
    return codename in BUILT_ON and old and host.qemu_joins_passt()


def install(archive: str, say: Say) -> None:
    """Build it from the source in the Debian archive at that address.

    Goes to /usr/local for root, else to ~/.local. What goes wrong is told and no more: there is a
    VM without it, of which each start says what it can reach.
    """
    prefix = Path("/usr/local") if os.geteuid() == 0 else Path.home() / ".local"
    try:
        with tempfile.TemporaryDirectory(prefix="agent-vm-passt-") as folder:
            _build(Path(folder), archive, prefix / "bin", say)
    except (AgentVMError, OSError) as error:
        say(f"  passt could not be built: {error}")


def _build(folder: Path, archive: str, target: Path, say: Say) -> None:
    source = _source(folder, archive, say)
    steps.run(["tar", "-xf", str(source), "--strip-components=1", "-C", str(folder)], say)
    version = source.name.removeprefix("passt_").partition(".orig.")[0]
    programs = ["passt", "passt.avx2"] if host.arch() == "x86_64" else ["passt"]
    steps.run(["make", "-C", str(folder), *programs, f"VERSION={version}"], say)
    made = [str(folder / program) for program in programs]
    steps.run(["install", "-D", "-t", str(target), *made], say)


def _source(folder: Path, archive: str, say: Say) -> Path:
    """Fetch the source by apt, without touching this machine's own lists."""
    sources = folder / "sources.list"
    sources.write_text(f"deb-src [signed-by={KEYRING}] {archive} {SUITE} main\n", "utf-8")
    (folder / "lists/partial").mkdir(parents=True)
    places = {"Dir::Etc::SourceList": sources, "Dir::Etc::SourceParts": "/dev/null",
              "Dir::State::Lists": folder / "lists", "Dir::Cache": folder / "cache",
              "APT::Sandbox::User": "root"}  # fmt: skip
    apt = ["apt-get", *(word for key, value in places.items() for word in ("-o", f"{key}={value}"))]
    steps.run([*apt, "update"], say)
    steps.run([*apt, "source", "--download-only", "--tar-only", "passt"], say, cwd=folder)
    found = next(folder.glob("passt_*.orig.tar.*"), None)
    if not found:
        raise AgentVMError(f"{archive} has no source of passt")
    return found
