"""Which disk image a VM starts from, and that a failed build leaves nothing behind."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import host, image
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.settings import Packages, Settings, Vm

from .programs import calls, only_tools, script

if TYPE_CHECKING:
    from collections.abc import Callable

TARGETS = """\
Debian|Debian|http://mirror/debian/
Debian|Debian|http://mirror/debian/
Debian|Debian-Security|http://mirror/security/
Other|Other|http://elsewhere/
Debian Backports|Debian Backports|http://mirror/backports/
"""
# A build without root: it leaves the files that the hooks would, in the folder that they name.
BUILDS = """
for word; do
    case $word in *vmlinuz*) out=${word#*vmlinuz-\\* }; out=${out%%/vmlinuz;*} ;; esac
done
echo "I: installing"
echo kernel > "$out/vmlinuz"; echo initrd > "$out/initrd.img"
truncate -s 1M "$out/raw"
"""


@pytest.fixture
def builder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make mmdebstrap of a shell script, with the programs around it; gives their record."""
    if not shutil.which("qemu-img"):
        pytest.skip("qemu-img is not installed")
    folder = only_tools(home / "bin", "qemu-img", "stat", "truncate")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(host, "service_user", lambda: None)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    (home / "targets").write_text(TARGETS)
    script(folder, "apt-get", f"cat {home}/targets")

    def made(body: str) -> Path:
        script(folder, "mmdebstrap", body)
        return folder

    return made


def chosen(name: str, say: Callable[[str], None] = lambda _: None) -> tuple[image.Image, ...]:
    return image.choose(Settings(vm=Vm(image=name)), say)


def reachable(monkeypatch: pytest.MonkeyPatch, *, yes: bool) -> None:
    monkeypatch.setattr(image, "_reachable", lambda: yes)


def built(folder: Path) -> int:
    return len([call for call in calls(folder) if call.startswith("mmdebstrap")])


def left(home: Path) -> list[str]:
    """What is in the cache besides the log."""
    cache = home / ".cache" / "agent-vm" / "images"
    return sorted(path.name for path in cache.iterdir() if path.name != "build.log")


def test_the_image_is_built_from_the_mirror_that_the_settings_name(
    builder: Callable[[str], Path], home: Path
) -> None:
    folder = builder("exit 1")
    mirror = Packages(debian_mirror="http://mirror.example/debian")
    with pytest.raises(AgentVMError):
        image.choose(Settings(vm=Vm(image="build"), packages=mirror), lambda _: None)
    assert "\n".join(calls(folder)).endswith(
        "deb http://mirror.example/debian trixie main "
        "deb http://mirror.example/debian trixie-updates main "
        "deb http://mirror.example/debian-security trixie-security main"
    )


@pytest.mark.parametrize(
    ("machine", "arch"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("arm64", "arm64")]
)
def test_debians_image_is_pinned_with_a_newer_one_behind_it(
    monkeypatch: pytest.MonkeyPatch, machine: str, arch: str
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    pinned, daily = chosen("cloud")
    assert pinned.digest.startswith("sha512:")
    assert len(pinned.digest) == len("sha512:") + 128
    assert f"genericcloud-{arch}-" in pinned.location
    assert "/latest/" not in pinned.location
    assert "/latest/" in daily.location
    assert daily.digest == ""
    assert {each.location.split("/")[2] for each in (pinned, daily)} == {"cloud.debian.org"}


def test_another_architecture_has_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(AgentVMError, match="there is no guest image for riscv64"):
        chosen("cloud")


def test_auto_takes_debians_image_where_it_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    reachable(monkeypatch, yes=True)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert chosen("auto") == image.cloud_images()


def test_no_answer_from_debian_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **_more: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refused)
    assert image._reachable() is False


def test_a_file_of_ones_own(home: Path) -> None:
    (home / "mine.qcow2").touch()
    assert chosen("~/mine.qcow2") == (image.Image(str(home / "mine.qcow2")),)
    with pytest.raises(AgentVMError, match=rf"^vm\.image: there is no file {home}/other.qcow2$"):
        chosen("~/other.qcow2")
    with pytest.raises(AgentVMError, match="there is no file"):
        chosen(str(home))


def test_an_address() -> None:
    assert chosen("https://example.com/x.qcow2") == (image.Image("https://example.com/x.qcow2"),)


def test_auto_builds_where_debians_image_cannot_be_had(
    builder: Callable[[str], Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reachable(monkeypatch, yes=False)
    folder = builder(BUILDS)
    said: list[str] = []
    (made,) = chosen("auto", said.append)
    assert said == [
        "building a Debian 13 image (once; some minutes)", "  installing", "packing the image",
    ]  # fmt: skip
    assert Path(made.kernel).read_text() == "kernel\n"
    assert Path(made.initrd).read_text() == "initrd\n"
    assert Path(made.location).read_bytes()[:4] == b"QFI\xfb"
    assert "root=LABEL=root" in made.cmdline
    assert built(folder) == 1


def test_what_goes_into_the_image(builder: Callable[[str], Path]) -> None:
    folder = builder(BUILDS)
    chosen("build")
    call = "\n".join(calls(folder)).partition("mmdebstrap ")[2]
    packages = next(word for word in call.split() if word.startswith("--include=")).split(",")
    assert {"cloud-init", "openssh-server", "linux-image-cloud-amd64", "ripgrep"} <= set(packages)
    assert call.partition("trixie - ")[2].splitlines()[0] == (
        "deb http://mirror/debian/ trixie main "
        "deb http://mirror/debian/ trixie-updates main "
        "deb http://mirror/security/ trixie-security main"
    )


def test_a_built_image_is_used_again_until_something_in_it_changes(
    builder: Callable[[str], Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = builder(BUILDS)
    first = chosen("build")
    assert chosen("build") == first
    assert built(folder) == 1
    monkeypatch.setattr(image, "RECIPE", "other")
    assert chosen("build") != first
    (home / "targets").write_text(TARGETS.replace("mirror", "other"))
    assert chosen("build") != first
    assert built(folder) == 3
    assert len(left(home)) == 3


def test_the_image_can_be_named_without_building_it(builder: Callable[[str], Path]) -> None:
    folder = builder("exit 1")
    (named,) = image.choose(Settings(vm=Vm(image="build")), lambda _: None, build=False)
    assert named.location.endswith("/disk.qcow2")
    assert built(folder) == 0


def test_a_failed_build_tells_the_first_error_and_its_log_and_is_not_kept(
    builder: Callable[[str], Path], home: Path
) -> None:
    folder = builder('echo "E: cannot fetch x" >&2; echo "E: setup failed"; exit 1')
    with pytest.raises(AgentVMError) as caught:
        chosen("build")
    assert caught.value.message == "building the image failed: cannot fetch x"
    log = Path(caught.value.hint.removeprefix("see "))
    assert log.read_text() == "E: cannot fetch x\nE: setup failed\n"
    assert left(home) == []
    builder(BUILDS)
    chosen("build")
    assert built(folder) == 2


def test_an_interrupted_build_is_not_kept(builder: Callable[[str], Path], home: Path) -> None:
    builder(BUILDS)

    def interrupted(line: str) -> None:
        if line == "packing the image":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen("build", interrupted)
    assert left(home) == []


def test_a_full_disk_while_packing_leaves_nothing(
    builder: Callable[[str], Path], home: Path
) -> None:
    folder = builder(BUILDS)
    (folder / "qemu-img").unlink()
    script(folder, "qemu-img", 'echo "qemu-img: error while writing: No space left" >&2; exit 1')
    with pytest.raises(AgentVMError, match=r"qemu-img failed: .*No space left"):
        chosen("build")
    assert left(home) == []


@pytest.mark.parametrize(("account", "mode"), [(0, "700"), (1000, "777")])
def test_others_write_where_it_is_built_only_as_the_user_namespace_needs(
    builder: Callable[[str], Path], home: Path, monkeypatch: pytest.MonkeyPatch, account: int,
    mode: str,
) -> None:  # fmt: skip
    """Root's mmdebstrap has no such namespace: a link laid there would lead root's own writes."""
    builder(f'{BUILDS}stat -c %a "$out" > {home}/mode')
    monkeypatch.setattr(os, "geteuid", lambda: account)
    (made,) = chosen("build")
    assert (home / "mode").read_text() == f"{mode}\n"
    assert Path(made.location).parent.stat().st_mode & 0o777 == 0o755


def test_two_builds_at_once_give_one_image(builder: Callable[[str], Path], home: Path) -> None:
    """Two VMs of different names may be created at the same time."""
    builder(BUILDS)
    others: list[tuple[image.Image, ...]] = []

    def meanwhile(line: str) -> None:
        if line == "packing the image":
            others.append(chosen("build"))

    assert chosen("build", meanwhile) == others[0]
    assert len(left(home)) == 1


def test_without_mmdebstrap_it_is_named(builder: Callable[[str], Path], home: Path) -> None:
    with pytest.raises(AgentVMError) as caught:
        chosen("build")
    assert caught.value.message == "mmdebstrap is not installed"
    assert "agent-vm setup" in caught.value.hint
    assert left(home) == []


def test_macos_cannot_build(
    builder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = builder(BUILDS)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    with pytest.raises(AgentVMError, match="only Linux can build one"):
        chosen("build")
    assert built(folder) == 0


def test_without_apt_mmdebstrap_takes_its_own_mirror(builder: Callable[[str], Path]) -> None:
    folder = builder(BUILDS)
    (folder / "apt-get").unlink()
    chosen("build")
    assert calls(folder)[-1].endswith(" trixie -")


def test_the_cache_is_where_limactls_account_can_read_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "service_user", lambda: None)
    assert image.cache() == home / ".cache" / "agent-vm" / "images"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert image.cache() == Path("/elsewhere/agent-vm/images")
    monkeypatch.setattr(host, "service_user", lambda: "agent-vm")
    assert image.cache() == Path("/var/cache/agent-vm/images")


def test_the_hooks_leave_no_identity_in_the_image(tmp_path: Path) -> None:
    """Run as mmdebstrap runs them: a shell command with the new root as $1."""
    root, out, bin_ = tmp_path / "root", tmp_path / "it's out", tmp_path / "bin"
    for folder in ("etc/cloud/cloud.cfg.d", "etc/ssh", "boot", "var/lib/apt/lists"):
        (root / folder).mkdir(parents=True)
    files = ("etc/ssh/ssh_host_ed25519_key", "etc/machine-id", "etc/hostname", "etc/resolv.conf",
             "var/lib/apt/lists/x", "boot/vmlinuz-6", "boot/initrd.img-6")  # fmt: skip
    for file in files:
        (root / file).write_text("x")
    out.mkdir()
    bin_.mkdir()
    script(bin_, "chroot")
    env = {"PATH": f"{bin_}:{os.environ['PATH']}"}
    *hooks, packs = image._hooks(out)
    subprocess.run(["sh", "-n", "-c", packs], check=True)
    for hook in hooks:
        subprocess.run(["sh", "-ec", hook, "sh", str(root)], env=env, check=True)
    assert list((root / "etc" / "ssh").iterdir()) == []
    assert (root / "etc" / "machine-id").read_text() == ""
    assert not (root / "etc" / "hostname").exists()
    assert (root / "etc" / "resolv.conf").is_symlink()
    assert list((root / "var" / "lib" / "apt" / "lists").iterdir()) == []
    assert {path.name for path in out.iterdir()} == {"vmlinuz", "initrd.img"}
    assert (
        "ssh_deletekeys: false"
        in (root / "etc" / "cloud" / "cloud.cfg.d" / "90-agent-vm.cfg").read_text().splitlines()
    )
