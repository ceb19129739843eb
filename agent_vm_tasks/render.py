"""Jinja2 templates -> Lima YAML, ssh config, provisioning scripts."""

from __future__ import annotations

import contextlib
import platform
import shlex
from typing import TYPE_CHECKING, Any

from . import data, host
from .errors import AgentVMError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from jinja2 import Environment

    from .image import Image
    from .settings import Settings

GUEST_USER = "agent"
RESOLVER = "192.168.5.3"
"""Of QEMU's own network in Lima: the third address (QEMU's qemu-options.hx)."""

INSIDE = ("192.168.5.100", 3128)
"""Where the guest finds the proxy of network.mode allowlist."""
PROXY_NOTE = "opt/org.agent-vm/proxy"
"""What in QEMU's firmware configuration tells it so."""


def environment() -> Environment:
    """The templates, with the filters that make a value safe where it goes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    env = Environment(
        loader=FileSystemLoader(data.root() / "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  shell and YAML, not HTML
    )
    env.filters |= {"yaml": _yaml, "sh": shlex.quote, "ssh": _ssh}
    return env


def lima_yaml(settings: Settings, images: Sequence[Image], host_key: str) -> str:
    """The instance's Lima configuration. `host_key` is the guest's private ssh host key (PEM)."""
    env = environment()
    vm = settings.vm
    return env.get_template("lima.yaml.j2").render(
        vm_type=None if vm.vm_type == "auto" else vm.vm_type,
        cpus=vm.cpus,
        memory=f"{vm.memory}MiB",
        disk=f"{vm.disk}MiB",
        images=[_image(image) for image in images],
        legacy_bios=platform.machine() == "x86_64" and platform.system() == "Linux",
        ports=settings.network.ports,
        ca_certs=certificates(settings),
        boot_script=boot(settings),
        host_key_script=env.get_template("host-key.sh.j2").render(host_key=host_key.strip()),
    )


def boot(settings: Settings) -> str:
    """What the guest runs at each boot, before sshd."""
    template = environment().get_template("boot.sh.j2")
    return template.render(resolver=resolver(settings), user=GUEST_USER, proxy_note=PROXY_NOTE,
                           inside=INSIDE[0])  # fmt: skip


def ssh_config(
    *, name: str, user: str, port: int, identity: Path, known_hosts: Path, control_path: Path
) -> str:
    return (
        environment()
        .get_template("ssh.config.j2")
        .render(
            name=name,
            user=user,
            port=int(port),
            identity=identity,
            known_hosts=known_hosts,
            control_path=control_path,
        )
    )


def qemu(*, mode: str, qemu: str, passt: str, folder: Path, proxy: str = "") -> str:
    """The wrapper around QEMU that decides on the VM's network and bounds its logs.

    `proxy`: the command that joins a connection of the guest to its only way out.
    """
    template = environment().get_template("qemu.sh.j2")
    return template.render(mode=mode, qemu=qemu, passt=passt, folder=folder, resolver=RESOLVER,
                           proxy=proxy, inside=INSIDE, proxy_note=PROXY_NOTE)  # fmt: skip


def resolver(settings: Settings) -> str:
    """Where the guest asks for names; "" where Lima's network is another one."""
    return RESOLVER if host.uses_qemu(settings.vm.vm_type) else ""


def _image(image: Image) -> dict[str, Any]:
    """Lima's form of an image; entries with nothing in them are left out."""
    entry: dict[str, Any] = {"location": image.location, "arch": host.arch()}
    if image.digest:
        entry["digest"] = image.digest
    if image.kernel:
        entry["kernel"] = {"location": image.kernel, "cmdline": image.cmdline}
        entry["initrd"] = {"location": image.initrd}
    return entry


def certificates(settings: Settings) -> list[str]:
    """PEM texts of the authorities the guest trusts besides Debian's.

    "auto" takes those that were added to this host's own store; on Linux these are the files in
    /usr/local/share/ca-certificates (update-ca-certificates(8)).
    """
    from pathlib import Path

    wanted = settings.vm.ca_certs
    if wanted == "auto":
        found = []
        for path in sorted(Path("/usr/local/share/ca-certificates").glob("**/*.crt")):
            with contextlib.suppress(AgentVMError):  # what is no PEM file is not in force here
                found.append(_certificate(path))
        return found
    return [_certificate(Path(name).expanduser()) for name in wanted]


def _certificate(path: Path) -> str:
    try:
        text = path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise AgentVMError(f"vm.ca_certs: {path} cannot be read: {error}") from None
    if "BEGIN CERTIFICATE" not in text or "PRIVATE KEY" in text:
        raise AgentVMError(f"vm.ca_certs: {path} is not a PEM certificate")
    return text


def _yaml(value: Any) -> str:  # noqa: ANN401  any plain value
    """A value that goes after `key: ` or `- `: one line, or an indented block for lines of text."""
    import yaml

    lines = isinstance(value, str) and "\n" in value and not value[0].isspace()
    text = yaml.safe_dump(
        value,
        default_style="|" if lines else None,
        default_flow_style=True,
        indent=6,
        width=float("inf"),
    )
    return text.removesuffix("\n").removesuffix("\n...")


def _ssh(path: object) -> str:
    """A path in ssh_config(5): quoted, and % is not a token there."""
    text = str(path)
    if "\n" in text:
        raise AgentVMError(f"the path {text!r} cannot be used: it holds a line break")
    return '"{}"'.format(text.replace("%", "%%").replace("\\", "\\\\").replace('"', '\\"'))
