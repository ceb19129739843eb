"""agent-vm.toml and the flags: what was asked for, checked, and where each value came from."""

from __future__ import annotations

import keyword
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from . import checks, state, toml_file, trust
from .checks import GIB
from .errors import AgentVMError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

FILE_NAME = "agent-vm.toml"
DEFAULT = "default"


@dataclass(frozen=True)
class Vm:
    """The instance; `memory` and `disk` are in MiB, paths may begin with `~/`."""

    name: str = "agent-vm"
    cpus: int = 4
    memory: int = 8 * GIB
    disk: int = 100 * GIB
    image: str = "auto"
    vm_type: str = "auto"
    accel: str = "auto"
    ca_certs: Literal["auto"] | tuple[str, ...] = "auto"


NETWORKS = ("offline", "allowlist", "internet", "open")
"""What the VM may reach, the tightest first."""


@dataclass(frozen=True)
class Network:
    """`allow`: what the VM may reach by `allowlist`, next to common/network/allow.txt.

    `ports` of the VM are on this machine's loopback as well.
    """

    mode: str = "internet"
    allow: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()


@dataclass(frozen=True)
class Packages:
    """What is added to common/packages, and where packages come from; "" is the usual place."""

    apt: tuple[str, ...] = ()
    npm: tuple[str, ...] = ()
    python: tuple[str, ...] = ()
    debian_mirror: str = ""
    npm_registry: str = ""
    python_index: str = ""
    go_proxy: str = ""
    lima_releases: str = ""


@dataclass(frozen=True)
class Provision:
    """`script` is a file of the repository, run once per content in the VM."""

    enabled: bool = True
    script: str = ""


@dataclass(frozen=True)
class Home:
    """`path` is a folder whose files go into the VM's home, over those of common/homedir."""

    path: str = ""


@dataclass(frozen=True)
class Env:
    """Variables: names to pass on where the host has them set, and pairs of name and value."""

    pass_: tuple[str, ...] = ()
    set: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Secrets:
    """Files of the host to keep in the VM's memory: pairs of name there and path here."""

    files: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Mount:
    """`path` is the folder on the host; it may begin with `~/`."""

    enabled: bool = True
    path: str = "~/.agent-vm-mounts/workspace"


@dataclass(frozen=True)
class Workspace:
    """`keep_days`: how long deleted workspaces are kept on this machine; 0 keeps none.

    `walls`: whether new ones are kept apart, each with a guest user of its own.
    """

    include: tuple[str, ...] = ()
    keep_days: int = 14
    walls: bool = False


@dataclass(frozen=True)
class Settings:
    """Everything that was asked for; `sources` has the origin of each key path (`vm.cpus`)."""

    vm: Vm = field(default_factory=Vm)
    network: Network = field(default_factory=Network)
    packages: Packages = field(default_factory=Packages)
    provision: Provision = field(default_factory=Provision)
    home: Home = field(default_factory=Home)
    env: Env = field(default_factory=Env)
    secrets: Secrets = field(default_factory=Secrets)
    mount: Mount = field(default_factory=Mount)
    workspace: Workspace = field(default_factory=Workspace)
    sources: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(CHECKS, DEFAULT))


_PATH = checks.text("a path that begins with / or ~/ and has no ..", checks.PATH)
_RELATIVE = checks.text("a path inside the repository, without . or ..", checks.RELATIVE_PATH)
_APT = checks.text("a Debian package's name", "[a-z0-9][a-z0-9+.:=~-]*(?<!-)")  # x- removes x
_NPM = checks.text(
    "an npm package like name, @scope/name or name@1.2",
    "(@[a-z0-9][a-z0-9._-]*/)?[a-zA-Z0-9][a-zA-Z0-9._-]*(@[~^]?[a-zA-Z0-9][a-zA-Z0-9.+-]*)?",
)
_PYTHON = checks.text(
    "a Python package like name, name[extra] or name==1.2",
    r"[a-zA-Z0-9][a-zA-Z0-9._-]*(\[[a-zA-Z0-9._,-]+\])?((==|>=|~=)[a-zA-Z0-9.*+!]+)?",
)
_IMAGE = checks.text(
    '"auto", "cloud", "build", a path from / or ~/, or an https URL without a password',
    rf"auto|cloud|build|{checks.PATH}|https://[^\s/@]+/[^\s@]+",
)
_LABEL = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_PORT = "[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
_URL = checks.text(
    "an http or https URL without a password",
    rf"(https?://([A-Za-z0-9._-]+|\[[0-9a-fA-F:]+\])(:({_PORT}))?(/[A-Za-z0-9._~:/?&+,;=%-]*)?)?",
)
ALLOWED = rf"(\*\.|\.)?({_LABEL}\.){{1,20}}(?![0-9]+(:|$))(?!0x){_LABEL}(:({_PORT}))?"
"""An entry of network.allow: a name, and no address in any notation, with or without a port."""
_ALLOWED = checks.text(
    'a host of the internet in lower case, like "example.org", "*.example.org" (the names below),'
    ' ".example.org" (both) or "example.org:8443"',
    ALLOWED,
)
_VARIABLE = checks.text("a variable's name", "[A-Za-z_][A-Za-z0-9_]{0,99}")
_FILE = checks.text("a plain file name", r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")

CHECKS: Mapping[str, checks.Check] = {
    "vm.name": checks.text(
        "at most 31 lower-case letters, digits and hyphens, a letter first", "[a-z][a-z0-9-]{0,30}"
    ),
    "vm.cpus": checks.integer(1, 1024),
    "vm.memory": checks.size(512, 4096 * GIB),
    "vm.disk": checks.size(4 * GIB, 65536 * GIB),
    "vm.image": _IMAGE,
    "vm.vm_type": checks.text('"auto", "qemu" or "vz"', "auto|qemu|vz"),
    "vm.accel": checks.text('"auto", "kvm" or "tcg"', "auto|kvm|tcg"),
    "vm.ca_certs": checks.word_or_items("auto", "a list of files", _PATH),
    "network.mode": checks.text('"offline", "allowlist", "internet" or "open"', "|".join(NETWORKS)),
    "network.allow": checks.items(_ALLOWED),
    "network.ports": checks.items(checks.integer(1024, 65535)),
    "packages.apt": checks.items(_APT),
    "packages.npm": checks.items(_NPM),
    "packages.python": checks.items(_PYTHON),
    "packages.debian_mirror": _URL,
    "packages.npm_registry": _URL,
    "packages.python_index": _URL,
    "packages.go_proxy": _URL,
    "packages.lima_releases": _URL,
    "provision.enabled": checks.flag,
    "provision.script": _RELATIVE,
    "home.path": _PATH,
    "env.pass": checks.items(_VARIABLE),
    "env.set": checks.mapping(_VARIABLE, checks.secret),
    "secrets.files": checks.mapping(_FILE, _PATH),
    "mount.enabled": checks.flag,
    "mount.path": _PATH,
    "workspace.include": checks.items(_RELATIVE),
    "workspace.keep_days": checks.integer(0, 3650),
    "workspace.walls": checks.flag,
}
TABLES = tuple(dict.fromkeys(path.partition(".")[0] for path in CHECKS))
SIZES = ("vm.memory", "vm.disk")
MAPPINGS = ("env.set", "secrets.files")
ADDED = ("network.allow", "packages.apt", "packages.npm", "packages.python")
"""Lists to which each file adds."""

LOOSENING: Mapping[str, tuple[object, ...]] = {
    "vm.name": (),  # what was said of a VM, its network and its walls, is not so of another one
    "vm.cpus": (),
    "vm.memory": (),
    "vm.disk": (),
    "vm.image": ("auto", "cloud", "build"),
    "vm.vm_type": (),  # what keeps the VM apart from the host
    "vm.accel": ("auto", "kvm"),
    "vm.ca_certs": ((),),
    "network.allow": (),
    "network.ports": (),
    "packages.debian_mirror": (),
    "packages.npm_registry": (),
    "packages.python_index": (),
    "packages.go_proxy": (),
    "packages.lima_releases": (),
    "provision.script": (),
    "home.path": (),
    "env.pass": (),
    "env.set": (),
    "secrets.files": (),
    "mount.enabled": (False,),
    "mount.path": (),
    "workspace.include": (),
    "workspace.keep_days": (),
    "workspace.walls": (True,),
}
"""Keys with which the VM gets more of the host, or is walled off less, and the values that do not.

An agent can change the repository's file: there they wait for the user's approval.
"""
SHARES = ("vm.cpus", *SIZES)
"""Of these, less than the user's own does not."""


def load(cwd: Path | None = None) -> Settings:
    """Read what is in force in `cwd`: the repository's file over the user's over the defaults.

    Raises UsageError for what the repository's file loosens and nobody has approved.
    """
    settings, loosened = requested(cwd)
    if loosened:
        trust.require(loosened)
    return settings


def requested(cwd: Path | None = None) -> tuple[Settings, trust.Loosened | None]:
    """Like `load`, before anything is approved: with what the repository's file loosens."""
    mine, where = _with_file(Settings(), user_file(), trusted=True), here(cwd)
    if in_mount(mine, where):  # what lies there is the guest's
        return mine, None
    path = repository_file(where)
    settings = _with_file(mine, path, trusted=False)
    values = plain(settings)
    loosened = {key: values[key] for key in LOOSENING if _loosens(mine, settings, key)}
    return settings, trust.loosened(path, loosened) if path and loosened else None


def with_vm(
    settings: Settings,
    *,
    cpus: str | int | None = None,
    memory: str | int | None = None,
    disk: str | int | None = None,
) -> Settings:
    """Put the values of --vcpu, --memory and --disk, as typed, over `settings`."""
    flags = (("vm.cpus", "--vcpu", cpus), ("vm.memory", "--memory", memory))
    for path, flag, typed in (*flags, ("vm.disk", "--disk", disk)):
        if typed is not None:
            given = int(typed) if re.fullmatch("[0-9]{1,9}", str(typed)) else typed
            settings = _with_values(settings, {path: CHECKS[path](flag, given)}, flag)
    return settings


def explicit(settings: Settings, path: str) -> bool:
    """Tell whether a file or a flag set the key, `vm.cpus` for one."""
    return settings.sources[path] != DEFAULT


def value(settings: Settings, path: str) -> Any:  # noqa: ANN401  each key has its own type
    """Give the value in force of the key, `env.pass` for one."""
    table, _, key = path.partition(".")
    return getattr(getattr(settings, table), _attribute(key))


def plain(settings: Settings) -> dict[str, Any]:
    """Give every value by its key path, written as agent-vm.toml would have it."""
    values = {path: value(settings, path) for path in CHECKS}
    values |= {path: checks.size_text(values[path]) for path in SIZES}
    values |= {path: dict(values[path]) for path in MAPPINGS}
    return {path: list(v) if isinstance(v, tuple) else v for path, v in values.items()}


def user_file() -> Path:
    """Name the user's own file; as XDG has it, a relative XDG_CONFIG_HOME counts as unset.

    Raises UsageError where there is no home: what is kept of a VM lies there as well.
    """
    home = state.home()
    xdg = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(xdg) if xdg.startswith("/") else home / ".config"
    return base / "agent-vm" / "config.toml"


def here(cwd: Path | None = None) -> Path:
    """The folder `cwd`, or the working directory; raises AgentVMError when that is gone."""
    try:
        return Path(os.path.abspath(cwd or "."))  # noqa: PTH100  drops .. without a look at a mount
    except FileNotFoundError:
        raise AgentVMError("the working directory is gone", "change to one that exists") from None


def repository_file(here: Path) -> Path | None:
    """Find the nearest agent-vm.toml in `folders`."""
    return next((f / FILE_NAME for f in folders(here) if _present(f / FILE_NAME)), None)


def folders(here: Path) -> list[Path]:
    """`here` and what is above it up to the repository's top, else only `here`.

    A worktree's or a submodule's top has a file named .git instead of a folder.
    """
    above = [here, *here.parents]
    reach = next((n for n, folder in enumerate(above, 1) if _present(folder / ".git")), 1)
    return above[:reach]


def in_mount(settings: Settings, here: Path) -> bool:
    """Tell whether `here` lies in the mount, or in that of any approved repository."""
    return any(_inside(here, path) for path in (settings.mount.path, *trust.mounts()))


def _home(path: Path) -> Path:
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path's raises where there is no home


def _inside(here: Path, mount: str) -> bool:
    """Tell by its name whether `here` is in the mount: a look into a dead one may hang."""
    point = _home(Path(mount))
    real = Path(os.path.realpath(point.parent), point.name)
    return here.is_relative_to(point) or here.is_relative_to(real)


def _present(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # reading it tells why it cannot be read
    return True


def _with_file(settings: Settings, path: Path | None, *, trusted: bool) -> Settings:
    if path is None or not _present(path):
        return settings
    file = toml_file.label(path)
    values = dict(_entries(file, toml_file.read(path)))
    if not trusted:
        values = _tightened(settings, values)
    return _with_values(settings, _added(settings, values), file)


def tighter(one: str, other: str) -> str:
    """The network mode of two that gives the VM less."""
    return min(one, other, key=NETWORKS.index)


def _tightened(settings: Settings, values: dict[str, Any]) -> dict[str, Any]:
    """A repository's network counts where it gives less than the user's."""
    mode, ours = values.get("network.mode"), settings.network.mode
    if mode is None or (mode != ours and tighter(mode, ours) == mode):
        return values
    return {path: value for path, value in values.items() if path != "network.mode"}


def _with_values(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    for path, value in values.items():
        table, _, key = path.partition(".")
        changed: Any = replace(getattr(settings, table), **{_attribute(key): value})
        settings = replace(settings, **{table: changed})
    told = {path: _sources(settings, path, source) for path in values}
    return replace(settings, sources={**settings.sources, **told})


def _sources(settings: Settings, path: str, source: str) -> str:
    before = settings.sources[path]
    return f"{before}, {source}" if path in ADDED and before != DEFAULT else source


def _attribute(key: str) -> str:
    return f"{key}_" if keyword.iskeyword(key) else key


def _added(settings: Settings, values: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of packages add up: one file's do not take away another's."""
    lists = {path: value(settings, path) for path in ADDED if path in values}
    return {
        path: tuple(dict.fromkeys((*lists.get(path, ()), *new))) if path in lists else new
        for path, new in values.items()
    }


def _loosens(mine: Settings, settings: Settings, key: str) -> bool:
    """Tell whether the repository's file opens more by `key` than the user's own settings do."""
    if settings.sources[key] == mine.sources[key]:
        return False
    before, given = value(mine, key), value(settings, key)
    fewer = isinstance(given, tuple) and isinstance(before, tuple) and set(given) <= set(before)
    less = key in SHARES and given < before
    same = given == before and key != "provision.script"  # which is a file of another folder
    return not (same or fewer or less) and given not in LOOSENING[key]


def _entries(file: str, document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for table, content in document.items():
        if table not in TABLES:
            raise _unknown(file, table, TABLES, CHECKS)
        if not isinstance(content, dict):
            raise checks.wrong(f"{file}: {table}", "a table", content)
        known = [path.partition(".")[2] for path in CHECKS if path.startswith(f"{table}.")]
        for key, given in content.items():
            if key not in known:
                raise _unknown(file, f"{table}.{key}", known)
            where = f"{file}: {table}.{key}"
            checks.visible(where, given)
            yield f"{table}.{key}", CHECKS[f"{table}.{key}"](where, given)


def _unknown(
    file: str, path: str, known: Iterable[str], elsewhere: Iterable[str] = ()
) -> UsageError:
    import difflib

    close = difflib.get_close_matches(path.rpartition(".")[2], [*known, *elsewhere], 1)
    hint = f"did you mean '{close[0]}'?" if close else f"known here: {', '.join(known)}"
    return UsageError(f"{file}: unknown key {path[:80]!r}", hint)
