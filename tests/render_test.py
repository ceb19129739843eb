"""What the VM is made from: golden files, real readers, and values that try to break out."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agent_vm_tasks import host, image, process, render, stages
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.image import Image
from agent_vm_tasks.settings import Network, Settings, Vm

from .conftest import USER, ssh_config
from .programs import script

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Sshd

GOLDEN = Path(__file__).parent / "golden"
KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nbm90IGEga2V5\n-----END OPENSSH PRIVATE KEY-----\n"
BUILT = Image(
    "/var/cache/agent-vm/images/debian-13-x/disk.qcow2",
    kernel="/var/cache/agent-vm/images/debian-13-x/vmlinuz",
    initrd="/var/cache/agent-vm/images/debian-13-x/initrd.img",
    cmdline="root=LABEL=root rw console=ttyS0 quiet",
)
NO_CERTIFICATES = Settings(vm=Vm(ca_certs=()))
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n"
LOADS = hypothesis_settings(max_examples=60, deadline=None)


@pytest.fixture
def linux(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden files are those of this machine."""
    machine(monkeypatch, "Linux", "x86_64")


def machine(monkeypatch: pytest.MonkeyPatch, system: str, arch: str) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: arch)


@contextmanager
def file_of(text: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_text(text, "utf-8", newline="")
        yield path


def loaded(settings: Settings, *images: Image, key: str = KEY) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(render.lima_yaml(settings, images, key))
    return config


def same_as_golden(name: str, text: str) -> bool:
    """Compare; with GOLDEN=write in the environment the file is written instead."""
    path = GOLDEN / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text, "utf-8")
    return path.read_text("utf-8") == text


def test_a_vm_from_debians_cloud_image(linux: None) -> None:
    text = render.lima_yaml(NO_CERTIFICATES, image.cloud_images(), KEY)
    assert same_as_golden("cloud.yaml", text)


def test_a_vm_from_a_built_image_with_everything_set(linux: None, tmp_path: Path) -> None:
    certificate = tmp_path / "ours.crt"
    certificate.write_text(CERTIFICATE)
    vm = Vm(cpus=2, memory=3072, disk=20480, vm_type="qemu", ca_certs=(str(certificate),))
    settings = Settings(vm=vm, network=Network(ports=(3000, 8080)))
    assert same_as_golden("built.yaml", render.lima_yaml(settings, [BUILT], KEY))


def test_nothing_of_the_host_is_let_in() -> None:
    """Said apart from the golden files: those are easily written anew with a mistake in them."""
    config = loaded(NO_CERTIFICATES, BUILT)
    assert config["plain"] is True
    assert config["mounts"] == []
    assert config["propagateProxyEnv"] is False
    assert config["hostResolver"] == {"enabled": False}
    assert config["containerd"] == {"system": False, "user": False}
    assert {config["ssh"][key] for key in ("forwardAgent", "forwardX11", "loadDotSSHPubKeys")} == {
        False
    }
    assert config["user"] == {
        "name": "agent", "uid": 1000, "home": "/home/agent", "shell": "/bin/bash", "comment": "",
    }  # fmt: skip
    everything = {"guestIP": "0.0.0.0", "guestIPMustBeZero": False, "proto": "any", "ignore": True}  # noqa: S104
    assert config["portForwards"] == [everything]
    assert not {"env", "networks", "additionalDisks", "copyToHost", "base"} & set(config)


def test_a_port_comes_out_on_loopback_only_and_before_the_rule_against_all() -> None:
    rules = loaded(replace(NO_CERTIFICATES, network=Network(ports=(8080,))), BUILT)["portForwards"]
    assert rules[0] == {
        "guestPort": 8080, "hostPort": 8080, "hostIP": "127.0.0.1", "static": True,
    }  # fmt: skip
    assert rules[1]["ignore"] is True
    assert len(rules) == 2


def test_sizes_carry_their_unit() -> None:
    """Lima reads a bare 8192 as bytes."""
    config = loaded(replace(NO_CERTIFICATES, vm=Vm(ca_certs=(), memory=512, disk=4096)), BUILT)
    assert (config["memory"], config["disk"]) == ("512MiB", "4096MiB")


@pytest.mark.parametrize(
    ("system", "arch", "limas", "bios"),
    [
        ("Linux", "x86_64", "x86_64", True),
        ("Linux", "aarch64", "aarch64", False),
        ("Darwin", "arm64", "aarch64", False),
        ("Darwin", "x86_64", "x86_64", False),
    ],
)
def test_architectures(
    monkeypatch: pytest.MonkeyPatch, system: str, arch: str, limas: str, bios: bool
) -> None:
    machine(monkeypatch, system, arch)
    config = loaded(NO_CERTIFICATES, *image.cloud_images())
    assert {entry["arch"] for entry in config["images"]} == {limas}
    assert bool(config.get("firmware", {}).get("legacyBIOS")) is bios


@pytest.mark.parametrize(("asked", "given"), [("auto", None), ("vz", "vz"), ("qemu", "qemu")])
def test_the_kind_of_vm_is_limas_choice_unless_asked_for(asked: str, given: str | None) -> None:
    config = loaded(replace(NO_CERTIFICATES, vm=Vm(ca_certs=(), vm_type=asked)), BUILT)
    assert config["vmType"] == given


@pytest.mark.parametrize("settings", ["plain", "full"])
def test_lima_itself_accepts_it(settings: str, tmp_path: Path) -> None:
    limactl = shutil.which("limactl")
    if not limactl:
        pytest.skip("limactl is not installed")
    if os.geteuid() == 0 and not host.account_exists():
        pytest.skip("limactl does not run as root, and its account is missing")
    certificate = tmp_path / "ours.crt"
    certificate.write_text(CERTIFICATE)
    chosen = Settings(vm=Vm(ca_certs=(str(certificate),)), network=Network(ports=(3000,)))
    text = render.lima_yaml(*{"plain": (NO_CERTIFICATES, image.cloud_images(), KEY),
                              "full": (chosen, [BUILT], KEY)}[settings])  # fmt: skip
    said = validate(limactl, text)
    assert said.ok, said.stderr
    filled = yaml.safe_load(said.stdout)
    assert filled["plain"] is True
    assert not filled.get("mounts")
    assert "<no value>" not in said.stdout
    forwards = [rule for rule in filled.get("portForwards", ()) if not rule.get("ignore")]
    if settings == "full":
        assert filled["caCerts"]["certs"] == [CERTIFICATE]
        assert [(rule["hostIP"], rule["hostPort"]) for rule in forwards] == [("127.0.0.1", 3000)]
    else:
        assert not forwards


def validate(limactl: str, text: str) -> process.Result:
    """What `limactl validate` says, with an empty home for Lima."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        file = Path(folder) / "lima.yaml"
        file.write_text(text)
        Path(folder).chmod(0o777)
        env = {"PATH": os.environ["PATH"], "HOME": folder, "LIMA_HOME": f"{folder}/lima"}
        argv = [limactl, "validate", "--fill", str(file)]
        return process.run(
            argv, check=False, env=env, cwd="/", timeout=60, user=host.service_user()
        )


TRAPS = ["{{.User}}", "{{", "a: b", "- x\n- y", "x: |\n  y", "'", '"', "#", "&a", "*a", "!!int 1",
         "yes", "1e3", " lead", "end ", "\ttab", "a\r\nb", "\x85", "\u2028", "---\n", "...\n",
         "%YAML 9", "é\n", "a\n\n\n"]  # fmt: skip


def traps(strategy: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from(TRAPS), strategy)


@LOADS
@given(traps(st.text()))
def test_any_text_is_one_yaml_value_wherever_the_template_puts_it(text: str) -> None:
    value = render.environment().from_string(
        "- mode: boot\n  script: {{ text | yaml }}\n- {{ text | yaml }}\n- {{ [text, 1] | yaml }}\n"
    ).render(text=text)  # fmt: skip
    assert yaml.safe_load(value) == [{"mode": "boot", "script": text}, text, [text, 1]]


@LOADS
@given(st.text(st.characters(codec="ascii")))
def test_any_certificate_text_stays_one_value(more: str) -> None:
    with file_of(f"{CERTIFICATE}{more}\n") as path:
        text = path.read_text("ascii")
        config = loaded(Settings(vm=Vm(ca_certs=(str(path),))), BUILT)
    assert config["caCerts"] == {"certs": [text]}
    assert config["plain"] is True
    assert set(config) == set(loaded(NO_CERTIFICATES, BUILT)) | {"caCerts"}


@LOADS
@given(traps(st.text(min_size=1)))
def test_any_image_path_stays_one_value(path: str) -> None:
    config = loaded(NO_CERTIFICATES, Image(path, kernel=path, initrd=path, cmdline=path))
    (entry,) = config["images"]
    assert entry["location"] == entry["initrd"]["location"] == path
    assert entry["kernel"] == {"location": path, "cmdline": path}
    assert set(config) == set(loaded(NO_CERTIFICATES, BUILT))


@pytest.mark.parametrize(
    ("content", "trouble"),
    [
        (None, "cannot be read: "),
        ("not a certificate", "is not a PEM certificate"),
        (CERTIFICATE + "-----BEGIN PRIVATE KEY-----\n", "is not a PEM certificate"),
        ("BEGIN CERTIFICATE ü", "cannot be read: "),
    ],
)
def test_what_is_no_certificate_is_refused_by_name(
    tmp_path: Path, content: str | None, trouble: str
) -> None:
    path = tmp_path / "ours.crt"
    if content is not None:
        path.write_text(content, "utf-8")
    with pytest.raises(AgentVMError) as caught:
        render.lima_yaml(Settings(vm=Vm(ca_certs=(str(path),))), [BUILT], KEY)
    assert str(caught.value).startswith(f"vm.ca_certs: {path} {trouble}")


def test_auto_takes_the_authorities_added_to_this_host() -> None:
    folder = Path("/usr/local/share/ca-certificates")
    added = [path.read_text() for path in sorted(folder.glob("**/*.crt"))]
    assert loaded(Settings(), BUILT).get("caCerts", {"certs": []})["certs"] == added


def boot_scripts() -> dict[str, str]:
    steps = loaded(NO_CERTIFICATES, BUILT)["provision"]
    return {step["mode"]: step["script"] for step in steps}


def test_the_boot_scripts_are_no_templates_of_limas() -> None:
    """Lima would replace {{…}} in it (pkg/cidata)."""
    assert sorted(boot_scripts()) == ["boot", "system"]
    assert not any("{{" in script for script in boot_scripts().values())


def test_the_host_key_lies_in_memory_and_sshd_is_told_of_it(tmp_path: Path) -> None:
    """Run for real, with /etc and /run in a temporary folder."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/told\n')
    (programs / "systemctl").chmod(0o755)
    env = {"PATH": f"{programs}:/usr/bin:/bin"}
    for each in boot_scripts().values():
        text = each.replace("/etc/", f"{tmp_path}/etc/").replace("/run/", f"{tmp_path}/run/")
        for shell in ("sh", "bash"):
            subprocess.run([shell, "-n"], input=text, text=True, check=True)
        subprocess.run(["sh", "-eu"], input=text, text=True, check=True, env=env)
    key = tmp_path / "run" / "agent-vm" / "host_key"
    config = (tmp_path / "etc" / "ssh" / "sshd_config.d" / "10-agent-vm.conf").read_text()
    assert key.read_text() == KEY
    assert key.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "told").read_text() == "reload ssh\n"
    assert config.splitlines()[0] == f"HostKey {key}"
    assert {"PasswordAuthentication no", "PermitRootLogin no", "AcceptEnv AGENT_VM_*"} <= set(
        config.splitlines()
    )


def test_the_script_that_cloud_init_keeps_on_the_disk_has_no_key() -> None:
    assert "PRIVATE KEY" not in boot_scripts()["boot"]


def test_the_ssh_configuration() -> None:
    text = render.ssh_config(
        name="agent-vm",
        user="agent",
        port=60022,
        identity=Path("/home/dev/.lima/_config/user"),
        known_hosts=Path("/home/dev/.agent-vm/agent-vm/known_hosts"),
        control_path=Path("/home/dev/.agent-vm/agent-vm/ssh.sock"),
    )
    assert same_as_golden("ssh.config", text)


def ssh_sees(host_name: str, folder: str) -> dict[str, str]:
    """The options in force, as OpenSSH itself reads them."""
    text = render.ssh_config(
        name="agent-vm",
        user="agent",
        port=60022,
        identity=Path(folder, "user"),
        known_hosts=Path(folder, "known_hosts"),
        control_path=Path(folder, "ssh.sock"),
    )
    with file_of(text) as path:
        asked = subprocess.run(
            ["ssh", "-G", "-F", str(path), host_name], capture_output=True, text=True, check=True
        )
    return dict(line.partition(" ")[::2] for line in asked.stdout.splitlines())


FOLDERS = ["/h/plain", "/h/two  words", '/h/q"uote', "/h/it's", "/h/100%", "/h/%h %d", "/h/back\\s",
           "/h/end\\", "/h/#no", "/h/é", "/h/~x", '/h/a\\"b']  # fmt: skip


@pytest.mark.parametrize("folder", FOLDERS)
def test_ssh_reads_every_path_as_it_is(folder: str) -> None:
    seen = ssh_sees("agent-vm", folder)
    assert seen["identityfile"].replace("%%", "%") == f"{folder}/user"
    assert seen["userknownhostsfile"] == f"{folder}/known_hosts"
    assert seen["controlpath"] == f"{folder}/ssh.sock"


def test_ssh_trusts_only_the_pinned_key_and_offers_only_ours() -> None:
    seen = ssh_sees("agent-vm", "/h")
    expected = {
        "hostname": "127.0.0.1", "port": "60022", "user": "agent", "hostkeyalias": "agent-vm",
        "stricthostkeychecking": "true", "globalknownhostsfile": "/dev/null",
        "identitiesonly": "yes", "identityagent": "none", "batchmode": "yes",
        "forwardagent": "no", "forwardx11": "no", "nohostauthenticationforlocalhost": "no",
        "controlmaster": "auto", "updatehostkeys": "false",
    }  # fmt: skip
    assert {key: seen[key] for key in expected} == expected


def test_the_mount_has_a_connection_of_its_own() -> None:
    seen = ssh_sees("agent-vm-mount", "/h")
    assert seen["controlmaster"] == "false"
    assert seen.get("controlpath", "none") == "none"
    assert (seen["hostname"], seen["port"], seen["hostkeyalias"]) == (
        "127.0.0.1", "60022", "agent-vm",
    )  # fmt: skip
    assert seen["serveraliveinterval"] == "5"


def test_a_path_with_a_line_break_is_refused() -> None:
    with pytest.raises(AgentVMError, match="it holds a line break"):
        ssh_sees("agent-vm", "/h/two\nlines")


@pytest.mark.parametrize("folder", ['a "home" of 100% x', "it's back\\slashed"])
def test_ssh_gets_in_with_files_in_an_odd_folder(
    guest_home: Path, sshd: Sshd, sshd_port: int, home: Path, folder: str
) -> None:
    odd = home / folder
    odd.mkdir()
    shutil.copy2(sshd.identity, odd / "user")
    (odd / "known_hosts").write_text(f"agent-vm {sshd.public_key()}\n")
    (odd / "config").write_text(
        render.ssh_config(
            name="agent-vm",
            user=USER,
            port=sshd_port,
            identity=odd / "user",
            known_hosts=odd / "known_hosts",
            control_path=odd / "sock",
        )
    )
    ssh = ["ssh", "-F", str(odd / "config")]
    try:
        assert process.run([*ssh, "agent-vm", "pwd"], timeout=20).stdout == f"{guest_home}\n"
        assert (odd / "sock").is_socket()
    finally:
        process.run([*ssh, "-O", "exit", "agent-vm"], timeout=20)


def test_another_host_key_is_not_trusted(
    guest_home: Path, sshd: Sshd, sshd_port: int, home: Path
) -> None:
    config = home / "config"
    config.write_text(ssh_config(sshd, sshd_port))
    known = home / ".agent-vm" / "agent-vm" / "known_hosts"
    known.parent.mkdir(parents=True)
    known.write_text(f"agent-vm {sshd.public_key('other')}\n")
    said = process.run(["ssh", "-F", str(config), "agent-vm", "pwd"], check=False, timeout=20)
    assert said.status == 255
    assert said.stdout == ""


@pytest.mark.parametrize("stage", stages.stages(Settings()), ids=lambda stage: stage.name)
def test_every_provisioning_script_is_sound(stage: stages.Stage) -> None:
    subprocess.run(["bash", "-n"], input=stage.script, text=True, check=True)
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck is not installed")
    # Not here: /etc/environment (1091), meant literally (2016), `set -a` exports it (2034),
    # a list of one package (2043).
    argv = ["shellcheck", "-s", "bash", "-e", "SC1091,SC2016,SC2034,SC2043", "-"]
    said = subprocess.run(argv, input=stage.script, text=True, capture_output=True, check=False)
    assert said.returncode == 0, said.stdout


@hypothesis_settings(max_examples=20, deadline=None)
@given(st.lists(traps(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)),
                min_size=1, max_size=3, unique=True))  # fmt: skip
@example(["$(touch /tmp/agent-vm-was-here)", "`id`", "; exit 3", "*", "-y"])
def test_a_package_name_is_never_shell(names: list[str]) -> None:
    """The settings refuse such names; the script would not obey them either."""
    stage = stages._stage("packages", packages=names, mirror="")
    with tempfile.TemporaryDirectory() as folder:
        script(Path(folder), "dpkg-query", "echo not-installed")
        script(Path(folder), "apt-cache")
        record = f'[ "$1" != install ] || printf "%s\\0" "$@" > {folder}/got'
        script(Path(folder), "apt-get", record)
        env = {"PATH": f"{folder}:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}
        subprocess.run(["bash", "-euo", "pipefail", "-c", stage.script], env=env, check=True)
        got = (Path(folder) / "got").read_bytes().decode().split("\0")[:-1]
    assert got == ["install", "-y", "--no-install-recommends", "--", *names]
