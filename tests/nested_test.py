"""What the VM gets for VMs inside it: what is sent and when, and what its stage does with it."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import __version__, host, lima_archive, nested, stages
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.settings import Packages, Settings
from agent_vm_tasks.stages import Stage

from .programs import calls, script

if TYPE_CHECKING:
    from agent_vm_tasks.console import Say

ROOT = Path(__file__).parent.parent
OTHER = Stage("tools", "true", "1")


def stage() -> Stage:
    return next(s for s in stages.stages(Settings()) if s.name == nested.STAGE)


@pytest.fixture
def lima(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Packages]:
    """A host that has the archive of Lima; who asked for it."""
    asked: list[Packages] = []
    content = tmp_path / "lima.tar.gz"
    with tarfile.open(content, "w:gz") as archive:
        program = script(tmp_path, "limactl", "echo limactl version 2.2.0")
        archive.add(program, "bin/limactl")

    def archive_of(packages: Packages, _say: Say) -> Path:
        asked.append(packages)
        return content

    monkeypatch.setattr(lima_archive, "archive", archive_of)
    return asked


def ignore(_line: str) -> None:
    pass


def test_the_files_are_looked_for_only_when_the_stage_is_due(lima: list[Packages]) -> None:
    assert nested.supplied([OTHER], Packages(), ignore) == [OTHER]
    assert lima == []
    packages = Packages(lima_releases="https://mirror.example")
    first, second = nested.supplied([stage(), OTHER], packages, ignore)
    assert set(first.files) == {"lima.tar.gz", "agent-vm.tar"}
    assert (first.stamp, second) == (stage().stamp, OTHER)
    assert lima == [packages]


def test_where_lima_cannot_be_had_one_line_says_so_and_the_rest_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_packages: Packages, _say: Say) -> Path:
        raise AgentVMError("building Lima needs Go", "install Go")

    monkeypatch.setattr(lima_archive, "archive", fails)
    told: list[str] = []
    assert nested.supplied([stage(), OTHER], Packages(), told.append) == [OTHER]
    assert told == [
        "the VM gets no Lima for VMs inside it: building Lima needs Go; "
        "the next `agent-vm start` tries again"
    ]


def test_what_is_installed_is_in_the_stamp_and_edits_of_agent_vm_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = stage().stamp
    monkeypatch.setattr(host, "arch", lambda: "aarch64x")
    other_machine = stage().stamp
    monkeypatch.setattr(lima_archive, "VERSION", "2.9.0")
    other_lima = stage().stamp
    monkeypatch.setattr("agent_vm_tasks.__version__", "9.9")
    assert len({before, other_machine, other_lima, stage().stamp}) == 4


def test_the_source_is_all_that_a_build_reads() -> None:
    files = nested.source()
    assert {"pyproject.toml", "README.md", "agent_vm_tasks/main.py", "agent_vm_tasks/py.typed",
            "templates/lima.yaml.j2", "common/homedir/.claude.json"} <= set(files)  # fmt: skip
    assert files["common/homedir/.local/bin/start-claude"][1] == 0o755
    assert not [name for name in files if "__pycache__" in name or "_data" in name]


@pytest.fixture
def guest(tmp_path: Path, lima: list[Packages]) -> Path:
    """A folder for the guest's /usr/local and /etc, with a uv and a runuser that note their calls.

    The programs are in bin/, what was sent in sent/.
    """
    folder = tmp_path / "guest"
    for name in ("bin", "sent", "etc", "local/bin"):
        (folder / name).mkdir(parents=True)
    (folder / "etc/environment").write_text('SSL_CERT_FILE="/etc/ssl/certs.crt"\n')
    program = f"printf '#!/bin/sh\\necho agent-vm {__version__}\\n'"
    script(
        folder / "bin",
        "uv",
        f"""[ -f "$4/pyproject.toml" ] && [ -n "$SSL_CERT_FILE" ] || exit 1
{program} > "$UV_TOOL_BIN_DIR/agent-vm" && chmod +x "$UV_TOOL_BIN_DIR/agent-vm" """,
    )
    script(folder / "bin", "runuser", f'PATH="{folder}/local/bin:$PATH"; sh -c "$4"')
    script(folder / "bin", "chown", "exit 0")
    (ready,) = nested.supplied([stage()], Packages(), ignore)
    for name, content in ready.files.items():
        (folder / "sent" / name).write_bytes(content)
    return folder


def run(guest: Path) -> subprocess.CompletedProcess[str]:
    text = stage().script.replace("/usr/local", f"{guest}/local").replace("/etc/", f"{guest}/etc/")
    env = {"PATH": f"{guest}/bin:{os.environ['PATH']}", "PROVISION_FOLDER": f"{guest}/sent"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], env=env, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


def test_the_stage_installs_both_and_tries_them_as_the_user(guest: Path) -> None:
    done = run(guest)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.splitlines() == ["limactl version 2.2.0", f"agent-vm {__version__}"]
    assert (guest / "local/bin/limactl").stat().st_mode & 0o777 == 0o755
    assert "runuser -l agent -c limactl --version" in calls(guest / "bin")
    assert "chown -R agent: /opt/uv-tools/agent-vm-tasks" in calls(guest / "bin")


def test_without_the_python_index_agent_vm_is_named_and_lima_is_there(guest: Path) -> None:
    script(guest / "bin", "uv", "echo 'error: no route to the index' >&2; exit 2")
    done = run(guest)
    assert done.returncode == 3
    last = done.stdout.splitlines()[-1]
    assert last == f"not installed: agent-vm {__version__} (error: no route to the index)"
    assert (guest / "local/bin/limactl").exists()


def test_an_archive_that_was_cut_off_fails_the_stage(guest: Path) -> None:
    file = guest / "sent" / "lima.tar.gz"
    file.write_bytes(file.read_bytes()[:100])
    assert run(guest).returncode not in {0, 3}


def test_the_archive_of_the_source_can_be_unpacked(lima: list[Packages]) -> None:
    (ready,) = nested.supplied([stage()], Packages(), ignore)
    with tarfile.open(fileobj=io.BytesIO(ready.files["agent-vm.tar"])) as archive:
        text = archive.extractfile("agent_vm_tasks/nested.py")
        assert text
        assert text.read() == (ROOT / "agent_vm_tasks/nested.py").read_bytes()
