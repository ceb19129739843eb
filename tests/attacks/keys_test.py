"""A key that is handed over shows nowhere but in the VM's memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import secrets, trust
from agent_vm_tasks.main import program
from agent_vm_tasks.secrets import Secrets
from tests.conftest import VM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Guest, Limactl

CANARY = "c4n4ry-9b1e"
PROC = Path("/proc")


@pytest.fixture
def vm(guest: Guest, limactl: Limactl, warm: None, monkeypatch: pytest.MonkeyPatch) -> Guest:
    """A VM that runs, and a host with a key and Google's credentials."""
    limactl.adopt(guest)
    settings = Path.home() / ".config" / "agent-vm"
    settings.mkdir(parents=True)
    (settings / "config.toml").write_text("[mount]\nenabled = false\n")
    monkeypatch.setenv("GEMINI_API_KEY", CANARY)
    gcloud = Path.home() / ".config" / "gcloud"
    gcloud.mkdir()
    (gcloud / secrets.GCP_FILE).write_text(f'{{"type": "service_account", "key": "{CANARY}"}}')
    return guest


def connect(*words: str) -> None:
    program.run(["agent-vm", "connect", *words], exit=False)


def command_lines() -> bytes:
    """Every command line there is now; both sides are on this machine."""
    lines = []
    for path in PROC.glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_bytes())
    return b"\n".join(lines)


class Watch:
    """Looks at all command lines again and again; `seen` tells whether one had the canary."""

    def __init__(self) -> None:
        self.seen, self.looks, self.over = False, 0, False

    def look(self) -> None:
        while not self.over:
            self.seen |= CANARY.encode() in command_lines()
            self.looks += 1


@contextlib.contextmanager
def watching() -> Iterator[Watch]:
    watch = Watch()
    thread = threading.Thread(target=watch.look)
    thread.start()
    try:
        yield watch
    finally:
        watch.over = True
        thread.join()


@pytest.mark.skipif(not PROC.joinpath("self/cmdline").exists(), reason="needs /proc")
def test_no_command_line_on_either_side_has_a_value(vm: Guest) -> None:
    with watching() as shown:  # as the value would be with `ssh VM "export KEY=value; command"`
        subprocess.run([*ssh_guest.ssh(VM), f"export K={CANARY}; sleep 1"], check=True)
    assert shown.seen
    with watching() as watch:
        for command in ("sleep 1", "exec sleep 1"):
            secrets.clear(VM)
            connect("--command", command)
    assert watch.looks > 3
    assert not watch.seen
    assert CANARY in (vm.home / ".secrets/current/env").read_text()


def test_what_agent_vm_tells_logs_and_keeps_has_no_value(
    vm: Guest,
    home: Path,
    repository: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    for words in (["connect", "fix", "--", "true"], ["secrets"], ["secrets", "--json"], ["status"],
                  ["render"]):  # fmt: skip
        program.run(["agent-vm", *words], exit=False)
    said = capfd.readouterr()
    assert "run: ssh" in caplog.text
    assert CANARY not in said.out + said.err + caplog.text
    known = {path for path in (home / ".config").rglob("*") if path.is_file()}
    for path in {*home.rglob("*"), *vm.home.rglob("*")} - known:
        inside = path.is_relative_to(vm.home / ".secrets")
        assert not path.is_file() or inside or CANARY.encode() not in path.read_bytes(), path
    assert CANARY in (vm.home / ".secrets/current/env").read_text()
    connect("--command", f"echo {CANARY} > ~/left")  # so that the search is known to find it
    assert CANARY in caplog.text
    assert CANARY in (vm.home / "left").read_text()


def test_the_values_of_a_traceback_are_names_only() -> None:
    given = Secrets({"KEY": CANARY.encode()}, {"file": CANARY.encode()}, ("w",))
    assert CANARY not in f"{given} {given!r}"


def test_a_push_that_fails_shows_no_value(
    vm: Guest, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (vm.home / "bin").mkdir()
    tar = vm.home / "bin" / "tar"
    tar.write_text("#!/bin/sh\ncat > /dev/null; echo 'tar: no space left' >&2; exit 2\n")
    tar.chmod(0o755)
    connect("--", "true")
    said = capfd.readouterr()
    assert "agent-vm: tar: no space left\n" in said.err
    assert CANARY not in said.out + said.err


def test_a_token_does_not_let_the_guest_check_a_guess(home: Path) -> None:
    """A hash without the host's key would: of a short value, or of one of a list of leaked ones."""
    given = Secrets({"PIN": b"1234"}, {})
    token = secrets.token(VM, given)
    archive = secrets._archive(token, given)
    assert token.encode() in archive
    text = archive[512:].partition(b"\0")[0]
    guesses = [b"1234", text, text.partition(b"\n")[2], b"PIN=1234", b"export PIN=1234\n"]
    assert token not in {hashlib.sha256(guess).hexdigest() for guess in guesses}
    assert token != secrets.token("other", given)
    for name in (VM, "other"):  # what it would be with a key that everybody knows
        secrets.key_file(name).write_text("0" * 64)
    assert secrets.token(VM, given) == secrets.token("other", given)


def test_a_value_is_never_shell(vm: Guest, monkeypatch: pytest.MonkeyPatch, *, on: bool) -> None:
    if not on:
        monkeypatch.setattr(secrets, "_quoted", bytes)
    for value in (
        "$(touch ~/ran)",
        "`touch ~/ran`",
        "'; touch ~/ran; '",
        "\n touch ~/ran\n",
        "\\'",
    ):
        monkeypatch.setenv("GEMINI_API_KEY", value)
        connect("--command", 'printf %s "$GEMINI_API_KEY" > ~/got')
        assert not on or (vm.home / "got").read_text() == value
    assert (vm.home / "ran").exists() is not on


def test_a_repository_cannot_have_more_handed_over(
    vm: Guest,
    repository: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    on: bool,
) -> None:
    if not on:
        monkeypatch.setattr(trust, "require", lambda _: None)
        (Path.home() / ".ssh").mkdir()
        (Path.home() / ".ssh/id_ed25519").touch()
    for line in (
        '[env]\npass = ["AWS_SECRET_ACCESS_KEY"]',
        '[env]\nset = {A = "b"}',
        '[secrets]\nfiles = {key = "~/.ssh/id_ed25519"}',
    ):
        (repository / "agent-vm.toml").write_text(f"{line}\n")
        connect("--command", "touch ran")
        assert ("not approved by you" in capfd.readouterr().err) is on
    assert (vm.home / "ran").exists() is not on
    assert (vm.home / ".secrets").exists() is not on


@pytest.mark.parametrize("name", ["../up", "/abs", "a/b", "", ".", ".."])
def test_a_file_cannot_be_put_elsewhere(vm: Guest, name: str) -> None:
    """The settings allow plain names only."""
    settings = Path.home() / ".config" / "agent-vm" / "config.toml"
    settings.write_text(f'[secrets]\nfiles = {{"{name}" = "~/x"}}\n')
    (Path.home() / "x").touch()
    with pytest.raises(SystemExit) as ended:
        program.run(["agent-vm", "secrets"])
    assert ended.value.code == 2
    assert not (vm.home / ".secrets").exists()


def test_a_guest_that_always_wants_more_comes_to_an_end(
    vm: Guest, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its shells say that they have other values, whatever is put there."""
    (vm.home / ".bashrc").write_text("export AGENT_VM_ENV_TOKEN=$RANDOM\n")
    mark = vm.home / "pushes"
    cmp = vm.home / "bin" / "cmp"
    cmp.parent.mkdir()
    cmp.write_text(f"#!/bin/sh\necho x >> {mark}; exit 1\n")
    cmp.chmod(0o755)
    connect("--", "true")
    assert "other commands keep changing what is in the VM" in capfd.readouterr().err
    assert len(mark.read_text().splitlines()) == 4


def test_other_accounts_of_the_guest_cannot_read_them(vm: Guest) -> None:
    connect("--", "true")
    if os.geteuid() != 0:
        pytest.skip("needs another account")
    vm.home.parent.chmod(0o755)
    vm.home.chmod(0o755)
    env = vm.home / ".secrets" / "current" / "env"
    argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", str(env)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Permission denied" in done.stderr
    for path in (env, *env.resolve().parents[:2]):
        path.chmod(0o755)
    assert CANARY in subprocess.run(argv, check=True, capture_output=True, text=True).stdout
