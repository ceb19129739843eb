"""Making a VM: what fits this host, from which disk, and that Lima made what was asked for."""

from __future__ import annotations

import contextlib
import re
from base64 import b64decode, b64encode
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import guest, host, lima, process, state
from .errors import AgentVMError, UsageError
from .settings import explicit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .console import Say
    from .lima import Instance
    from .settings import Settings

_PEM = r"-----BEGIN OPENSSH PRIVATE KEY-----\n([^-]*)-----END"
_ED25519 = b"\0\0\0\x0bssh-ed25519\0\0\0\x20"
"""What comes before the 32 bytes of such a key (RFC 8709)."""

_NEVER = ("mounts", "copyToHost", "networks", "additionalDisks", "env")
_NOT_BY_SSH = ("forwardAgent", "forwardX11", "loadDotSSHPubKeys")
"""What no VM of ours has: keys of Lima's configuration, and of its table ssh."""


def fitted(settings: Settings) -> tuple[Settings, list[str]]:
    """The settings with defaults cut to what this host has; asking for more is a UsageError."""
    told: list[str] = []
    for key, most in (("cpus", host.cpus()), ("memory", host.memory())):
        wanted = getattr(settings.vm, key)
        if wanted <= most:
            continue
        if explicit(settings, f"vm.{key}"):
            source = settings.sources[f"vm.{key}"]
            raise UsageError(
                f"{source}: vm.{key} asks for {amount(key, wanted)}, "
                f"this host has {amount(key, most)}",
                f"ask for at most {amount(key, most)}",
            )
        use = most if key == "cpus" else most // 2
        changed: Any = {key: use}
        settings = replace(settings, vm=replace(settings.vm, **changed))
        told.append(f"this host has {amount(key, most)}: the VM gets {amount(key, use)}")
    return settings, told


def look_over(settings: Settings) -> None:
    """Refuse what no VM could be made from, before anything is made. Raises AgentVMError."""
    from . import image, render

    fit, _ = fitted(settings)
    if fit.vm.image.startswith(("/", "~")):
        image.choose(fit, print, build=False)
    render.certificates(fit)


def rendered(settings: Settings, say: Say) -> dict[str, str]:
    """Every file that a creation would use, by name; the host key is left out."""
    from . import image, render, stages

    fit, _ = fitted(settings)
    images = image.choose(fit, say, build=False)
    files = {"lima.yaml": render.lima_yaml(fit, images, "(made at creation)")}
    scripts = (*stages.stages(fit), *stages.personal(fit))
    return files | {f"provision/{stage.name}.sh": stage.script for stage in scripts}


def create(settings: Settings, say: Say) -> Instance:
    """Make the instance, from a kept disk where one fits; it is not booted. Raises AgentVMError."""
    from . import golden, image, render

    name = settings.vm.name
    fit, told = fitted(settings)
    for line in told:
        say(line)
    planned = image.choose(fit, say, build=False)
    images = golden.prefer(fit, planned, say) or image.choose(fit, say)
    sizes = [amount(key, getattr(fit.vm, key)) for key in ("cpus", "memory", "disk")]
    say(f"creating the VM {name}: {', '.join(sizes)}")
    private, public = _host_key()
    yaml = render.lima_yaml(fit, images, private)
    state.write(guest.known_hosts(name), f"{name} {public}\n")
    try:
        made = _created(name, yaml, say)
    except AgentVMError:
        guest.known_hosts(name).unlink()
        raise
    if (free := host.room(made.dir)) < fit.vm.disk:
        say(f"its disk grows as it fills; this machine has {free / 1024:.4g} GiB for it")
    return made


def is_ours(found: Instance) -> bool:
    """Whether the instance has the host key that was pinned at a creation by this user.

    One whose configuration cannot be read is taken for what was created here last.
    """
    try:
        pinned = guest.known_hosts(found.name).read_text("utf-8").split()
    except (OSError, ValueError):
        return False
    return not found.config or any(key in pinned for key in _host_keys(found))


def pin(found: Instance) -> bool:
    """Pin anew the host key that the instance was given; False when agent-vm gave it none."""
    keys = _host_keys(found)
    if keys:
        state.write(guest.known_hosts(found.name), f"{found.name} ssh-ed25519 {keys[0]}\n")
    return bool(keys)


def _host_keys(found: Instance) -> list[str]:
    """The public parts of the keys in its scripts: OpenSSH's files have them in clear."""
    entries = found.config.get("provision")
    scripts = [str(entry) for entry in entries] if isinstance(entries, list) else []
    keys = []
    for body in re.findall(_PEM, "".join(scripts).replace(r"\n", "\n")):
        with contextlib.suppress(ValueError):
            raw = b64decode(body)
            at = raw.index(_ED25519)
            keys.append(b64encode(raw[at : at + len(_ED25519) + 32]).decode())
    return keys


def _created(name: str, yaml: str, say: Say) -> Instance:
    """Create the instance and look at what Lima made of it; what it should not be is deleted."""
    lima.create(name, yaml, say)
    created = lima.find(name)
    if created is None:
        raise AgentVMError(f"limactl created {name}, but does not list it")
    try:
        refuse_strange(created, yaml)
    except AgentVMError:
        lima.delete(name)
        raise
    return created


def _host_key() -> tuple[str, str]:
    """A new ed25519 key pair for the guest's sshd: (private PEM, public line)."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key"
        process.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)])
        return path.read_text(), path.with_suffix(".pub").read_text().strip()


def refuse_strange(created: Instance, yaml: str) -> None:
    """Compare Lima's effective configuration with what was asked for, before each boot.

    The user's own Lima defaults and overrides are mixed into every instance ($LIMA_HOME/_config,
    Lima's load.go) and could add mounts, forwards or scripts. So it has to be as Lima makes it
    without them. Raises AgentVMError naming the keys.
    """
    try:
        strange = _strange(created.config, _closed(lima.filled(yaml)))
    except (ValueError, TypeError) as error:
        raise AgentVMError(
            f"the configuration of the VM {created.name} makes no sense: {error}",
            f"see {created.dir}/lima.yaml",
        ) from None
    if strange:
        raise AgentVMError(
            f"Lima would run {created.name} with other {', '.join(strange)} than asked for",
            f"look into base.yaml, default.yaml and override.yaml of {created.dir.parent}/_config, "
            f"and into {created.dir / 'lima.yaml'}",
        )


def _closed(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, with what each of our VMs has, whatever became of its lima.yaml."""
    ssh = {**(asked.get("ssh") or {}), **dict.fromkeys(_NOT_BY_SSH, False)}
    return {**asked, **dict.fromkeys(_NEVER), "plain": True, "propagateProxyEnv": False, "ssh": ssh}


def _strange(has: Mapping[str, Any], asked: Mapping[str, Any], table: str = "") -> list[str]:
    """The keys that differ, `ssh.forwardAgent` for one; what is missing is empty or off."""
    strange = []
    for key in sorted({*has, *asked}):
        one, other = has.get(key) or None, asked.get(key) or None
        if isinstance(one, dict) and isinstance(other, dict):
            strange += _strange(one, other, f"{table}{key}.")
        elif one != other:
            strange.append(f"{table}{key}")
    return strange


def forwards(config: Mapping[str, Any]) -> list[int]:
    """Guest ports that are on the host's loopback as well."""
    rules = config.get("portForwards") or ()
    return [rule.get("guestPort", 0) for rule in rules if not rule.get("ignore")]


def amount(key: str, number: int) -> str:
    """Say it in words: 4 CPUs, 8 GiB memory."""
    if key == "cpus":
        return f"{number} CPU{'' if number == 1 else 's'}"
    return f"{number / 1024:.4g} GiB {key}"
