"""What the VM may reach. Enforced on the host, by a wrapper that stands between Lima and QEMU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import host, lima, settings, state, toml_file
from .errors import AgentVMError
from .settings import NETWORKS

if TYPE_CHECKING:
    from pathlib import Path

    from .lima import Instance
    from .settings import Settings

RESTRICTED = {"offline", "allowlist"}
"""Modes in which QEMU lets nothing out but what it is told to."""
_MACOS = "that can be kept from it under QEMU on Linux only"
_NO_PASST = f"there is no passt of {host.PASST_MINIMUM // 10000} or newer"
_OLDER = "an older agent-vm made the VM (destroy, then start, renews it)"
_OLD_QEMU = "this QEMU is older than 7.2"


@dataclass(frozen=True)
class Plan:
    """The mode that a boot will have; `warning`: what this host cannot enforce."""

    mode: str
    warning: str = ""


def wanted(chosen: Settings) -> str:
    """The mode asked for: what `agent-vm network` was told goes before the user's own file.

    A repository's file only tightens, whatever the user said.
    """
    told, asked = state.read(_wish(chosen.vm.name)), chosen.network.mode
    if told not in NETWORKS:
        return asked
    source = chosen.sources["network.mode"]
    ours = source in {settings.DEFAULT, toml_file.label(settings.user_file())}
    return told if ours else settings.tighter(told, asked)


def choose(name: str, mode: str) -> None:
    """Remember what the user wants from the next boot on."""
    state.write(_wish(name), mode)


def plan(chosen: Settings, instance: Instance) -> Plan:
    """What a boot on this host can enforce; raises AgentVMError where that is too little.

    QEMU's own network and vz both show the guest the host's loopback as its gateway.
    """
    from . import render

    mode = wanted(chosen)
    require_enforceable(chosen, mode)
    if mode == "allowlist" and render.PROXY_NOTE not in str(instance.config.get("provision")):
        raise _impossible(mode, _OLDER, "use another mode")
    if mode == "internet" and (lack := _lack(chosen) or _lacks_resolver(instance)):
        return Plan("open", f"the VM can reach services of this machine's loopback: {lack}")
    return Plan(mode)


def require_enforceable(chosen: Settings, mode: str) -> None:
    """Raise AgentVMError for a mode below internet that this host cannot enforce."""
    from . import proxy

    if mode in RESTRICTED and not host.uses_qemu(chosen.vm.vm_type):
        raise _impossible(mode, _MACOS, "use vm_type qemu on Linux, or another mode")
    if mode == "allowlist" and (missing := proxy.lacks()):
        raise _impossible(mode, missing, "`agent-vm setup` installs it")


def _impossible(mode: str, lack: str, hint: str) -> AgentVMError:
    return AgentVMError(f"the network cannot be {mode}: {lack}", hint)


def _lack(chosen: Settings) -> str:
    if not host.uses_qemu(chosen.vm.vm_type):
        return _MACOS
    if host.passt_day() < host.PASST_MINIMUM:
        return _NO_PASST
    version = host.qemu_version()
    return _OLD_QEMU if version and version < host.QEMU_WITH_PASST else ""


def _lacks_resolver(instance: Instance) -> str:
    """A VM of an older version asks for names where passt answers none."""
    from . import render

    known = render.RESOLVER in str(instance.config.get("provision"))
    return "" if known else _OLDER


def qemu(instance: Instance, mode: str) -> Path:
    """Write the program that Lima takes for QEMU; its path. The account that runs it reads it.

    Raises AgentVMError.
    """
    from . import proxy, render

    real = host.require(f"qemu-system-{host.arch()}")
    passt = host.passt() or ""
    way = proxy.command(instance.name) if mode == "allowlist" else ""
    text = render.qemu(mode=mode, qemu=real, passt=passt, folder=instance.dir, proxy=way)
    lima.put(instance.dir, {"agent-vm-qemu": text})
    return instance.dir / "agent-vm-qemu"


def note(name: str, mode: str) -> None:
    """Keep what the boot that begins will have."""
    state.write(noted(name), mode)


def noted(name: str) -> Path:
    """The file with the mode of the VM's last boot."""
    return state.folder(name) / "network"


def in_force(name: str) -> str:
    """The mode of the VM's last boot; an older version's was open."""
    mode = state.read(noted(name))
    return mode if mode in NETWORKS else "open"


def refuse_looser(chosen: Settings) -> None:
    """Raise AgentVMError where the running VM may reach more than somebody asked for.

    That the host cannot enforce the default is only told, at each start.
    """
    has, asked = in_force(chosen.vm.name), wanted(chosen)
    if asked not in {has, "internet"} and settings.tighter(has, asked) == asked:
        raise AgentVMError(
            f"the VM's network is {has}, but {asked} is asked for", "`agent-vm restart` brings that"
        )


def _wish(name: str) -> Path:
    """The file with what the user wants; it outlives the VM."""
    return state.folder(name) / "network-wanted"
