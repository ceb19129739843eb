"""Somebody else on the VM's port, and settings of the user that would open a way in."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import git, mount, settings
from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.guest import UnreachableError
from tests.conftest import VM, make_key, running_sshd, ssh_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Guest


@pytest.fixture
def impostor(guest: Guest) -> Iterator[Guest]:
    """An sshd with another host key that takes our client's key, on the port we know."""
    with running_sshd(guest.sshd, guest.sshd.folder / "other") as port:
        ssh_guest.config(VM).write_text(ssh_config(guest.sshd, port))
        yield guest


def test_the_impostor_would_get_in_without_the_pinned_key(impostor: Guest) -> None:
    """The attack works with the control off, so the other tests show something."""
    other = f"{VM} {impostor.sshd.public_key('other')}\n"
    ssh_guest.known_hosts(VM).write_text(other)
    assert ssh_guest.enter(VM, "touch canary") == 0
    assert (impostor.home / "canary").exists()


def test_ssh_tells_an_impostor_nothing(impostor: Guest) -> None:
    with pytest.raises(UnreachableError, match="its host key is another"):
        ssh_guest.warm_up(VM)
    assert ssh_guest.enter(VM, "touch canary") == ssh_guest.SSH_FAILED
    assert not (impostor.home / "canary").exists()


def test_git_sends_an_impostor_nothing(impostor: Guest, repository: Path) -> None:
    impostor.run("git init --quiet --bare target")
    assert not git.transfer(repository, VM, "push", f"{VM}:target", "main").ok
    assert impostor.run("git -C target for-each-ref") == ""


def test_fabric_refuses_an_impostor(impostor: Guest) -> None:
    with pytest.raises(UnreachableError, match=r"[Hh]ost key"):
        ssh_guest.connection(VM)


def test_fabric_refuses_an_impostor_with_another_kind_of_key(guest: Guest, home: Path) -> None:
    make_key(home / "key", "ecdsa")
    with running_sshd(guest.sshd, home / "key") as port:
        ssh_guest.config(VM).write_text(ssh_config(guest.sshd, port))
        with pytest.raises(UnreachableError, match=r"[Hh]ost key"):
            ssh_guest.connection(VM)


def test_sshfs_refuses_an_impostor(impostor: Guest, sshfs: None) -> None:
    chosen = settings.load()
    with pytest.raises(AgentVMError, match="could not be mounted"):
        mount.mount(chosen)
    assert not mount.current(mount.point(chosen))


@pytest.fixture
def agent(guest: Guest, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's ssh-agent, holding a key that the VM takes."""
    socket = home / "agent.sock"
    with subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(socket)], stdout=subprocess.DEVNULL
    ) as child:
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        add = ["ssh-add", "-q", str(guest.sshd.identity)]
        while subprocess.run(add, check=False, stderr=subprocess.DEVNULL).returncode:
            assert child.poll() is None
        yield
        child.terminate()


def test_the_users_agent_is_not_used_and_not_lent(agent: None, guest: Guest) -> None:
    seen = "echo agent=$SSH_AUTH_SOCK > seen"
    assert ssh_guest.enter(VM, seen) == 0
    assert (guest.home / "seen").read_text() == "agent=\n"
    with ssh_guest.connection(VM) as made:
        made.run(seen, in_stream=False)
    assert (guest.home / "seen").read_text() == "agent=\n"
    ssh_guest.disconnect(VM)
    text = ssh_guest.config(VM).read_text()
    wrong = text.replace(str(guest.sshd.identity), str(guest.sshd.folder / "other"))
    ssh_guest.config(VM).write_text(wrong)
    for knock in (ssh_guest.warm_up, ssh_guest.connection):
        with pytest.raises(UnreachableError):
            knock(VM)


def test_the_users_ssh_config_is_not_read_by_fabric(agent: None, guest: Guest, home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/config").write_text(
        f"Include more\nHost *\n  ForwardAgent yes\n  ProxyCommand touch {home}/ran\n"
    )
    (home / ".ssh/more").write_text(f"Host {VM}\n  User nobody\n")
    with ssh_guest.connection(VM) as made:
        assert made.run("echo agent=$SSH_AUTH_SOCK", in_stream=False).stdout == "agent=\n"
    assert not (home / "ran").exists()


def test_no_ssh_of_ours_reads_another_configuration(
    guest: Guest, sshfs: None, home: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSH looks into the account's home, not into $HOME; so it is asked what it has read."""
    log, only = home / "log", str(ssh_guest.config(VM))
    (home / "bin").mkdir()
    real = shlex.join([shutil.which("ssh") or "ssh", "-v", "-E", str(log)])
    (home / "bin/ssh").write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    (home / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}/bin:{os.environ['PATH']}")
    guest.run("git init --quiet --bare target")
    chosen = settings.load()
    steps = (
        lambda: ssh_guest.enter(VM, "true"),
        lambda: git.transfer(repository, VM, "push", f"{VM}:target", "main"),
        lambda: mount.mount(chosen),
    )
    for step in steps:
        log.unlink(missing_ok=True)
        step()
        read = [line for line in log.read_text().splitlines() if "Reading configuration" in line]
        assert read
        assert {line.rstrip("\r").rpartition(" ")[2] for line in read} == {only}
