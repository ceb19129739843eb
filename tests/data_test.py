"""Files that ship with the package: where they are, and what a list holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from agent_vm_tasks import data

if TYPE_CHECKING:
    import pytest


def test_in_a_checkout_the_repository_itself_is_used() -> None:
    assert data.root() == Path(__file__).parent.parent
    assert (data.root() / "templates" / "lima.yaml.j2").is_file()
    assert (data.root() / "common" / "homedir" / ".claude.json").is_file()


def test_in_a_wheel_the_packed_copy_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = tmp_path / "agent_vm_tasks" / "_data"
    packed.mkdir(parents=True)
    monkeypatch.setattr(data, "_PACKAGE", packed.parent)
    assert data.root() == packed


def test_a_list_file_is_read_without_comments_and_empty_lines(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("# head\n\n  one \ntwo=2 # why\n#three\n\t\nfour", "utf-8")
    assert data.entries(file) == ("one", "two=2", "four")


def test_package_lists_come_from_common() -> None:
    assert "git" in data.package_list("apt-packages.txt")
    assert any(line.startswith("uv=") for line in data.package_list("versions.txt"))


def test_a_script_is_given_as_text() -> None:
    assert data.script("provision.sh").startswith("#!/bin/bash\n")
