"""Listing the tasks must stay quick: what is heavy is imported where it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"fabric", "jinja2", "paramiko", "rich", "tomli_w"}  # yaml: Invoke itself loads it
RARE = {f"agent_vm_tasks.{name}" for name in ("audit", "install", "intact", "proxy", "sftp_watch")}
LOADED = """
import json, sys
try:
    {code}
except SystemExit as ended:
    assert not ended.code, ended.code
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""
PROGRAM = "from agent_vm_tasks.main import program; program.run({argv!r})"
INVOKE = "from invoke.main import program; program.run({argv!r})"


def modules(code: str, cwd: Path = ROOT) -> set[str]:
    """What is loaded after the code ran in a new process, without an installed site's hooks."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(code=code)],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import agent_vm_tasks",
        INVOKE.format(argv=["invoke", "--list"]),
        INVOKE.format(argv=["invoke", "--help", "start"]),
        PROGRAM.format(argv=["agent-vm", "--list"]),
        PROGRAM.format(argv=["agent-vm", "--version"]),
        PROGRAM.format(argv=["agent-vm", "connect", "--help"]),
        PROGRAM.format(argv=["agent-vm", "--complete", "--", "agent-vm st"]),
    ],
)
def test_listing_and_help_load_nothing_heavy(code: str) -> None:
    loaded = modules(code)
    assert "agent_vm_tasks.tasks" in loaded
    assert not (HEAVY | RARE) & loaded


def test_settings_load_nothing_heavy(tmp_path: Path) -> None:
    """Every warm command reads them."""
    loaded = modules("from agent_vm_tasks import settings; settings.load()", tmp_path)
    assert not HEAVY & loaded


def test_the_core_needs_no_invoke() -> None:
    """Settings, rendering, limactl and git are of use without a command line."""
    core = "console data errors git guest host image lima mount process provision render settings"
    names = ", ".join([*core.split(), "secrets", "state", "workspaces", "vm"])
    # The package itself gives the collection of tasks, so a stand-in has to be the package.
    code = (
        "import types; package = types.ModuleType('agent_vm_tasks'); "
        f"package.__path__ = [{str(ROOT / 'agent_vm_tasks')!r}]; "
        f"sys.modules['agent_vm_tasks'] = package; from agent_vm_tasks import {names}"
    )
    loaded = modules(code)
    assert "agent_vm_tasks.vm" in loaded
    assert not {"invoke", "yaml", *HEAVY} & loaded


def test_the_package_gives_a_collection_for_other_peoples_tasks(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(
        "from invoke.collection import Collection\n"
        "from invoke.tasks import task\n"
        "import agent_vm_tasks\n\n"
        "@task\ndef mine(c):\n    '''Mine.'''\n\n"
        "ns = Collection(mine)\n"
        "ns.add_collection(agent_vm_tasks.ns, 'vm')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "invoke", "--list"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    names = {line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert {"mine", "vm.start", "vm.connect", "vm.clean-all"} <= names
