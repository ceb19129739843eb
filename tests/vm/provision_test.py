"""Provisioning on a real VM: what fails is named, what worked is kept, what was cut off goes on."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from .conftest import NAME, PROGRAM, User, inside, lima_home

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm

INTERRUPTED = 130
HOST = "192.168.5.2"
"""The host's loopback as a guest of QEMU's user network names it."""


@pytest.fixture(scope="module")
def project(vm: User) -> Path:
    """A repository, and a VM that reaches the mirrors on this machine's loopback."""
    vm.agent_vm("network", "open")
    vm.agent_vm("restart")
    return vm.repository("provisioned")


def wanting(project: Path, text: str) -> None:
    (project / "agent-vm.toml").write_text(text)


def running(vm: User, project: Path, script: str) -> None:
    """Have the project bring a script, which the person approves."""
    (project / "vm.sh").write_text(script)
    wanting(project, '[provision]\nscript = "vm.sh"\n')
    assert "`agent-vm trust` shows" in vm.fails("provision", cwd=project)
    vm.agent_vm("trust", "--force", cwd=project)


@contextlib.contextmanager
def own_settings(vm: User, text: str) -> Iterator[None]:
    """More settings in the person's own file."""
    path = vm.home / ".config" / "agent-vm" / "config.toml"
    before = path.read_text()
    path.write_text(f"{before}\n{text}")
    try:
        yield
    finally:
        path.write_text(before)


@contextlib.contextmanager
def empty_mirror() -> Iterator[tuple[str, list[str]]]:
    """A server on the host's loopback that has nothing: its URL inside, and what it heard."""
    heard: list[str] = []

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{HOST}:{server.server_port}", heard
        server.shutdown()


def test_the_table_of_tools_shows_the_wanted_versions_installed(vm: User) -> None:
    rows = {row["name"]: row for row in json.loads(vm.agent_vm("tools", "--json"))}
    for agent in ("claude", "gemini", "opencode", "copilot"):
        assert rows[agent]["kind"] == "agent"
        assert rows[agent]["installed"] == rows[agent]["wanted"] != ""
    assert int(rows["node"]["installed"].partition(".")[0]) >= 22
    assert not [name for name, row in rows.items() if not row["installed"]]


def test_what_cannot_be_had_is_named_and_the_rest_is_there(vm: User, project: Path) -> None:
    wanting(
        project,
        """
        [packages]
        apt = ["no-such-package-at-all", "cowsay"]
        npm = ["no-such-thing-at-all@9.9.9", "left-pad@1.3.0"]
        python = ["pycowsay==99.9"]
    """,
    )
    said = vm.fails("provision", cwd=project)
    assert len(said.strip().splitlines()[-1]) < 1000
    last = said.strip().splitlines()[-1]
    assert "stage packages: not installed: no-such-package-at-all (there is no such" in last
    assert "stage npm: not installed: no-such-thing-at-all@9.9.9 (npm error 404" in last
    assert "stage python: not installed: pycowsay==99.9 (" in last
    assert "/var/log/agent-vm/packages.log" in last
    assert "ok" in inside(vm, "/usr/games/cowsay ok; ls /usr/local/lib/node_modules/left-pad")
    assert "missing" in inside(vm, "test -e /etc/agent-environment && echo there || echo missing")


def test_the_next_run_goes_on_from_there(vm: User, project: Path) -> None:
    wanting(project, '[packages]\napt = ["cowsay"]\nnpm = ["left-pad"]\npython = ["pycowsay"]\n')
    done = vm.run(PROGRAM, "provision", cwd=project)
    assert (done.returncode, done.stdout) == (0, "The VM is provisioned.\n")
    assert "installing: node" not in done.stderr
    assert inside(vm, "pycowsay ok; cat /etc/agent-environment").endswith("agent-vm\n")


def test_an_upgrade_brings_the_newest_and_shows_it(vm: User, project: Path) -> None:
    inside(vm, "sudo env NPM_CONFIG_PREFIX=/usr/local npm install -g --no-fund left-pad@1.2.0")
    assert vm.agent_vm("provision", cwd=project) == "The VM is provisioned.\n"
    rows = [
        line.split() for line in vm.agent_vm("provision", "--upgrade", cwd=project).splitlines()
    ]
    assert rows[0] == ["NAME", "BEFORE", "NOW"]
    assert ["left-pad", "1.2.0", "1.3.0"] in rows


def test_a_registry_of_the_users_is_asked_and_one_that_has_nothing_is_named(
    vm: User, project: Path
) -> None:
    wanting(project, '[packages]\nnpm = ["is-odd"]\n')
    with empty_mirror() as (url, heard), own_settings(vm, f'[packages]\nnpm_registry = "{url}/"'):
        said = vm.fails("provision", cwd=project)
    assert "stage npm: not installed: is-odd (npm error 404" in said
    assert any("is-odd" in path for path in heard)
    vm.agent_vm("provision", cwd=project)
    assert inside(vm, "ls /usr/local/lib/node_modules/is-odd/package.json")


def test_a_debian_mirror_without_packages_is_an_error(vm: User, project: Path) -> None:
    wanting(project, '[packages]\napt = ["sl"]\n')
    with empty_mirror() as (url, heard), own_settings(vm, f'[packages]\ndebian_mirror = "{url}/d"'):
        said = vm.fails("provision", cwd=project)
    assert "stage packages: E: " in said
    assert any(path.startswith("/d/dists/trixie/") for path in heard)
    vm.agent_vm("provision", cwd=project)
    assert inside(vm, "ls /usr/games/sl")


def test_without_a_network_the_stage_is_named_and_nothing_hangs(vm: User, project: Path) -> None:
    wanting(project, '[packages]\npython = ["httpie"]\n')
    route = inside(vm, "ip route show default").strip()
    inside(vm, "sudo ip route del default")
    began = time.monotonic()
    try:
        said = vm.fails("provision", cwd=project)
    finally:
        inside(vm, f"sudo ip route add {route}")
    assert "provisioning failed in stage python: " in said
    assert time.monotonic() - began < 120
    vm.agent_vm("provision", cwd=project)
    assert inside(vm, "http --version").startswith("3.")


def test_the_repositorys_script_runs_once_as_the_user_and_its_status_is_told(
    vm: User, project: Path
) -> None:
    running(vm, project, "id -un >> ran; pwd >> ran; exit 7\n")
    said = vm.fails("provision", cwd=project)
    assert "the script ended with exit status 7; its log is /var/log/agent-vm/script-" in said
    running(vm, project, "id -un >> ran; pwd >> ran; env > with\n")
    assert inside(vm, "cat ~/ran", project) == "agent\n/home/agent\n" * 2
    assert inside(vm, "cat ~/ran", project) == "agent\n/home/agent\n" * 2
    assert "SSH" not in inside(vm, "cat ~/with")


def test_own_home_files_arrive_and_what_changed_inside_stays(vm: User, project: Path) -> None:
    (vm.home / "agents").mkdir()
    (vm.home / "agents" / ".inputrc").write_text("one\n")
    (project / "agent-vm.toml").unlink()
    with own_settings(vm, '[home]\npath = "~/agents"'):
        assert inside(vm, "cat ~/.inputrc") == "one\n"
        inside(vm, "echo inside > ~/.gitignore")
        (vm.home / "agents" / ".inputrc").write_text("two\n")
        said = vm.agent_vm("refresh-home")
        assert ".inputrc: updated" in said
        assert ".gitignore: left: changed inside" in said
        assert inside(vm, "cat ~/.inputrc ~/.gitignore") == "two\ninside\n"
        vm.agent_vm("refresh-home", "--force")
    assert inside(vm, "cat ~/.agent-vm/home-before/*/.gitignore") == "inside\n"
    assert "id_ed25519" in inside(vm, "cat ~/.gitignore")


def test_a_full_disk_is_an_error_and_room_is_enough_to_go_on(vm: User, project: Path) -> None:
    wanting(project, '[packages]\nnpm = ["is-even"]\n')
    free = "$(($(stat -f -c %f /) * $(stat -f -c %S /) - (16 << 20)))"  # with what is root's alone
    inside(vm, f"sudo fallocate -l {free} /filler; sudo sh -c 'cat /dev/zero > /rest' || true")
    try:
        said = vm.fails("provision", cwd=project)
    finally:
        inside(vm, "sudo rm /filler /rest")
    assert "no space left" in said.lower()
    assert "provisioning failed in stage" in said
    vm.agent_vm("provision", cwd=project)
    assert inside(vm, "ls /usr/local/lib/node_modules/is-even/package.json")


def test_ctrl_c_ends_it_and_the_next_run_goes_on(vm: User, project: Path) -> None:
    running(vm, project, "sleep 15; touch ~/through\n")
    with provisioning(vm, project) as child:
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=30) == INTERRUPTED
    assert vm.agent_vm("provision", cwd=project) == "The VM is provisioned.\n"
    assert inside(vm, "ls ~/through", project)


def test_a_vm_that_is_killed_meanwhile_goes_on_at_the_next_start(vm: User, project: Path) -> None:
    running(vm, project, "test -e ~/again || { touch ~/again; sync; sleep 600; }\n")
    with provisioning(vm, project) as child:
        while "again" not in inside(vm, "ls ~/again || true"):
            time.sleep(0.5)
        os.kill(int((lima_home(vm) / NAME / "qemu.pid").read_text()), signal.SIGKILL)
        assert child.wait(timeout=120) == 1
        said = child.communicate()[1]
    assert "Traceback" not in said
    assert "agent-vm: provisioning failed in stage script-" in said.strip().splitlines()[-1]
    done = vm.run(PROGRAM, "start", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "installed: script-" in done.stderr
    assert "installing: npm" not in done.stderr


@contextlib.contextmanager
def provisioning(vm: User, project: Path) -> Iterator[subprocess.Popen[str]]:
    """A `provision` that has come as far as the repository's script."""
    with subprocess.Popen(
        [PROGRAM, "provision"], cwd=project, env=vm.env, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as child:  # fmt: skip
        try:
            assert child.stderr
            while "installing: script-" not in child.stderr.readline():
                assert child.poll() is None
            yield child
        finally:
            child.kill()
