"""What is to be installed: lists and versions, home files, the repository's script."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import data, stages
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.settings import Home, Packages, Provision, Settings

if TYPE_CHECKING:
    from pathlib import Path

    from agent_vm_tasks.stages import Stage


def stamps(settings: Settings) -> dict[str, str]:
    return {stage.name: stage.stamp for stage in stages.stages(settings)}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_stamps_are_the_same_for_the_same_settings() -> None:
    assert stamps(Settings()) == stamps(Settings())
    assert len(set(stamps(Settings()).values())) == len(stamps(Settings()))


@pytest.mark.parametrize(
    ("packages", "again"),
    [
        (Packages(apt=("cowsay",)), {"packages"}),
        (Packages(npm=("left-pad",)), {"npm"}),
        (Packages(debian_mirror="http://mirror/debian"), {"packages"}),
        (Packages(npm_registry="http://mirror/npm"), {"users"}),
    ],
)
def test_another_package_makes_its_own_stage_run_again(packages: Packages, again: set[str]) -> None:
    assert changed(stamps(Settings()), stamps(Settings(packages=packages))) == again


@pytest.fixture
def copy_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("templates", "common"):
        shutil.copytree(data.root() / name, tmp_path / name)
    monkeypatch.setattr(data, "root", lambda: tmp_path)
    return tmp_path


def test_a_home_file_makes_the_home_stage_run_again(copy_of_data: Path) -> None:
    first = stamps(Settings())
    file = copy_of_data / "common" / "homedir" / ".gitconfig"
    os.utime(file, (1, 1))
    assert changed(first, stamps(Settings())) == set()
    file.write_text("[user]\n")
    second = stamps(Settings())
    assert changed(first, second) == {"home"}
    file.chmod(0o755)
    assert changed(second, stamps(Settings())) == {"home"}


def test_a_pinned_version_makes_its_stage_run_again(copy_of_data: Path) -> None:
    first = stamps(Settings())
    file = copy_of_data / "common" / "packages" / "versions.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join("uv=0.0.1" if line.startswith("uv=") else line for line in lines))
    assert "node" in changed(first, stamps(Settings()))
    assert "packages" not in changed(first, stamps(Settings()))


def test_the_settings_add_packages_and_may_choose_another_version_of_ours() -> None:
    mine = Packages(npm=("@google/gemini-cli@latest", "left-pad"), python=("ruff>=1",))
    npm = stages.npm(Settings(packages=mine))
    assert [name for name in npm if "gemini" in name] == ["@google/gemini-cli@latest"]
    assert npm[-1] == "left-pad"
    assert [name for name in stages.python(Settings(packages=mine)) if "ruff" in name] == [
        "ruff>=1"
    ]
    pinned = [name for name in stages.npm(Settings()) if "gemini" in name]
    assert pinned == [f"@google/gemini-cli@{stages.pins()['@google/gemini-cli']}"]


def test_the_archive_of_home_files_keeps_names_and_exec_bits() -> None:
    top = data.root() / "common" / "homedir"
    with tarfile.open(fileobj=io.BytesIO(stages.tar(stages.home_files()))) as archive:
        modes = {entry.name: entry.mode for entry in archive}
    assert set(modes) == {str(p.relative_to(top)) for p in top.rglob("*") if p.is_file()}
    assert modes[".local/bin/start-claude"] == 0o755
    assert modes[".gitconfig"] == 0o644


def test_home_files_without_the_first_of_them_are_an_error(copy_of_data: Path) -> None:
    (copy_of_data / "common" / "homedir" / ".claude.json").unlink()
    with pytest.raises(AgentVMError, match=r"home files are incomplete: .*\.claude\.json"):
        stages.stages(Settings())


def own(path: str) -> Settings:
    return Settings(home=Home(path))


def test_own_home_files_are_read_through_links(home: Path) -> None:
    (home / "real").write_text("text\n")
    (home / "agents" / ".config").mkdir(parents=True)
    (home / "agents" / ".vimrc").symlink_to(home / "real")
    (home / "agents" / ".config" / "run.sh").write_text("true\n")
    (home / "agents" / ".config" / "run.sh").chmod(0o700)
    assert stages.own_home_files(own("~/agents")) == {
        ".config/run.sh": (b"true\n", 0o755),
        ".vimrc": (b"text\n", 0o644),
    }
    assert stages.own_home_files(Settings()) == {}


def test_own_home_files_that_cannot_be_had_are_named(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AgentVMError, match=f"home.path: there is no folder {home}/agents"):
        stages.own_home_files(own("~/agents"))
    (home / "agents").mkdir()
    (home / "agents" / "large").write_bytes(b"x" * 2**20)
    monkeypatch.setattr(stages, "LARGEST_HOME", 2**19)
    with pytest.raises(AgentVMError, match="holds 1 MiB"):
        stages.own_home_files(own("~/agents"))


def test_own_home_files_are_weighed_before_they_are_read(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "agents").mkdir()
    with (home / "agents" / "large").open("wb") as file:
        file.truncate(stages.LARGEST_HOME + 1)
    monkeypatch.delattr("pathlib.Path.read_bytes")
    with pytest.raises(AgentVMError, match="holds 100 MiB, more than 100 MiB"):
        stages.own_home_files(own("~/agents"))


def scripted(repository: Path, name: str = "vm.sh") -> Settings:
    found = Settings(provision=Provision(script=name))
    sources = {**found.sources, "provision.script": str(repository / "agent-vm.toml")}
    return replace(found, sources=sources)


def names(wanted: tuple[Stage, ...]) -> list[str]:
    return [stage.name for stage in wanted]


def test_the_repositorys_script_is_a_stage_of_its_own_for_each_content(repository: Path) -> None:
    (repository / "vm.sh").write_text("echo one\n")
    (one,) = stages.personal(scripted(repository))
    assert one.name.startswith("script-")
    assert one.files["script"] == b"echo one\n"
    (repository / "vm.sh").write_text("echo two\n")
    (two,) = stages.personal(scripted(repository))
    assert one.name != two.name
    assert not set(names(stages.stages(scripted(repository)))) & {one.name, two.name}


def test_a_script_that_is_not_a_file_of_the_repository_is_refused(
    repository: Path, home: Path
) -> None:
    with pytest.raises(AgentVMError, match=r"provision\.script: .*/vm\.sh is not a file of"):
        stages.personal(scripted(repository))
    (home / "outside.sh").write_text("echo secret\n")
    (repository / "vm.sh").symlink_to(home / "outside.sh")
    with pytest.raises(AgentVMError, match="is not a file of"):
        stages.personal(scripted(repository))


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_the_scripts_of_what_is_not_everybodys_are_sound(repository: Path, home: Path) -> None:
    (repository / "vm.sh").write_text("true\n")
    (home / "agents").mkdir()
    mirror = Packages(
        debian_mirror="http://m/debian", npm_registry="http://m/", go_proxy="http://m"
    )
    wanted = replace(scripted(repository), home=Home("~/agents"), packages=mirror)
    for stage in (*stages.personal(wanted), *stages.stages(wanted)):
        argv = ["shellcheck", "-s", "bash", "-e", "SC1091,SC2016,SC2034,SC2043", "-"]
        said = subprocess.run(argv, input=stage.script, text=True, capture_output=True, check=False)
        assert said.returncode == 0, said.stdout
