"""What the guest makes at each boot of the proxy that QEMU tells it of."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import render
from agent_vm_tasks.settings import Settings

from .programs import calls, only_tools, script

if TYPE_CHECKING:
    from pathlib import Path

PROXY = "http://192.168.5.100:3128"
NOTE = f"sys/firmware/qemu_fw_cfg/by_name/{render.PROXY_NOTE}/raw"


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    """The top of a guest's file system, with what its users had before."""
    top = tmp_path / "guest"
    for folder in ("etc/apt/apt.conf.d", "etc/sudoers.d", "etc/skel", "home/agent/.docker", "root"):
        (top / folder).mkdir(parents=True)
    (top / "etc/environment").write_text('EDITOR="nano"\n')
    (top / "home/agent/.docker/config.json").write_text('{"auths": {"ghcr.io": {"auth": "x"}}}')
    return top


def boot(guest: Path, proxy: str = "") -> dict[str, str]:
    """Boot by our script; the files there are after."""
    note = guest / NOTE
    note.unlink(missing_ok=True)
    if proxy:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(proxy)
    text = render.boot(Settings())
    for folder in ("etc", "sys", "home", "root"):
        text = text.replace(f"/{folder}", f"{guest}/{folder}")
    programs = guest.parent / "programs"
    if not programs.exists():
        only_tools(programs, "sed", "grep")
        (programs / "python3").symlink_to(sys.executable)
        for name in ("systemctl", "modprobe"):
            script(programs, name)
        script(programs, "runuser", 'shift 3; exec "$@"')
    env = {"PATH": str(programs), "LANG": "C.UTF-8"}
    done = subprocess.run(["sh", "-eu"], input=text, env=env, text=True, capture_output=True,
                          check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    files = [path for path in guest.rglob("*") if path.is_file() and path != note]
    return {str(path.relative_to(guest)): path.read_text() for path in files}


def test_all_programs_learn_of_the_proxy_and_forget_it(guest: Path) -> None:
    before = boot(guest)
    for _ in range(2):
        now = boot(guest, PROXY)
    lines = now["etc/environment"].splitlines()
    assert lines[0] == 'EDITOR="nano"'
    assert lines.count(f"https_proxy={PROXY}") == lines.count(f"http_proxy={PROXY}") == 1
    assert f'Acquire::https::Proxy "{PROXY}";' in now["etc/apt/apt.conf.d/90agent-vm-proxy"]
    assert "https_proxy" in now["etc/sudoers.d/agent-vm-proxy"]
    assert (guest / "etc/sudoers.d/agent-vm-proxy").stat().st_mode & 0o777 == 0o440
    assert any(f"https_proxy={PROXY}" in call for call in calls(guest.parent / "programs"))
    docker = json.loads(now["home/agent/.docker/config.json"])
    assert docker["proxies"]["default"]["httpsProxy"] == PROXY
    assert docker["auths"] == {"ghcr.io": {"auth": "x"}}
    after = boot(guest)
    assert json.loads(after.pop("home/agent/.docker/config.json")) == {
        "auths": docker["auths"], "proxies": {}
    }  # fmt: skip
    assert json.loads(after.pop("root/.docker/config.json")) == {"proxies": {}}
    before.pop("home/agent/.docker/config.json")
    assert after == before


def test_a_user_that_is_made_later_gets_it_too(guest: Path) -> None:
    os.rename(guest / "home/agent", guest / "home/other")  # noqa: PTH104
    assert PROXY in boot(guest, PROXY)["etc/skel/.docker/config.json"]
