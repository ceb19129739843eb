"""Attacks, each with its twin: with the control off (`on` is False) the same attack succeeds."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from agent_vm_tasks import git as host_git
from agent_vm_tasks import host, process, sync
from agent_vm_tasks.workspaces import Contents
from tests.conftest import git

if TYPE_CHECKING:
    from collections.abc import Callable

    from agent_vm_tasks.workspaces import Workspace


@pytest.fixture(params=[True, False], ids=["on", "off"])
def on(request: pytest.FixtureRequest) -> bool:
    """Whether the control is on; a test that takes this switches it off itself."""
    return bool(request.param)


@pytest.fixture
def calm(on: bool, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether git is kept from hooks, watchers and submodules in the user's own repository."""
    if not on:
        monkeypatch.setattr(host_git, "_CALM", ())
    return on


@pytest.fixture
def ws(ws: Workspace, repository: Path) -> Workspace:
    """The workspace of branch fix, which is checked out here: its files are what a fetch writes."""
    git(repository, "checkout", "--quiet", "fix")
    return ws


@pytest.fixture
def fetching(on: bool, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether a fetch keeps apart what comes; without, it is git's own in the user's repository."""
    if not on:
        monkeypatch.setattr(sync, "_bring", plainly)
    return on


def plainly(ws: Workspace, *_: object) -> tuple[str, str, Contents]:
    repo, before = ws.repository.path, sync._commits(ws)[1]
    done = host_git.transfer(repo, ws.vm, "fetch", ws.url, f"+refs/heads/{ws.branch}:refs/plain")
    assert done.ok, done.stderr
    new = git(repo, "rev-parse", "refs/plain")
    git(repo, "update-ref", "-d", "refs/plain")
    (repo / ".git/FETCH_HEAD").unlink()
    return new, before, Contents()


@pytest.fixture
def lima_fills() -> Callable[..., dict[str, Any]]:
    """What the real Lima makes of a configuration and of files of the user's own."""
    require_limactl()
    return _filled


def require_limactl() -> None:
    if not shutil.which("limactl") or (os.geteuid() == 0 and not host.account_exists()):
        pytest.skip("limactl, or for root the account it runs as, is missing")


def _filled(text: str, more: str = "", file: str = "default.yaml") -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        config = Path(folder) / "lima" / "_config"
        config.mkdir(parents=True)
        (config / file).write_text(more)
        (Path(folder) / "vm.yaml").write_text(text)
        for path in (Path(folder), config.parent, config):
            path.chmod(0o777)
        env = {"PATH": os.environ["PATH"], "HOME": folder, "LIMA_HOME": str(config.parent)}
        argv = [host.limactl(), "validate", "--fill", f"{folder}/vm.yaml"]
        said = process.run(argv, env=env, cwd="/", timeout=60, user=host.service_user())
    filled: dict[str, Any] = yaml.safe_load(said.stdout)
    return filled
