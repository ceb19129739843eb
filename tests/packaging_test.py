"""The wheel: all that is needed, nothing else, and at work far from the checkout."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from agent_vm_tasks import __version__, ns

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(importlib.util.find_spec(name) for name in ("build", "hatchling")),
        reason="build and hatchling are not installed",
    ),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the sdist and the wheel that was made from it."""
    folder = tmp_path_factory.mktemp("dist")
    argv = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def shipped(*folders: str) -> dict[str, bool]:
    """The checkout's files below these folders, and whether each may be executed."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {
        str(path.relative_to(ROOT)): bool(path.stat().st_mode & 0o100)
        for path in paths
        if "__pycache__" not in path.parts
    }


def test_the_wheel_carries_package_and_data_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    packed = {*shipped("templates", "common"), "pyproject.toml", "README.md"}
    data = {f"agent_vm_tasks/_data/{name}" for name in packed}
    assert names == data | set(shipped("agent_vm_tasks"))
    assert "agent_vm_tasks/_data/common/homedir/.claude.json" in names
    assert "agent_vm_tasks/_data/common/homedir/.local/bin/start-claude" in names
    assert "agent_vm_tasks/py.typed" in names


def test_what_may_be_executed_still_may(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        entries = [each for each in archive.infolist() if "/_data/" in each.filename]
    modes = {
        each.filename.partition("/_data/")[2]: bool((each.external_attr >> 16) & 0o100)
        for each in entries
    }
    others = {"pyproject.toml": False, "README.md": False}
    assert modes == shipped("templates", "common") | others
    assert modes["common/homedir/.local/bin/start-claude"]


def test_the_source_archive_can_be_worked_in(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert set(shipped("agent_vm_tasks", "templates", "common")) <= names
    assert {"pyproject.toml", "README.md", "tasks.py", "agent-vm", "agent-vm.toml"} <= names


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; what it depends on is borrowed from this one."""
    if not importlib.util.find_spec("ensurepip"):
        pytest.skip("ensurepip is missing (package python3-venv)")
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def elsewhere(home: Path) -> Path:
    """Somebody's repository, and settings that ask nothing of the network."""
    folder = home / "their repo"
    folder.mkdir()
    subprocess.run(["git", "init", "--quiet", str(folder)], check=True)
    config = home / ".config" / "agent-vm" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[vm]\nimage = "cloud"\nca_certs = []\n')
    return folder


def run(cwd: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    env = {name: os.environ[name] for name in ("HOME", "PATH")}
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_the_program_is_the_installed_one(installed: Path, elsewhere: Path) -> None:
    code = "import agent_vm_tasks; print(agent_vm_tasks.__file__)"
    where = run(elsewhere, str(installed / "python"), "-c", code).stdout
    assert where.startswith(str(installed.parent))
    said = run(elsewhere, str(installed / "agent-vm"), "--version")
    assert (said.stdout, said.stderr, said.returncode) == (f"agent-vm {__version__}\n", "", 0)


def test_the_program_lists_every_task_in_any_repository(installed: Path, elsewhere: Path) -> None:
    said = run(elsewhere, str(installed / "agent-vm"), "--list")
    assert (said.returncode, said.stderr) == (0, "")
    listed = {line.split()[0] for line in said.stdout.splitlines() if line.startswith("  ")}
    assert set(ns.task_names) <= listed


def test_what_a_vm_is_made_from_comes_out_of_the_wheel(installed: Path, elsewhere: Path) -> None:
    (elsewhere / "agent-vm.toml").write_text("[vm]\ncpus = 1\n[packages]\napt = ['cowsay']\n")
    said = run(elsewhere, str(installed / "agent-vm"), "render", "--output", "out")
    assert (said.returncode, said.stderr) == (0, "")
    config = yaml.safe_load((elsewhere / "out" / "lima.yaml").read_text())
    assert (config["cpus"], config["plain"]) == (1, True)
    assert "cowsay" in (elsewhere / "out" / "provision" / "packages.sh").read_text()


SOURCE = """
import pathlib, sys
from agent_vm_tasks import nested
for name, (content, mode) in nested.source().items():
    path = pathlib.Path(sys.argv[1], name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)
"""


def test_the_same_wheel_can_be_built_from_what_an_installed_one_sends_into_the_vm(
    installed: Path, elsewhere: Path, wheel: Path
) -> None:
    sent = run(elsewhere, str(installed / "python"), "-c", SOURCE, "sent")
    assert (sent.returncode, sent.stderr) == (0, "")
    argv = [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", "out", "sent"]
    done = run(elsewhere, *argv)
    assert done.returncode == 0, done.stdout + done.stderr
    (again,) = (elsewhere / "out").glob("*.whl")
    assert contents(again) == contents(wheel)


def contents(wheel: Path) -> dict[str, tuple[int, int]]:
    """Checksum and mode of each file."""
    with zipfile.ZipFile(wheel) as archive:
        return {each.filename: (each.CRC, each.external_attr) for each in archive.infolist()}


def test_init_and_invoke_make_a_repository_ready(installed: Path, elsewhere: Path) -> None:
    assert run(elsewhere, str(installed / "agent-vm"), "init").returncode == 0
    said = run(elsewhere, str(installed / "python"), "-m", "invoke", "--list")
    assert (said.returncode, said.stderr) == (0, "")
    assert "connect" in said.stdout


def test_a_wrong_word_ends_with_2(installed: Path, elsewhere: Path) -> None:
    said = run(elsewhere, str(installed / "agent-vm"), "strat")
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.count("\n") == 1
