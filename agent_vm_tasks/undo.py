"""What was deleted from the VM: kept on the host for some days, and brought back.

The host stores what the guest packed and never looks into it: a workspace's git configuration is
the guest's. It is unpacked where it came from, in the VM.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, astuple, dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from . import guest, state, walls
from .errors import AgentVMError
from .workspaces import UNKNOWN, by_user, many

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from .console import Say
    from .workspaces import Row

LARGEST_EXTRA = 100 * 2**20
"""Bytes of untracked files, and of ignored ones, that are kept with a workspace."""
LARGEST = 20 * 2**30
"""Bytes of one kept workspace, nor more than half of what is free: the guest may send any."""
_WHOLE = b"agent-vm: whole\n"
_ARCHIVE, _FACTS = "workspace.tar", "kept.json"
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class Weight:
    """What a workspace has besides its own commits; None where the guest could not tell.

    `inner`: commits that only repositories inside it have, submodules included. `hidden`: files
    that its git does not look at.
    """

    untracked: int | None
    untracked_bytes: int | None
    ignored: int | None
    ignored_bytes: int | None
    inner: int | None
    hidden: int | None

    @property
    def unknown(self) -> bool:
        return None in astuple(self)

    @property
    def extra(self) -> bool:
        """Whether there is such a thing at all, or might be."""
        return self.unknown or any((self.untracked, self.ignored, self.inner, self.hidden))

    @property
    def too_large(self) -> list[str]:
        """Which kinds of files are not kept."""
        sizes = {"untracked": self.untracked_bytes, "ignored": self.ignored_bytes}
        return [kind for kind, size in sizes.items() if size is not None and size > LARGEST_EXTRA]

    @property
    def losses(self) -> list[str]:
        """What would be gone, in words; of ignored files only those that are gone for good."""
        counts = {"untracked": (self.untracked, self.untracked_bytes),
                  "ignored": (self.ignored, self.ignored_bytes)}  # fmt: skip
        found = [UNKNOWN] if self.unknown else []
        if self.inner:
            found.append(f"{many(self.inner, 'commit')} in submodules or other repositories inside")
        if self.hidden:
            found.append(f"{many(self.hidden, 'file')} that its git does not look at")
        for kind in self.too_large:
            number, size = counts[kind]
            found.append(f"{number} {kind} files, for good: {(size or 0) >> 20} MiB are not kept")
        return found


_UNWEIGHED = Weight(None, None, None, None, None, None)


@dataclass(frozen=True)
class Kept:
    """A deleted workspace; `made` is in UTC, ISO 8601, `lost` what the host had no copy of.

    `walled` has its guest user, where it had one of its own.
    """

    id: str
    made: str
    folder: str
    key: str
    repository: str
    branch: str
    lost: tuple[str, ...] = ()
    walled: str = ""


def weigh(vm: str, rows: Sequence[Row]) -> dict[str, Weight]:
    """How much each workspace has that git does not keep, by folder."""
    found: dict[str, Weight] = {}
    for user, folders in by_user(rows).items():
        try:
            found |= _weighed(vm, folders, user)
        except AgentVMError:
            if not user:
                raise
            found |= dict.fromkeys(folders, _UNWEIGHED)  # no reason to keep others
    return found


def _weighed(vm: str, folders: Sequence[str], user: str) -> dict[str, Weight]:
    fields = guest.script(vm, "workspace-weigh.sh", *folders, user=user, timeout=600)
    numbers = [int(field) if re.fullmatch("[0-9]{1,18}", field) else None for field in fields]
    with guest.understood():
        each = zip(*[iter(numbers)] * 6, strict=True)
        return {folder: Weight(*six) for folder, six in zip(folders, each, strict=True)}


def losses(rows: Sequence[Row], weights: Mapping[str, Weight]) -> list[str]:
    """What the host has no copy of, or will have none of, in words."""
    return [
        f"{row.folder}: {loss}"
        for row in rows
        for loss in dict.fromkeys((*row.losses, *weights[row.folder].losses))
    ]


def keep(
    vm: str, rows: Sequence[Row], weights: Mapping[str, Weight], days: int, say: Say
) -> list[Kept]:
    """Bring workspaces to the host before they are deleted, but not those it has all of.

    Also forgets what is older than `days`. Raises AgentVMError when one cannot be kept: then none
    is to be deleted.
    """
    expire(vm, days)
    if not days:
        return []
    wanted = [row for row in rows if row.losses or weights[row.folder].extra]
    kept: list[Kept] = []
    try:
        for row in wanted:
            made = _keep(vm, row, weights[row.folder].too_large, days, say)
            kept.append(made)
    except BaseException:
        for each in kept:
            _forget(vm, each.id)
        raise
    return kept


def listed(vm: str) -> list[Kept]:
    """What is kept, the newest first."""
    found = [_read(path) for path in _folder(vm).glob(f"*/{_FACTS}")]
    return sorted((kept for kept in found if kept), key=lambda kept: kept.id, reverse=True)


def strange(vm: str) -> list[Path]:
    """Folders of copies that are not whole, or of another version of agent-vm."""
    return [path for path in _folder(vm).glob("*/") if not _read(path / _FACTS)]


def size(vm: str, kept: Kept) -> int:
    """Bytes it takes on this host."""
    return (_folder(vm) / kept.id / _ARCHIVE).stat().st_size


def find(vm: str, wanted: str) -> Kept:
    """The kept workspace of that id, or the newest of that folder; raises AgentVMError."""
    for kept in listed(vm):
        if wanted in (kept.id, kept.folder):
            return kept
    raise AgentVMError(f"nothing is kept under {wanted!r}", "`agent-vm undo` lists it")


def restore(vm: str, kept: Kept) -> None:
    """Put a kept workspace back into the running VM; raises AgentVMError when one is in its place.

    The copy on the host stays until its time is over.
    """
    taken = AgentVMError(
        f"there is a workspace {kept.folder} again", "fetch what it has, clean it, then undo"
    )
    user = walls.named(kept.key) if kept.walled else ""
    if user and walls.up(vm, kept.key, [kept.folder]) != kept.folder:
        raise taken
    with (_folder(vm) / kept.id / _ARCHIVE).open("rb") as archive:
        said = guest.feed(
            vm, "workspace-restore.sh", archive, kept.key, kept.folder, user=user, timeout=None
        )
    if said != f"{kept.folder}\0":
        raise taken
    if user:
        walls.show(vm, user)


def expire(vm: str, days: int) -> None:
    """Remove what was kept for longer than `days`, and at that age what a killed command left."""
    now = datetime.now(UTC)
    for kept in listed(vm):
        if kept.made <= (now - days * _DAY).isoformat(timespec="seconds"):
            _forget(vm, kept.id)
    for folder in strange(vm):
        with contextlib.suppress(FileNotFoundError):  # another command may be at the same
            if folder.stat().st_mtime <= (now - max(days, 1) * _DAY).timestamp():
                _forget(vm, folder.name)


def _keep(vm: str, row: Row, without: Sequence[str], days: int, say: Say) -> Kept:
    say(f"keeping a copy of {row.folder} for {days} days")
    try:
        folder = _new(vm)
        kept = Kept(
            folder.name, datetime.now(UTC).isoformat(timespec="seconds"),
            row.folder, row.key, row.repository, row.branch, tuple(row.losses), row.user,
        )  # fmt: skip
        try:
            _receive(vm, kept, without)
        except BaseException:
            _forget(vm, kept.id)
            raise
    except (AgentVMError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise AgentVMError(
            f"nothing was deleted, because no copy of {row.folder} could be kept: {why}",
            "delete inside the VM what is not wanted, or make room on this machine",
        ) from None
    return kept


def _new(vm: str) -> Path:
    """A folder for one copy, named by the time; where another command has that, by the next."""
    state.make(_folder(vm))
    now = datetime.now(UTC)
    while True:
        folder = _folder(vm) / now.strftime("%Y%m%d-%H%M%S-%f")[:-3]
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            now += timedelta(milliseconds=1)
        else:
            return folder


def _receive(vm: str, kept: Kept, without: Sequence[str]) -> None:
    import shutil

    folder = _folder(vm) / kept.id
    archive = folder / _ARCHIVE
    largest = min(LARGEST, shutil.disk_usage(folder).free // 2)
    with archive.open("xb") as file:
        guest.receive(vm, "workspace-save.sh", kept.folder, *without, into=file, largest=largest,
                      user=kept.walled)  # fmt: skip
    with archive.open("r+b") as file:
        file.seek(max(0, archive.stat().st_size - len(_WHOLE)))
        end = file.tell()
        if file.read() != _WHOLE:
            raise AgentVMError("the copy was cut short")
        file.truncate(end)
        os.fsync(file.fileno())
    state.write(folder / _FACTS, json.dumps(asdict(kept), indent=2))


def _read(path: Path) -> Kept | None:
    """What is said of a kept workspace that is there; a later version may say more."""
    try:
        path.with_name(_ARCHIVE).stat()
        facts = json.loads(path.read_text("utf-8"))
        facts.setdefault("walled", "")  # an earlier version knew no walls
        words = {each.name: str(facts[each.name]) for each in fields(Kept) if each.name != "lost"}
        return Kept(**words | {"id": path.parent.name}, lost=tuple(map(str, facts["lost"])))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _folder(vm: str) -> Path:
    return state.folder(vm) / "undo"


def _forget(vm: str, name: str) -> None:
    import shutil

    shutil.rmtree(_folder(vm) / name, ignore_errors=True)
