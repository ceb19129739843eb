"""What the host is found to have, and what is said about what it lacks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_vm_tasks import host
from agent_vm_tasks.errors import AgentVMError

from .programs import calls, only_tools, script

QEMU = f"qemu-system-{host.arch()}"
linux_only = pytest.mark.skipif(host.is_macos(), reason="Linux only")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is, with plain shell tools, all of PATH; the account is a plain user's."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{only_tools(tmp_path / 'tools', 'git')}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(host, "_SYSTEM_FOLDERS", "")
    monkeypatch.setattr(host, "_OUR_FOLDERS", ("~/.local/bin",))
    return folder


def by_name(name: str) -> host.Check:
    return next(check for check in host.checks() if check.name == name)


def test_a_plain_user_runs_limactl_as_themselves(programs: Path, tmp_path: Path) -> None:
    assert host.service_user() is None
    assert host.service_home() == tmp_path / "home"


def test_root_without_the_account_is_sent_to_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "SERVICE_USER", "nobody-of-that-name")
    with pytest.raises(AgentVMError, match=r"root.*`agent-vm setup`"):
        host.service_user()
    assert not by_name("account").ok


def test_limactl_on_path_comes_before_our_own(programs: Path, tmp_path: Path) -> None:
    ours = tmp_path / "home/.local/bin"
    ours.mkdir(parents=True)
    script(ours, "limactl")
    assert host.limactl() == str(ours / "limactl")
    script(programs, "limactl")
    assert host.limactl() == str(programs / "limactl")


def test_missing_lima_is_sent_to_setup(programs: Path) -> None:
    with pytest.raises(AgentVMError, match=r"not installed; run `agent-vm setup`"):
        host.require_lima()
    check = by_name("lima")
    assert (check.ok, check.required) == (False, True)


@pytest.mark.parametrize("said", ["2.2.0", "v2.2.0", "2.2.0-153-g183a60d7", "3.0"])
def test_lima_of_the_wanted_version_is_taken(programs: Path, said: str) -> None:
    script(programs, "limactl", f"echo limactl version {said}")
    host.require_lima()
    assert by_name("lima").ok


@pytest.mark.parametrize("said", ["2.1.4", "1.1.1", "0.9"])
def test_older_lima_is_refused_by_version_and_place(programs: Path, said: str) -> None:
    script(programs, "limactl", f"echo limactl version {said}")
    with pytest.raises(AgentVMError, match=rf"Lima {said}.* at {programs}/limactl is older"):
        host.require_lima()


@pytest.mark.parametrize("body", ["echo broken >&2; exit 1", "echo nothing of use"])
def test_limactl_that_tells_no_version_is_an_error(programs: Path, body: str) -> None:
    script(programs, "limactl", body)
    with pytest.raises(AgentVMError, match="--version does not work"):
        host.lima_version()


def test_limactl_that_hangs_is_given_up(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(programs, "limactl", "sleep 60")
    monkeypatch.setattr(host, "PATIENCE", 0.2)
    with pytest.raises(AgentVMError, match="no answer"):
        host.lima_version()


@given(st.tuples(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99)), st.text(max_size=20))
def test_versions_are_read_out_of_any_line(version: tuple[int, int, int], after: str) -> None:
    line = f"QEMU emulator version {host.dotted(version)} (Debian 1:{after})"
    assert host._version(line) == version


def test_qemu_version(programs: Path) -> None:
    assert host.qemu_version() is None
    script(programs, QEMU, 'echo "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)"')
    assert host.qemu_version() == (7, 2, 22)


def test_sshfs_must_know_contain_symlinks(programs: Path) -> None:
    assert not host.has_contain_symlinks()
    script(programs, "sshfs", "echo '-o follow_symlinks'")
    assert not host.has_contain_symlinks()
    assert "CVE-2026-47187" in by_name("sshfs").detail
    script(programs, "sshfs", "echo '-o contain_symlinks' >&2; exit 1")
    assert host.has_contain_symlinks()


@pytest.fixture
def device(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of /dev/kvm that everyone may open."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(host, "_KVM_DEVICE", device)
    return device


@linux_only
@pytest.mark.skipif(not shutil.which(QEMU), reason="needs QEMU")
def test_the_guest_of_one_instruction_runs_where_something_can_run_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert host._boot("tcg", "max").works
    assert not host._boot("no-such-accelerator", "max").works


@linux_only
def test_kvm_works_when_the_guest_ran(device: Path, programs: Path) -> None:
    script(programs, QEMU, f"case $* in *--version) echo version 10.0;; *) exit {ran()};; esac")
    assert host.kvm().works
    assert "-accel kvm -cpu host" in calls(programs)[-1]


@linux_only
def test_kvm_that_only_opens_does_not_work(device: Path, programs: Path) -> None:
    broken = f"echo '{QEMU}: error: failed to set MSR 0x10a' >&2; kill -ABRT $$"
    script(programs, QEMU, f"case $* in *--version) echo version 10.0;; *) {broken};; esac")
    found = host.kvm()
    assert not found.works
    assert found.reason.endswith("error: failed to set MSR 0x10a")


@linux_only
def test_kvm_is_not_used_without_qemu_or_device(device: Path, programs: Path) -> None:
    assert "QEMU is not installed" in host.kvm().reason
    device.unlink()
    assert host.kvm() == host.Kvm(works=False, reason=f"there is no {device}")


@linux_only
def test_kvm_without_permission_says_so(device: Path, programs: Path) -> None:
    script(programs, "test", "exit 1")  # a device of mode 0 would stop nobody who is root
    assert "may not be opened" in host.kvm().reason
    assert "usermod -aG kvm" in by_name("kvm").fix


@linux_only
def test_old_qemu_will_do_only_with_kvm(device: Path, programs: Path) -> None:
    script(programs, "qemu-img")
    script(programs, QEMU, f"case $* in *--version) echo version 7.2;; *) exit {ran()};; esac")
    assert by_name("qemu").ok
    script(programs, QEMU, "case $* in *--version) echo version 7.2;; *) exit 1;; esac")
    check = by_name("qemu")
    assert (check.ok, check.required) == (False, True)
    assert "too old to emulate" in check.detail


def test_macos_brings_its_own_hypervisor(monkeypatch: pytest.MonkeyPatch, programs: Path) -> None:
    monkeypatch.setattr(host, "is_macos", lambda: True)
    assert host.kvm().works
    assert not {"qemu", "kvm", "image builder"} & {check.name for check in host.checks()}
    assert "macFUSE" in by_name("sshfs").fix


@pytest.mark.parametrize(
    ("entries", "covering"),
    [
        (["*"], ["*"]),
        (["{mount}"], ["{mount}"]),
        (["{mount}/app-main"], ["{mount}/app-main"]),
        (["{home}/*"], ["{home}/*"]),
        (["{home}/src/app"], []),
        (["{home}"], []),
        (["{mount}-of-another-tool"], []),
        (["/*"], ["/*"]),
        (["."], ["."]),
        (["/{mount}//app/../*"], ["/{mount}//app/../*"]),
        (["{mount}/link"], ["{mount}/link"]),
        (["{home}/link"], ["{home}/link"]),
        (["{home}/link/*"], ["{home}/link/*"]),
        (["~/.agent-vm-mounts/workspace/app-main"], ["{mount}/app-main"]),
        (["{home}/src/*"], []),
        (["src", "*", ""], []),
        ([], []),
    ],
)
def test_git_trust_in_the_mount(
    entries: list[str], covering: list[str], programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(os.environ["HOME"])
    home.mkdir()
    (home / "link").symlink_to(".agent-vm-mounts/workspace")
    mount = home / ".agent-vm-mounts/workspace"
    mount.mkdir(parents=True)
    (mount / "link").symlink_to("/")  # the guest's, which is not followed
    names = {"home": str(home), "mount": str(mount)}
    lines = "".join(f'  directory = "{entry.format(**names)}"\n' for entry in entries)
    (home / ".gitconfig").write_text(f"[safe]\n{lines}", "utf-8")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    assert list(host.trusted_by_git(mount)) == [entry.format(**names) for entry in covering]


def test_git_that_is_missing_trusts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host.trusted_by_git(tmp_path) == ()


def test_little_room_is_a_warning(monkeypatch: pytest.MonkeyPatch, programs: Path) -> None:
    monkeypatch.setattr(host, "DISK_WANTED", 10**9)
    check = by_name("disk")
    assert (check.ok, check.required) == (False, False)


@linux_only
def test_the_machine_is_measured_in_the_units_promised() -> None:
    total = Path("/proc/meminfo").read_text("utf-8").split()[1]
    assert abs(host.memory() - int(total) // 1024) <= 1
    assert 1 <= host.cpus() <= (os.cpu_count() or 1)


def test_everything_that_is_wrong_says_what_to_do(programs: Path) -> None:
    wrong = [check for check in host.checks() if not check.ok]
    assert {"lima", "ssh"} <= {check.name for check in wrong}
    assert all(check.fix and check.detail for check in wrong)


@linux_only
def test_what_runs_as_the_account_of_limactl_gets_no_secrets(
    device: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "secret")
    for name in ("limactl", "test"):
        script(programs, name, f"env > {programs}/{name}.env; echo version 2.2.0")
    boots = f"case $* in *--version) echo version 10.0;; *) env > {programs}/qemu.env;; esac"
    script(programs, QEMU, boots)
    host.lima_version()
    host.kvm()
    for name in ("limactl", "test", "qemu"):
        lines = (programs / f"{name}.env").read_text("utf-8").splitlines()
        assert f"HOME={os.environ['HOME']}" in lines
        assert "ANTHROPIC_API_KEY=secret" not in lines


BROKEN = {"hangs": "exec sleep 60", "cut off": None}


@linux_only
@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("program", [QEMU, "passt", "sshfs"])
def test_a_broken_program_is_one_line_of_all(
    device: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, program: str, how: str
) -> None:
    monkeypatch.setattr(host, "PATIENCE", 0.2)
    script(programs, "qemu-img")
    script(programs, program, BROKEN[how] or "")
    if not BROKEN[how]:
        (programs / program).write_bytes(b"\x7fELF")
    names = [check.name for check in host.checks() if not check.ok]
    assert {QEMU: "qemu"}.get(program, program) in names
    assert names[-1] in {"sshfs", "disk"}


@linux_only
def test_a_passt_that_does_not_start_is_none_that_will_do(programs: Path) -> None:
    script(programs, "passt").write_bytes(b"\x7fELF")
    open_files = len(list(Path("/proc/self/fd").iterdir()))
    assert 0 < host.passt_day() < host.PASST_MINIMUM
    assert len(list(Path("/proc/self/fd").iterdir())) == open_files


def ran() -> int:
    return host._RAN[host.arch()]
