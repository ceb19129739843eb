"""Somebody else on the VM's port: neither a command nor a secret goes there."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import git, mount, secrets, settings
from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.guest import UnreachableError
from agent_vm_tasks.secrets import Secrets
from tests.conftest import VM, make_key, running_sshd, ssh_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Guest


@pytest.fixture
def impostor(on: bool, guest: Guest) -> Iterator[Guest]:
    """An sshd with another host key that takes our client's key, on the port we know.

    Off: the key that is pinned is that of the impostor.
    """
    with running_sshd(guest.sshd, guest.sshd.folder / "other") as port:
        ssh_guest.config(VM).write_text(ssh_config(guest.sshd, port))
        if not on:
            other = f"{VM} {guest.sshd.public_key('other')}\n"
            ssh_guest.known_hosts(VM).write_text(other)
        yield guest


def test_ssh_tells_an_impostor_nothing(impostor: Guest, *, on: bool) -> None:
    if on:
        with pytest.raises(UnreachableError, match="its host key is another"):
            ssh_guest.warm_up(VM)
    assert ssh_guest.enter(VM, "touch canary") == (ssh_guest.SSH_FAILED if on else 0)
    assert (impostor.home / "canary").exists() is not on


def test_git_sends_an_impostor_nothing(impostor: Guest, repository: Path, *, on: bool) -> None:
    impostor.run("git init --quiet --bare target")
    assert git.transfer(repository, VM, "push", f"{VM}:target", "main").ok is not on
    assert (impostor.run("git -C target for-each-ref") == "") is on


def test_fabric_refuses_an_impostor(impostor: Guest, *, on: bool) -> None:
    if not on:
        ssh_guest.connection(VM).close()
        return
    with pytest.raises(UnreachableError, match=r"[Hh]ost key"):
        ssh_guest.connection(VM)


def test_fabric_refuses_an_impostor_with_another_kind_of_key(guest: Guest, home: Path) -> None:
    make_key(home / "key", "ecdsa")
    with running_sshd(guest.sshd, home / "key") as port:
        ssh_guest.config(VM).write_text(ssh_config(guest.sshd, port))
        with pytest.raises(UnreachableError, match=r"[Hh]ost key"):
            ssh_guest.connection(VM)


def test_sshfs_refuses_an_impostor(impostor: Guest, sshfs: None, *, on: bool) -> None:
    chosen = settings.load()
    with contextlib.ExitStack() as refusal:
        if on:
            refusal.enter_context(pytest.raises(AgentVMError, match="could not be mounted"))
        mount.mount(chosen)
    assert bool(mount.current(mount.point(chosen))) is not on


def test_a_secret_does_not_go_to_an_impostor(impostor: Guest, *, on: bool) -> None:
    given = Secrets({"KEY": b"c4n4ry"}, {})
    with contextlib.ExitStack() as refusal:
        if on:
            refusal.enter_context(pytest.raises(UnreachableError))
        secrets.push(VM, given)
    assert (impostor.home / ".secrets").exists() is not on
