"""Two versions of the tool: what the other has left is used, or told of, and kept."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from typing import TYPE_CHECKING

import pytest
import yaml

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import state
from tests import forked
from tests.conftest import VM, git, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Limactl

    from .conftest import Command

DAYS = 86400


@pytest.fixture
def worked(limactl: Limactl, guest_home: Path, repository: Path, agent_vm: Command) -> Path:
    """The state folder of a VM, with a workspace that has work, and a copy of a deleted one."""
    for branch in ("gone", "fix"):
        line = "echo mine > mine; git commit --quiet --allow-empty --message=work"
        assert agent_vm("connect", branch, "--command", line).status == 0
    assert agent_vm("clean", "gone", "--force").status == 0
    return state.folder(VM)


def records(folder: Path) -> list[Path]:
    return [*(folder / "shared").iterdir()]


def only(folder: Path) -> Path:
    (found,) = (folder / "undo").iterdir()
    return found


def later_words(folder: Path) -> None:
    ready = folder / "ready"
    ready.write_bytes(ready.read_bytes() + b"\nschema-99 {} \xff\n")
    (folder / "later.json").write_text('{"schema": 99}')
    (folder / "later").mkdir()


def later_records(folder: Path) -> None:
    for path in records(folder):
        facts = json.loads(path.read_text())
        path.write_text(json.dumps(facts | {"schema": 99, "fetched": ["a", {}], "more": None}))
    (folder / "shared" / "of-a-later-version").mkdir()


def other_records(folder: Path) -> None:
    for path in records(folder):
        path.write_text('{"schema": 99, "sent": "not a commit", "repository": "/nonexistent"}')


def earlier_marks(folder: Path) -> None:
    (folder / "ready").write_text("")  # it was empty once
    for path in records(folder):
        path.unlink()
    (folder / "shared").rmdir()
    (folder / "secrets.key").unlink()


def another_key(folder: Path) -> None:
    (folder / "secrets.key").write_text("v2:0123")


def another_configuration(folder: Path) -> None:
    text = ssh_guest.config(VM).read_text()
    ssh_guest.config(VM).write_text(f"# made by a later version\n{text}")


def later_copy(folder: Path) -> None:
    facts = only(folder) / "kept.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"schema": 99, "size": {}}))


CHANGES = [
    later_words, later_records, other_records, earlier_marks, another_key, another_configuration,
    later_copy,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_another_version_has_left_is_used(
    worked: Path, repository: Path, agent_vm: Command, change: Callable[[Path], None]
) -> None:
    change(worked)
    assert "app-fix" in agent_vm("status").out
    assert agent_vm("connect", "fix", "--", "cat", "mine").out == "mine\n"
    refused = agent_vm("clean", "fix")
    assert refused.status == 1
    assert re.search(r"would be lost: app-fix: \d commits? not fetched", refused.err)
    assert "would be lost: app-fix: 1 file untracked" in refused.err
    assert agent_vm("fetch", "fix").status == 0
    assert agent_vm("push", "fix").status == 0
    assert git(repository, "log", "-1", "--format=%s", "fix") == "work"
    assert agent_vm("undo", "app-gone").out == "app-gone is in the VM again.\n"
    for verb in ("stop", "start"):
        assert agent_vm(verb).status == 0
    assert agent_vm("connect", "gone", "--", "cat", "mine").out == "mine\n"
    assert agent_vm("destroy", "--force").status == 0


def no_facts(copy: Path) -> None:
    (copy / "kept.json").unlink()


def other_facts(copy: Path) -> None:
    (copy / "kept.json").write_text('{"schema": 99, "workspace": "app-gone"}')


def facts_of_another_form(copy: Path) -> None:
    (copy / "kept.json").write_text("[5]")


def no_archive(copy: Path) -> None:
    (copy / "workspace.tar").rename(copy / "workspace.tar.zst")


STRANGE = [no_facts, other_facts, facts_of_another_form, no_archive]


@pytest.mark.parametrize("change", STRANGE, ids=lambda change: change.__name__)
def test_a_copy_that_cannot_be_read_is_told_of_and_kept_for_its_time(
    worked: Path, agent_vm: Command, change: Callable[[Path], None]
) -> None:
    copy = only(worked)
    change(copy)
    said = agent_vm("undo")
    assert said.out == "No deleted workspaces are kept.\n"
    assert said.err == (
        f"warning: {copy} is half a copy of a workspace, or one of another version of agent-vm\n"
    )
    assert "nothing is kept under 'app-gone'" in agent_vm("undo", "app-gone").error
    for days, there in ((13, True), (15, False)):
        os.utime(copy, (time.time() - days * DAYS,) * 2)
        agent_vm("undo")
        assert copy.exists() is there


def test_a_workspace_that_an_earlier_tool_made_is_left_alone(
    limactl: Limactl, guest_home: Path, repository: Path, agent_vm: Command
) -> None:
    theirs = guest_home / "workspace" / "app-fix"
    git(repository, "clone", "--quiet", "--branch=main", str(repository), str(theirs))
    (theirs / "mine").write_text("mine\n")
    said = agent_vm("connect", "fix", "--command", "pwd; ls")
    assert said.status == 0
    assert f"{theirs}-" in said.out
    assert "mine" not in said.out
    refused = agent_vm("clean-all")
    assert "would be lost: app-fix: 1 file untracked" in refused.err
    assert (theirs / "mine").read_text() == "mine\n"


@pytest.mark.parametrize(
    "facts", ["{key}\n", "{key}\napp\nfix\nschema 99\n{{}}\n"], ids=["earlier", "later"]
)
def test_a_workspace_that_says_less_or_more_of_itself_is_used(
    worked: Path, guest_home: Path, repository: Path, agent_vm: Command, facts: str
) -> None:
    marks = guest_home / "workspace" / "app-fix" / ".git" / "agent-vm"
    marks.write_text(facts.format(key=marks.read_text().splitlines()[0]))
    for argv in (["fetch", "fix"], ["push", "fix"]):
        assert agent_vm(*argv).status == 0
    assert agent_vm("status").out.split()[-3:] == ["0", "0", "1"]
    assert agent_vm("connect", "fix", "--", "cat", "mine").out == "mine\n"
    assert agent_vm("clean", "fix", "--force").status == 0
    assert agent_vm("undo", "app-fix").status == 0
    assert agent_vm("connect", "fix", "--", "cat", "mine").out == "mine\n"


def test_an_instance_that_another_version_made_is_started(
    limactl: Limactl, agent_vm: Command
) -> None:
    assert agent_vm("start", "stop").status == 0
    config = (limactl.instance() or {})["config"]
    config["provision"].append({"mode": "system", "script": "echo of another version"})
    config["message"] = "made by agent-vm 99"
    (limactl.lima / VM / "lima.yaml").write_text(yaml.safe_dump(config))
    limactl.change(config=config)
    for argv in (["start"], ["status"], ["connect", "--", "true"], ["stop"], ["start"]):
        assert agent_vm(*argv).status == 0
    assert agent_vm("destroy", "--force").status == 0


@pytest.fixture(params=[b"", b"4711\n", b"\xff\xfe v2 {}"], ids=["empty", "a number", "garbage"])
def held(worked: Path, request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """The lock, held by another version that writes something else into it; what frees it."""
    with (worked / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(request.param)
        lock.flush()
        yield lambda: fcntl.flock(lock, fcntl.LOCK_UN)


def test_the_lock_of_another_version_is_waited_for(
    held: Callable[[], None], limactl: Limactl, home: Path
) -> None:
    before = limactl.calls()
    started = forked.start(home / "ran", "stop")
    told = home / "ran" / "err"
    wait_until(lambda: "waiting for another agent-vm command (" in told.read_text(), "not told")
    assert limactl.calls() == before
    held()
    assert started.end().out == "The VM is stopped.\n"
