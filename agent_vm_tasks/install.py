"""Installing what the host must have. Each command is told before it runs."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from . import host, install_lima, install_passt, process, steps
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .console import Say
    from .settings import Packages

_APT = ("apt-get", "-o", "DPkg::Lock::Timeout=120")
_BACKPORTS = "/etc/apt/sources.list.d/agent-vm-backports.sources"

_UNSTARTED = """
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\\nexit 101\\n' > $policy
    chmod 755 $policy
fi
"$@" && update-rc.d squid disable
"""
"""Installs squid by the words it is given, without Debian's own service: each VM has its own."""


def setup(packages: Packages, say: Say) -> list[host.Check]:
    """Install what is missing and return what `doctor` then finds.

    Without a way to become root the commands for it are told instead. Raises AgentVMError when
    something could not be installed; what is there already stays.
    """
    if os.geteuid() == 0:
        _account(say)
    left_to_do = _packages(say)
    try:
        install_lima.install(packages, say)
        if not left_to_do and install_passt.wanted(_codename()):
            install_passt.install(_archive("passt")[0], say)
    finally:
        for line in left_to_do:
            say(line)
    if left_to_do:
        raise AgentVMError("not all could be installed", f"do what is listed, {steps.AGAIN}")
    return host.checks()


def _account(say: Say) -> None:
    """Make the system user that runs limactl, and let it use KVM."""
    if host.is_macos():
        raise AgentVMError("on macOS setup does not run as root", "run it as yourself")
    user = host.SERVICE_USER
    if not host.account_exists():
        home = f"/var/lib/{user}"
        useradd = host.which("useradd") or "useradd"
        steps.run([useradd, "--system", "--create-home", "--home-dir", home,
                   "--shell", "/usr/sbin/nologin", user], say)  # fmt: skip
    if _kvm_group_lacks(user):
        steps.run([host.which("usermod") or "usermod", "--append", "--groups", "kvm", user], say)


def _kvm_group_lacks(user: str) -> bool:
    """Whether the group kvm has the say over /dev/kvm and the account is not in it."""
    import grp

    device = Path("/dev/kvm")
    if not device.exists():
        return False
    try:
        group = grp.getgrgid(device.stat().st_gid)
    except KeyError:
        return False
    return group.gr_name == "kvm" and user not in group.gr_mem


def _packages(say: Say) -> list[str]:
    """Install system packages; returns what is left to do for a person, as lines to show."""
    tried = None
    while (plan := (_wanted(), _backports())) != tried and plan[0]:
        if not host.which("apt-get"):
            return [f"install, with this system's package manager: {', '.join(plan[0])}"]
        root = _becoming_root()
        if root is None:
            return ["as root:", *(f"  {shlex.join(argv)}" for argv in _apt_commands(*plan))]
        said = ""
        for argv in _apt_commands(*plan):
            said += steps.run([*root, *argv], say, said).stderr
        tried = plan  # with QEMU there, KVM can be tried, and QEMU may turn out too old
    return []


def _wanted() -> list[str]:
    """Debian's names of the packages that are missing or too old."""
    if host.is_macos():
        return []
    arm = host.arch() == "aarch64"
    qemu = ["qemu-system-arm", "qemu-efi-aarch64"] if arm else ["qemu-system-x86"]
    builder = {"mmdebstrap": "mmdebstrap", "e2fsprogs": "mke2fs"}
    if os.geteuid() != 0:
        builder["uidmap"] = "newuidmap"  # mmdebstrap without root
    programs = {"openssh-client": "ssh-keygen", "git": "git", "qemu-utils": "qemu-img",
                "squid": "squid", "socat": "socat"}  # fmt: skip
    if install_passt.wanted(_codename()):
        programs |= install_passt.COMPILER
    elif _codename() not in install_passt.BUILT_ON and host.qemu_joins_passt():
        programs["passt"] = "passt"
    programs |= builder if host.which("apt-get") else {}
    missing = [package for package, program in programs.items() if not host.which(program)]
    if not host.has_contain_symlinks():
        missing.append("sshfs")
    return [*(qemu if _lacks_qemu() else []), *missing]


def _lacks_qemu() -> bool:
    version = host.qemu_version()
    return version is None or (version < host.QEMU_TO_EMULATE and not host.kvm().works)


def _apt_commands(wanted: Sequence[str], backports: str) -> Iterator[list[str]]:
    """Yield what installs the packages; each command counts on those before it having run."""
    install = [*_APT, "install", "-y", "--no-install-recommends"]
    yield [*_APT, "update"]
    if backports:
        if not _sources(backports):
            lines = _backports_entry(backports)
            yield ["sh", "-c", f'printf "%s\\n" "$@" > {_BACKPORTS}', "sh", *lines]
            yield [*_APT, "update"]
        qemu = [package for package in wanted if package.startswith("qemu-")]
        yield [*install, "-t", backports, *dict.fromkeys([*qemu, "qemu-utils"])]
        wanted = [package for package in wanted if package not in qemu]
    if "squid" in wanted:
        yield ["sh", "-c", _UNSTARTED, "sh", *install, "squid"]
    if rest := [package for package in wanted if package != "squid"]:
        yield [*install, *rest]


def _backports() -> str:
    """Name the suite to take QEMU from when Debian 12's own is too old for what it must do.

    Before there is a QEMU only the device file can tell whether it must emulate.
    """
    if host.is_macos() or _codename() != "bookworm" or not _lacks_qemu():
        return ""
    untried = host.qemu_version() is None and not host.kvm_device_trouble()
    return "" if untried else "bookworm-backports"


def _codename() -> str:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        return ""
    return release.get("VERSION_CODENAME", "") if release.get("ID") == "debian" else ""


def _sources(suite: str) -> list[tuple[str, str]]:
    """Each Debian archive that apt takes this suite from: its address and where it is set."""
    form = "$(ORIGIN)|$(RELEASE)|$(REPO_URI)|$(SOURCESENTRY)"
    query = ["apt-get", "indextargets", "--format", form, "Created-By: Packages", "Component: main"]
    rows = [line.split("|") for line in process.run(query).stdout.splitlines()]
    return [(uri, entry) for origin, release, uri, entry in rows
            if release == suite and origin.startswith("Debian")]  # fmt: skip


def _archive(what: str) -> tuple[str, str]:
    """The Debian archive of this host, where `what` shall come from: its address and its entry."""
    found = _sources(_codename())
    if not found:
        raise AgentVMError(
            f"{what}: apt has no list of a Debian archive to find it by",
            f"check the network and apt's sources, {steps.AGAIN}",
        )
    return found[0]


def _backports_entry(suite: str) -> list[str]:
    """Lines of an apt source for `suite`, from where this host has the rest of its Debian."""
    uri, entry = _archive(f"QEMU must come from {suite}")
    lines = ["Types: deb", f"URIs: {uri}", f"Suites: {suite}", "Components: main"]
    text = Path(entry.rpartition(":")[0]).read_text("utf-8", "replace")
    key = re.search(r"signed-by\s*[:=]\s*(/[^\s\],]+)", text, re.IGNORECASE)
    return [*lines, f"Signed-By: {key[1]}"] if key else lines


def _becoming_root() -> list[str] | None:
    """Return what to put before a command that needs root; None when there is no way."""
    if os.geteuid() == 0:
        return []
    if not host.which("sudo"):
        return None
    if process.run(["sudo", "-n", "true"], check=False).ok:
        return ["sudo", "-n"]
    return ["sudo"] if sys.stdin.isatty() else None
