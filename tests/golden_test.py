"""Kept disks: which one a new VM starts from, and what removes them."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from agent_vm_tasks import data, golden, image, stages
from agent_vm_tasks.image import Image
from agent_vm_tasks.settings import Packages, Provision, Settings, Vm

from .programs import script

BASE = Image("/images/disk.qcow2", kernel="/images/vmlinuz", initrd="/images/initrd.img")
DISK = 100 * 1024


@pytest.fixture(autouse=True)
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(image, "cache", lambda: home / "cache" / "images")
    return home / "cache" / "golden"


def stamps(settings: Settings) -> dict[str, str]:
    return {stage.name: stage.stamp for stage in stages.stages(settings)}


def kept(cache: Path, name: str, settings: Settings, base: str = BASE.location) -> Path:
    folder = cache / name
    folder.mkdir(parents=True)
    (folder / "disk.qcow2").write_bytes(b"x" * 8192)
    entry = {"base": base, "stamps": stamps(settings), "disk": settings.vm.disk}
    (folder / "golden.json").write_text(json.dumps(entry))
    return folder


def test_without_a_kept_disk_the_images_stay() -> None:
    assert golden.prefer(Settings(), [BASE], print) == (BASE,)


def test_a_kept_disk_takes_the_place_of_its_image_and_boots_by_the_same_kernel(
    cache: Path,
) -> None:
    folder = kept(cache, "one", Settings())
    (chosen,) = golden.prefer(Settings(), [BASE], print)
    assert chosen == replace(BASE, location=str(folder / "disk.qcow2"))


def test_the_disk_with_most_in_common_is_chosen(cache: Path) -> None:
    wanted = Settings(packages=Packages(npm=("left-pad",)))
    kept(cache, "far", Settings(packages=Packages(apt=("a2ps",), npm=("x",), python=("y",))))
    near = kept(cache, "near", Settings())
    (chosen,) = golden.prefer(wanted, [BASE], print)
    assert Path(chosen.location).parent == near


@pytest.mark.parametrize(
    ("settings", "base"),
    [
        (Settings(), "/another/disk.qcow2"),
        (Settings(vm=Vm(disk=DISK + 1)), BASE.location),
    ],
)
def test_a_disk_of_another_image_or_too_large_is_not_taken(
    cache: Path, settings: Settings, base: str
) -> None:
    kept(cache, "one", settings, base)
    assert golden.prefer(Settings(), [BASE], print) == (BASE,)


def test_where_provisioning_is_off_no_provisioned_disk_is_taken(cache: Path) -> None:
    kept(cache, "one", Settings())
    off = Settings(provision=Provision(enabled=False))
    assert golden.prefer(off, [BASE], print) == (BASE,)


@pytest.mark.parametrize("text", ["", "[]", '{"base": "x"}'])
def test_a_half_written_entry_does_not_count(cache: Path, text: str) -> None:
    folder = kept(cache, "one", Settings())
    (folder / "golden.json").write_text(text)
    assert golden.kept_disks() == []


def test_prune_removes_what_differs_and_counts_it(cache: Path) -> None:
    current = kept(cache, "current", Settings())
    kept(cache, "old", Settings(packages=Packages(apt=("a2ps",))))
    assert golden.prune(Settings()) >= 8192
    assert [entry.folder for entry in golden.kept_disks()] == [current]


def test_the_freeze_refuses_to_run_anywhere_but_in_a_provisioned_vm(tmp_path: Path) -> None:
    """It deletes files and stops the file system: on a host that would be a disaster."""
    text = data.script("golden-freeze.sh")
    guard = text[: text.index("if [ -n ")]
    assert "/etc/agent-environment" in guard
    ran = tmp_path / "ran"
    path = script(tmp_path, "freeze", guard.replace("/etc/", f"{tmp_path}/") + f"\ntouch {ran}\n")
    assert subprocess.run(["bash", str(path)], stderr=subprocess.DEVNULL, check=False).returncode
    assert not ran.exists()
