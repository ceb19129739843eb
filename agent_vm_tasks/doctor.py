"""What can be wrong with the VM and with what is kept of it: looked for, told, put right.

A look takes seconds even at a dead VM. A repair asks nothing and gives up nothing of a person's.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from . import creation, guest, image, lima, mount, process, state, vm
from .errors import AgentVMError
from .host import Check

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .console import Say
    from .lima import Instance
    from .settings import Settings

DAY = 24 * 60 * 60
FIX = "`agent-vm doctor --fix`"


@dataclass(frozen=True)
class Seen:
    """One look at the VM: a fact is found out when it is first asked for, and once."""

    settings: Settings

    @property
    def name(self) -> str:
        return self.settings.vm.name

    @cached_property
    def listed(self) -> tuple[Instance | None, str]:
        """What Lima has under the name, and why it does not say."""
        try:
            return lima.find(self.name), ""
        except AgentVMError as error:
            return None, str(error)

    @cached_property
    def running(self) -> Instance | None:
        """The VM, if it is ours, its processes live, and our configuration leads to it."""
        found, _ = self.listed
        if found is None or not found.running or not creation.is_ours(found):
            return None
        return found if found.ssh_port == guest.port(self.name) else None

    @cached_property
    def answers(self) -> bool:
        return self.running is not None and guest.answers(self.name)

    @cached_property
    def login(self) -> process.Result | None:
        """How a login of its own went, and the guest's clock; None where nobody answers."""
        if not self.answers:
            return None
        argv = [*guest.ssh(self.name, "-o", "ControlPath=none"), "echo $EPOCHSECONDS"]
        try:
            return process.run(argv, check=False, timeout=guest.RESPONSE)
        except AgentVMError as error:
            return process.Result(tuple(argv), guest.SSH_FAILED, "", str(error))


@dataclass(frozen=True)
class Fault:
    """`look` says what is wrong, or nothing; `repair` puts it right, where that can be done.

    A `required` one keeps commands from working.
    """

    name: str
    look: Callable[[Seen], str]
    repair: Callable[[Seen, Say], object] | None = None
    fix: str = FIX
    required: bool = True


def checks(settings: Settings) -> list[Check]:
    """Look for every fault."""
    try:
        state.folder(settings.vm.name)
    except AgentVMError as error:
        return [Check("state", ok=False, required=True, detail=error.message, fix=error.hint)]
    seen = Seen(settings)
    return [_check(fault, seen) for fault in FAULTS]


def repair(settings: Settings, say: Say) -> list[Check]:
    """Put right what can be, one after the other, and look again."""
    failed: dict[str, str] = {}
    for fault in FAULTS:
        seen = Seen(settings)
        if fault.repair and (said := fault.look(seen)):
            say(f"{fault.name}: {said}; putting it right")
            try:
                fault.repair(seen, say)
            except (AgentVMError, OSError) as error:
                failed[fault.name] = str(error)
    return [
        check if check.ok or check.name not in failed else replace(check, fix=failed[check.name])
        for check in checks(settings)
    ]


def _check(fault: Fault, seen: Seen) -> Check:
    said = fault.look(seen)
    fix = fault.fix if said else ""
    return Check(fault.name, not said, fault.required, said or "in order", fix)


def _half_written(seen: Seen) -> str:
    found = state.leftovers(seen.name)
    return f"{len(found)} half-written files in {state.folder(seen.name)}" if found else ""


def _remove_half_written(seen: Seen, _: Say) -> None:
    for path in state.leftovers(seen.name):
        path.unlink(missing_ok=True)


def _locked(seen: Seen) -> str:
    owner = state.owner(seen.name)
    return f"another command is at work ({owner})" if owner else ""


def _instance(seen: Seen) -> str:
    found, trouble = seen.listed
    if found is None:
        left = guest.known_hosts(seen.name).exists()
        return trouble or ("deleted without agent-vm, whose files of it are left" if left else "")
    if found.status in {"Running", "Stopped"}:
        return ""
    return f"{found.status}: {'; '.join(found.errors) or 'no reason given'}"


def _heal(seen: Seen, say: Say) -> None:
    with state.lock(seen.name, say):
        found = lima.find(seen.name)
        if found is None:
            vm.forget(seen.name)
        elif found.status not in {"Running", "Stopped"}:
            vm.heal(found, say)


def _not_ours(seen: Seen) -> str:
    found, _ = seen.listed
    ours = found is None or creation.is_ours(found)
    return "" if ours else f"the host key of the Lima instance {seen.name} is not pinned here"


def _pin(seen: Seen, say: Say) -> None:
    found, _ = seen.listed
    with state.lock(seen.name, say):
        if found and not creation.pin(found):
            raise AgentVMError("agent-vm did not make it", "set another vm.name")


def _elsewhere(seen: Seen) -> str:
    found, _ = seen.listed
    if found is None or not found.running or _not_ours(seen):
        return ""
    ours = guest.port(seen.name)
    return "" if ours == found.ssh_port else f"ssh is at {found.ssh_port}, but looked for at {ours}"


def _attach(seen: Seen, say: Say) -> None:
    with state.lock(seen.name, say):
        found = vm.require_exists(seen.name)
        if found.running:
            guest.attach(found)


def _silent(seen: Seen) -> str:
    found = seen.running
    if found is None or seen.answers:
        return ""
    if process.is_stopped(found.driver_pid):
        return "frozen: a signal stopped it"
    if lima.panicked(found):
        return "its kernel panicked"
    return "booting" if lima.started_since(found, vm.BOOT_LIMIT) else "no answer: frozen, or busy"


def _revive(seen: Seen, say: Say) -> None:
    """Try first what ends nothing inside; a VM that stays silent is stopped and started."""
    found = seen.running
    hope = found and (
        lima.wake(found) or lima.panicked(found) or lima.started_since(found, vm.BOOT_LIMIT)
    )
    if hope:
        with contextlib.suppress(guest.UnreachableError):
            vm.start(seen.settings, say)
            return
    _restart(seen, say)


def _restart(seen: Seen, say: Say) -> None:
    vm.stop(seen.settings, say)
    vm.start(seen.settings, say)


def _shut_out(seen: Seen) -> str:
    if seen.login is None or seen.login.ok:
        return ""
    if guest.is_impostor(seen.login):
        return "who answers has another host key than the VM"
    return f"ssh does not get in: {seen.login.reason}"


def _stale(seen: Seen) -> str:
    """Only with a login that works: else it says nothing of the connection."""
    if not seen.login or not seen.login.ok or not state.control_path(seen.name).exists():
        return ""
    return "" if guest.responds(seen.name) else "the warm connection is dead"


def _off_time(seen: Seen) -> str:
    told = seen.login.stdout.strip() if seen.login else ""
    if not told.isascii() or not told.isdecimal():
        return ""
    off = int(told[:15]) - int(time.time())
    if abs(off) <= guest.DRIFT:
        return ""
    return f"the VM's clock is {abs(off)} s {'fast' if off > 0 else 'slow'}"


def _unmounted(seen: Seen) -> str:
    path, works = mount.point(seen.settings), bool(seen.login and seen.login.ok)
    there = mount.current(path)
    if not seen.settings.mount.enabled or (there is None and not works):
        return ""
    if there is None:
        return f"{path} is not mounted"
    if not there.ours:
        return f"{path} is a mount of something else ({there.source})"
    if mount.server(path) is None:
        return f"the sshfs of {path} is dead"
    return f"{path} does not answer" if works and not mount.answers(path) else ""


def _remount(seen: Seen, _: Say) -> None:
    there = mount.current(mount.point(seen.settings))
    if there and there.ours:
        mount.unmount(seen.settings, force=True)
    if seen.login and seen.login.ok:
        mount.mount(seen.settings)


def _trusted(seen: Seen) -> str:
    return mount.trust(mount.point(seen.settings))


def _cut_off(_: Seen) -> str:
    found = _leftovers()
    return f"what killed commands left of disks: {', '.join(map(str, found))}" if found else ""


def _remove_cut_off(_: Seen, say: Say) -> None:
    for folder in _leftovers():
        say(f"removing {folder}")
        shutil.rmtree(folder, ignore_errors=True)


def _leftovers() -> list[Path]:
    """Folders in which images or kept disks were made, untouched for a day."""
    try:
        top = image.cache().parent
    except AgentVMError:
        return []
    found = [*top.glob("images/build-*/"), *top.glob("golden/keep-*/")]
    return [folder for folder in found if time.time() - _touched(folder) > DAY]


def _touched(folder: Path) -> float:
    """When something in it was last written; now where something has just gone, or itself has."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except FileNotFoundError:
        return time.time()


FAULTS = (
    Fault("state", _half_written, _remove_half_written, required=False),
    Fault("lock", _locked, fix="wait for it, or end that process", required=False),
    Fault("instance", _instance, _heal),
    Fault("owner", _not_ours, _pin),
    Fault("port", _elsewhere, _attach),
    Fault("answers", _silent, _revive),
    Fault("login", _shut_out, _restart),
    Fault("connection", _stale, lambda seen, _: guest.disconnect(seen.name), required=False),
    Fault("clock", _off_time, lambda seen, _: guest.warm_up(seen.name), required=False),
    Fault("mount", _unmounted, _remount, required=False),
    Fault("git trust", _trusted, fix=mount.UNTRUST, required=False),
    Fault("leftovers", _cut_off, _remove_cut_off, required=False),
)
