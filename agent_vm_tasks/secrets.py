"""Variables and credential files of the host: what of them goes in, and their way into memory.

In the VM they lie in a folder on a tmpfs (common/scripts/secrets-put.sh), which shells and commands
load. On the way they are on stdin: no command line, log or disk gets a value.
"""

from __future__ import annotations

import hmac
import json
import os
import re
import shlex
import stat
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from . import data, guest, state, toml_file
from .errors import AgentVMError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .settings import Settings

STALE = 214
"""Exit status of common/scripts/workspace-enter.sh when the VM has not these values in force."""

ENV_FILE = "env"
TOKEN = "AGENT_VM_ENV_TOKEN"  # noqa: S105  a variable's name
GCP_FILE = "application_default_credentials.json"
GCP_INSIDE = f"/etc/google/{GCP_FILE}"
GCP_VARIABLE = "GOOGLE_APPLICATION_CREDENTIALS"

LARGEST = 1 << 20
"""Bytes of all values and files together."""
LONGEST = 1 << 17
"""Bytes of one NAME=value with its NUL: Linux starts no program with a longer one (execve(2))."""

# On these a shell, the loader of programs or our own scripts act.
_STEERING = r"AGENT_VM_.*|BASH.*|E?UID|ENV|HOME|IFS|LD_.*|PATH|PPID|PROMPT_COMMAND|PS4|SHELLOPTS"


@dataclass(frozen=True)
class Secrets:
    """Values by variable and contents by file, as the VM is to have them; printed, only names.

    `warnings`: what was left out, and why.
    """

    variables: Mapping[str, bytes] = field(repr=False)
    files: Mapping[str, bytes] = field(repr=False)
    warnings: tuple[str, ...] = ()


def collect(settings: Settings) -> Secrets:
    """Read what the settings hand over from this process's environment and from files.

    A value set on the host wins over `env.set`, that over the defaults of envvars.txt. Raises
    AgentVMError for a file that cannot be had; no message has any content.
    """
    variables = dict(_variables(settings))
    files = {name: _file(name, path) for name, path in settings.secrets.files}
    credentials, warnings = _gcp()
    if credentials is not None:
        files[GCP_FILE] = credentials
        variables[GCP_VARIABLE] = GCP_INSIDE.encode()
    found = Secrets(variables, files, warnings)
    _check_sizes(found)
    return found


def token(name: str, secrets: Secrets) -> str:
    """Name this content for the VM `name`: it changes with the content and tells nothing of it."""
    parts = (
        b"%s\0%s\0%d\0%s" % (kind, label.encode(), len(content), content)
        for kind, contents in ((b"variable", secrets.variables), (b"file", secrets.files))
        for label, content in sorted(contents.items())
    )
    return hmac.digest(key(name), b"".join(parts), "sha256").hex()


def push(name: str, secrets: Secrets, user: str = "") -> bool:
    """Put them into the running VM in place of what is there; False when that was the same.

    `user`: for whom, where that is a walled workspace's.

    Cut off, it leaves what was there. Raises AgentVMError.
    """
    archive = _archive(token(name, secrets), secrets)
    return guest.feed(name, "secrets-put.sh", archive, user=user).split()[-1:] != ["same"]


def clear(name: str) -> None:
    """Remove all of them from the running VM; raises AgentVMError."""
    guest.script(name, "secrets-clear.sh")


def key_file(name: str) -> Path:
    """Where the host keeps what makes a token of this VM unlike any other's."""
    return state.folder(name) / "secrets.key"


def _variables(settings: Settings) -> dict[str, bytes]:
    lines = [line.partition("=") for line in data.package_list("envvars.txt")]
    defaults = {name: value.encode() for name, sign, value in lines if sign}
    given = {name: value.encode() for name, value in settings.env.set}
    _refuse_steering("env.set", given)
    _refuse_steering("env.pass", settings.env.pass_)
    names = {*(name for name, _, _ in lines), *settings.env.pass_} - {GCP_VARIABLE}
    here = {name: os.environb.get(name.encode(), b"") for name in names}
    return defaults | given | {name: value for name, value in here.items() if value}


def _refuse_steering(key: str, names: Iterable[str]) -> None:
    for name in names:
        if re.fullmatch(_STEERING, name):
            raise UsageError(
                f"{key}: {name} would change how shells in the VM work", "remove it there"
            )


def _file(name: str, path: str) -> bytes:
    key = f"secrets.files.{name}"
    if name in {ENV_FILE, GCP_FILE}:
        hint = f"set {GCP_VARIABLE}" if name == GCP_FILE else "choose another"
        raise UsageError(f"{key}: agent-vm has a file of that name itself", hint)
    return _contents(key, _expanded(path))


def _gcp() -> tuple[bytes | None, tuple[str, ...]]:
    """Read Google's credentials, and tell why those at the default place are left out.

    The file named by the variable has to be good, the default one may have been left by anything.
    """
    if named := os.environ.get(GCP_VARIABLE):
        return _credentials(GCP_VARIABLE, _expanded(named)), ()
    path = _expanded(f"~/.config/gcloud/{GCP_FILE}")
    if not os.path.lexists(path):
        return None, ()
    try:
        return _credentials("Google credentials", path), ()
    except AgentVMError as error:
        return None, (f"{error.message}; the VM gets none",)


def _credentials(what: str, path: Path) -> bytes:
    raw = _contents(what, path, "name the JSON file of your credentials, or unset the variable")
    try:
        parsed = json.loads(raw)
    except (ValueError, RecursionError):
        parsed = None
    kind = parsed.get("type") if isinstance(parsed, dict) else None
    if not kind or not isinstance(kind, str):
        raise AgentVMError(
            f'{what}: {toml_file.label(path)} is no JSON object with a "type"',
            "`gcloud auth application-default login` writes one",
        )
    return raw


def _contents(what: str, path: Path, hint: str = "") -> bytes:
    where = f"{what}: {toml_file.label(path)}"
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe or a device could hang
            raise AgentVMError(f"{where} is not a regular file", hint)
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise AgentVMError(f"{where} cannot be read: {error.strerror}", hint) from None
    if len(raw) > LARGEST:
        raise AgentVMError(f"{where} is larger than 1 MiB", hint)
    return raw


def _expanded(path: str) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path's raises where there is no home


def _check_sizes(found: Secrets) -> None:
    for name, value in found.variables.items():
        if len(name) + len(value) + 2 > LONGEST:
            raise AgentVMError(f"the variable {name} is longer than 128 KiB", "hand over a file")
    contents = (*found.variables.values(), *found.files.values())
    if sum(map(len, contents)) > LARGEST:
        raise AgentVMError(
            "the variables and files for the VM are larger than 1 MiB together",
            "shorten env.pass or secrets.files",
        )


def key(name: str) -> bytes:
    """The VM's random key, with which what is known here can be told apart and not guessed."""
    path = key_file(name)
    if kept := _kept_key(path):
        return kept
    with state.lock(name, lambda _: None, "secrets.lock"):  # all commands must have the same
        kept = _kept_key(path)
        if not kept:
            state.write(path, token_hex(32))
            kept = _kept_key(path)
    return kept


def _kept_key(path: Path) -> bytes:
    try:
        text = path.read_text("ascii")
    except (OSError, ValueError):
        return b""
    return bytes.fromhex(text) if re.fullmatch("[0-9a-f]{64}", text) else b""


def _archive(mark: str, secrets: Secrets) -> bytes:
    """Pack the files and then the shell text that sets the variables: with that one it is whole."""
    import io
    import tarfile

    lines = [(TOKEN, mark.encode()), *sorted(secrets.variables.items())]
    text = b"".join(b"export %s=%s\n" % (name.encode(), _quoted(v)) for name, v in lines)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in (*secrets.files.items(), (ENV_FILE, text)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _quoted(value: bytes) -> bytes:
    return shlex.quote(value.decode("latin-1")).encode("latin-1")  # byte for byte
