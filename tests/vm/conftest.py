"""One real VM for all tests here: booted once by the product itself, destroyed at the end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAME = "agent-vm-test"
PROGRAM = str(Path(sys.executable).with_name("agent-vm"))
INVOKE = str(Path(sys.executable).with_name("invoke"))
CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class User:
    """A person with a home of their own, and what they type there; `extra`: variables they set."""

    home: Path
    cache: str
    extra: Mapping[str, str] = field(default_factory=dict)

    def having(self, **extra: str) -> User:
        """Give the person with these variables set, and no others of their own."""
        return replace(self, extra=extra)

    @property
    def env(self) -> dict[str, str]:
        kept = {key: os.environ[key] for key in ("PATH", "LIMA_HOME") if key in os.environ}
        return {**kept, "HOME": str(self.home), "XDG_CACHE_HOME": self.cache, "LANG": "C.UTF-8",
                "TERM": "dumb", **self.extra}  # fmt: skip

    def run(self, *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, cwd=cwd or self.home, env=self.env, text=True, capture_output=True,
            stdin=subprocess.DEVNULL, check=False, timeout=1800,
        )  # fmt: skip

    def agent_vm(self, *args: str, cwd: Path | None = None) -> str:
        """What a command that must succeed prints."""
        done = self.run(PROGRAM, *args, cwd=cwd)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def fails(self, *args: str, cwd: Path | None = None) -> str:
        """What a command that must fail says: one line, no traceback."""
        done = self.run(PROGRAM, *args, cwd=cwd)
        assert done.returncode != 0, done.stdout
        assert "Traceback" not in done.stderr
        return done.stderr

    def kills(self, sign: str, *args: str) -> None:
        """Kill a command as soon as it says `sign`; what it started is left to itself."""
        with subprocess.Popen(
            [PROGRAM, *args], env=self.env, cwd=self.home, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        ) as started:  # fmt: skip
            assert started.stderr
            assert any(sign in line for line in started.stderr)
            started.kill()

    def git(self, *args: str, cwd: Path) -> str:
        done = self.run("git", *args, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def repository(self, name: str, files: dict[str, str] | None = None) -> Path:
        top = self.home / name
        top.mkdir()
        self.git("init", "--quiet", "--initial-branch=main", cwd=top)
        for path, text in (files or {"README": "hello\n"}).items():
            (top / path).write_text(text)
        self.git("add", "--all", cwd=top)
        self.git("commit", "--quiet", "--message=first", cwd=top)
        return top


ORDER = (
    "main_job", "guest_work", "terminal", "provision", "network", "allowlist", "secrets", "nested",
    "sync", "audit", "safety", "mount", "walls", "limits", "faults", "kept_disk",
)  # fmt: skip
"""The files share one VM: the first sees it made, the last destroys it."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    ours = [item for item in items if item.path.parent == here]
    ours.sort(key=lambda item: ORDER.index(item.path.stem.removesuffix("_test")))
    items[:] = [item for item in items if item not in ours] + ours


def inside(vm: User, command: str, cwd: Path | None = None, branch: str = "") -> str:
    """What a command prints in the VM, or in a branch's workspace."""
    return vm.agent_vm("connect", *([branch] if branch else []), "--command", command, cwd=cwd)


def lima_home(user: User) -> Path:
    """Where Lima keeps its instances."""
    from agent_vm_tasks import host

    named = user.env.get("LIMA_HOME")
    return Path(named) if named else host.service_home() / ".lima"


@pytest.fixture(scope="session")
def user() -> Iterator[User]:
    home = Path(tempfile.mkdtemp(prefix="av", dir="/tmp"))
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    (home / ".gitconfig").write_text("[user]\nname = Tester\nemail = tester@example.org\n")
    (home / ".config" / "agent-vm").mkdir(parents=True)
    (home / ".config" / "agent-vm" / "config.toml").write_text(f'[vm]\nname = "{NAME}"\n')
    person = User(home, cache)
    try:
        yield person
    finally:
        person.agent_vm("destroy", "--force")
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def vm(user: User) -> User:
    """The person, with the VM running."""
    user.agent_vm("start")
    return user
