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

FILES = ("base.yaml", "default.yaml", "override.yaml")
ADDED = {
    "mounts": "mounts: [{location: /srv}]",
    "portForwards": "portForwards: [{guestPort: 5432, hostIP: 0.0.0.0, static: true}]",
    "provision": "provision: [{script: touch /canary, mode: system}]",
    "env": "env: {CANARY: taken}",
    "networks": "networks: [{lima: user-v2}]",
    "additionalDisks": "additionalDisks: [{name: theirs}]",
    "copyToHost": "copyToHost: [{guest: /etc/passwd, host: /tmp/x}]",
    "probes": "probes: [{script: '#!/canary', mode: readiness}]",
    "images": "images: [{location: /theirs.qcow2, arch: x86_64}]",
    "firmware.images": "firmware: {images: [{location: /theirs.fd, vmType: qemu}]}",
    "caCerts.certs": "caCerts: {certs: [THEIRS]}",
    "dns": "dns: [192.0.2.53]",
    "hostResolver.hosts": "hostResolver: {hosts: {github.com: 192.0.2.1}}",
    "param": "param: {CANARY: taken}",
    "vmOpts": "vmOpts: {qemu: {cpuType: {x86_64: canary}}}",
}
"""Each is a list or a table to which Lima adds those of the user's files."""
GONE = {"mounts"}
"""What Lima leaves out where the VM is plain."""
SET = {
    "plain": "plain: false",
    "propagateProxyEnv": "propagateProxyEnv: true",
    "ssh.forwardAgent": "ssh: {forwardAgent: true}",
    "ssh.forwardX11": "ssh: {forwardX11: true}",
    "ssh.forwardX11Trusted": "ssh: {forwardX11Trusted: true}",
    "ssh.loadDotSSHPubKeys": "ssh: {loadDotSSHPubKeys: true}",
    "ssh.localPort": "ssh: {localPort: 2222}",
    "ssh.overVsock": "ssh: {overVsock: true}",
    "cpus": "cpus: 64",
    "memory": "memory: 640GiB",
    "disk": "disk: 1TiB",
    "user.name": "user: {name: me}",
    "user.comment": "user: {comment: My Name}",
    "user.home": "user: {home: /home/me}",
    "user.uid": "user: {uid: 501}",
    "user.passwordlessSudo": "user: {passwordlessSudo: false}",
    "hostResolver.enabled": "hostResolver: {enabled: true}",
    "video.display": "video: {display: vnc}",
    "video.vnc": "video: {vnc: {display: 0.0.0.0:0}}",
    "audio.device": "audio: {device: pa}",
    "firmware.legacyBIOS": "firmware: {legacyBIOS: false}",
    "caCerts.removeDefaults": "caCerts: {removeDefaults: true}",
    "nestedVirtualization": "nestedVirtualization: true",
    "tpm": "tpm: true",
    "upgradePackages": "upgradePackages: true",
    "guestInstallPrefix": "guestInstallPrefix: /srv",
    "mountType": "mountType: 9p",
    "vmType": "vmType: vz",
}
"""Each is a value of ours, or of Lima's own, over which that of override.yaml goes."""
ALL = "\n".join([*(ADDED[key] for key in ADDED if key != "param"), *list(SET.values())[:2]])
PLACES = [(key, file) for key in ADDED for file in FILES if (key, file) != ("param", "base.yaml")]
"""Lima takes no param from base.yaml that nothing uses."""


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


@pytest.mark.parametrize(("key", "file"), PLACES)
def test_what_the_users_files_add_is_gone_or_refused(
    lima_fills: Callable[..., dict[str, Any]], text: str, key: str, file: str
) -> None:
    config = lima_fills(text, ADDED[key], file)
    assert refused(config, text) == ("" if key in GONE else key)
    assert key not in GONE or not config.get(key)


@pytest.mark.parametrize(("key", "file"), PLACES)
def test_lima_would_have_taken_it(
    lima_fills: Callable[..., dict[str, Any]], text: str, key: str, file: str
) -> None:
    """Also where our own file has an empty list of it: that takes back nothing."""
    config = lima_fills(text.replace("plain: true", "plain: false"), ADDED[key], file)
    assert first(at(yaml.safe_load(ADDED[key]), key)) in str(at(config, key))


def at(config: Any, key: str) -> Any:  # noqa: ANN401  any value of it
    for part in key.split("."):
        config = config[part]
    return config


def first(value: Any) -> str:  # noqa: ANN401  any value of it
    while isinstance(value, dict | list):
        value = next(iter(value.values() if isinstance(value, dict) else value))
    return str(value)


@pytest.mark.parametrize("key", SET)
def test_what_the_override_changes_is_refused(
    lima_fills: Callable[..., dict[str, Any]], text: str, key: str
) -> None:
    assert refused(lima_fills(text), text) == ""
    assert key in refused(lima_fills(text, SET[key], "override.yaml"), text).split(", ")


@pytest.mark.parametrize("key", SET)
def test_the_override_goes_over_what_we_ask_for(
    lima_fills: Callable[..., dict[str, Any]], text: str, key: str
) -> None:
    has = lima_fills(text, SET[key], "override.yaml")
    assert at(has, key) == at(yaml.safe_load(SET[key]), key)


CLOUD = Image("https://cloud.example/debian.qcow2", digest="sha512:" + 128 * "a")
BUILT = Image("/disk.qcow2", kernel="/vmlinuz", initrd="/initrd.img", cmdline="root=LABEL=root rw")
ASKED = {
    "built": (Settings(vm=Vm(ca_certs=())), [BUILT]),
    "cloud": (Settings(vm=Vm(ca_certs=(), vm_type="qemu")), [CLOUD, BUILT]),
    "vz": (Settings(vm=Vm(ca_certs=(), vm_type="vz")), [CLOUD]),
    "ports": (Settings(vm=Vm(ca_certs=()), network=Network(ports=(3000, 4000))), [BUILT]),
    "certificates": (Settings(vm=Vm(ca_certs=("~/ca.pem",))), [BUILT]),
    "sizes": (Settings(vm=Vm(ca_certs=(), cpus=1, memory=1000, disk=5000)), [BUILT]),
}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("asked", ASKED)
def test_what_lima_itself_fills_in_is_not_refused(
    lima_fills: Callable[..., dict[str, Any]],
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    machine: str,
) -> None:
    pem = "  Subject: X\t\n-----BEGIN CERTIFICATE-----\r\nMIIF+/=\r\n-----END CERTIFICATE-----\n"
    (home / "ca.pem").write_bytes(pem.encode())
    monkeypatch.setattr("platform.machine", lambda: machine)
    chosen, images = ASKED[asked]
    text = render.lima_yaml(chosen, images, "-----BEGIN KEY-----\nx\n-----END KEY-----")
    assert refused(lima_fills(text), text) == ""


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
        with pytest.raises(AgentVMError, match="Lima would run agent-vm with other") as caught:
            creation.create(chosen, print)
        assert all(key in caught.value.message for key in ("images", "probes", "vmOpts"))
        assert not (lima_home / VM).exists()
        assert not guest.known_hosts(VM).exists()
        return
    monkeypatch.setattr(creation, "refuse_strange", lambda *_: None)
    made = creation.create(chosen, print)
    assert "touch /canary" in str(made.config["provision"])
    assert bool(made.config.get("mounts")) is (file == "override.yaml")  # where plain is off, too
