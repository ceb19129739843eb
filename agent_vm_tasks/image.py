"""The disk image a new VM starts from: Debian's cloud image, a file, or one built here.

A local build takes Debian packages only (mmdebstrap) and boots by its kernel directly, without
firmware or boot loader. It already holds the packages of common/packages/apt-packages.txt:
unpacking them here is minutes faster than in a guest without KVM.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import data, host, process
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .console import Say
    from .settings import Settings

RELEASE = "trixie"
RECIPE = "2"
"""Part of a built image's key: raise it when the steps below change what comes out."""

# What the guest needs to boot and to be reached; the rest is common/packages/apt-packages.txt.
BASE_PACKAGES = (
    "ca-certificates", "cloud-guest-utils", "cloud-init", "dbus", "e2fsprogs", "fuse3", "git",
    "iproute2", "libpam-systemd", "netplan.io", "openssh-server", "python3", "sudo",
    "systemd-resolved", "systemd-sysv", "systemd-timesyncd", "udev",
)  # fmt: skip

# Lima 2.2.0, templates/_images/debian-13.yaml. Dated folders vanish after some months: then the
# daily image, which no digest can pin.
_CLOUD = "https://cloud.debian.org/images/cloud/trixie"
_DATE = "20260712-2537"
_SHA512 = {
    "amd64": "7ae53e9dbee282bfc16f289dec483dde3a8598769c38a267948310f7a2a52c66"
    "2620198603bc52c142627efba379863d16079698a10b34102d55bcedd40e8d32",
    "arm64": "8543d795f2fde630eb66c492f245a8c1da19dedc636e0a8e7b3d0f95920e1a05"
    "aa911ef2d82d177d41cc53ced5fccbd2a3945d07fa5e15018914c4d864bb07ed",
}
_CONSOLES = {"amd64": "ttyS0", "arm64": "ttyAMA0"}
_ARCHES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True)
class Image:
    """One entry of Lima's `images`: a URL or path, and how to boot it without firmware."""

    location: str
    digest: str = ""
    kernel: str = ""
    initrd: str = ""
    cmdline: str = ""


def choose(settings: Settings, say: Say, *, build: bool = True) -> tuple[Image, ...]:
    """The images to try, in order; builds one where Debian's cannot be downloaded.

    Without `build` the paths of the image that would be built are given, and nothing is made.
    Raises AgentVMError when there is none to be had.
    """
    wanted = settings.vm.image
    if wanted == "cloud" or (wanted == "auto" and _reachable()):
        return cloud_images()
    if wanted in {"auto", "build"}:
        return (built(settings, say, build=build),)
    if wanted.startswith("https://"):
        return (Image(wanted),)
    path = Path(wanted).expanduser()
    if not path.is_file():
        raise AgentVMError(f"vm.image: there is no file {path}")
    return (Image(str(path)),)


def cloud_images() -> tuple[Image, ...]:
    arch = debian_arch()
    pinned = f"{_CLOUD}/{_DATE}/debian-13-genericcloud-{arch}-{_DATE}.qcow2"
    daily = f"{_CLOUD}/daily/latest/debian-13-genericcloud-{arch}-daily.qcow2"
    return Image(pinned, f"sha512:{_SHA512[arch]}"), Image(daily)


def debian_arch() -> str:
    """Debian's name for this machine's architecture; raises AgentVMError for any other."""
    machine = platform.machine()
    if machine not in _ARCHES:
        raise AgentVMError(f"there is no guest image for {machine}", "x86_64 and aarch64 work")
    return _ARCHES[machine]


def built(settings: Settings, say: Say, *, build: bool = True) -> Image:
    """The image built on this machine; from the cache while what goes into it is the same."""
    packages = (*BASE_PACKAGES, _kernel_package(), *data.package_list("apt-packages.txt"))
    sources = _sources(settings.packages.debian_mirror)
    inputs = "\n".join((RECIPE, RELEASE, debian_arch(), *packages, *sources))
    folder = cache() / f"debian-13-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"
    if build and not (folder / "disk.qcow2").exists():
        if platform.system() != "Linux":
            raise AgentVMError(
                "Debian's cloud images cannot be reached, and only Linux can build one",
                "set vm.image to a local Debian 13 image",
            )
        say("building a Debian 13 image (once; some minutes)")
        _build_into(folder, packages, sources, say)
    return Image(
        str(folder / "disk.qcow2"),
        kernel=str(folder / "vmlinuz"),
        initrd=str(folder / "initrd.img"),
        cmdline=f"root=LABEL=root rw console={_CONSOLES[debian_arch()]} quiet",
    )


def cache() -> Path:
    """Where built images are kept: readable by the account that runs limactl."""
    if host.service_user():
        return Path("/var/cache/agent-vm/images")
    xdg = os.environ.get("XDG_CACHE_HOME", "")  # the specification has a relative one ignored
    base = Path(xdg) if xdg.startswith("/") else Path("~/.cache").expanduser()
    return base / "agent-vm" / "images"


def _build_into(folder: Path, packages: Sequence[str], sources: Sequence[str], say: Say) -> None:
    """Build in a folder beside `folder` and rename: a cut-off build is never used."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="build-", dir=folder.parent))
    if os.geteuid() != 0:
        work.chmod(0o777)  # mmdebstrap's user namespace writes here as another uid; root has none
    try:
        _bootstrap(work, packages, sources, say)
        say("packing the image")
        process.run(["qemu-img", "convert", "-O", "qcow2", str(work / "raw"), str(work / "disk")])
        (work / "raw").unlink()
        (work / "disk").rename(work / "disk.qcow2")
        work.chmod(0o755)
        if not folder.exists():  # the start of another VM may have built the same meanwhile
            work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _bootstrap(work: Path, packages: Sequence[str], sources: Sequence[str], say: Say) -> None:
    log = work.parent / "build.log"
    argv = [
        "mmdebstrap", "--variant=minbase", "--format=null",
        f"--include={','.join(packages)}",
        "--dpkgopt=force-unsafe-io",
        *(f"--customize-hook={hook}" for hook in _hooks(work)),
        RELEASE, "-", *sources,
    ]  # fmt: skip
    with log.open("w") as file:

        def on_line(line: str) -> None:
            print(line, file=file, flush=True)
            if line.startswith("I: ") and "hook" not in line and "tempdir" not in line:
                say(f"  {line[3:]}")

        result = process.follow(argv, on_line, env={**os.environ, "LC_ALL": "C"})
    if not result.ok:
        raise AgentVMError(f"building the image failed: {_complaint(result)}", f"see {log}")


def _complaint(result: process.Result) -> str:
    errors = [line for line in result.stdout.splitlines() if line.startswith("E: ")]
    return errors[0][3:] if errors else result.reason


def _hooks(work: Path) -> list[str]:
    """Shell commands in mmdebstrap's namespace; it passes the new root's folder as $1.

    A bind mount of that folder leaves out the /proc, /sys and /dev mounted inside it.
    """
    out, root = shlex.quote(str(work)), shlex.quote(str(work / "root"))
    return [
        'printf "%s\\n" "ssh_deletekeys: false" "ssh_genkeytypes: [ed25519]" '
        '"apt_preserve_sources_list: true" > "$1/etc/cloud/cloud.cfg.d/90-agent-vm.cfg"',
        'chroot "$1" apt-get clean; rm -rf "$1"/var/lib/apt/lists/* "$1"/etc/ssh/ssh_host_*; '
        ': > "$1/etc/machine-id"; rm -f "$1/var/lib/dbus/machine-id"; '
        'rm -f "$1/etc/hostname" "$1/etc/resolv.conf"; '
        'ln -s ../run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"',
        f'cp -L "$1"/boot/vmlinuz-* {out}/vmlinuz; cp -L "$1"/boot/initrd.img-* {out}/initrd.img; '
        f"chmod 644 {out}/vmlinuz {out}/initrd.img",
        f'mkdir {root} && mount --bind "$1" {root} && '
        f"PATH=$PATH:/usr/sbin:/sbin mkfs.ext4 -q -F -L root -d {root} {out}/raw 12G; "
        f"status=$?; umount {root}; rmdir {root}; chmod 644 {out}/raw; exit $status",
    ]


def _kernel_package() -> str:
    return f"linux-image-cloud-{debian_arch()}"


def _sources(mirror: str) -> tuple[str, ...]:
    """Lines for sources.list: the mirror's, else of those this host uses, else mmdebstrap's own."""
    if mirror:
        return _lines(mirror, f"{mirror}-security")
    if not shutil.which("apt-get"):
        return ()
    query = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
             "Created-By: Packages"]  # fmt: skip
    found = dict.fromkeys(process.run(query, check=False).stdout.split())
    main = [line.split("|")[2] for line in found if line.startswith("Debian|Debian|")]
    security = [line.split("|")[2] for line in found if line.startswith("Debian|Debian-Security|")]
    return _lines(main[0], *security[:1]) if main else ()


def _lines(main: str, *security: str) -> tuple[str, ...]:
    lines = [f"deb {main} {RELEASE} main", f"deb {main} {RELEASE}-updates main"]
    return (*lines, *(f"deb {uri} {RELEASE}-security main" for uri in security))


def _reachable() -> bool:
    """Whether Debian's image server answers; a name that does not resolve is a quick no."""
    import urllib.request

    request = urllib.request.Request(cloud_images()[-1].location, method="HEAD")  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310
            return True
    except (OSError, ValueError):
        return False
