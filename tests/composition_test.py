"""Other people's tasks: a Fabric connection into the VM and into a workspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from invoke.context import Context
from invoke.exceptions import UnexpectedExit

from agent_vm_tasks import composition, network
from agent_vm_tasks.errors import AgentVMError, UsageError

from .conftest import VM, commit, git

if TYPE_CHECKING:
    from pathlib import Path

    from fabric import Connection

    from .conftest import Guest, Limactl


@pytest.fixture
def guest(guest: Guest, warm: None) -> Guest:
    return guest


def said(connection: Connection, command: str) -> str:
    text: str = connection.run(command, hide=True, in_stream=False).stdout
    return text.strip()


def test_a_connection_starts_in_the_home(guest: Guest, home: Path) -> None:
    with composition.connection(Context()) as made:
        assert said(made, "pwd") == str(guest.home)
    assert not made.is_connected


def test_a_workspace_is_made_and_is_where_commands_run(guest: Guest, repository: Path) -> None:
    with composition.workspace(Context(), "feature/it's") as made:
        assert said(made, "git symbolic-ref --short HEAD") == "feature/it's"
        assert said(made, "cat README") == "hello"
        assert said(made, "pwd -P").startswith(str(guest.workspaces))
    assert git(repository, "rev-parse", "feature/it's")


def test_a_workspace_that_is_there_is_not_pushed_to(guest: Guest, repository: Path) -> None:
    with composition.workspace(Context(), "fix"):
        pass
    git(repository, "checkout", "--quiet", "fix")
    commit(repository, "new")
    with composition.workspace(Context(), "fix") as made:
        assert said(made, "ls") == "README"


def test_a_failing_command_is_the_tasks_failure(guest: Guest, repository: Path) -> None:
    with composition.workspace(Context(), "fix") as made, pytest.raises(UnexpectedExit) as caught:
        made.run("exit 7", hide=True, in_stream=False)
    assert caught.value.result.exited == 7


def test_a_bad_branch_and_a_folder_without_repository(guest: Guest, home: Path) -> None:
    with (
        pytest.raises(AgentVMError, match="not in a git repository"),
        composition.workspace(Context(), "fix"),
    ):
        pass
    git(home, "init", "--quiet")
    with pytest.raises(UsageError), composition.workspace(Context(), "--force"):
        pass


def test_a_vm_that_may_reach_more_than_is_asked_for_is_not_entered(
    guest: Guest, repository: Path
) -> None:
    (repository / "agent-vm.toml").write_text('[network]\nmode = "offline"\n')
    network.note(VM, "open")
    with (
        pytest.raises(AgentVMError, match="is open, but offline is asked for"),
        composition.connection(Context()),
    ):
        pass


def test_it_is_refused_in_the_mount(
    guest: Guest, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = home / ".agent-vm-mounts/workspace/app-fix"
    inside.mkdir(parents=True)
    git(inside, "init", "--quiet")
    monkeypatch.chdir(inside)
    with (
        pytest.raises(AgentVMError, match="belongs to the VM"),
        composition.workspace(Context(), "fix"),
    ):
        pass


def test_a_vm_that_is_down_is_started(
    limactl: Limactl, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "image.img").touch()
    (home / ".config/agent-vm").mkdir(parents=True)
    (home / ".config/agent-vm/config.toml").write_text(
        f'[vm]\nimage = "{home}/image.img"\naccel = "tcg"\ncpus = 1\nmemory = "512MiB"\n'
        "[provision]\nenabled = false\n[mount]\nenabled = false\n"
    )
    monkeypatch.setattr("agent_vm_tasks.host.qemu_version", lambda: (8, 2, 0))
    with composition.connection(Context()) as made:
        assert said(made, "echo $HOME") == str(limactl.sshd.home)
    assert [call[0] for call in limactl.calls()] == ["create", "start"]
