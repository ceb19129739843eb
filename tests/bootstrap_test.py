"""The `agent-vm` script of a checkout: installs itself once, then gets out of the way.

The installers are stand-ins; the script, the locks and the files are real.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from .programs import calls, only_tools, script

SCRIPT = Path(__file__).parents[1] / "agent-vm"

# Writes the program that an installation would leave in .venv.
PROGRAM = """
mkdir -p "{venv}/bin"
printf '#!/bin/sh\\nexit 0\\n' > "{venv}/bin/python"
printf '#!/bin/sh\\necho "in $PWD with $*"\\n' > "{venv}/bin/agent-vm"
chmod 755 "{venv}/bin/python" "{venv}/bin/agent-vm"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy(SCRIPT, folder / "agent-vm")
    (folder / "pyproject.toml").touch()
    past(folder / "pyproject.toml")
    return folder


@pytest.fixture
def programs(tmp_path: Path, checkout: Path) -> Path:
    """A PATH with shell tools and a stand-in for uv; returns the folder to add more to."""
    folder = tmp_path / "programs"
    folder.mkdir()
    only_tools(tmp_path / "tools")
    uv(folder, checkout)
    return folder


def uv(folder: Path, checkout: Path, before: str = "") -> None:
    program = PROGRAM.format(venv=checkout / ".venv")
    script(folder, "uv", f'pwd >> "{folder}/places"; {before}\ncase $1 in pip) {program};; esac')


def past(path: Path) -> None:
    os.utime(path, (time.time() - 60, time.time() - 60))


def start(programs: Path, *argv: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
    path = f"{programs}:{programs.parent / 'tools'}"
    return subprocess.Popen(
        argv,
        cwd=cwd or programs.parent,
        env={"PATH": path, "HOME": str(programs.parent)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(programs: Path, *argv: str | Path, cwd: Path | None = None) -> tuple[int, str, str]:
    child = start(programs, *argv, cwd=cwd)
    out, err = child.communicate(timeout=30)
    return child.returncode, out, err


def installs(programs: Path) -> int:
    return sum("pip install" in call for call in calls(programs))


def test_the_first_call_installs_and_every_call_runs(programs: Path, checkout: Path) -> None:
    status, out, err = run(programs, checkout / "agent-vm", "connect", "a b")
    assert (status, out) == (0, f"in {programs.parent} with connect a b\n")
    assert f"installing into {checkout}/.venv" in err
    assert f"-e {checkout}" in calls(programs)[-1]
    assert "--compile-bytecode" in calls(programs)[-1]
    assert run(programs, checkout / "agent-vm", "status")[1:] == (
        f"in {programs.parent} with status\n",
        "",
    )
    assert installs(programs) == 1
    assert not (checkout / ".venv.lock").exists()


def test_it_is_called_through_links_from_any_folder(
    programs: Path, checkout: Path, tmp_path: Path
) -> None:
    (programs / "vm-link").symlink_to("../checkout/agent-vm")
    (programs / "agent-vm").symlink_to(programs / "vm-link")
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    assert run(programs, "agent-vm", "status", cwd=elsewhere)[1] == f"in {elsewhere} with status\n"
    assert (checkout / ".venv").is_dir()


def test_the_installer_does_not_run_in_the_callers_folder(programs: Path, checkout: Path) -> None:
    run(programs, checkout / "agent-vm")
    assert set((programs / "places").read_text("utf-8").splitlines()) == {str(checkout)}


def test_a_changed_pyproject_is_installed_again(programs: Path, checkout: Path) -> None:
    run(programs, checkout / "agent-vm")
    past(checkout / ".venv/agent-vm.stamp")
    (checkout / "pyproject.toml").touch()
    run(programs, checkout / "agent-vm")
    run(programs, checkout / "agent-vm")
    assert installs(programs) == 2


def test_a_moved_checkout_is_installed_again(
    programs: Path, checkout: Path, tmp_path: Path
) -> None:
    run(programs, checkout / "agent-vm")
    moved = checkout.rename(tmp_path / "moved")
    uv(programs, moved)
    assert run(programs, moved / "agent-vm")[0] == 0
    assert f"-e {moved}" in calls(programs)[-1]


def test_a_python_that_went_away_is_replaced(programs: Path, checkout: Path) -> None:
    run(programs, checkout / "agent-vm")
    (checkout / ".venv/bin/python").unlink()
    (checkout / ".venv/bin/python").symlink_to("/nowhere/python")
    assert run(programs, checkout / "agent-vm")[0] == 0
    assert any("uv venv" in call for call in calls(programs))
    assert installs(programs) == 2


def test_an_interrupted_installation_is_done_anew(programs: Path, checkout: Path) -> None:
    (checkout / ".venv/bin").mkdir(parents=True)
    (checkout / ".venv/leftover").touch()
    script(checkout / ".venv/bin", "python")
    uv(programs, checkout, before="sleep 60")
    child = start(programs, checkout / "agent-vm")
    until(lambda: bool(calls(programs)))
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()
    uv(programs, checkout)
    assert run(programs, checkout / "agent-vm", "status")[0] == 0
    assert not (checkout / ".venv/leftover").exists()
    assert not (checkout / ".venv.lock").exists()


def test_two_at_once_install_once(programs: Path, checkout: Path) -> None:
    uv(programs, checkout, before="sleep 0.3")
    both = [start(programs, checkout / "agent-vm", str(number)) for number in range(2)]
    said = [child.communicate(timeout=30)[0] for child in both]
    assert said == [f"in {programs.parent} with {number}\n" for number in range(2)]
    assert installs(programs) == 1


def test_a_failed_installation_is_said_and_leaves_no_lock(programs: Path, checkout: Path) -> None:
    script(programs, "uv", "echo no network >&2; exit 2")
    status, out, err = run(programs, checkout / "agent-vm")
    assert (status, out) == (1, "")
    assert "no network" in err
    assert err.splitlines()[-1].startswith("agent-vm: installing into")
    assert not (checkout / ".venv.lock").exists()
    uv(programs, checkout)
    assert run(programs, checkout / "agent-vm")[0] == 0


def test_a_folder_that_cannot_be_written_is_said(programs: Path, checkout: Path) -> None:
    script(programs, "mkdir", 'echo "mkdir: $1: Permission denied" >&2; exit 1')
    status, _, err = run(programs, checkout / "agent-vm")
    assert status == 1
    assert err.count("\n") == 1
    assert "Permission denied; the checkout's owner must run it once" in err


# A Python that makes virtual environments, once ensurepip is there.
PYTHON = """
case "$*" in
*sys.version_info*) exit {too_old};;
*"import ensurepip"*) [ -e "{folder}/ensurepip" ];;
"-m venv --clear "*)
    mkdir -p "$4/bin"
    cat > "$4/bin/python" <<'END'
#!/bin/sh
echo "venv-python $*" >> "{folder}/calls"
case "$*" in *install*) {program};; esac
END
    chmod 755 "$4/bin/python";;
esac
"""


@pytest.fixture
def no_uv(programs: Path, checkout: Path) -> Path:
    (programs / "uv").unlink()
    python(programs, checkout)
    return programs


def python(folder: Path, checkout: Path, too_old: int = 0) -> None:
    program = PROGRAM.format(venv=checkout / ".venv").strip()
    script(folder, "python3", PYTHON.format(folder=folder, program=program, too_old=too_old))


def test_without_uv_it_is_python_and_pip(no_uv: Path, checkout: Path) -> None:
    (no_uv / "ensurepip").touch()
    status, out, _ = run(no_uv, checkout / "agent-vm", "status")
    assert (status, out) == (0, f"in {no_uv.parent} with status\n")
    assert calls(no_uv)[-1].endswith(f"-m pip install -q --disable-pip-version-check -e {checkout}")


def test_debian_without_ensurepip_installs_it_as_root(no_uv: Path, checkout: Path) -> None:
    script(no_uv, "id", "echo 0")
    script(no_uv, "apt-get", f'case $* in *install*) touch "{no_uv}/ensurepip";; esac')
    status, _, err = run(no_uv, checkout / "agent-vm")
    assert status == 0, err
    assert "agent-vm: $ apt-get -qq install -y --no-install-recommends python3-venv" in err


def test_debian_without_ensurepip_and_root_says_the_command(no_uv: Path, checkout: Path) -> None:
    script(no_uv, "id", "echo 1000")
    script(no_uv, "apt-get")
    status, _, err = run(no_uv, checkout / "agent-vm")
    assert status == 1
    assert err.splitlines()[-1] == (
        "agent-vm: as root run `apt-get install python3-venv`, then this again"
    )
    assert not any(call.startswith("apt-get") for call in calls(no_uv))


def test_an_old_python_is_named(no_uv: Path, checkout: Path) -> None:
    python(no_uv, checkout, too_old=1)
    status, _, err = run(no_uv, checkout / "agent-vm")
    assert status == 1
    assert "agent-vm: Python 3.11 or newer is needed; install it, or uv" in err


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_has_nothing_to_say() -> None:
    subprocess.run(["shellcheck", "--shell=sh", SCRIPT], check=True)


def until(done: object) -> None:
    """Wait for a condition; ten seconds at most."""
    end = time.monotonic() + 10
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)
