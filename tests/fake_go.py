"""A stand-in for Go: it serves Lima's module with a given sum and "builds" its programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_vm_tasks import lima_archive

from .programs import script

if TYPE_CHECKING:
    from pathlib import Path

LIMACTL = "#!/bin/sh\necho limactl version 2.2.0\n"
TEMPLATES = ("default", "_default/mounts", "_images/ubuntu-25.10", "_images/ubuntu-24.04",
             "_images/debian-9", "_images/debian-13", "debian-13")  # fmt: skip
_GO = """case "$*" in
version) echo go version go{version} linux/amd64;;
*download*) echo '{{"Dir": "{module}", "Sum": "{sum}"}}';;
*build*)
    exec 3>> "{folder}/calls"
    echo "toolchain $GOTOOLCHAIN cgo $CGO_ENABLED for $GOOS/$GOARCH from $GOPROXY" >&3
    while [ "$1" != -o ]; do shift; done
    cp "{module}/limactl" "$2";;
esac"""


def go(folder: Path, version: str = "1.26.6", module_sum: str = lima_archive._MODULE_SUM) -> None:
    """Put it into `folder`, the module beside that."""
    module = folder.parent / "module"
    for name in TEMPLATES:
        file = module / "templates" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {name}\n", "utf-8")
    (module / "templates" / "experimental").mkdir(exist_ok=True)
    (module / "limactl").write_text(LIMACTL, "utf-8")
    (module / "limactl").chmod(0o555)
    script(folder, "go", _GO.format(version=version, sum=module_sum, folder=folder, module=module))
