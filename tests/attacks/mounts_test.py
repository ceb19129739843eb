"""The user's own Lima files add to every VM: the real limactl, which boots nothing here."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from agent_vm_tasks import creation, guest, host, lima, render
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.image import Image
from agent_vm_tasks.settings import Network, Settings, Vm
from tests.conftest import VM

from .conftest import require_limactl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FILES = ("default.yaml", "override.yaml")
ADDED = {
    "mounts": "mounts: [{location: /srv}]",
    "portForwards": "portForwards: [{guestPort: 5432, hostIP: 0.0.0.0, static: true}]",
    "provision": "provision: [{mode: system, script: touch /canary}]",
    "env": "env: {CANARY: x}",
    "networks": "networks: [{lima: user-v2}]",
    "additionalDisks": "additionalDisks: [{name: x}]",
    "copyToHost": "copyToHost: [{guest: /etc/passwd, host: /tmp/x}]",
}
"""Each is a list or a table to which Lima adds those of the user's files."""
GONE = {"mounts"}
"""What Lima leaves out where the VM is plain."""
SET = {
    "plain": "plain: false",
    "propagateProxyEnv": "propagateProxyEnv: true",
    "ssh.forwardAgent": "ssh: {forwardAgent: true}",
    "ssh.forwardX11": "ssh: {forwardX11: true}",
    "ssh.loadDotSSHPubKeys": "ssh: {loadDotSSHPubKeys: true}",
    "cpus": "cpus: 64",
    "memory": "memory: 640GiB",
    "disk": "disk: 1TiB",
}
"""Each is a value of ours over which that of override.yaml goes."""
ALL = "\n".join([*ADDED.values(), *list(SET.values())[:2]])


@pytest.fixture
def text() -> str:
    asked = Settings(vm=Vm(ca_certs=()), network=Network(ports=(3000,)))
    return render.lima_yaml(asked, [Image("/disk.qcow2")], "key")


def refused(config: dict[str, Any], text: str) -> str:
    """The keys that a start names; none where it goes on."""
    folder = Path("/lima") / VM
    made = lima.Instance(VM, "Stopped", folder, 4, 8192, 102400, 0, "qemu", config=config)
    try:
        creation.refuse_strange(made, text)
    except AgentVMError as error:
        return error.message.partition(" with other ")[2].removesuffix(" than asked for")
    return ""


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("key", ADDED)
def test_what_the_users_files_add_is_gone_or_refused(
    lima_fills: Callable[..., dict[str, Any]], text: str, key: str, file: str
) -> None:
    config = lima_fills(text, ADDED[key], file)
    assert refused(config, text) == ("" if key in GONE else key)
    assert key not in GONE or not config.get(key)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("key", ADDED)
def test_lima_would_have_taken_it(
    lima_fills: Callable[..., dict[str, Any]], text: str, key: str, file: str
) -> None:
    """Also where our own file has an empty list of it: that takes back nothing."""
    config = lima_fills(text.replace("plain: true", "plain: false"), ADDED[key], file)
    extra = yaml.safe_load(ADDED[key])[key]
    word = next(iter(extra.values() if key == "env" else extra[0].values()))
    assert str(word) in str(config[key])


@pytest.mark.parametrize("key", SET)
def test_what_the_override_changes_is_refused(
    lima_fills: Callable[..., dict[str, Any]], text: str, key: str
) -> None:
    assert refused(lima_fills(text), text) == ""
    assert refused(lima_fills(text, SET[key], "override.yaml"), text) == key


@pytest.mark.parametrize("key", SET)
def test_the_override_goes_over_what_we_ask_for(
    lima_fills: Callable[..., dict[str, Any]], text: str, key: str
) -> None:
    has: Any = lima_fills(text, SET[key], "override.yaml")
    asked: Any = yaml.safe_load(SET[key])
    for part in key.split("."):
        has, asked = has[part], asked[part]
    assert has == asked


@pytest.fixture
def lima_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for the real Lima, in which the user has files of their own."""
    require_limactl()
    folder = Path(tempfile.mkdtemp(prefix="lima-", dir="/tmp"))
    config = folder / "_config"
    config.mkdir()
    if user := host.service_user():
        for path in (folder, config):
            shutil.chown(path, user)
    monkeypatch.setenv("LIMA_HOME", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("file", FILES)
def test_a_vm_with_more_than_was_asked_for_is_not_made(
    lima_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, *, on: bool
) -> None:
    (lima_home / "_config" / file).write_text(ALL)
    disk = Path(tempfile.mkdtemp(dir="/tmp")) / "disk.qcow2"
    disk.parent.chmod(0o755)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "1M"], check=True)
    chosen = Settings(vm=Vm(cpus=1, memory=512, image=str(disk), ca_certs=()))
    if on:
        with pytest.raises(AgentVMError, match="Lima would run agent-vm with other"):
            creation.create(chosen, print)
        assert not (lima_home / VM).exists()
        assert not guest.known_hosts(VM).exists()
        return
    monkeypatch.setattr(creation, "refuse_strange", lambda *_: None)
    made = creation.create(chosen, print)
    assert "touch /canary" in str(made.config["provision"])
    assert bool(made.config.get("mounts")) is (file == "override.yaml")  # where plain is off, too
