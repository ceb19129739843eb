"""What a person and an agent do inside all day: containers, tools, the agents' first screens."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from typing import TYPE_CHECKING

import pytest

from .conftest import PROGRAM, User, inside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vm

# Prints the names of its network interfaces, or writes the file that is named.
PROBE = r"""
#include <stdio.h>
#include <string.h>
int main(int argc, char **argv) {
  char line[512], *end;
  FILE *file = fopen(argc > 1 ? argv[1] : "/proc/net/dev", argc > 1 ? "w" : "r");
  if (!file) return 1;
  if (argc > 1) return fputs("made inside\n", file) < 0 || fclose(file);
  while (fgets(line, sizeof line, file))
    if ((end = strchr(line, ':'))) *end = 0, printf("%s ", line + strspn(line, " "));
  puts("");
}
"""
DOCKERFILE = """\
FROM scratch
COPY --chmod=755 probe /probe
COPY <<EOF /etc/passwd
root:x:0:0::/:/probe
EOF
RUN ["/probe", "/made-by-run"]
ENTRYPOINT ["/probe"]
"""
PRE_COMMIT = """\
repos:
- repo: local
  hooks:
  - {id: shellcheck, name: shellcheck, language: system, types: [shell], entry: shellcheck}
"""
FILES = {
    "probe.c": PROBE,
    "Makefile": "probe: probe.c\n\tgcc -static -Os -o probe probe.c\n",
    "Dockerfile": DOCKERFILE,
    "Dockerfile.bad": "FROM debian\nRUN cd /tmp\n",
    "Dockerfile.good": "FROM debian:13\nWORKDIR /tmp\n",
    ".pre-commit-config.yaml": PRE_COMMIT,
    "script.sh": "#!/bin/sh\nrm $1\n",
    "twice.yaml": "---\na: 1\na: 2\n",
    "unused.py": "import os\n",
    "spaces.json": '{"a":1,   "b":[2]}\n',
    "compose.yaml": "services: {a: {image: probe, network_mode: none}}\n",
    "main.go": 'package main\n\nfunc main() { print("go ran\\n") }\n',
}
# How a program that knows no --version shows that it starts.
OTHERWISE = {
    "dig": "-v", "go": "version", "gofmt": "-l .", "lsb_release": "-a", "lsof": "-v", "socat": "-V",
    "sshfs": "-V", "tclsh": "< /dev/null", "unzip": "-v",
}  # fmt: skip
PROGRAMS = """
bc curl dig file find g++ gh git git-lfs go gofmt gosu gpg hadolint htop jq less lsb_release lsof
make man nft node npm npx pasta pip3 podman docker ps pstree python3 qemu-img qemu-system-x86_64 rg
rsync ruff shellcheck shfmt slirp4netns socat sshfs tclsh unzip uv vim wget yamllint yq
"""


@pytest.fixture(scope="module")
def project(vm: User) -> Path:
    return vm.repository("work", FILES)


def work(vm: User, project: Path, script: str, branch: str = "work") -> str:
    """What a script prints in the workspace, both streams; every command in it must succeed."""
    return inside(vm, f"exec 2>&1 < /dev/null; set -e\n{script}", project, branch)


# Containers


def test_docker_builds_and_runs_without_sudo(vm: User, project: Path) -> None:
    work(vm, project, "make -s probe && docker build -q -t probe .", "containers")
    run = "docker run --rm -v $PWD:/work"
    said = work(
        vm, project,
        f"{run} probe; {run} --network none probe; {run} probe /work/docker.txt;"
        " stat -c '%n %u' docker.txt; docker compose run --rm a 2> /dev/null",
        "containers",
    )  # fmt: skip
    assert said.splitlines() == ["lo eth0 ", "lo ", "docker.txt 0", "lo "]


def test_podman_builds_and_runs_without_root_and_without_warnings(vm: User, project: Path) -> None:
    work(vm, project, "make -s probe && podman build -q -t probe .", "containers")
    run = "podman run --rm -v $PWD:/work"
    said = work(
        vm, project,
        f"{run} probe; {run} --network none probe; {run} probe /work/podman.txt;"
        " stat -c '%n %u' podman.txt;"
        f" podman network create --internal own; {run} --network own probe; podman network rm own",
        "containers",
    )  # fmt: skip
    assert said.splitlines() == ["lo eth0 ", "lo ", "podman.txt 1000", "own", "lo eth0 ", "own"]


def test_podman_takes_the_kernels_overlay_and_the_users_systemd(vm: User) -> None:
    facts = "{{.Host.Security.Rootless}} {{.Store.GraphDriverName}} {{.Host.CgroupManager}}"
    assert inside(vm, f"podman info --format '{facts}' 2>&1") == "true overlay systemd\n"
    assert "fuse" not in inside(vm, "podman info --format '{{.Store.GraphOptions}}'")
    assert inside(vm, "loginctl show-user agent --value --property=Linger") == "yes\n"


def test_a_workspace_with_roots_files_can_be_cleaned(vm: User, project: Path) -> None:
    work(vm, project, "sudo install -m 600 -D /dev/null roots/own/file", "containers")
    vm.agent_vm("clean", "containers", "--force", cwd=project)
    assert "no such" in inside(vm, "[ -e ~/workspace/work-containers ] || echo no such")


# Tools


def test_every_program_of_the_lists_starts(vm: User, project: Path) -> None:
    calls = (f"{name} {OTHERWISE.get(name, '--version')}" for name in PROGRAMS.split())
    tries = (f"{call} > /dev/null 2>&1 || echo {call}\n" for call in calls)
    assert inside(vm, "".join(tries), project, "work") == ""


def test_linters_find_what_is_wrong_and_pass_what_is_not(vm: User, project: Path) -> None:
    said = work(
        vm, project,
        "! hadolint --no-color Dockerfile.bad; hadolint Dockerfile.good; ! shellcheck script.sh;"
        " shfmt -d script.sh; ! yamllint twice.yaml; ! ruff check --select F unused.py;"
        " prettier spaces.json; jq -c .b spaces.json; yq .a spaces.json; rg --count rm script.sh",
    )  # fmt: skip
    for told in ("DL3006", "SC2086", "key-duplicates", "F401"):
        assert told in said
    assert said.splitlines()[-4:] == ['{ "a": 1, "b": [2] }', "[2]", "1", "1"]


def test_pre_commit_stops_a_bad_commit(vm: User, project: Path) -> None:
    said = work(
        vm, project,
        "pre-commit install; ! git commit --allow-empty -qm 'bad' && git add script.sh;"
        " ! pre-commit run --all-files; printf '#!/bin/sh\\nrm \"$1\"\\n' > script.sh;"
        " git commit -qam good; git log -1 --format=%s; pre-commit uninstall",
    )  # fmt: skip
    assert "SC2086" in said
    assert "Passed" in said
    assert "good" in said.splitlines()


def test_python_projects(vm: User, project: Path) -> None:
    said = work(
        vm, project,
        "mkdir py; cd py; python3 -m venv v; v/bin/pip install -q six;"
        " v/bin/python -c 'import six';"
        " uv init -q --bare --name u; uv add -q six; uv run -q python -c 'import six; print(1)';"
        " rm pyproject.toml; pipenv install -q six; pipenv run python -c 'import six; print(2)'",
    )  # fmt: skip
    assert said.splitlines()[-1] == "2"
    assert "1" in said.splitlines()


def test_poetry(vm: User, project: Path) -> None:
    said = work(
        vm, project,
        "mkdir poem; cd poem; poetry init -qn --name poem;"
        # Of its own default it asks for pages that not every mirror has.
        " poetry source add -q --priority=primary simple ${PIP_INDEX_URL:-https://pypi.org/simple/};"
        " poetry add -qn six; poetry run python -c 'import six; print(3)'",
    )  # fmt: skip
    assert said.splitlines()[-1] == "3"


def test_what_a_tool_compiles_at_its_first_run_is_kept(vm: User) -> None:
    caches = "find /opt/uv-tools/pipenv /opt/uv-tools/agent-vm-tasks -name '*.pyc' | wc -l"
    assert int(
        inside(vm, f"pipenv --version > /dev/null; agent-vm --version > /dev/null; {caches}")
    )


def test_npm_in_a_project_and_for_the_user(vm: User, project: Path) -> None:
    said = work(
        vm, project,
        "mkdir js; cd js; npm init -y > /dev/null; npm install --silent is-odd;"
        " node -p 'require(\"is-odd\")(3)'; npm install --silent -g is-ci; command -v is-ci;"
        " node -p 'process.versions.node.split(\".\")[0] >= 22'",
    )  # fmt: skip
    assert said.splitlines()[-3:] == ["true", "/home/agent/.local/bin/is-ci", "true"]
    assert inside(vm, "sudo npm prefix --global") == "/usr/local\n"


def test_node_ends_with_the_process_that_was_started(vm: User) -> None:
    same = inside(vm, "node -p process.pid & wait; echo $!").split()
    assert same[0] == same[1]


def test_go_make_git_lfs_and_dvc(vm: User, project: Path) -> None:
    said = work(
        vm, project,
        "go run main.go; make -s probe; ./probe;"
        " git lfs install --local; git lfs track '*.bin'; head -c 9 /dev/urandom > x.bin;"
        " git add -f x.bin; git lfs ls-files -n;"
        " git init -q data; cd data; dvc init -q; echo 1 > rows.csv; dvc add -q rows.csv; ls *.dvc",
    )  # fmt: skip
    assert "go ran" in said.splitlines()
    assert "x.bin" in said.splitlines()
    assert said.splitlines()[-1] == "rows.csv.dvc"


# The agents' first screens

LIMIT = 100
"""Seconds for a screen: an emulated guest takes some ten times as long as another."""
ESCAPES = re.compile(r"\x1b(\[[0-9;:?<>=]*[ -/]*[@-~]|[]P_^][^\x07\x1b]*(\x07|\x1b\\)|.)")


class Screen:
    """A command on a pseudo-terminal: what it has drawn there so far."""

    def __init__(self, child: int, master: int) -> None:
        self.child, self.master, self.drawn = child, master, ""

    @property
    def text(self) -> str:
        """The words, in the order they came; a move to the right counts as a space."""
        return " ".join(ESCAPES.sub("", re.sub(r"\x1b\[\d*[CG]", " ", self.drawn)).split())

    def read(self, limit: float) -> bool:
        """Take what is drawn next; False when the command has ended or draws nothing."""
        if not select.select([self.master], [], [], limit)[0]:
            return False
        try:
            self.drawn += os.read(self.master, 65536).decode("utf-8", "replace")
        except OSError:  # EIO: the other side is closed
            return False
        return True

    def wait_for(self, pattern: str) -> None:
        end = time.monotonic() + LIMIT
        while not re.search(pattern, self.text):
            assert self.read(end - time.monotonic()), self.text[-2000:]

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def end(self) -> int:
        """Press Ctrl-C until the command ends; its exit status."""
        end = time.monotonic() + LIMIT
        while not (ended := os.waitpid(self.child, os.WNOHANG))[0]:
            assert time.monotonic() < end, self.text[-2000:]
            os.write(self.master, b"\x03")
            pause = time.monotonic() + 1
            while (left := pause - time.monotonic()) > 0 and self.read(left):
                pass
        return os.waitstatus_to_exitcode(ended[1])


@contextlib.contextmanager
def screen(vm: User, project: Path, *argv: str) -> Iterator[Screen]:
    """Run `agent-vm connect work -- ARGV…` on a terminal of 30 lines and 100 columns."""
    child, master = pty.fork()
    if child == 0:
        os.chdir(project)
        os.execve(  # noqa: S606  no shell
            PROGRAM, [PROGRAM, "connect", "work", "--", *argv], {**vm.env, "TERM": "xterm-256color"}
        )
    shown = Screen(child, master)
    shown.resize(30, 100)
    try:
        yield shown
    finally:
        os.close(master)  # hangs up: whatever still runs ends


@pytest.mark.parametrize(
    ("agent", "ready"),
    [
        ("claude", "Not logged in"),
        ("start-claude", "bypass permissions on"),
        ("gemini", "authenticate"),
        ("opencode", "Ask anything"),
        ("copilot", "/login"),
    ],
)
def test_an_agents_first_screen_asks_for_a_login_at_most(
    vm: User, project: Path, agent: str, ready: str
) -> None:
    with screen(vm, project, agent) as shown:
        shown.wait_for(ready)
        assert not re.search("(?i)do you trust|trust th|update available", shown.text)
        shown.drawn = ""
        shown.resize(24, 70)
        assert shown.read(LIMIT), "it does not follow the terminal's size"
        shown.end()  # a Ctrl-C too many may also meet ssh, so the status says nothing
