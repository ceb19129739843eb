"""Git over the real guest's ssh: what a push brings, and one that is cut off."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from .conftest import PROGRAM, User, inside

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vm

INCOMING = (
    "for i in $(seq 600); do ls -d .git/objects/tmp_objdir-* 2> /dev/null && exit; sleep 0.1; done;"
    "exit 1"
)


@pytest.fixture(scope="module")
def project(user: User) -> Path:
    return user.repository("synced")


def commit(user: User, project: Path, file: str, content: bytes) -> None:
    (project / file).write_bytes(content)
    user.git("add", file, cwd=project)
    user.git("commit", "--quiet", f"--message={file}", cwd=project)


def test_tags_of_the_branch_arrive_and_others_do_not(vm: User, project: Path) -> None:
    vm.git("tag", "--annotate", "--message=one", "v1", cwd=project)
    vm.git("tag", "light", cwd=project)
    vm.git("checkout", "--quiet", "-b", "later", cwd=project)
    commit(vm, project, "later", b"later\n")
    vm.git("tag", "v2", cwd=project)
    vm.git("checkout", "--quiet", "main", cwd=project)
    assert inside(vm, "git describe; git tag", project, "fix") == "v1\nlight\nv1\n"


def test_a_tag_made_inside_stays_as_it_is_and_stops_no_push(vm: User, project: Path) -> None:
    inside(vm, "git tag v3 HEAD^{tree}", project, "fix")
    vm.git("checkout", "--quiet", "fix", cwd=project)
    vm.git("tag", "v3", cwd=project)
    commit(vm, project, "second", b"second\n")
    assert vm.agent_vm("push", "fix", cwd=project) == "fix is in the VM.\n"
    assert inside(vm, "git cat-file -t v3; ls", project, "fix") == "tree\nREADME\nsecond\n"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_push_that_was_cut_off_changes_nothing_and_the_next_one_works(
    vm: User, project: Path, end: signal.Signals
) -> None:
    before = inside(vm, "git rev-parse HEAD; git status --porcelain", project, "fix")
    commit(vm, project, f"large-{end}", os.urandom(128 * 2**20))
    argv = [PROGRAM, "push", "fix"]
    with subprocess.Popen(argv, cwd=project, env=vm.env, stderr=subprocess.DEVNULL) as child:
        inside(vm, INCOMING, project, "fix")
        child.send_signal(end)
        assert child.wait(30) != 0
    assert inside(vm, "git rev-parse HEAD; git status --porcelain", project, "fix") == before
    assert vm.agent_vm("push", "fix", cwd=project) == "fix is in the VM.\n"
    size = inside(vm, f"stat -c %s large-{end}; git fsck --connectivity-only", project, "fix")
    assert size.splitlines()[0] == str(128 * 2**20)
    rest = "git prune --expire=now; ls -d .git/objects/tmp_objdir-* || true"
    assert inside(vm, rest, project, "fix") == ""
    vm.agent_vm("fetch", "fix", cwd=project)
