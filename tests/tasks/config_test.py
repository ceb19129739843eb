"""config-show and init, through Invoke as a user runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agent_vm_tasks import settings
from agent_vm_tasks.tasks import config

ROOT = Path(__file__).parent.parent.parent
PROGRAM = """
from invoke.collection import Collection
from invoke.program import Program
from agent_vm_tasks.tasks import config
commands = Collection(config.config_show, config.init)
Program(name="agent-vm", binary="agent-vm", namespace=commands).run()
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def repo(home: Path) -> Path:
    folder = home / "my repo é"
    folder.mkdir()
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


def run(
    home: Path, cwd: Path, *argv: str, program: tuple[str, ...] = ("-c", PROGRAM)
) -> subprocess.CompletedProcess[str]:
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *program, *argv]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_config_show_prints_value_and_source_of_every_key(home: Path, repo: Path) -> None:
    (repo / "agent-vm.toml").write_text('[vm]\ncpus = 3\nmemory = "6000MiB"\n')
    shown = run(home, repo, "config-show")
    assert (shown.returncode, shown.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert f"vm.cpus = 3 ({repo}/agent-vm.toml)" in lines
    assert f'vm.memory = "6000MiB" ({repo}/agent-vm.toml)' in lines
    assert 'vm.disk = "100GiB" (default)' in lines
    assert "provision.enabled = true (default)" in lines
    assert "packages.apt = [] (default)" in lines
    assert len(lines) == len(settings.CHECKS)


def test_config_show_is_aligned(home: Path, repo: Path) -> None:
    lines = run(home, repo, "config-show").stdout.splitlines()
    assert len({line.index(" = ") for line in lines}) == 1
    assert len({line.index("   (default)") for line in lines}) == 1


def test_config_show_prints_what_a_file_would_hold(home: Path, repo: Path) -> None:
    lines = run(home, repo, "config-show").stdout.splitlines()
    text = "\n".join(line.rpartition("   (")[0] for line in lines)
    assert tomllib.loads(text)["mount"] == {
        "enabled": True,
        "path": "~/.agent-vm-mounts/workspace",
    }


def test_config_show_json(home: Path, repo: Path) -> None:
    mine = home / ".config" / "agent-vm" / "config.toml"
    mine.parent.mkdir(parents=True)
    mine.write_text("[network]\nports = [8080]\n")
    shown = json.loads(run(home, repo, "config-show", "--json").stdout)
    assert shown["vm.cpus"] == {"value": 4, "source": "default"}
    assert shown["vm.memory"] == {"value": "8GiB", "source": "default"}
    assert shown["network.ports"] == {"value": [8080], "source": str(mine)}
    assert set(shown) == set(settings.CHECKS)


@pytest.mark.parametrize("verb", ["config-show", "init"])
def test_help_has_an_example(home: Path, repo: Path, verb: str) -> None:
    said = run(home, repo, verb, "--help").stdout
    assert f"Example: agent-vm {verb}" in said


def test_help_explains_each_option(home: Path, repo: Path) -> None:
    said = run(home, repo, "config-show", "--help").stdout
    assert "--json" in said
    assert "print one JSON object" in said


def test_init_writes_both_files_at_the_top(home: Path, repo: Path) -> None:
    deep = repo / "src" / "deep"
    deep.mkdir(parents=True)
    done = run(home, deep, "init")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"wrote {repo}/agent-vm.toml\nwrote {repo}/tasks.py\n"
    assert not list(deep.iterdir())


def test_what_init_writes_loads_as_the_defaults(home: Path, repo: Path) -> None:
    run(home, repo, "init")
    shown = json.loads(run(home, repo, "config-show", "--json").stdout)
    defaults = settings.plain(settings.Settings())
    assert {path: entry["value"] for path, entry in shown.items()} == defaults
    written = {path for path, entry in shown.items() if entry["source"] != "default"}
    assert written == set(config.TEAM)


def test_init_overwrites_nothing_and_says_so(home: Path, repo: Path) -> None:
    (repo / "agent-vm.toml").write_text("# mine\n")
    (repo / "tasks.py").symlink_to("nowhere")
    done = run(home, repo, "init")
    assert done.returncode == 0
    assert done.stdout == f"left {repo}/agent-vm.toml as it is\nleft {repo}/tasks.py as it is\n"
    assert (repo / "agent-vm.toml").read_text() == "# mine\n"
    assert not (repo / "nowhere").exists()


def test_init_twice_changes_nothing(home: Path, repo: Path) -> None:
    run(home, repo, "init")
    before = {path.name: path.read_bytes() for path in repo.glob("*.*") if path.is_file()}
    assert set(before) == {"agent-vm.toml", "tasks.py"}
    assert run(home, repo, "init").stdout.count("as it is") == 2
    after = {path.name: path.read_bytes() for path in repo.glob("*.*") if path.is_file()}
    assert after == before


def test_init_does_not_hide_a_tasks_package(home: Path, repo: Path) -> None:
    (repo / "tasks").mkdir()
    (repo / "tasks" / "__init__.py").touch()
    done = run(home, repo, "init")
    assert done.stdout.splitlines()[1] == f"left {repo}/tasks as it is"
    assert not (repo / "tasks.py").exists()


def test_invoke_picks_up_the_tasks_file(home: Path, repo: Path) -> None:
    run(home, repo, "init")
    assert len((repo / "tasks.py").read_text().splitlines()) == 3
    listed = run(home, repo, "--list", program=("-m", "invoke"))
    assert listed.returncode == 0, listed.stderr
    assert "config-show" in listed.stdout
    assert " init " in listed.stdout
