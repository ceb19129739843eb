"""Making a VM: what fits the host, and that Lima made what was asked for and nothing besides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from agent_vm_tasks import creation, image, lima, render, stages
from agent_vm_tasks.errors import AgentVMError, UsageError
from agent_vm_tasks.image import Image
from agent_vm_tasks.settings import Network, Settings, Vm, with_vm

from .conftest import VM, a_host

if TYPE_CHECKING:
    from .conftest import Limactl


FORWARD = {"guestPort": 3000, "hostIP": "127.0.0.1", "hostPort": 3000, "static": True}
IGNORED = {"guestIP": "0.0.0.0", "guestIPMustBeZero": False, "proto": "any", "ignore": True}  # noqa: S104


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"mounts": [{"location": "~"}]}, "mounts"),
        ({"plain": False}, "plain"),
        ({"plain": None}, "plain"),
        ({"env": {"TOKEN": "x"}}, "env"),
        ({"networks": [{"lima": "user-v2"}]}, "networks"),
        ({"additionalDisks": [{"name": "x"}]}, "additionalDisks"),
        ({"copyToHost": [{"guest": "/x", "host": "/x"}]}, "copyToHost"),
        ({"propagateProxyEnv": True}, "propagateProxyEnv"),
        ({"ssh": {"forwardAgent": True}}, "ssh.forwardAgent"),
        ({"ssh": {"forwardX11": True}}, "ssh.forwardX11"),
        ({"ssh": {"loadDotSSHPubKeys": True}}, "ssh.loadDotSSHPubKeys"),
        ({"portForwards": [{"guestPort": 5432, "static": True}]}, "portForwards"),
        ({"portForwards": [{"guestSocket": "/a", "hostSocket": "b"}]}, "portForwards"),
        ({"provision": []}, "provision"),
        ({"provision": [{"mode": "system", "script": "echo hi"}]}, "provision"),
        ({"mounts": [{"location": "~"}], "plain": False}, "mounts, plain"),
        ({"portForwards": [{**FORWARD, "hostIP": "192.0.2.1"}, IGNORED]}, "portForwards"),
        ({"portForwards": [{**FORWARD, "hostPort": 22000}, IGNORED]}, "portForwards"),
        ({"portForwards": [{**FORWARD, "proto": "udp"}, IGNORED]}, "portForwards"),
        ({"portForwards": [{**FORWARD, "reverse": True}, IGNORED]}, "portForwards"),
        ({"user": {"name": "agent", "uid": 0}}, "user.home, user.shell, user.uid"),
        ({"images": [{"location": "/theirs", "arch": "x86_64"}]}, "images"),
        ({"hostResolver": {"enabled": True}}, "hostResolver.enabled"),
        ({"firmware": {"images": [{"location": "/x"}], "legacyBIOS": True}}, "firmware.images"),
        ({"vmType": "vz"}, "vmType"),
        ({"cpus": 5}, "cpus"),
        ({"ofALaterLima": {"enabled": True}}, "ofALaterLima"),
        ({"ofALaterLima": {}, "another": False, "list": [], "text": "", "none": None}, ""),
    ],
)
def test_what_limas_own_defaults_mix_in_is_refused(
    limactl: Limactl, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any], named: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    asked = Settings(vm=Vm(ca_certs=()), network=Network(ports=(3000,)))
    text = render.lima_yaml(asked, [Image("/disk.qcow2")], "key")
    found = an_instance({**yaml.safe_load(text), "vmType": "qemu", **extra})
    if not named:
        creation.refuse_strange(found, text)
        return
    with pytest.raises(AgentVMError) as caught:
        creation.refuse_strange(found, text)
    assert caught.value.message == f"Lima would run agent-vm with other {named} than asked for"
    assert "default.yaml and override.yaml of /lima/_config" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [("plain", False), ("propagateProxyEnv", True), ("env", {"TOKEN": "x"}),
     ("ssh", {"forwardAgent": True}), ("mounts", [{"location": "~"}])],
)  # fmt: skip
def test_nor_does_it_help_to_change_what_was_asked_for(
    limactl: Limactl, key: str, value: object
) -> None:
    text = render.lima_yaml(Settings(vm=Vm(ca_certs=())), [Image("/disk.qcow2")], "key")
    changed = {**yaml.safe_load(text), "vmType": "qemu", key: value}
    with pytest.raises(AgentVMError, match=f"with other {key}"):
        creation.refuse_strange(an_instance(changed), yaml.safe_dump(changed))


@pytest.mark.parametrize("text", ["", "5", "x", "[", "ssh: 5", "1: x\nx: y"])
def test_a_configuration_that_is_none_is_an_error_of_one_line(limactl: Limactl, text: str) -> None:
    with pytest.raises(AgentVMError, match="configuration of the VM agent-vm makes no sense") as e:
        creation.refuse_strange(an_instance({"plain": True}), text)
    assert "\n" not in str(e.value)


def an_instance(config: dict[str, Any]) -> lima.Instance:
    folder = Path("/lima") / VM
    return lima.Instance(VM, "Stopped", folder, 4, 8192, 102400, 0, "qemu", config=config)


@pytest.mark.parametrize(
    ("cpus", "memory", "gets", "told"),
    [
        (8, 16384, (4, 8192), []),
        (4, 8192, (4, 8192), []),
        (2, 16384, (2, 8192), ["this host has 2 CPUs: the VM gets 2 CPUs"]),
        (8, 6000, (4, 3000), ["this host has 5.859 GiB memory: the VM gets 2.93 GiB memory"]),
    ],
)
def test_defaults_are_cut_to_the_host_and_that_is_told(
    monkeypatch: pytest.MonkeyPatch,
    cpus: int,
    memory: int,
    gets: tuple[int, int],
    told: list[str],
) -> None:
    a_host(monkeypatch, cpus=cpus, memory=memory)
    fit, said = creation.fitted(Settings())
    assert (fit.vm.cpus, fit.vm.memory) == gets
    assert said == told
    assert fit.vm.disk == Settings().vm.disk


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (
            {"cpus": "5"},
            "--vcpu: vm.cpus asks for 5 CPUs, this host has 4 CPUs; ask for at most 4 CPUs",
        ),
        (
            {"memory": "9"},
            "--memory: vm.memory asks for 9 GiB memory, this host has 8 GiB memory; "
            "ask for at most 8 GiB memory",
        ),
        ({"cpus": "4", "memory": "8"}, ""),
    ],
)
def test_asking_for_more_than_the_host_has_is_refused(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, str], error: str
) -> None:
    a_host(monkeypatch, cpus=4, memory=8192)
    wanted = with_vm(Settings(), **flags)
    if not error:
        assert creation.fitted(wanted) == (wanted, [])
        return
    with pytest.raises(UsageError) as caught:
        creation.fitted(wanted)
    assert str(caught.value) == error


def test_rendered_shows_all_and_makes_nothing(
    limactl: Limactl, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        pytest.fail("an image is built to show a file")

    monkeypatch.setattr(image, "_build_into", forbidden)
    monkeypatch.setattr(image, "_reachable", lambda: False)
    a_host(monkeypatch)
    files = creation.rendered(Settings(), lambda _: None)
    assert "lima.yaml" in files
    scripts = {f"provision/{stage.name}.sh" for stage in stages.stages(Settings())}
    assert set(files) == {"lima.yaml", *scripts}
    assert yaml.safe_load(files["lima.yaml"])["plain"] is True
    assert "PRIVATE KEY" not in json.dumps(files)
    assert limactl.calls() == []
