"""The VM's life: create, start, stop, destroy, and what it looks like now."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import (
    creation,
    guest,
    host,
    lima,
    mount,
    network,
    process,
    secrets,
    state,
    walls,
    workspaces,
)
from .errors import AgentVMError
from .settings import explicit

if TYPE_CHECKING:
    from pathlib import Path

    from invoke.context import Context

    from .console import Say
    from .lima import Instance
    from .settings import Settings
    from .workspaces import Row

_EMULATED = {
    "x86_64": " -machine q35,vmport=off -accel tcg,thread=multi,tb-size=512 -cpu max",
    "aarch64": " -machine virt -accel tcg,thread=multi,tb-size=512 -cpu max",
}


ABSENT = "Does not exist"
BOOT_LIMIT = 5 * 60
"""Seconds that a VM may take to answer after its start."""
PAUSE = 3.0


@dataclass(frozen=True)
class Status:
    """The VM as `status` shows it; `memory` and `disk` are in MiB, 0 without a VM.

    `trouble` says why the workspaces of a running VM are not known.
    """

    name: str
    state: str
    cpus: int
    memory: int
    disk: int
    mount: str
    mounted: bool
    network: str = ""
    workspaces: tuple[Row, ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class Started:
    """What `start` found out on the way and the user should hear."""

    created: bool
    warnings: tuple[str, ...] = ()


def start(settings: Settings, say: Say, c: Context | None = None) -> Started:
    """Have the VM running, provisioned and mounted, its secrets in it; creates it when missing.

    Safe to repeat: what is done already is skipped, what failed is resumed. Raises AgentVMError.
    """
    from . import intact

    name = settings.vm.name
    given = secrets.collect(settings)
    host.require_lima()
    look_over(settings)
    with state.lock(name, say):
        found = find(name)
        warnings = [*given.warnings, *_differences(settings, found)]
        if found is not None and found.status not in {"Running", "Stopped"}:
            found = heal(found, say)
        instance = found or _created(settings, say)
        if not instance.running:
            instance = _boot(settings, instance, say)
        instance = _reached(settings, instance, say)
        warnings += _install(settings, instance, say, c)
        secrets.push(name, given)
    warnings += [*look_after(settings, say), *intact.warnings(settings, instance)]
    return Started(found is None, tuple(warnings))


def look_after(settings: Settings, say: Say) -> list[str]:
    """See to a running VM before somebody goes in: its network, its way out, the mount; warnings.

    Raises AgentVMError where it may reach more than is asked for.
    """
    network.refuse_looser(settings)
    return [*ensure_way_out(settings, say), *ensure_mounted(settings)]


def ready(name: str) -> bool:
    """Whether commands can go in without further ado: provisioned once, and connected."""
    return _ready_mark(name).exists() and guest.connected(name)


def outdated(settings: Settings) -> bool:
    """Whether the settings ask for what no `start` or `provision` since the boot has seen to."""
    noted = _noted(settings.vm.name)
    return settings.provision.enabled and bool(noted) and _asked(settings) not in noted


def catch_up(settings: Settings, say: Say, c: Context | None = None) -> list[str]:
    """Install what the settings ask for since; trouble is a warning, for the VM worked before.

    What has failed is not tried at each connection, only told.
    """
    if not outdated(settings):
        return []
    failed = f"failed-{_asked(settings)}"
    if failed in _noted(settings.vm.name):
        return ["not all that the settings ask for is installed; `agent-vm provision` tries again"]
    try:
        install(settings, say, c)
    except guest.UnreachableError:
        raise
    except AgentVMError as error:
        _note(settings.vm.name, failed)
        return [str(error)]
    return []


def install(
    settings: Settings, say: Say, c: Context | None = None, *, upgrade: bool = False
) -> None:
    """Install in the running VM what is missing; with `upgrade`, renew what is there.

    Raises AgentVMError naming what could not be installed.
    """
    from . import provision, stages

    wanted, own = stages.stages(settings), stages.personal(settings)
    require_running(settings.vm.name)
    with state.lock(settings.vm.name, say):
        if provision.run(settings, wanted, say, c, upgrade=upgrade):
            guest.reconnect(settings.vm.name)
        if own:
            provision.run(settings, own, say, c)
        _note(settings.vm.name, _asked(settings))


def made_here(name: str) -> bool:
    """Whether agent-vm has made a VM of that name for this user; asks no Lima."""
    return guest.known_hosts(name).exists()


def find(name: str) -> Instance | None:
    """The VM, or None; raises AgentVMError for an instance that was not made here.

    A repository's settings may name the VM: they must not lead to somebody else's.
    """
    found = lima.find(name)
    if found is not None and not creation.is_ours(found):
        raise AgentVMError(
            f"there is a Lima instance {name} that agent-vm did not make for this user",
            f"set another vm.name, or remove it with `limactl delete {name}`; if it is yours after"
            " all, `agent-vm doctor --fix` takes it up again",
        )
    return found


def require_exists(name: str) -> Instance:
    found = find(name)
    if found is None:
        raise AgentVMError(f"there is no VM {name}", "`agent-vm start` creates it")
    return found


def require_running(name: str) -> None:
    """Make sure that ssh gets in; raises AgentVMError when the VM is not running."""
    if guest.connected(name):
        return
    found = require_exists(name)
    if not found.running:
        raise AgentVMError(f"the VM {name} is {found.status.lower()}", "run `agent-vm start`")
    guest.attach(found)
    guest.warm_up(name)


def status(settings: Settings) -> Status:
    """Look at the VM, the mount and, when it runs, the workspaces; starts nothing."""
    name, point = settings.vm.name, mount.point(settings)
    with process.side_by_side() as threads:
        early = threads.submit(_inventory, name) if ready(name) else None
        found = find(name)
        mounted = mount.current(point)
        known = early.result() if early else None
    rows, trouble = known or _inventory(name) if found and found.running else ((), "")
    return Status(
        name=name,
        state=found.status if found else ABSENT,
        cpus=found.cpus if found else 0,
        memory=found.memory if found else 0,
        disk=found.disk if found else 0,
        mount=str(point),
        mounted=bool(mounted and mounted.ours),
        network=network.in_force(name) if found and found.running else "",
        workspaces=rows,
        trouble=trouble,
    )


def contents(settings: Settings) -> tuple[tuple[Row, ...], str]:
    """The workspaces, and why they could not all be looked at; nothing when there is no VM."""
    found = find(settings.vm.name)
    if found is None:
        return (), ""
    if not found.running:
        return (), "the VM is not running"
    return _inventory(settings.vm.name)


def stop(settings: Settings, say: Say) -> bool:
    """Power the VM down; False when it was not running."""
    name = settings.vm.name
    if not made_here(name):
        require_exists(name)  # no lock is made to say that there is none
    with state.lock(name, say):
        found = require_exists(name)
        silent = found.running and not (lima.wake(found) or guest.answers(name))
        if found.running:
            slow = "; one that does not answer takes up to 3 minutes" if silent else ""
            say(f"stopping the VM {name}{slow}")
        _let_go(settings, say)
        if found.status == "Stopped":
            return False
        lima.stop(name, force=not found.running or (silent and lima.panicked(found)))
        return True


def destroy(settings: Settings, say: Say) -> bool:
    """Remove the VM with everything in it; False when there was none."""
    name = settings.vm.name
    with state.lock(name, say):
        found = find(name)
        _let_go(settings, say)
        if found is None:
            return False
        lima.stop(name, force=True)
        lima.delete(name)
        forget(name)
        return True


def forget(name: str) -> None:
    """Remove what is kept here of a VM that is no more, but what was kept of its workspaces."""
    from . import intact

    guest.disconnect(name)
    for file in (_ready_mark(name), _unused_mark(name), guest.config(name), guest.known_hosts(name),
                 secrets.key_file(name), network.noted(name), intact.sealed(name)):  # fmt: skip
        file.unlink(missing_ok=True)
    walls.forget(name)


def heal(found: Instance, say: Say) -> Instance | None:
    """Get a broken or half-made instance back to Stopped; None when there was nothing in it."""
    say(f"the VM {found.name} is {found.status}; cleaning up")
    lima.stop(found.name, force=True)
    again = lima.find(found.name)
    if again and again.status in {lima.INCOMPLETE, lima.UNKNOWN} and not again.has_disk:
        lima.delete(again.name)
        forget(again.name)
        return None
    if again is not None and again.status != "Stopped":
        raise AgentVMError(
            f"the VM {found.name} is {again.status}: {'; '.join(again.errors) or 'no reason'}",
            f"see {again.dir}; `agent-vm destroy` removes it",
        )
    return again


def _let_go(settings: Settings, say: Say) -> None:
    """Give up the mount and the connection; a mount that cannot be had keeps no VM running."""
    from . import proxy

    try:
        mount.unmount(settings, force=True)
    except AgentVMError as error:
        say(str(error))
    guest.disconnect(settings.vm.name)
    proxy.end(settings.vm.name)


def _created(settings: Settings, say: Say) -> Instance:
    from . import intact

    walls.forget(settings.vm.name)  # of one that was deleted without agent-vm
    made = creation.create(settings, say)
    intact.seal(made)
    _unused_mark(made.name).touch()
    return made


def _keep(instance: Instance, say: Say) -> list[str]:
    """Keep the disk for the next creation; the VM is good without, so trouble is only told."""
    from . import golden

    if instance.vm_type != "qemu":
        return []
    try:
        golden.keep(instance, say)
    except (AgentVMError, OSError) as error:  # as a full disk
        return [f"the provisioned disk was not kept: {error}"]
    return []


def _boot(settings: Settings, instance: Instance, say: Say) -> Instance:
    from . import proxy

    arguments, slow = _acceleration(settings)
    planned = network.plan(settings, instance)
    for line in filter(None, (slow, planned.warning)):
        say(line)
    creation.refuse_strange(instance, lima.asked(instance))
    host.require_free(creation.forwards(instance.config))
    _ready_mark(instance.name).unlink(missing_ok=True)
    say(f"starting the VM {instance.name}")
    proxy.end(instance.name)
    if planned.mode == "allowlist":
        proxy.keep(settings, say)
    network.note(instance.name, planned.mode)
    lima.start(instance, say, _qemu(settings, instance, planned.mode, arguments))
    started = lima.find(instance.name)
    if started is None or not started.running:
        raise AgentVMError(f"the VM {instance.name} went down while it booted",
                           f"see {instance.dir}/serial.log")  # fmt: skip
    return started


def _reached(settings: Settings, instance: Instance, say: Say) -> Instance:
    """Have a connection into a VM that runs, over which commands come back."""
    if lima.wake(instance):
        say(f"the VM {instance.name} was stopped by a signal; it goes on")
    if guest.responds(instance.name):
        return instance
    guest.disconnect(instance.name)
    return _answering(settings, instance, say)


def _answering(settings: Settings, instance: Instance, say: Say) -> Instance:
    """Connect to a VM that runs; what another command left booting is waited for.

    One that is going down, or whose kernel panicked, is booted again. Raises UnreachableError when
    it was booted long ago, or too long.
    """
    began = time.monotonic()
    while True:
        guest.attach(instance)
        try:
            guest.warm_up(instance.name)
        except guest.UnreachableError:
            if lima.panicked(instance):
                say(f"the kernel of the VM {instance.name} panicked; starting it anew")
                lima.stop(instance.name, force=True)
            elif lima.started_since(instance, BOOT_LIMIT):
                waited = time.monotonic() - began
                say(f"the VM {instance.name} runs, but does not answer yet ({waited:.0f} s)")
            else:
                raise
        else:
            return instance
        time.sleep(PAUSE)
        found = require_exists(instance.name)
        instance = found if found.running else _boot(settings, found, say)


def look_over(settings: Settings) -> None:
    """Read what is to go in before anything is started; raises AgentVMError for what is missing."""
    from . import stages

    if not made_here(settings.vm.name):
        creation.look_over(settings)
    if settings.provision.enabled:
        stages.home_files()
        _asked(settings)


def _install(settings: Settings, instance: Instance, say: Say, c: Context | None) -> list[str]:
    """Provision a VM that has just been found or booted; warnings.

    The disk is kept between what every VM gets and what is the person's own.
    """
    from . import provision, stages

    if not settings.provision.enabled:
        _note(instance.name, _asked(settings))
        return []
    warnings = []
    if provision.run(settings, stages.stages(settings), say, c):
        guest.reconnect(instance.name)
        if _unused_mark(instance.name).exists():
            warnings = _keep(instance, say)
    _unused_mark(instance.name).unlink(missing_ok=True)
    _note(instance.name, "provisioned")
    if own := stages.personal(settings):
        provision.run(settings, own, say, c)
    _note(instance.name, _asked(settings))
    return warnings


def _note(name: str, word: str) -> None:
    if word not in (noted := _noted(name)):
        state.write(_ready_mark(name), "\n".join([*noted, word]))


def _noted(name: str) -> list[str]:
    return state.read(_ready_mark(name)).split()


def _asked(settings: Settings) -> str:
    """A hash of what in the settings and the user's files provisioning depends on."""
    import hashlib

    from . import stages

    inputs = [repr(settings.packages).encode(), stages.tar(stages.own_home_files(settings))]
    inputs += [stages.repository_script(settings)] if settings.provision.script else []
    inputs += [b"walls"] if settings.workspace.walls else []
    return hashlib.sha256(b"\0".join(inputs)).hexdigest()[:16]


def _qemu(settings: Settings, instance: Instance, mode: str, arguments: str) -> dict[str, str]:
    """The environment by which Lima takes our QEMU and arguments, which win over its own.

    Source: Lima's pkg/driver/qemu/qemu.go.
    """
    if not host.uses_qemu(settings.vm.vm_type):
        return {}
    program = shlex.quote(str(network.qemu(instance, mode)))
    return {f"QEMU_SYSTEM_{host.arch().upper()}": program + arguments}


def _acceleration(settings: Settings) -> tuple[str, str]:
    """Arguments that make Lima's QEMU use what works, and a warning when that is slow.

    Lima takes KVM when the device file exists.
    """
    if not host.uses_qemu(settings.vm.vm_type):
        return "", ""
    if settings.vm.accel == "kvm":
        return "", ""
    if settings.vm.accel == "auto":
        kvm = host.kvm()
        if kvm.works:
            return "", ""
        why = f"KVM cannot be used ({kvm.reason})"
    else:
        why = "KVM is off by vm.accel"
    version = host.qemu_version()
    if version and version < host.QEMU_TO_EMULATE:
        raise AgentVMError(
            f"{why}, and QEMU {version[0]}.{version[1]} cannot emulate a Debian 13 guest",
            "run `agent-vm setup`: it installs QEMU 8 or newer",
        )
    slow = f"{why}: the VM is emulated, which is slow and no strong security boundary"
    return _EMULATED[host.arch()], slow


def _differences(settings: Settings, found: Instance | None) -> list[str]:
    """Tell of flags and settings that an existing VM does not have."""
    if found is None:
        return []
    has = {"cpus": found.cpus, "memory": found.memory, "disk": found.disk}
    different = [
        key for key, value in has.items()
        if value and explicit(settings, f"vm.{key}") and getattr(settings.vm, key) != value
    ]  # fmt: skip
    amount = creation.amount
    return [
        f"the VM has {amount(key, has[key])}, not {amount(key, getattr(settings.vm, key))}: "
        f"vm.{key} counts when it is created (destroy, then start)"
        for key in different
    ]


def _inventory(name: str) -> tuple[tuple[Row, ...], str]:
    """The workspaces, and why they are not known."""
    try:
        if not guest.connected(name):
            require_running(name)
        return tuple(workspaces.inventory(name)), ""
    except AgentVMError as error:
        return (), str(error)


def _ready_mark(name: str) -> Path:
    return state.folder(name) / "ready"


def _unused_mark(name: str) -> Path:
    """There until the first provisioning is through: nobody can have worked in the VM before."""
    return state.folder(name) / "unused"


def ensure_way_out(settings: Settings, say: Say) -> list[str]:
    """Where the VM has a proxy only, have it run by the list of now; trouble is only told."""
    if network.in_force(settings.vm.name) != "allowlist":
        return []
    from . import proxy

    try:
        proxy.keep(settings, say)
    except AgentVMError as error:
        return [f"the VM reaches nothing: {error}"]
    return []


def ensure_mounted(settings: Settings) -> list[str]:
    """Mount the workspaces; without it everything else works, so trouble is only told."""
    if not settings.mount.enabled:
        return []
    try:
        mount.mount(settings)
    except AgentVMError as error:
        return [f"the workspaces are not mounted: {error}"]
    return []
