"""What setup installs, which commands it tells, and what it says when one fails."""

from __future__ import annotations

import os
import platform
import time
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import host, install, install_lima
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.settings import Packages

from .programs import calls, only_tools, script

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(host.is_macos(), reason="Linux packages")

QEMU_10 = "echo QEMU emulator version 10.0.2"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
APT = "apt-get -o DPkg::Lock::Timeout=120"
INSTALL = f"{APT} install -y --no-install-recommends"


class Told(list[str]):
    """What the user was told, line by line."""

    def __call__(self, line: str) -> None:
        self.append(line)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Debian 12 of root's on x86-64, without KVM, that lacks nothing; its programs' folder."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for name in ("git", "ssh", "ssh-keygen", "qemu-img", "mmdebstrap", "mke2fs", "newuidmap",
                 "squid", "socat"):  # fmt: skip
        script(folder, name)
    script(folder, "passt", "echo passt 0.0~git20260728.f8df3f1")
    script(folder, "limactl", "echo limactl version 2.2.0")
    script(folder, "sshfs", "echo contain_symlinks")
    script(folder, "qemu-system-x86_64", QEMU_10)
    script(folder, "apt-get")
    monkeypatch.setenv("PATH", f"{folder}:{only_tools(tmp_path / 'tools')}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(host, "_SYSTEM_FOLDERS", "")
    monkeypatch.setattr(host, "_OUR_FOLDERS", ())
    monkeypatch.setattr(host, "_KVM_DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(host, "service_user", lambda: None)
    monkeypatch.setattr(host, "account_exists", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(install, "_BACKPORTS", str(tmp_path / "backports.sources"))
    debian(monkeypatch, "bookworm")
    return folder


def debian(monkeypatch: pytest.MonkeyPatch, codename: str) -> None:
    release = {"ID": "debian", "VERSION_CODENAME": codename}
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: release)


def installs(machine: Path, **programs: str) -> None:
    """Let apt-get install these: name=body."""
    copies = []
    for name, body in programs.items():
        new = script(machine, f"{name}.new", body)
        copies.append(f'cp "{new}" "{machine}/{name.replace("_x86", "-x86")}"')
    script(machine, "apt-get", f"case $* in *install*) {'; '.join(copies)};; esac")


def plain_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)


def changes(machine: Path) -> list[str]:
    """The calls that change the machine, and those to sudo."""
    return [call for call in calls(machine) if call.startswith((APT, "sudo", "useradd"))]


def test_nothing_is_done_where_nothing_is_missing(machine: Path, told: Told) -> None:
    began = time.monotonic()
    checks = install.setup(Packages(), told)
    assert time.monotonic() - began < 2
    assert (told, changes(machine)) == ([], [])
    assert all(check.ok for check in checks if check.required)


def test_what_is_missing_is_installed_and_told_before(machine: Path, told: Told) -> None:
    (machine / "mmdebstrap").unlink()
    (machine / "sshfs").unlink()
    installs(machine, mmdebstrap="", sshfs="echo contain_symlinks")
    install.setup(Packages(), told)
    assert changes(machine) == [f"{APT} update", f"{INSTALL} mmdebstrap sshfs"]
    assert told == [f"$ {command}" for command in changes(machine)]


@pytest.mark.parametrize(("qemu", "wanted"), [("6.2.0", False), ("7.2.0", True)])
def test_passt_is_for_a_qemu_that_can_be_joined_to_it(
    machine: Path, monkeypatch: pytest.MonkeyPatch, told: Told, *, qemu: str, wanted: bool
) -> None:
    monkeypatch.setattr(host, "kvm", lambda: host.Kvm(works=True, reason=""))
    debian(monkeypatch, "forky")
    script(machine, "qemu-system-x86_64", f"echo QEMU emulator version {qemu}")
    (machine / "passt").unlink()
    installs(machine, passt="echo passt 0.0~git20261002.cba3570-1")
    checks = {check.name: check.ok for check in install.setup(Packages(), told)}
    assert (f"{INSTALL} passt" in changes(machine)) == checks["passt"] == wanted


def test_debians_own_squid_is_not_started(
    machine: Path, told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tmp_path / "policy-rc.d"
    monkeypatch.setattr(
        install, "_UNSTARTED", install._UNSTARTED.replace("/usr/sbin", str(tmp_path))
    )
    (machine / "squid").unlink()
    script(machine, "squid-installed")
    script(machine, "apt-get", f"case $* in *squid) sh {policy}; [ $? = 101 ] && "
           f"mv {machine}/squid-installed {machine}/squid;; esac")  # fmt: skip
    script(machine, "update-rc.d")
    install.setup(Packages(), told)
    assert changes(machine) == [f"{APT} update", f"{INSTALL} squid"]
    assert (machine / "squid").exists()
    assert "update-rc.d squid disable" in calls(machine)
    assert not policy.exists()


@pytest.fixture
def old_passt(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Debian 13 with a compiler; its apt gives out a source whose make makes a new passt."""
    debian(monkeypatch, "trixie")
    monkeypatch.setattr(host, "_OUR_FOLDERS", (str(tmp_path / ".local/bin"),))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    script(machine, "passt", "echo passt 0.0~git20250503.587980c-2")
    for name in ("gcc", "gencat"):
        script(machine, name)
    new = """for name in passt passt.avx2; do
        printf '#!/bin/sh\\necho passt %s\\n' "${5#*=}" > "$2/$name"; done"""
    script(machine, "make", new)
    source = "passt_0.0~git20260728.f8df3f1.orig.tar.xz"
    apt = f"""case $* in
        *indextargets*) echo "Debian|trixie|http://mirror.example/debian|/d.list:1";;
        *--tar-only*) mkdir src; touch src/Makefile; tar -cf {source} src;;
        esac"""
    script(machine, "apt-get", apt)
    return machine


def test_a_passt_that_crashes_is_built_anew(old_passt: Path, told: Told) -> None:
    checks = {check.name: check for check in install.setup(Packages(), told)}
    assert (checks["passt"].ok, checks["passt"].detail) == (True, "of 20260728")
    assert changes(old_passt) == []
    before = len(told)
    install.setup(Packages(), told)
    assert len(told) == before


def test_without_the_source_there_is_a_vm_but_its_network_is_open(
    old_passt: Path, told: Told
) -> None:
    script(old_passt, "make", "echo no space left on device >&2; exit 1")
    checks = {check.name: check for check in install.setup(Packages(), told)}
    assert (checks["passt"].ok, checks["passt"].required) == (False, False)
    assert "  passt could not be built: make failed: the disk is full" in " ".join(told)


def test_building_passt_wants_a_compiler(old_passt: Path, told: Told) -> None:
    (old_passt / "gencat").unlink()
    with pytest.raises(AgentVMError, match="not all could be installed"):
        install.setup(Packages(), told)
    assert f"  {INSTALL} libc6-dev" in told


def test_a_second_run_does_nothing(machine: Path, told: Told) -> None:
    (machine / "git").unlink()
    installs(machine, git="")
    install.setup(Packages(), told)
    done = changes(machine)
    install.setup(Packages(), told)
    assert changes(machine) == done


def test_sshfs_without_contain_symlinks_is_brought_up_to_date(machine: Path, told: Told) -> None:
    script(machine, "sshfs", "echo old")
    installs(machine, sshfs="echo contain_symlinks")
    install.setup(Packages(), told)
    assert f"{INSTALL} sshfs" in changes(machine)


def test_a_package_that_stays_too_old_is_tried_once(machine: Path, told: Told) -> None:
    script(machine, "sshfs", "echo old")
    checks = install.setup(Packages(), told)
    assert len(changes(machine)) == 2
    assert next(check for check in checks if check.name == "sshfs").ok is False


@pytest.fixture
def old_debian(machine: Path, tmp_path: Path) -> Path:
    """Debian 12 without QEMU; its apt answers where it takes bookworm and backports from."""
    (machine / "qemu-system-x86_64").unlink()
    (tmp_path / "debian.list").write_text(
        f"deb [arch=amd64 signed-by={KEYRING}] http://mirror.example/debian bookworm main\n",
        "utf-8",
    )
    new = script(machine, "qemu.new", QEMU_10)
    script(
        machine,
        "apt-get",
        f"""case $* in
        *indextargets*)
            echo "Some Vendor|bookworm|http://vendor.example/|/vendor.list:1"
            [ ! -e "{tmp_path}/listed" ] || echo "Debian Backports|bookworm-backports|http://b/|/b:1"
            echo "Debian|bookworm|http://mirror.example/debian/|{tmp_path}/debian.list:1";;
        *install*) cp "{new}" "{machine}/qemu-system-x86_64";;
        esac""",
    )
    return machine


def test_backports_come_from_the_hosts_own_archive(
    old_debian: Path, tmp_path: Path, told: Told
) -> None:
    install.setup(Packages(), told)
    assert (tmp_path / "backports.sources").read_text("utf-8").splitlines() == [
        "Types: deb",
        "URIs: http://mirror.example/debian/",
        "Suites: bookworm-backports",
        "Components: main",
        f"Signed-By: {KEYRING}",
    ]
    assert changes(old_debian) == [
        f"{APT} update",
        f"{APT} update",
        f"{INSTALL} -t bookworm-backports qemu-system-x86 qemu-utils",
    ]


def test_backports_that_apt_knows_are_not_added_again(
    old_debian: Path, tmp_path: Path, told: Told
) -> None:
    (tmp_path / "listed").touch()
    install.setup(Packages(), told)
    assert not (tmp_path / "backports.sources").exists()
    assert "-t bookworm-backports" in changes(old_debian)[-1]


def test_debian_13_needs_no_backports(
    old_debian: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    debian(monkeypatch, "trixie")
    install.setup(Packages(), told)
    assert changes(old_debian) == [f"{APT} update", f"{INSTALL} qemu-system-x86"]


def test_qemu_from_debian_12_is_replaced_when_kvm_turns_out_broken(
    old_debian: Path, tmp_path: Path, told: Told
) -> None:
    (tmp_path / "kvm").touch()
    old = script(old_debian, "qemu.old", "echo version 7.2.0; case $* in *kvm*) exit 1; esac")
    new = script(old_debian, "qemu.new", QEMU_10)
    (tmp_path / "listed").touch()
    script(
        old_debian,
        "apt-get",
        f"""case $* in
        *indextargets*) echo "Debian Backports|bookworm-backports|http://b/|/b:1";;
        *backports*) cp "{new}" "{old_debian}/qemu-system-x86_64";;
        *install*) cp "{old}" "{old_debian}/qemu-system-x86_64";;
        esac""",
    )
    install.setup(Packages(), told)
    assert [call for call in changes(old_debian) if "install" in call] == [
        f"{INSTALL} qemu-system-x86",
        f"{INSTALL} -t bookworm-backports qemu-system-x86 qemu-utils",
    ]
    assert host.qemu_version() == (10, 0, 2)


def test_without_root_and_sudo_the_commands_are_told_and_not_run(
    machine: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    plain_user(monkeypatch)
    (machine / "git").unlink()
    with pytest.raises(AgentVMError, match=r"listed, then `agent-vm setup` again") as caught:
        install.setup(Packages(), told)
    assert caught.value.status == 1
    assert told == ["as root:", f"  {APT} update", f"  {INSTALL} git"]
    assert changes(machine) == []


def test_sudo_that_asks_nothing_is_used(
    machine: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    plain_user(monkeypatch)
    (machine / "git").unlink()
    script(machine, "sudo", 'shift; exec "$@"')
    installs(machine, git="")
    install.setup(Packages(), told)
    assert told == [f"$ sudo -n {APT} update", f"$ sudo -n {INSTALL} git"]
    assert "apt-get -o DPkg::Lock::Timeout=120 update" in calls(machine)


def test_sudo_that_would_ask_nobody_is_not_used(
    machine: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    plain_user(monkeypatch)
    (machine / "git").unlink()
    script(machine, "sudo", "exit 1")
    with pytest.raises(AgentVMError, match="listed"):
        install.setup(Packages(), told)
    assert "as root:" in told


def test_other_systems_are_told_what_to_install(machine: Path, told: Told) -> None:
    (machine / "apt-get").unlink()
    (machine / "sshfs").unlink()
    (machine / "mmdebstrap").unlink()
    with pytest.raises(AgentVMError, match="do what is listed"):
        install.setup(Packages(), told)
    assert told == ["install, with this system's package manager: sshfs"]


@pytest.mark.parametrize(
    ("update", "failure", "meaning"),
    [
        (
            "W: Failed to fetch http://x/InRelease  Temporary failure resolving 'x'",
            "E: Unable to locate package git",
            r"the network does not answer; check .* then `agent-vm setup` again",
        ),
        ("", "E: You don't have enough free space in /var/cache/apt/archives/.", "disk is full"),
        ("", "E: Could not get lock /var/lib/dpkg/lock-frontend", "another package manager"),
        ("", "E: something that nobody knows", "E: something that nobody knows; see above"),
    ],
)
def test_a_failing_package_manager_is_put_in_one_line(
    machine: Path, told: Told, update: str, failure: str, meaning: str
) -> None:
    (machine / "git").unlink()
    body = f'case $* in *install*) echo "{failure}" >&2; exit 100;; *) echo "{update}" >&2;; esac'
    script(machine, "apt-get", body)
    with pytest.raises(AgentVMError, match=f"apt-get failed: .*{meaning}") as caught:
        install.setup(Packages(), told)
    assert "\n" not in str(caught.value)


def test_root_gets_the_account_that_runs_limactl(
    machine: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    monkeypatch.setattr(host, "account_exists", lambda: False)
    script(machine, "useradd")
    install.setup(Packages(), told)
    assert changes(machine) == [
        "useradd --system --create-home --home-dir /var/lib/agent-vm "
        "--shell /usr/sbin/nologin agent-vm"
    ]


def test_the_account_joins_the_group_of_kvm(
    machine: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    monkeypatch.setattr(install, "_kvm_group_lacks", lambda user: user == "agent-vm")
    script(machine, "usermod")
    install.setup(Packages(), told)
    assert "usermod --append --groups kvm agent-vm" in calls(machine)


def test_a_failing_lima_still_leaves_the_commands_told(
    machine: Path, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    plain_user(monkeypatch)
    (machine / "git").unlink()

    def fails(*_: object) -> None:
        raise AgentVMError("Lima could not be installed")

    monkeypatch.setattr(install_lima, "install", fails)
    with pytest.raises(AgentVMError, match="Lima could not"):
        install.setup(Packages(), told)
    assert f"  {INSTALL} git" in told
