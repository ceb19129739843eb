"""What the user is and has on this machine: no agent, key, setting of ssh or name goes in."""

from __future__ import annotations

import getpass
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from agent_vm_tasks import git, host, mount, render, settings
from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks.guest import UnreachableError
from agent_vm_tasks.image import Image
from agent_vm_tasks.settings import Settings, Vm
from tests.conftest import VM, running_sshd, ssh_config

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Guest


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


def test_a_forwarded_agent_would_be_lent(agent: None, guest: Guest) -> None:
    config = ssh_guest.config(VM)
    text = config.read_text().replace("ForwardAgent no", "ForwardAgent yes")
    config.write_text(text.replace("IdentityAgent none", "IdentityAgent SSH_AUTH_SOCK"))
    assert ssh_guest.enter(VM, "ssh-add -l > seen") == 0
    assert "ED25519" in (guest.home / "seen").read_text()


def test_the_users_ssh_config_is_not_read_by_fabric(agent: None, guest: Guest, home: Path) -> None:
    (home / ".ssh").mkdir()
    (home / ".ssh/config").write_text(
        f"Include more\nHost *\n  ForwardAgent yes\n  ProxyCommand touch {home}/ran\n"
    )
    (home / ".ssh/more").write_text(f"Host {VM}\n  User nobody\n")
    with ssh_guest.connection(VM) as made:
        assert made.run("echo agent=$SSH_AUTH_SOCK", in_stream=False).stdout == "agent=\n"
    assert not (home / "ran").exists()
    plain = f"import fabric; fabric.Connection({VM!r}).open()"
    subprocess.run([sys.executable, "-c", plain], check=False, capture_output=True)
    assert (home / "ran").exists()


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
    log.unlink()
    subprocess.run(["ssh", "-G", VM], check=True, capture_output=True)  # which reads the system's
    assert "Reading configuration data /etc/ssh/ssh_config" in log.read_text()


NAMES = {"name": "agent", "uid": 1000, "home": "/home/agent", "comment": ""}
OF_THE_HOST = r"^(user:.*|timezone:.*)$"


def test_no_name_of_this_machine_goes_in(
    lima_fills: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lima gives a VM the name, real name and uid of who makes it, and the time zone."""
    if os.geteuid() == 0:  # our own account for it has no real name
        monkeypatch.setattr(host, "service_user", lambda: "nobody")
    text = render.lima_yaml(Settings(vm=Vm(ca_certs=())), [Image("/disk.qcow2")], "key")
    filled = lima_fills(text)
    assert {key: filled["user"][key] for key in NAMES} == NAMES
    assert not filled.get("timezone")
    bare = lima_fills(re.sub(OF_THE_HOST, "", text, flags=re.MULTILINE))
    user = pwd.getpwnam(host.service_user() or getpass.getuser())
    assert {key: bare["user"][key] for key in NAMES} == {
        "name": user.pw_name, "uid": user.pw_uid, "home": f"/home/{user.pw_name}.guest",
        "comment": user.pw_gecos.partition(",")[0],
    }  # fmt: skip


def test_the_users_display_is_not_lent(
    guest: Guest, home: Path, monkeypatch: pytest.MonkeyPatch, *, on: bool
) -> None:
    """To a VM whose sshd asks for it; off, our ssh reads the user's configuration first."""
    if not shutil.which("xauth"):
        pytest.skip("xauth is not installed")
    asking = home / "sshd"
    asking.mkdir()
    text = (guest.sshd.folder / "sshd_config").read_text()
    (asking / "sshd_config").write_text(f"X11Forwarding yes\n{text}")
    (home / "user.config").write_text("ForwardX11 yes\nForwardX11Trusted yes\n")
    monkeypatch.setenv("DISPLAY", ":77")
    with running_sshd(replace(guest.sshd, folder=asking), guest.sshd.folder / "host") as port:
        text = ssh_config(guest.sshd, port)
        users = "" if on else f"Include {home}/user.config\n"
        ssh_guest.config(VM).write_text(f"{users}{text}")
        assert ssh_guest.enter(VM, "echo display=$DISPLAY > seen") == 0
    seen = (guest.home / "seen").read_text()
    assert re.fullmatch("display=\n" if on else r"display=localhost:\d+\.0\n", seen)
