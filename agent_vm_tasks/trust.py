"""What a repository's agent-vm.toml loosens: it counts once the user has approved exactly that.

An agent can change the file and what it names. What was approved is pinned by a hash and kept with
the user's own state, by the real path of the folder that holds the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import state, toml_file
from .errors import AgentVMError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .console import Say

FOLDER = ".trust"
"""Where it is kept, below ~/.agent-vm; no VM has a dot in its name."""
ENTRY = ("sha256", "values", "script")
LARGEST_SCRIPT = 1 << 20  # bytes


@dataclass(frozen=True)
class Loosened:
    """What `file` loosens: plain values by key path, and the text of the script it names."""

    file: Path
    values: Mapping[str, Any]
    script: str = ""

    @property
    def folder(self) -> str:
        return os.path.realpath(self.file.parent)

    @property
    def sha256(self) -> str:
        import hashlib
        import json

        text = json.dumps([self.values, self.script], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def loosened(file: Path, values: Mapping[str, Any]) -> Loosened:
    """Put the script's text to the values; raises AgentVMError when it cannot be had."""
    name = values.get("provision.script")
    content = script(file.parent, name) if name else b""
    return Loosened(file, values, content.decode("utf-8", "surrogateescape"))


def script(folder: Path, name: str) -> bytes:
    """The script of [provision] that a file in `folder` names; raises AgentVMError."""
    path = folder / name
    try:
        inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
        if not inside or not path.is_file():
            raise AgentVMError(f"provision.script: {path} is not a file of {folder}")
        with path.open("rb") as file:
            content = file.read(LARGEST_SCRIPT + 1)
    except OSError as error:
        raise AgentVMError(f"provision.script: {path} cannot be read: {error.strerror}") from None
    if len(content) > LARGEST_SCRIPT:
        raise AgentVMError(f"provision.script: {path} is larger than 1 MiB")
    return content


def require(wanted: Loosened) -> None:
    """Raise UsageError, naming the keys, unless exactly this was approved."""
    if approved(wanted):
        return
    before = known().get(wanted.folder, {"values": {}})["values"]
    new = [key for key, value in wanted.values.items() if before.get(key) != value]
    names = new or (["provision.script"] if wanted.script else list(wanted.values))
    raise UsageError(
        f"{toml_file.label(wanted.file)}: {', '.join(names)}: not approved by you",
        "`agent-vm trust` shows and approves what an agent could have changed",
    )


def approved(wanted: Loosened) -> bool:
    """Tell whether exactly this was approved for the folder."""
    entry = known().get(wanted.folder)
    return entry is not None and bool(entry["sha256"] == wanted.sha256)


def changes(wanted: Loosened) -> list[str]:
    """The lines of a diff from what was approved last: one for each key, then the script's."""
    import difflib

    last = known().get(wanted.folder)
    before = _lines(last["values"], last["script"]) if last else []
    now = _lines(wanted.values, wanted.script)
    return list(difflib.unified_diff(before, now, lineterm=""))[2:]


def approve(wanted: Loosened, say: Say) -> None:
    """Keep this as approved, in place of what was before."""
    entry = {"sha256": wanted.sha256, "values": wanted.values, "script": wanted.script}
    with state.lock(FOLDER, say):
        _write({**known(), wanted.folder: entry})


def revoke(folders: Iterable[Path], say: Say) -> str:
    """Forget what was approved for the first of `folders` that has something; that folder or ""."""
    kept = known()
    found = next((real for f in folders if (real := os.path.realpath(f)) in kept), "")
    if found:
        with state.lock(FOLDER, say):
            _write({folder: entry for folder, entry in known().items() if folder != found})
    return found


def known() -> dict[str, Any]:
    """What is approved: sha256, values and script by folder; raises AgentVMError."""
    path = _file()
    if not path.exists():
        return {}
    import json

    try:
        found = json.loads(path.read_text("utf-8")).items()
        return {folder: {key: entry[key] for key in ENTRY} for folder, entry in found}
    except (ValueError, TypeError, KeyError, AttributeError):
        raise AgentVMError(
            f"{path} is damaged", "remove it, and approve again with `agent-vm trust`"
        ) from None


def mounts() -> list[str]:
    """Every folder that an approved file has for the mount."""
    values = [entry["values"] for entry in known().values()]
    return [each["mount.path"] for each in values if "mount.path" in each]


def _lines(values: Mapping[str, Any], script: str) -> list[str]:
    import json

    keys = [f"{key} = {json.dumps(v, sort_keys=True)}" for key, v in values.items()]
    return keys + [f"  | {line}" for line in script.split("\n")] if script else keys


def _file() -> Path:
    return state.folder(FOLDER) / "trusted.json"


def _write(entries: Mapping[str, Any]) -> None:
    import json

    state.write(_file(), json.dumps(entries, indent=2))
