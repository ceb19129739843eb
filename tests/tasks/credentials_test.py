"""Keys and credential files as a person meets them: connect, start, restart and secrets."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from invoke.context import Context

from agent_vm_tasks import composition, data, secrets
from tests.conftest import VM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import Guest, Limactl

    from .conftest import Command

CANARY = "c4n4ry-7f3a"
ASK = "echo ${GEMINI_API_KEY-none}"
NO_FILE = (
    "agent-vm: GOOGLE_APPLICATION_CREDENTIALS: /no/such.json cannot be read: No such file or "
    "directory; name the JSON file of your credentials, or unset the variable\n"
)


@pytest.fixture
def vm(guest: Guest, limactl: Limactl, warm: None) -> Guest:
    """A VM that runs."""
    limactl.adopt(guest)
    return guest


@pytest.fixture
def input_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the standard input back that a test replaces."""
    kept = os.dup(0)
    yield
    os.dup2(kept, 0)
    os.close(kept)


def current(vm: Guest) -> Path:
    return vm.home / ".secrets" / "current"


def credentials(home: Path, text: str = '{"type": "authorized_user"}') -> Path:
    path = home / ".config/gcloud/application_default_credentials.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def own_settings(home: Path, text: str) -> None:
    with (home / ".config/agent-vm/config.toml").open("a") as file:
        file.write(text)


# connect


def test_each_connect_brings_the_values_of_its_time(
    vm: Guest, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert agent_vm("connect", "--command", ASK).out == "none\n"
    for value in ("one", "it's\n$(two)", "one", "one"):
        monkeypatch.setenv("GEMINI_API_KEY", value)
        said = agent_vm("connect", "--", "printenv", "GEMINI_API_KEY")
        assert (said.status, said.out, said.err) == (0, f"{value}\n", "")
    monkeypatch.delenv("GEMINI_API_KEY")
    assert agent_vm("connect", "--command", ASK).out == "none\n"


def test_connect_without_a_change_asks_the_vm_nothing_more(
    vm: Guest, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_vm("connect", "--", "true")
    before = current(vm).readlink()
    monkeypatch.setattr(secrets, "push", lambda *_: pytest.fail("it pushed"))
    assert agent_vm("connect", "--", "true").status == 0
    assert current(vm).readlink() == before


def test_defaults_are_there_and_the_hosts_value_beats_them(
    vm: Guest, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = ("connect", "--command", "echo $ANTHROPIC_MODEL $CLOUD_ML_REGION")
    assert agent_vm(*ask).out == "claude-3-5-sonnet-20241022 us-central1\n"
    monkeypatch.setenv("ANTHROPIC_MODEL", "mine")
    assert agent_vm(*ask).out == "mine us-central1\n"


def test_variables_and_workspace_are_both_missing(
    vm: Guest, repository: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", CANARY)
    said = agent_vm("connect", "fix", "--command", f"{ASK}; cat README")
    assert (said.status, said.out) == (0, f"{CANARY}\nhello\n")


def test_a_vm_that_was_booted_behind_our_back_gets_them_again(
    vm: Guest, repository: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", CANARY)
    agent_vm("connect", "fix", "--", "true")
    vm.run("rm -rf .secrets")
    assert agent_vm("connect", "fix", "--command", ASK).out == f"{CANARY}\n"


@pytest.mark.parametrize("status", [213, 214])
def test_a_command_with_a_status_of_ours_runs_once(
    vm: Guest, repository: Path, agent_vm: Command, status: int
) -> None:
    said = agent_vm("connect", "fix", "--command", f"echo x >> ~/runs; exit {status}")
    assert (said.status, said.err) == (status, "created branch fix from HEAD\n")
    assert (vm.home / "runs").read_text() == "x\n"


def test_input_is_whole_whatever_had_to_be_made_first(
    vm: Guest, repository: Path, agent_vm: Command, input_of: None
) -> None:
    content = os.urandom(300_000)
    Path("input").write_bytes(content)
    with Path("input").open("rb") as file:
        os.dup2(file.fileno(), 0)
    said = agent_vm("connect", "fix", "--command", "cat > ~/got")
    assert said.status == 0
    assert (vm.home / "got").read_bytes() == content


def test_values_that_never_settle_are_an_error(
    vm: Guest, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when others connect with their own all the time."""
    monkeypatch.setattr(secrets, "push", lambda *_: True)
    said = agent_vm("connect", "--", "touch", "ran")
    assert (said.status, said.out) == (1, "")
    assert said.error == "agent-vm: other commands keep changing what is in the VM; try again"
    assert not (vm.home / "ran").exists()


# Credential files


def test_credentials_go_in_and_follow_the_file(vm: Guest, home: Path, agent_vm: Command) -> None:
    for text in ('{"type": "authorized_user"}', '{"type": "service_account"}'):
        credentials(home, text)
        said = agent_vm("connect", "--command", "echo $GOOGLE_APPLICATION_CREDENTIALS")
        assert said.out == "/etc/google/application_default_credentials.json\n"
        assert (current(vm) / "application_default_credentials.json").read_text() == text
    credentials(home).unlink()
    said = agent_vm("connect", "--command", "echo ${GOOGLE_APPLICATION_CREDENTIALS-none}")
    assert said.out == "none\n"
    assert not (current(vm) / "application_default_credentials.json").exists()


def test_a_restart_that_would_be_refused_stops_nothing(
    limactl: Limactl, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_vm("start")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such.json")
    assert agent_vm("restart").err == NO_FILE
    assert [call[0] for call in limactl.calls()] == ["create", "start"]


@pytest.mark.parametrize("warm_vm", [True, False])
def test_a_default_credential_file_that_is_malformed_is_a_warning_once(
    limactl: Limactl, home: Path, agent_vm: Command, *, warm_vm: bool
) -> None:
    if warm_vm:
        agent_vm("start")
    path = credentials(home, f"{{{CANARY}")
    said = agent_vm("connect", "--", "true")
    assert said.status == 0
    warning = f'warning: Google credentials: {path} is no JSON object with a "type"'
    assert said.err.count("warning: ") == 1
    assert f"{warning}; the VM gets none\n" in said.err
    assert CANARY not in said.err


def test_files_of_ones_own_go_in(vm: Guest, home: Path, agent_vm: Command) -> None:
    (home / "npmrc").write_text("token=x\n")
    own_settings(home, '[secrets]\nfiles = {npmrc = "~/npmrc"}\n')
    assert agent_vm("connect", "--", "true").status == 0
    assert (current(vm) / "npmrc").read_text() == "token=x\n"


# start


def test_start_brings_what_is_set_at_its_time(
    limactl: Limactl, home: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", CANARY)
    credentials(home)
    assert agent_vm("start").status == 0
    held = limactl.sshd.home / ".secrets" / "current"
    assert CANARY in (held / "env").read_text()
    assert (held / "application_default_credentials.json").exists()
    monkeypatch.delenv("GEMINI_API_KEY")
    assert agent_vm("start").status == 0
    assert CANARY not in (held / "env").read_text()


def test_what_destroy_leaves_has_nothing_of_them(
    limactl: Limactl, home: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", CANARY)
    agent_vm("start")
    assert (home / ".agent-vm" / VM / "secrets.key").exists()
    agent_vm("destroy", "--force")
    assert not (home / ".agent-vm" / VM / "secrets.key").exists()


# secrets


def test_secrets_pushes_now_and_lists_names_only(
    vm: Guest, home: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", CANARY)
    credentials(home, f'{{"type": "{CANARY}"}}')
    said = agent_vm("secrets")
    assert (said.status, said.err) == (0, "")
    assert said.out.splitlines() == [
        "KIND      NAME",
        "variable  ANTHROPIC_MODEL",
        "variable  CLOUD_ML_REGION",
        "variable  GEMINI_API_KEY",
        "variable  GOOGLE_APPLICATION_CREDENTIALS",
        "file      application_default_credentials.json",
    ]
    assert CANARY in (current(vm) / "env").read_text()


def test_secrets_as_json(vm: Guest, home: Path, agent_vm: Command) -> None:
    credentials(home)
    assert json.loads(agent_vm("secrets", "--json").out) == {
        "variables": ["ANTHROPIC_MODEL", "CLOUD_ML_REGION", "GOOGLE_APPLICATION_CREDENTIALS"],
        "files": ["application_default_credentials.json"],
    }


def test_secrets_can_be_cleared_and_come_back_with_the_next_connect(
    vm: Guest, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", CANARY)
    agent_vm("secrets")
    said = agent_vm("secrets", "--clear")
    assert (said.status, said.err) == (0, "")
    assert said.out == "The VM has no variables and files of yours.\n"
    assert list((vm.home / ".secrets").iterdir()) == []
    assert json.loads(agent_vm("secrets", "--clear", "--json").out) == {
        "variables": [],
        "files": [],
    }
    assert agent_vm("connect", "--command", ASK).out == f"{CANARY}\n"


def test_clearing_needs_no_good_credentials(
    vm: Guest, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such.json")
    assert agent_vm("secrets", "--clear").status == 0


def test_secrets_does_not_start_a_vm(limactl: Limactl, agent_vm: Command) -> None:
    said = agent_vm("secrets")
    assert (said.status, said.out) == (1, "")
    assert said.error == "agent-vm: there is no VM agent-vm; `agent-vm start` creates it"
    assert limactl.calls() == []


# Other people's tasks


def test_a_fabric_connection_has_the_values_of_its_time(
    vm: Guest, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = data.root() / "templates" / "ai-agent-env.sh"
    (vm.home / ".bashrc").write_text(f". {loader}\n")
    path = credentials(home)
    for value in ("one", "two"):
        monkeypatch.setenv("GEMINI_API_KEY", value)
        with composition.connection(Context()) as made:
            assert made.run(ASK, hide=True, in_stream=False).stdout == f"{value}\n"
    path.write_text("garbage")
    with composition.connection(Context()):
        pass
    assert "warning: Google credentials: " in capsys.readouterr().err
