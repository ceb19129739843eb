"""Many commands at once: one VM, one creation, every workspace there, no line torn."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import mount, state
from agent_vm_tasks import settings as configuration
from tests import forked
from tests.conftest import VM, git, mounts, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Limactl

    from .conftest import Command

MANY = 8
LINES = (
    r"creating the VM agent-vm: .*",
    r"starting the VM agent-vm",
    r"  (QEMU starts|the guest boots|ssh answers) \(\d+ s\)",
    r"waiting for another agent-vm command \((unknown|process \d+, agent-vm connect, since .*)\)"
    r"(, \d+ s so far)?",
    r"created branch fix\d* from HEAD",
)


@pytest.mark.parametrize("before", ["absent", "stopped", "running", "warm"])
@pytest.mark.parametrize("branches", [1, MANY])
def test_eight_connections(
    limactl: Limactl, repository: Path, home: Path, agent_vm: Command, *, before: str, branches: int
) -> None:
    if before != "absent":
        assert agent_vm("start").status == 0
    if before == "stopped":
        assert agent_vm("stop").status == 0
    elif before == "running":
        ssh_guest.disconnect(VM)
    (limactl.folder / "calls").touch()
    (limactl.folder / "calls").unlink()
    names = [f"fix{number % branches}" for number in range(MANY)]
    started = [
        forked.start(home / "ran" / str(number), "connect", name, "--", "sh", "-c",
                     "pwd; cat README; sleep 0.2; echo out")
        for number, name in enumerate(names)
    ]  # fmt: skip
    ended = [each.end() for each in started]
    for name, each in zip(names, ended, strict=True):
        assert each.status == 0, each.err
        folder = limactl.sshd.home / "workspace" / f"app-{name}"
        assert each.out == f"{folder}\nhello\nout\n"
        for line in each.err.splitlines():
            assert any(re.fullmatch(known, line) for known in LINES), line
    wanted = {"absent": ["create", "start"], "stopped": ["start"], "running": [], "warm": []}
    assert [call[0] for call in limactl.calls()] == wanted[before]
    made = {path.name for path in (limactl.sshd.home / "workspace").iterdir()}
    assert made == {f"app-{name}" for name in names}
    branches_here = git(repository, "branch", "--format=%(refname:short)").split()
    assert branches_here == [*sorted(set(names)), "main"]
    forked.no_orphans(home)


def test_a_connection_into_a_warm_vm_waits_for_nobody(
    repository: Path, home: Path, agent_vm: Command
) -> None:
    agent_vm("connect", "fix", "--", "true")
    with state.lock(VM, print):
        ended = forked.start(home / "ran", "connect", "fix", "--", "cat", "README").end(20)
    assert (ended.status, ended.out, ended.err) == (0, "hello\n", "")


def test_a_stop_waits_for_a_start_and_says_for_which(
    limactl: Limactl, home: Path, agent_vm: Command
) -> None:
    limactl.does("create", "sleep 1; echo no >&2; exit 1")
    first = forked.start(home / "first", "start")
    wait_until(limactl.calls, "it does not start")
    second = forked.run(home / "second", "stop")
    assert first.end().status == 1
    holder = f"process {first.pid}, agent-vm start, since 20"
    assert f"waiting for another agent-vm command ({holder}" in second.err
    assert "there is no VM agent-vm" in second.err


def test_eight_mounts_are_one(
    vm: object, home: Path, agent_vm: Command, sshfs: None, limactl: Limactl
) -> None:
    started = [forked.start(home / "ran" / str(number), "mount") for number in range(MANY)]
    for each in started:
        ended = each.end()
        assert ended.status == 0, ended.err
    assert len(mounts(home)) == 1
    assert mount.unmount(configuration.load(), force=True)
    assert mounts(home) == []
