"""Provisioned disks, kept so that the next VM starts where the last one was ready.

A kept disk has the packages and agents but nothing of a person: no workspaces, host keys or
machine-id. It is chosen by what went into it, and provisioning applies what differs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from . import data, guest, image, process, stages, state, vm
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from invoke.context import Context

    from .console import Say
    from .image import Image
    from .lima import Instance
    from .settings import Settings

FREEZING, THAWING = 300.0, 60.0
"""Seconds that the guest may take to clear up and hold its file system still, and to let it go."""
LONGEST = 2**16
"""Bytes of what it says that are read."""


@dataclass(frozen=True)
class Golden:
    """A kept disk: what it was made from and how, its stages' stamps, its size (`disk`, in MiB)."""

    folder: Path
    base: str
    stamps: Mapping[str, str]
    disk: int
    recipe: str = image.RECIPE

    @property
    def made(self) -> str:
        """When, as local time in ISO 8601."""
        when = (self.folder / "golden.json").stat().st_mtime
        return datetime.fromtimestamp(when).astimezone().isoformat(" ", "minutes")

    @property
    def used(self) -> int:
        """Bytes it takes on this host."""
        return sum(file.stat().st_blocks * 512 for file in self.folder.iterdir())


def prefer(settings: Settings, images: Sequence[Image], say: Say) -> tuple[Image, ...]:
    """The kept disk that has most of what is wanted, as the only image; none when none fits.

    One that was made from an earlier list of Debian packages fits as well: what is new is added.
    """
    wanted = _stamps(settings)
    fitting = [
        (kept, found)
        for kept in kept_disks()
        if kept.disk <= settings.vm.disk and (found := _image(kept, images[0]))
    ]
    if not settings.provision.enabled or not fitting:
        return ()
    _, best = max(fitting, key=lambda pair: len(pair[0].stamps.items() & wanted.items()))
    say("using the provisioned disk of an earlier VM")
    return (best,)


def kept_disks() -> list[Golden]:
    """Every kept disk, the newest first; half-written ones do not count."""
    found = [_read(path) for path in _cache().glob("*/golden.json")]
    return sorted(
        (kept for kept in found if kept),
        key=lambda kept: (kept.folder / "golden.json").stat().st_mtime,
        reverse=True,
    )


def keep(instance: Instance, say: Say) -> bool:
    """Copy the disk of the running, just provisioned VM; False when that was not to be.

    The guest holds its file system still for the copy. Written beside, synced, and renamed when
    the guest did so to the end: a cut-off or torn copy is never used. Raises AgentVMError.
    """
    base, disk = _origin(instance), instance.dir / "disk"
    if not base or not disk.is_file():
        return False
    with _beside() as work:
        with _held_still(instance.name) as stamps:
            folder = _cache() / _key(base, stamps, instance.disk)
            if not stamps or folder.exists():
                return False
            say("keeping the provisioned disk for later VMs (`agent-vm prune` removes old ones)")
            _write(Golden(folder, base, stamps, instance.disk), disk, work)
        work.rename(folder)
    return True


def bake(settings: Settings, say: Say, c: Context | None = None) -> bool:
    """Keep a disk on purpose, from a VM made for that alone; False when it is there already.

    What a killed one left is taken up. No settings can name such a VM: nobody works in it.
    """
    name = f"{settings.vm.name}.bake"
    alone = replace(
        settings,
        vm=replace(settings.vm, name=name),
        mount=replace(settings.mount, enabled=False),
    )
    before = {kept.folder for kept in kept_disks()}
    try:
        vm.start(alone, say, c)
    finally:
        vm.destroy(alone, say)
    return {kept.folder for kept in kept_disks()} != before


def prune(settings: Settings) -> int:
    """Remove the kept disks that a creation with these settings would not use; bytes freed."""
    wanted = _stamps(settings)
    old = [kept for kept in kept_disks() if dict(kept.stamps) != wanted]
    freed = sum(kept.used for kept in old)
    for kept in old:
        shutil.rmtree(kept.folder)
    return freed


@contextlib.contextmanager
def _beside() -> Iterator[Path]:
    """A folder among the kept disks that is none yet, and is gone afterwards."""
    _cache().mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="keep-", dir=_cache()))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(made: Golden, disk: Path, work: Path) -> None:
    target = work / "disk.qcow2"
    process.run(["qemu-img", "convert", "-U", "-O", "qcow2", str(disk), str(target)])
    target.chmod(0o644)
    state.write(work / "golden.json", json.dumps(_plain(made), indent=2))
    process.run(["sync", "--file-system", str(work)], check=False)
    work.chmod(0o755)


@contextlib.contextmanager
def _held_still(name: str) -> Iterator[dict[str, str]]:
    """Have the guest's file system frozen; the stamps of its stages, none when it has been used."""
    script = shlex.join(["sudo", "bash", "-c", data.script("golden-freeze.sh")])
    child = process.popen([*guest.ssh(name), script])
    try:
        word, _, stamps = _first_line(child).partition(" ")
        yield dict(re.findall(r"([a-z]+):([0-9a-f]{16})", stamps)) if word == "frozen" else {}
        complaint = _let_go(child)
    except subprocess.TimeoutExpired:
        process.kill(child)
        raise guest.silence(name) from None
    except BaseException:
        process.kill(child)
        raise
    if child.returncode:
        why = complaint.strip().splitlines()[-1:] or ["no reason given"]
        raise AgentVMError(f"the guest did not hold its disk still: {why[0]}")


def _first_line(child: subprocess.Popen[bytes]) -> str:
    """What it says first, once it does; raises TimeoutExpired."""
    assert child.stdout  # noqa: S101  popen() pipes it
    said, end = b"", time.monotonic() + FREEZING
    while b"\n" not in said and len(said) < LONGEST:
        left = max(0.0, end - time.monotonic())
        if not select.select([child.stdout], [], [], left)[0]:
            raise subprocess.TimeoutExpired(child.args, FREEZING)
        if not (chunk := os.read(child.stdout.fileno(), LONGEST)):
            break
        said += chunk
    return said.decode("utf-8", "replace")


def _let_go(child: subprocess.Popen[bytes]) -> str:
    """Have it end; what it complained of. Raises TimeoutExpired."""
    assert child.stdin  # noqa: S101
    assert child.stderr  # noqa: S101
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(b"\n")
        child.stdin.close()
    child.wait(THAWING)
    os.set_blocking(child.stderr.fileno(), False)
    complaint = child.stderr.read(LONGEST) or b""
    process.close(child)
    return complaint.decode("utf-8", "replace")


def _image(kept: Golden, base: Image) -> Image | None:
    """How to boot the kept disk: by the kernel that lies beside the image it was made from."""
    beside = Path(kept.base).parent
    if kept.base != _base(base) and not (base.kernel and kept.recipe == image.RECIPE):
        return None
    disk = str(kept.folder / "disk.qcow2")
    if not base.kernel:
        return replace(base, location=disk, digest="")
    kernel, initrd = (beside / Path(path).name for path in (base.kernel, base.initrd))
    if not kernel.is_file() or not initrd.is_file():
        return None
    return replace(base, location=disk, digest="", kernel=str(kernel), initrd=str(initrd))


def _stamps(settings: Settings) -> dict[str, str]:
    return {stage.name: stage.stamp for stage in stages.stages(settings)}


def _base(base: Image) -> str:
    return base.digest or base.location


def _origin(instance: Instance) -> str:
    """What the instance's disk was made from; through a kept disk, what that was made from."""
    entries = instance.config.get("images") or [{}]
    location = str(entries[0].get("location", ""))
    for kept in kept_disks():
        if location.startswith(str(kept.folder)):
            return kept.base
    return str(entries[0].get("digest") or location)


def _key(base: str, stamps: Mapping[str, str], disk: int) -> str:
    inputs = json.dumps([base, sorted(stamps.items()), disk])
    return hashlib.sha256(inputs.encode()).hexdigest()[:16]


def _cache() -> Path:
    return image.cache().parent / "golden"


def _plain(kept: Golden) -> dict[str, object]:
    return {key: value for key, value in asdict(kept).items() if key != "folder"}


def _read(path: Path) -> Golden | None:
    try:
        entry = json.loads(path.read_text("utf-8"))
        return Golden(path.parent, str(entry["base"]), dict(entry["stamps"]), int(entry["disk"]),
                      str(entry["recipe"]))  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None
