"""Whether the VM is what was created: each change is seen, and told at the next start."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import host, intact, mount, network, state, vm

from .conftest import VM, bare_mount, free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_vm_tasks.intact import Finding
    from agent_vm_tasks.settings import Settings


KEY = "sk-0123456789"
TOLD = "the VM is not what was created: "


def look(started: Settings, promise: str) -> Finding:
    """What is found of one promise."""
    found = intact.look(started, vm.require_exists(VM))
    (one,) = [each for each in found if each.promise == promise]
    return one


def test_what_was_just_created_is_in_order(
    started: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    found = {each.promise: each.held for each in intact.look(started, vm.require_exists(VM))}
    # This VM is an sshd: there is no QEMU to be asked for its network.
    assert found == {**dict.fromkeys([fact.promise for fact in intact.FACTS], True),
                     "network": None}  # fmt: skip
    assert vm.start(started, print).warnings == ()


def test_a_configuration_that_was_changed_is_told_at_the_next_start(started: Settings) -> None:
    path = vm.require_exists(VM).dir / "lima.yaml"
    path.write_text(path.read_text() + "# more\n")
    (line,) = vm.start(started, print).warnings
    assert line == f"{TOLD}{path} was changed (`agent-vm audit --quick` says what to do)"


def test_mounts_of_limas_own_are_seen(started: Settings) -> None:
    found = vm.require_exists(VM)
    mixed = replace(found, config={**found.config, "mounts": [{"location": "~"}]})
    told = "Lima would run agent-vm with other mounts than asked for"
    assert told in intact.warnings(started, mixed)[0]


def test_ports_that_cannot_be_seen_do_not_count_as_held(
    started: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "is_macos", lambda: True)
    found = look(started, "ports")
    assert (found.held, found.detail) == (None, "macOS shows no processes in /proc")


def test_a_vm_of_an_older_version_is_not_called_unchanged(started: Settings) -> None:
    intact.sealed(VM).unlink()
    assert look(started, "mounts").held is None
    assert vm.start(started, print).warnings == ()


def test_a_new_vm_is_judged_by_what_it_was_made_from(started: Settings) -> None:
    vm.destroy(started, print)
    assert not intact.sealed(VM).exists()
    assert vm.start(replace(started, vm=replace(started.vm, disk=9216)), print).warnings == ()


def test_trust_of_git_in_the_mount_is_seen(started: Settings, home: Path) -> None:
    with (home / ".gitconfig").open("a") as file:
        file.write("[safe]\n\tdirectory = *\n")
    assert "git's safe.directory has *" in look(started, "git").detail


def test_a_mount_without_our_options_is_seen(started: Settings, home: Path) -> None:
    with bare_mount(home / "bare") as other:
        bare = replace(started, mount=replace(started.mount, path=str(other)))
        assert "without uid=65534, gid=65534" in look(bare, "links").detail
        assert "contain_symlinks" in look(bare, "links").detail
    mount.unmount(started, force=True)
    assert look(started, "links").held is None


@pytest.mark.parametrize("which", ["ours", "lima's", "the key"])
def test_a_folder_that_others_can_read_is_seen(started: Settings, which: str) -> None:
    there = vm.require_exists(VM).dir
    folders = {"ours": state.home() / ".agent-vm" / VM, "lima's": there,
               "the key": there.parent / "_config/user"}  # fmt: skip
    folders[which].chmod(0o750)
    assert look(started, "identity").detail in {
        "", f"{folders[which]} is open to other users",
    }  # fmt: skip
    assert look(started, "identity").held is (which == "ours")  # which is put right at each use


@pytest.mark.parametrize(
    ("line", "instead", "named"),
    [
        ("StrictHostKeyChecking yes", "StrictHostKeyChecking no", "stricthostkeychecking"),
        ("ForwardAgent no", "ForwardAgent yes", "forwardagent"),
        ("ForwardX11 no", "ForwardX11 yes", "forwardx11"),
        ("IdentityAgent none", "", "identityagent"),
        ("UserKnownHostsFile", "UserKnownHostsFile /dev/null ", "userknownhostsfile"),
    ],
)
def test_a_looser_configuration_of_ssh_is_seen(
    started: Settings, line: str, instead: str, named: str
) -> None:
    config = ssh_guest.config(VM)
    config.write_text(config.read_text().replace(line, instead))
    assert look(started, "impostor").detail == f"{config} has another {named}"


def test_a_key_in_limas_files_is_seen(started: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(started, "keys").held is None
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    log = vm.require_exists(VM).dir / "left.log"
    log.write_text(f"key={KEY}\n")
    assert look(started, "keys").detail == f"a key is in {log}"


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::1", "::"])  # noqa: S104
def test_a_port_of_the_vm_is_seen(started: Settings, address: str) -> None:
    port = free_port()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with listening(family, address, port):
        detail = look(started, "ports").detail
        listed = replace(started, network=replace(started.network, ports=(port,)))
        told = look(listed, "ports").detail
    local = address in {"127.0.0.1", "::1"}
    if local:
        assert detail == f"port {port} is open here and is not listed"
        assert told == ""
    else:
        assert (
            detail == told == (f"port {port} of the VM is open at {address}, not on loopback alone")
        )


def test_the_proxy_of_the_network_is_no_port_of_the_vm(started: Settings) -> None:
    """It listens for the VM, not to it; on loopback it has to be, too."""
    for address, wrong in (("127.0.0.1", False), ("0.0.0.0", True)):  # noqa: S104
        with listening(socket.AF_INET, address, free_port(), "proxy/squid.conf"):
            assert (look(started, "ports").held is False) is wrong


def test_what_a_process_hides_is_not_called_closed(
    started: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another's open port is told all the same."""
    real, port, driver = intact._listening, free_port(), vm.require_exists(VM).driver_pid
    monkeypatch.setattr(intact, "_listening", lambda pid: None if pid == driver else real(pid))
    assert look(started, "ports").held is None
    with listening(socket.AF_INET, "127.0.0.1", port):
        assert look(started, "ports").detail == f"port {port} is open here and is not listed"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ((), ""),
        (("--tcp-ports", "8000"), "--tcp-ports 8000"),
        (("--udp-ports=53",), "--udp-ports=53"),
        (("--tcp-p", "all"), "--tcp-p all"),
        (("-qt", "all"), "-qt all"),
        (("--udp-ports", "all"), "--udp-ports all"),
    ],
)
def test_a_passt_that_hides_where_it_listens_is_judged_by_what_it_was_told(
    started: Settings, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], told: str
) -> None:
    port = vm.require_exists(VM).ssh_port
    ours = ("--no-map-gw", "--tcp-ports", f"127.0.0.1/{port}:22", "--udp-ports", "none")
    real = intact._listening
    with passt(*ours, *more) as pid:
        monkeypatch.setattr(intact, "_listening", lambda its: None if its == pid else real(its))
        found = look(started, "ports")
    assert found.held is (not told)
    assert found.detail.partition("the VM's ssh port: ")[2] == told


@pytest.mark.parametrize("where", ["0.0.0.0/{}:22", "127.0.0.1/{}:23", "{}:22", "all"])
def test_a_passt_with_another_way_in_is_seen(
    started: Settings, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    where = where.format(vm.require_exists(VM).ssh_port)
    real = intact._listening
    with passt("--tcp-ports", where, "--udp-ports", "none") as pid:
        monkeypatch.setattr(intact, "_listening", lambda its: None if its == pid else real(its))
        assert look(started, "ports").detail.endswith(f": --tcp-ports {where}")


@contextlib.contextmanager
def listening(family: int, address: str, port: int, file: str = "qmp.sock") -> Iterator[None]:
    """A program of the VM's, by a file on its command line, that listens."""
    code = (
        "import socket, sys; made = socket.socket(int(sys.argv[2]));"
        "made.bind((sys.argv[3], int(sys.argv[4]))); made.listen(); print(flush=True);"
        "sys.stdin.read()"
    )
    words = [f"{vm.require_exists(VM).dir}/{file}", str(int(family)), address, str(port)]
    argv = [sys.executable, "-c", code, *words]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        yield
        child.communicate(b"")


PASST = "stream,id=net0,addr.path={}/passt.sock"
NETDEV = {
    "offline": "user,id=net0,net=192.168.5.0/24,restrict=on",
    "internet": PASST,
    "open": "user,id=net0,net=192.168.5.0/24",
}


@pytest.mark.parametrize("mode", NETDEV)
@pytest.mark.parametrize("runs", NETDEV)
def test_a_qemu_with_another_network_is_seen(started: Settings, mode: str, runs: str) -> None:
    network.choose(VM, mode)
    network.note(VM, mode)
    with qemu(NETDEV[runs]) as pid:
        running = replace(vm.require_exists(VM), driver_pid=pid)
        with passt("--no-map-gw"):
            wrong = intact._network(started, running)
    assert wrong == ("" if mode == runs else f"QEMU does not run with the network {mode}")


def test_a_passt_that_shows_our_loopback_is_seen(started: Settings) -> None:
    network.note(VM, "internet")
    with qemu(PASST) as pid, passt("--one-off"):
        running = replace(vm.require_exists(VM), driver_pid=pid)
        assert "passt shows the VM" in intact._network(started, running)


@contextlib.contextmanager
def named(*argv: str) -> Iterator[int]:
    """A process with that command line, as far as the VM's folder goes; it only waits."""
    folder = vm.require_exists(VM).dir
    line = [word.replace("{}", str(folder)) for word in argv]
    (folder / "wait").write_text("read x\n:\n")
    with subprocess.Popen(
        ["bash", "-c", 'exec -a "$0" bash "$@"', line[0], str(folder / "wait"), *line[1:]],
        stdin=subprocess.PIPE,
    ) as child:
        cmdline = Path(f"/proc/{child.pid}/cmdline")
        wait_until(lambda: cmdline.read_bytes().startswith(os.fsencode(line[0])), "it starts")
        yield child.pid
        child.communicate(b"\n")


def qemu(netdev: str) -> contextlib.AbstractContextManager[int]:
    return named("/usr/bin/qemu-system-x86_64", "-netdev", netdev, "-drive", "{}/disk")


def passt(*options: str) -> contextlib.AbstractContextManager[int]:
    return named("passt", "--socket", "{}/passt.sock", *options)
