"""Kept disks: which one a new VM starts from, and what removes them."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import data, golden, guest, image, stages, vm
from agent_vm_tasks.errors import AgentVMError, UsageError
from agent_vm_tasks.image import Image
from agent_vm_tasks.lima import Instance
from agent_vm_tasks.settings import CHECKS, Packages, Provision, Settings, Vm

from .conftest import WORKS, a_host
from .programs import script

if TYPE_CHECKING:
    from .conftest import Limactl

CLOUD = Image("https://images/disk.qcow2", digest="sha512:00")
DISK = 100 * 1024


@pytest.fixture
def base(home: Path) -> Image:
    """An image built here, with its kernel beside it."""
    return built(home / "cache" / "images" / "debian-13-1")


def built(folder: Path) -> Image:
    folder.mkdir(parents=True)
    for name in ("disk.qcow2", "vmlinuz", "initrd.img"):
        (folder / name).write_text(name)
    return Image(str(folder / "disk.qcow2"), kernel=str(folder / "vmlinuz"),
                 initrd=str(folder / "initrd.img"))  # fmt: skip


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(image, "cache", lambda: home / "cache" / "images")
    return home / "cache" / "golden"


def stamps(settings: Settings) -> dict[str, str]:
    return {stage.name: stage.stamp for stage in stages.stages(settings)}


def kept(
    cache: Path, name: str, settings: Settings, base: Image, recipe: str = image.RECIPE
) -> Path:
    folder = cache / name
    folder.mkdir(parents=True)
    (folder / "disk.qcow2").write_bytes(b"x" * 8192)
    entry = {"base": base.digest or base.location, "stamps": stamps(settings),
             "disk": settings.vm.disk, "recipe": recipe}  # fmt: skip
    (folder / "golden.json").write_text(json.dumps(entry))
    return folder


def test_without_a_kept_disk_there_is_none(base: Image) -> None:
    assert golden.prefer(Settings(), [base], print) == ()


def test_a_kept_disk_takes_the_place_of_its_image_and_boots_by_the_same_kernel(
    cache: Path, base: Image
) -> None:
    folder = kept(cache, "one", Settings(), base)
    (chosen,) = golden.prefer(Settings(), [base], print)
    assert chosen == replace(base, location=str(folder / "disk.qcow2"))


def test_a_kept_disk_of_a_downloaded_image_boots_by_itself(cache: Path) -> None:
    folder = kept(cache, "one", Settings(), CLOUD)
    (chosen,) = golden.prefer(Settings(), [CLOUD], print)
    assert chosen == Image(str(folder / "disk.qcow2"))


def test_the_disk_with_most_in_common_is_chosen(cache: Path, base: Image) -> None:
    wanted = Settings(packages=Packages(npm=("left-pad",)))
    far = Settings(packages=Packages(apt=("a2ps",), npm=("x",), python=("y",)))
    kept(cache, "far", far, base)
    near = kept(cache, "near", Settings(), base)
    (chosen,) = golden.prefer(wanted, [base], print)
    assert Path(chosen.location).parent == near


def test_a_disk_made_from_other_packages_of_debian_is_taken_with_its_own_kernel(
    cache: Path, base: Image, home: Path
) -> None:
    older = built(home / "cache" / "images" / "debian-13-0")
    folder = kept(cache, "one", Settings(), older)
    (chosen,) = golden.prefer(Settings(), [base], print)
    assert chosen == replace(older, location=str(folder / "disk.qcow2"))


def test_a_disk_that_cannot_be_booted_or_differs_in_kind_is_not_taken(
    cache: Path, base: Image, home: Path
) -> None:
    older = built(home / "cache" / "images" / "debian-13-0")
    kept(cache, "recipe", Settings(), older, recipe="0")
    kept(cache, "cloud", Settings(), CLOUD)
    kept(cache, "large", Settings(vm=Vm(disk=DISK + 1)), base)
    gone = built(home / "cache" / "images" / "debian-13-9")
    kept(cache, "gone", Settings(), gone)
    Path(gone.kernel).unlink()
    assert golden.prefer(Settings(), [base], print) == ()
    assert golden.prefer(Settings(), [replace(CLOUD, digest="sha512:11")], print) == ()


def test_where_provisioning_is_off_no_provisioned_disk_is_taken(cache: Path, base: Image) -> None:
    kept(cache, "one", Settings(), base)
    off = Settings(provision=Provision(enabled=False))
    assert golden.prefer(off, [base], print) == ()


@pytest.mark.parametrize("text", ["", "[]", '{"base": "x"}'])
def test_a_half_written_entry_does_not_count(cache: Path, base: Image, text: str) -> None:
    folder = kept(cache, "one", Settings(), base)
    (folder / "golden.json").write_text(text)
    assert golden.kept_disks() == []


def test_prune_removes_what_differs_and_counts_it(cache: Path, base: Image) -> None:
    current = kept(cache, "current", Settings(), base)
    kept(cache, "old", Settings(packages=Packages(apt=("a2ps",))), base)
    assert golden.prune(Settings()) >= 8192
    assert [entry.folder for entry in golden.kept_disks()] == [current]


@pytest.fixture
def instance(base: Image, home: Path) -> Instance:
    """A VM made from the base image."""
    (home / "instance").mkdir()
    (home / "instance" / "disk").write_text("disk")
    images = {"images": [{"location": base.location}]}
    return Instance(
        "agent-vm", "Running", home / "instance", 2, 2048, DISK, 0, "qemu", config=images
    )


def answering(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: str, end: str = "", begin: str = ""
) -> None:
    """A guest that answers the freeze with these words, and a qemu-img that copies."""
    (home / "bin").mkdir()
    script(home / "bin", "freeze", f"{begin}\necho {words}; read -r _\n{end}")
    script(home / "bin", "qemu-img", 'cp "$5" "$6"')
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(guest, "ssh", lambda *_: ["freeze"])


def test_a_kept_disk_has_the_stamps_that_are_in_force_in_the_guest(
    instance: Instance, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not those of the settings: a stage may have been left out, or changed here meanwhile."""
    answering(home, monkeypatch, f"frozen packages:{'0' * 16} npm:{'1' * 16}")
    assert golden.keep(instance, print)
    (found,) = golden.kept_disks()
    assert found.stamps == {"packages": "0" * 16, "npm": "1" * 16}
    assert (found.folder / "disk.qcow2").read_text() == "disk"
    assert not golden.keep(instance, print)


@pytest.mark.parametrize("words", ["used", "frozen", "nonsense", ""])
def test_a_guest_that_has_been_used_has_no_disk_to_keep(
    instance: Instance, home: Path, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    answering(home, monkeypatch, words)
    assert not golden.keep(instance, print)
    assert golden.kept_disks() == []


def test_a_copy_of_a_disk_that_did_not_stay_still_is_not_kept(
    instance: Instance, cache: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest itself lets go after some minutes, however long the copy takes."""
    late = "echo 'fsfreeze: /: unfreeze failed' >&2; exit 1"
    answering(home, monkeypatch, f"frozen packages:{'0' * 16}", late)
    with pytest.raises(AgentVMError, match="did not hold its disk still: fsfreeze: /: unfreeze"):
        golden.keep(instance, print)
    assert list(cache.iterdir()) == []


FLOOD = "head -c 1000000 /dev/zero"


@pytest.mark.parametrize(
    ("begin", "end"),
    [("exec sleep 60", ""), (FLOOD, ""), (f"{FLOOD} >&2", ""), ("", FLOOD), ("", "exec sleep 60")],
)
def test_a_guest_that_does_not_go_on_with_it_is_not_waited_for(
    instance: Instance, home: Path, monkeypatch: pytest.MonkeyPatch, begin: str, end: str
) -> None:
    answering(home, monkeypatch, f"frozen packages:{'0' * 16}", end, begin)
    monkeypatch.setattr(golden, "FREEZING", 0.5)
    monkeypatch.setattr(golden, "THAWING", 0.5)
    with pytest.raises(AgentVMError, match="the VM agent-vm does not answer"):
        golden.keep(instance, print)
    assert golden.kept_disks() == []


def test_the_freeze_refuses_to_run_anywhere_but_in_a_provisioned_vm(tmp_path: Path) -> None:
    """It deletes files and stops the file system: on a host that would be a disaster."""
    text = data.script("golden-freeze.sh")
    guard = text[: text.index("if [ -n ")]
    assert "/etc/agent-environment" in guard
    ran = tmp_path / "ran"
    path = script(tmp_path, "freeze", guard.replace("/etc/", f"{tmp_path}/") + f"\ntouch {ran}\n")
    assert subprocess.run(["bash", str(path)], stderr=subprocess.DEVNULL, check=False).returncode
    assert not ran.exists()


def test_what_bake_makes_and_removes_is_a_vm_that_no_settings_can_name(
    limactl: Limactl, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_host(monkeypatch, cpus=8, memory=16384, kvm=WORKS)
    (home / "disk").touch()
    app = Settings(vm=Vm(name="app", image=str(home / "disk"), ca_certs=()),
                   provision=Provision(enabled=False))  # fmt: skip

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(vm, "destroy", killed)
        with pytest.raises(KeyboardInterrupt):
            golden.bake(app, print)
    (left,) = [path.name for path in limactl.lima.glob("app*")]
    with pytest.raises(UsageError):
        CHECKS["vm.name"]("vm.name", left)
    assert not golden.bake(app, print)
    assert not list(limactl.lima.glob("app*"))
