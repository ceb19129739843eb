"""network: what the VM may reach, and who is kept out until it does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent_vm_tasks import network, proxy, vm
from agent_vm_tasks.errors import AgentVMError
from tests.conftest import VM

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.conftest import Limactl

    from .conftest import Command


def test_a_running_vm_that_may_reach_more_is_not_entered(
    repository: Path, limactl: Limactl, agent_vm: Command
) -> None:
    (repository / "agent-vm.toml").write_text(
        "[mount]\nenabled = false\n[provision]\nenabled = false\n"
    )
    agent_vm("start")
    assert agent_vm("connect", "--command", "true").status == 0
    assert agent_vm("network", "offline").out == (
        "Network: internet: the internet, not the services of this machine's loopback\n"
        "Wanted: offline: nothing but agent-vm's own connection; `agent-vm restart` brings that\n"
    )
    for verb in (["connect", "--command", "true"], ["push", "fix"], ["start"]):
        said = agent_vm(*verb)
        assert said.status == 1
        assert said.error.endswith(
            "the VM's network is internet, but offline is asked for; `agent-vm restart` brings that"
        )
    agent_vm("restart")
    assert agent_vm("connect", "--command", "true").status == 0
    assert "Network: offline: nothing but" in agent_vm("status").out
    assert ",restrict=on" in (vm.require_exists(VM).dir / "agent-vm-qemu").read_text()


def test_the_proxy_lives_with_the_vm_and_hears_of_changes(
    repository: Path, limactl: Limactl, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[str, ...]] = []
    monkeypatch.setattr(proxy, "keep", lambda chosen, _: heard.append(chosen.network.allow))
    monkeypatch.setattr(proxy, "end", lambda name: heard.append((name,)))
    monkeypatch.setattr(proxy, "lacks", lambda: "")
    monkeypatch.setattr(proxy, "command", lambda name: f"socat-after-{len(heard)}-for-{name}")
    agent_vm("network", "allowlist")
    agent_vm("start")
    assert heard[:2] == [(VM,), ()]
    assert (
        "-cmd:socat-after-2-for-agent-vm"
        in (vm.require_exists(VM).dir / "agent-vm-qemu").read_text()
    )
    with (repository.parents[1] / ".config/agent-vm/config.toml").open("a") as file:
        file.write('[network]\nallow = ["a.org"]\n')
    for verb in (["network"], ["connect", "--command", "true"], ["start"]):
        heard.clear()
        agent_vm(*verb)
        assert set(heard) == {("a.org",)}
    heard.clear()
    agent_vm("stop")
    assert heard == [(VM,)]
    agent_vm("network", "offline")
    agent_vm("start")
    assert set(heard) == {(VM,)}


def test_work_comes_out_of_a_vm_whose_proxy_is_gone(
    repository: Path, limactl: Limactl, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def keep(*_: object) -> None:
        raise AgentVMError("squid is not installed", "run `agent-vm setup`")

    agent_vm("start")
    network.note(VM, "allowlist")
    monkeypatch.setattr(proxy, "keep", keep)
    for verb in (["start"], ["connect", "--command", "true"], ["network"]):
        said = agent_vm(*verb)
        assert said.status == 0
        assert "warning: the VM reaches nothing: squid is not installed; run" in said.err


def test_a_mode_that_cannot_be_had_here_is_refused_at_once(
    home: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxy, "lacks", lambda: "not installed: squid")
    said = agent_vm("network", "allowlist")
    assert said.status == 1
    assert said.error == (
        "agent-vm: the network cannot be allowlist: not installed: squid;"
        " `agent-vm setup` installs it"
    )
    assert agent_vm("network").out.startswith("Network: internet: ")


def test_an_unknown_mode_is_a_usage_error(home: Path, agent_vm: Command) -> None:
    assert agent_vm("network", "closed").status == 2
    assert not (home / ".agent-vm").exists()
