"""What is installed in the guest: stages, each a root shell script from templates/provision."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import data, host, lima_archive, render, trust
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .settings import Settings

Files = Mapping[str, tuple[bytes, int]]
"""Contents and modes by path."""

SENTINEL = ".claude.json"
"""The home file whose presence shows that the archive of home files was unpacked."""
LARGEST_HOME = 100 * 2**20
"""Bytes that a user's own home files may have together."""


@dataclass(frozen=True)
class Stage:
    """A script and the files it needs beside it; `stamp` changes with whatever it installs.

    `beside`: the stage after it does not wait for it. `renews`: an upgrade runs it again.
    """

    name: str
    script: str
    stamp: str
    beside: bool = False
    renews: bool = False
    files: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def flags(self) -> str:
        return " ".join(word for word in ("beside", "renews") if getattr(self, word))


def stages(settings: Settings) -> tuple[Stage, ...]:
    """Every stage that a kept disk may hold, in the order they run."""
    from . import __version__  # the package itself loads the command line

    versions, chosen = pins(), settings.packages
    home = {"home.tar": tar(home_files()), "home-files.sh": _script("home-files.sh")}
    tools = {
        "install-tools.sh": _script("install-tools.sh"),
        "versions.txt": (data.root() / "common" / "packages" / "versions.txt").read_bytes(),
    }
    return (
        _stage("packages", packages=apt(settings), mirror=chosen.debian_mirror, renews=True),
        _stage(
            "users", npm_registry=chosen.npm_registry,
            python_index=chosen.python_index, go_proxy=chosen.go_proxy,
        ),
        _stage("node", uv=versions["uv"], node=versions["node"]),
        _stage("npm", packages=npm(settings), beside=True, renews=True),
        _stage("python", packages=python(settings), beside=True, renews=True),
        _stage(
            "nested", lima=lima_archive.VERSION, machine=host.arch(), version=__version__,
            beside=True,
        ),
        _stage("tools", go=versions["go"], files=tools),
        _stage("home", mode="new", sentinel=SENTINEL, files=home),
    )  # fmt: skip


def personal(settings: Settings) -> tuple[Stage, ...]:
    """The stages that no kept disk may hold: the user's own home files, the repository's script.

    Raises AgentVMError for files that are not there.
    """
    found = []
    if settings.home.path:
        home = {
            "home.tar": tar(own_home_files(settings)),
            "home-files.sh": _script("home-files.sh"),
        }
        found.append(_stage("own-home", template="home", mode="refresh", sentinel="", files=home))
    if settings.workspace.walls:
        found.append(_walls(settings))
    if settings.provision.script:
        script = repository_script(settings)
        name = f"script-{hashlib.sha256(script).hexdigest()[:8]}"
        found.append(_stage(name, template="script", files={"script": script}))
    return tuple(found)


def _walls(settings: Settings) -> Stage:
    """What walled workspaces need, and the home files that their users get."""
    home = {**home_files(), **own_home_files(settings)}
    scripts = {name: _script(name) for name in ("walls-boot.sh", "home-files.sh")}
    return _stage("walls", files={"home.tar": tar(home), **scripts})


def apt(settings: Settings) -> list[str]:
    return _merged(data.package_list("apt-packages.txt"), settings.packages.apt)


def npm(settings: Settings) -> list[str]:
    return _merged(_pinned("npm-packages.txt", "@"), settings.packages.npm)


def python(settings: Settings) -> list[str]:
    return _merged(_pinned("python-packages.txt", "=="), settings.packages.python)


def base_name(package: str) -> str:
    """The name without version or extras.

    >>> [base_name(name) for name in ("@a/b@1.2", "httpie[x]==3", "git=1:2.4", "g++")]
    ['@a/b', 'httpie', 'git', 'g++']
    """
    return re.split(r"(?<=.)@|[\[=]|[~>]=", package, maxsplit=1)[0]


def pins() -> dict[str, str]:
    """The versions of common/packages/versions.txt by name."""
    pairs = (line.partition("=") for line in data.package_list("versions.txt"))
    return {name: version for name, _, version in pairs}


def home_files() -> Files:
    """The files of common/homedir; raises AgentVMError when the first of them is missing."""
    top = data.root() / "common" / "homedir"
    if not (top / SENTINEL).is_file():
        raise AgentVMError(f"the home files are incomplete: {top / SENTINEL} is missing")
    return files_in(top)


def own_home_files(settings: Settings) -> Files:
    """The files of the user's [home] path, links followed, none when it is not set.

    Raises AgentVMError.
    """
    if not settings.home.path:
        return {}
    top = Path(settings.home.path).expanduser()
    if not top.is_dir():
        raise AgentVMError(f"home.path: there is no folder {top}")
    try:
        size = sum(path.stat().st_size for path in _files(top))
        if size > LARGEST_HOME:
            raise AgentVMError(f"home.path: {top} holds {size >> 20} MiB, more than 100 MiB")
        return files_in(top)
    except OSError as error:
        raise AgentVMError(f"home.path: {error.filename}: {error.strerror}") from None


def repository_script(settings: Settings) -> bytes:
    """The script of [provision], from the folder of the file that names it; raises AgentVMError."""
    file = Path(settings.sources["provision.script"])
    return trust.script(file.parent, settings.provision.script)


def tar(files: Files) -> bytes:
    """A tar that depends on names, modes and contents only, so that its hash does, too."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (content, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _stage(
    name: str, *, template: str = "", beside: bool = False, renews: bool = False,
    files: Mapping[str, bytes] | None = None, **values: object,
) -> Stage:  # fmt: skip
    source = render.environment().get_template(f"provision/{template or name}.sh.j2")
    script, files = source.render(values), files or {}
    inputs = b"\0".join([script.encode(), *files.values()])
    return Stage(name, script, hashlib.sha256(inputs).hexdigest()[:16], beside, renews, files)


def _merged(ours: Iterable[str], theirs: Iterable[str]) -> list[str]:
    """Both lists; where they name the same package, what the user's settings say of it."""
    return list({base_name(package): package for package in (*ours, *theirs)}.values())


def _pinned(file: str, sign: str) -> list[str]:
    """The packages of the list, each with its version behind `sign` where versions.txt has one."""
    versions = pins()
    names = data.package_list(file)
    return [f"{name}{sign}{versions[name]}" if name in versions else name for name in names]


def _script(name: str) -> bytes:
    return data.script(name).encode()


def files_in(top: Path) -> Files:
    """Every file below a folder."""
    paths = sorted(_files(top))
    return {str(path.relative_to(top)): (path.read_bytes(), _mode(path)) for path in paths}


def _files(top: Path) -> Iterator[Path]:
    return (path for path in top.rglob("*") if path.is_file())


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & 0o100 else 0o644
