"""What the host must have: accounts, programs, KVM; and what is the matter with it."""

from __future__ import annotations

import os
import platform
import pwd
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import process
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Iterable

SERVICE_USER = "agent-vm"
LIMA_MINIMUM = (2, 2, 0)
"""Older releases let the guest take the host's ssh port (CVE-2026-53657)."""
QEMU_TO_EMULATE = (8, 0, 0)
"""Debian 13 guests panic under the emulation of an older QEMU."""
QEMU_WITH_PASST = (7, 2, 0)
"""The first QEMU that can be joined to passt: -netdev stream (QEMU's ChangeLog/7.2)."""
PASST_MINIMUM = 20260728
"""The day of the oldest passt that a VM was seen to work with: that of 2023-03-09 (Debian 12) stops
to pass on what comes in, that of 2025-05-03 (Debian 13) crashes while the guest boots."""
PROXY = ("squid", "socat")
"""The programs of network.mode allowlist."""
DISK_WANTED = 10
"""GiB that should be free where the VM's disk lies."""
PATIENCE = 9.0
"""Seconds for a program to tell its version."""

_SETUP = "run `agent-vm setup`"
_LEAST = ".".join(str(number) for number in LIMA_MINIMUM)
_OUR_FOLDERS = ("~/.local/bin", "/usr/local/bin")  # where setup puts it, on PATH or not
_KVM_DEVICE = Path("/dev/kvm")
_SYSTEM_FOLDERS = "/usr/local/sbin:/usr/sbin:/sbin"  # not on the PATH of Debian's plain users

# How a guest of one instruction tells that it ran: a write of 0x21 to isa-debug-exit's port makes
# QEMU exit with (0x21 << 1) | 1; PSCI's SYSTEM_OFF makes it exit with 0, where a guest that does
# not run stays until the limit. Offsets are those of the first instruction after a reset.
_FIRMWARE = {
    "x86_64": (0xFFF0, bytes.fromhex("b021e6f4f4ebfd")),
    "aarch64": (0, bytes.fromhex("000180520080b072020000d400000014")),
}
_MACHINE = {
    "x86_64": ("q35", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"),
    "aarch64": ("virt,gic-version=max",),
}
_RAN = {"x86_64": 67, "aarch64": 0}


@dataclass(frozen=True)
class Kvm:
    works: bool
    reason: str


@dataclass(frozen=True)
class Check:
    """One thing the host must have; without a `required` one there is no VM at all."""

    name: str
    ok: bool
    required: bool
    detail: str
    fix: str = ""


def is_macos() -> bool:
    return platform.system() == "Darwin"


def uses_qemu(vm_type: str) -> bool:
    """Whether Lima runs such a VM by QEMU here; macOS has its own hypervisor."""
    return vm_type != "vz" and not is_macos()


def arch() -> str:
    """QEMU's name for this machine's architecture."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def cpus() -> int:
    """Count the processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory() -> int:
    """Tell the machine's memory in MiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20


def which(program: str) -> str | None:
    """Find the full path of a program, also where only root's PATH leads."""
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:{_SYSTEM_FOLDERS}")


def require(program: str) -> str:
    """Find the full path of a program; raises AgentVMError when it is not here."""
    found = which(program)
    if not found:
        raise AgentVMError(f"{program} is not installed", _SETUP)
    return found


def lacks(*programs: str) -> str:
    """Tell which of the programs are not here; nothing when all are."""
    missing = [program for program in programs if not which(program)]
    return f"not installed: {', '.join(missing)}" if missing else ""


def _our_folders() -> list[str]:
    """Where setup puts programs, on PATH or not."""
    return [str(Path(folder).expanduser()) for folder in _OUR_FOLDERS]


def service_user() -> str | None:
    """Name the account limactl and QEMU run as: None for our own.

    limactl refuses root, so root has a system user for it. Raises AgentVMError when it is missing.
    """
    if os.geteuid() != 0:
        return None
    if not account_exists():
        raise AgentVMError(
            "limactl does not run as root, and its account is missing",
            f"run `agent-vm setup`, which creates the system user {SERVICE_USER}",
        )
    return SERVICE_USER


def account_exists() -> bool:
    try:
        pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return False
    return True


def service_home() -> Path:
    """Find the home of the account limactl runs as."""
    user = service_user()
    return Path(pwd.getpwnam(user).pw_dir) if user else Path.home()


def limactl() -> str:
    """Find the full path of limactl; raises AgentVMError when there is none."""
    found = shutil.which(
        "limactl", path=os.pathsep.join([os.environ.get("PATH", ""), *_our_folders()])
    )
    if not found:
        raise AgentVMError("limactl (Lima) is not installed", _SETUP)
    return str(Path(found).absolute())


def lima_version(program: str | None = None) -> tuple[int, int, int]:
    """Lima's version, of `program` if given; raises AgentVMError when it does not tell one."""
    program = program or limactl()
    result = process.run(
        [program, "--version"], check=False, env=_environment(), cwd="/", timeout=PATIENCE,
        user=service_user(),
    )  # fmt: skip
    version = _version(result.stdout)
    if not result.ok or version is None:
        raise AgentVMError(f"{program} --version does not work: {result.reason}", _SETUP)
    return version


def _environment() -> dict[str, str]:
    """What a program gets that runs as the account of limactl: none of the user's API keys."""
    from . import lima

    return lima.environment()


def require_lima(program: str | None = None) -> None:
    """Raise AgentVMError unless there is a limactl (or `program` is one) that is new enough."""
    version = lima_version(program)
    if version < LIMA_MINIMUM:
        raise AgentVMError(
            f"Lima {dotted(version)} at {program or limactl()} is older than {_LEAST}",
            f"{_SETUP}, or upgrade Lima the way it was installed",
        )


def dotted(version: tuple[int, int, int]) -> str:
    return ".".join(str(number) for number in version)


def qemu_version() -> tuple[int, int, int] | None:
    """Ask for the version of this machine's QEMU; None when it is missing or broken."""
    qemu = shutil.which(f"qemu-system-{arch()}")
    if not qemu:
        return None
    try:
        return _version(process.run([qemu, "--version"], check=False, timeout=PATIENCE).stdout)
    except AgentVMError:
        return None


def qemu_joins_passt() -> bool:
    """Whether this machine's QEMU, if it tells its version, can be joined to passt."""
    return (qemu_version() or (0,)) >= QEMU_WITH_PASST


def passt() -> str | None:
    """Find the full path of passt; one that setup built goes first."""
    return shutil.which("passt", path=os.pathsep.join(_our_folders())) or which("passt")


def passt_day() -> int:
    """The day of this machine's passt as YYYYMMDD, which is its version; 0 without one."""
    program = passt()
    if not program:
        return 0
    day = re.search(r"(20\d\d)[_-]?(\d\d)[_-]?(\d\d)", _told_to_terminal([program, "--version"]))
    return int("".join(day.groups())) if day else 1


def _told_to_terminal(argv: list[str]) -> str:
    """What a program says whose words do not reach a pipe.

    passt 2025_05_03 prints its version and ends by _exit(2) without a flush (its conf.c).
    """
    ours, theirs = os.openpty()
    try:
        child = process.popen(argv, stdin=subprocess.DEVNULL, stdout=theirs)
    except AgentVMError:  # it does not even start
        os.close(ours)
        return ""
    finally:
        os.close(theirs)
    try:
        child.wait(PATIENCE)
        return os.read(ours, 1000).decode("utf-8", "replace")
    except (subprocess.TimeoutExpired, OSError):  # it says nothing
        process.kill(child)
        return ""
    finally:
        os.close(ours)
        process.close(child)


def has_contain_symlinks() -> bool:
    """Whether sshfs is there and keeps links inside the mount (CVE-2026-47187)."""
    sshfs = shutil.which("sshfs")
    if not sshfs:
        return False
    said = process.run([sshfs, "--help"], check=False, timeout=PATIENCE)
    return "contain_symlinks" in said.stdout + said.stderr


def kvm() -> Kvm:
    """Whether hardware virtualization works for the account that runs the VM.

    /dev/kvm can be there and useless (no permission, a broken nested KVM), so a guest of one
    instruction is really run. macOS brings its own hypervisor, which is not tried.
    """
    if is_macos():
        return Kvm(works=True, reason="macOS's own hypervisor")
    if trouble := kvm_device_trouble():
        return Kvm(works=False, reason=trouble)
    if qemu_version() is None:
        reason = "QEMU is not installed, or broken, so KVM could not be tried"
        return Kvm(works=False, reason=reason)
    return _boot("kvm", "host")


def kvm_device_trouble() -> str:
    """Why /dev/kvm cannot even be opened by the account that runs the VM; empty when it can."""
    device = str(_KVM_DEVICE)
    if not _KVM_DEVICE.exists():
        return f"there is no {device}"
    opens = ["test", "-r", device, "-a", "-w", device]
    user = service_user()
    if process.run(opens, check=False, env=_environment(), cwd="/", user=user).ok:
        return ""
    return f"{device} may not be opened by {user or 'this account'}"


def free_port() -> int:
    """A TCP port of the loopback at which nobody listens now."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free(ports: Iterable[int]) -> None:
    """Raise AgentVMError where a program listens at one of these ports of the loopback."""
    import socket

    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                raise AgentVMError(
                    f"the port {port} of network.ports cannot be had here: {error.strerror}",
                    "end what listens there, or take it out and make the VM anew",
                ) from None


def trusted_by_git(mount: Path) -> tuple[str, ...]:
    """List the safe.directory entries that would let the host's git run in the mount.

    git then obeys settings that the guest wrote, and those can name programs to run here.
    """
    if not shutil.which("git"):
        return ()
    argv = ["git", "config", "--type=path", "--get-all", "safe.directory"]
    entries: list[str] = []
    for line in process.run(argv, check=False, cwd="/").stdout.splitlines():
        entries = [*entries, line] if line else []  # an empty entry takes back those before it
    return tuple(entry for entry in entries if _covers(entry, mount))


def checks() -> list[Check]:
    """All that the host must have, with what to do about what is missing."""
    linux = () if is_macos() else (_qemu, _kvm, _passt, _proxy, _image_builder)
    each = (_account, _lima, *linux, _ssh, _git, _sshfs, _disk)
    return [check() for check in each]


def _account() -> Check:
    try:
        detail = f"limactl runs as {service_user() or pwd.getpwuid(os.geteuid()).pw_name}"
    except AgentVMError as error:
        return Check("account", ok=False, required=True, detail=error.message, fix=error.hint)
    except KeyError:
        detail = f"user id {os.geteuid()} has no entry in /etc/passwd; limactl and ssh need one"
        return Check("account", ok=False, required=True, detail=detail, fix="add the account")
    return Check("account", ok=True, required=True, detail=detail)


def _lima() -> Check:
    try:
        require_lima()
        detail = f"{dotted(lima_version())} at {limactl()}"
    except AgentVMError as error:
        return Check("lima", ok=False, required=True, detail=error.message, fix=error.hint)
    return Check("lima", ok=True, required=True, detail=detail)


def _qemu() -> Check:
    version = qemu_version()
    if version is None or not which("qemu-img"):
        detail = f"qemu-system-{arch()} or qemu-img is not installed, or tells no version"
        return Check("qemu", ok=False, required=True, detail=detail, fix=_SETUP)
    if version >= QEMU_TO_EMULATE or _quiet_kvm().works:
        return Check("qemu", ok=True, required=True, detail=dotted(version))
    detail = f"{dotted(version)} is too old to emulate a Debian 13 guest, and KVM does not work"
    fix = f"install QEMU {QEMU_TO_EMULATE[0]} or newer (`agent-vm setup` knows Debian), or mend KVM"
    return Check("qemu", ok=False, required=True, detail=detail, fix=fix)


def _kvm() -> Check:
    found = _quiet_kvm()
    fix = "turn virtualization on in the firmware or the outer machine"
    if "opened" in found.reason:
        fix = "`sudo usermod -aG kvm $USER`, then log in again"
        if os.geteuid() == 0:
            fix = f"let {SERVICE_USER} open it (group kvm; `agent-vm setup` adds the account)"
    fix += "; until then QEMU emulates: slow, and no security boundary"
    return Check("kvm", found.works, required=False, detail=found.reason,
                 fix="" if found.works else fix)  # fmt: skip


def _quiet_kvm() -> Kvm:
    try:
        return kvm()
    except AgentVMError as error:
        return Kvm(works=False, reason=error.message)


def _passt() -> Check:
    day = passt_day()
    detail = "not installed" if not day else f"of {day}" if day > 1 else "of unknown age"
    if usable := day >= PASST_MINIMUM:
        return Check("passt", usable, required=False, detail=detail)
    fix = f"{_SETUP}; without a newer one the VM reaches services of this machine"
    return Check("passt", usable, required=False, detail=detail, fix=fix)


def _proxy() -> Check:
    lack = lacks(*PROXY)
    fix = f"{_SETUP}; needed only for network.mode allowlist" if lack else ""
    return Check("proxy", not lack, required=False, detail=lack or " and ".join(PROXY), fix=fix)


def _image_builder() -> Check:
    lack = lacks("mmdebstrap", "mke2fs")
    fix = f"{_SETUP}; needed only where Debian's cloud images cannot be had" if lack else ""
    detail = lack or "mmdebstrap and mke2fs"
    return Check("image builder", not lack, required=False, detail=detail, fix=fix)


def _ssh() -> Check:
    lack = lacks("ssh", "ssh-keygen")
    detail = lack or which("ssh") or ""
    return Check("ssh", not lack, required=True, detail=detail, fix=_SETUP if lack else "")


def _git() -> Check:
    git = which("git")
    detail = git or "git is not installed"
    return Check("git", bool(git), required=True, detail=detail, fix="" if git else _SETUP)


def _sshfs() -> Check:
    fix = "install macFUSE and sshfs 3.7.6 or newer" if is_macos() else _SETUP
    keeps, broken = _quiet_sshfs()
    if broken:
        problem = broken
    elif not which("sshfs"):
        problem = "sshfs is not installed"
    elif not keeps:
        problem = "sshfs has no contain_symlinks (CVE-2026-47187): links could open host files"
    elif not is_macos() and not Path("/dev/fuse").exists():
        problem, fix = "there is no /dev/fuse", "run `modprobe fuse` as root"
    else:
        return Check("sshfs", ok=True, required=False, detail="keeps links inside the mount")
    fix += "; only the mount needs it"
    return Check("sshfs", ok=False, required=False, detail=problem, fix=fix)


def _quiet_sshfs() -> tuple[bool, str]:
    """Whether sshfs keeps links inside the mount, and why it cannot be asked."""
    try:
        return has_contain_symlinks(), ""
    except AgentVMError as error:
        return False, error.message


def room(place: Path) -> int:
    """MiB that are free where a folder is, or will be."""
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free // 2**20


def _disk() -> Check:
    try:
        place = Path(os.environ.get("LIMA_HOME") or service_home())
    except AgentVMError:
        place = Path("/var")
    free = room(place) // 1024
    detail, enough = f"{free} GiB free at {place}", free >= DISK_WANTED
    fix = "" if enough else f"make room: a VM grows to {DISK_WANTED} GiB soon"
    return Check("disk", enough, required=False, detail=detail, fix=fix)


def _boot(accel: str, cpu: str) -> Kvm:
    """Run the guest of one instruction, as the account that will run the VM."""
    machine = arch()
    if machine not in _FIRMWARE:
        return Kvm(works=False, reason=f"KVM on {machine} is not supported")
    import tempfile

    with tempfile.NamedTemporaryFile(prefix="agent-vm-kvm-") as file:
        offset, code = _FIRMWARE[machine]
        file.write((bytes(offset) + code).ljust(65536, b"\0"))
        file.flush()
        Path(file.name).chmod(0o644)
        argv = [f"qemu-system-{machine}", "-accel", accel, "-cpu", cpu, "-nodefaults",
                "-display", "none", "-no-reboot", "-bios", file.name,
                "-machine", *_MACHINE[machine]]  # fmt: skip
        try:
            result = process.run(argv, check=False, env=_environment(), cwd="/", timeout=5,
                                 user=service_user())  # fmt: skip
        except AgentVMError:
            return Kvm(works=False, reason="/dev/kvm opens, but a guest does not run on it")
    if result.status == _RAN[machine]:
        return Kvm(works=True, reason="a guest ran on it")
    reason = (result.stderr.strip() or result.reason).splitlines()[0].removeprefix(f"{argv[0]}: ")
    return Kvm(works=False, reason=f"/dev/kvm opens, but QEMU fails on it: {reason}")


def _covers(entry: str, mount: Path) -> bool:
    """Whether a safe.directory entry (git-config(1)) matches the mount or a repository in it.

    "." matches wherever git starts at the top of a repository. Nothing in the mount is looked at:
    that may hang.
    """
    if entry in {"*", "."}:
        return True
    below = entry.endswith("/*")
    place = Path(os.path.normpath("/" + entry.removesuffix("*" if below else "").lstrip("/")))
    if not place.is_relative_to(mount):
        place = Path(os.path.realpath(place))
    return place.is_relative_to(mount) or (below and mount.is_relative_to(place))


def _version(text: str) -> tuple[int, int, int] | None:
    found = re.search(r"\bv?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None
