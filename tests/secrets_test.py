"""Variables and credential files: what goes in, how it arrives, what stays when it does not."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agent_vm_tasks import data, secrets, state, workspaces
from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import settings as configuration
from agent_vm_tasks.errors import AgentVMError, UsageError
from agent_vm_tasks.secrets import Secrets
from agent_vm_tasks.settings import Env, Settings

from .conftest import VM

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Guest

CANARY = "c4n4ry-7f3a"
DEFAULTS = {"ANTHROPIC_MODEL": b"claude-3-5-sonnet-20241022", "CLOUD_ML_REGION": b"us-central1"}
LOADER = data.root() / "templates" / "ai-agent-env.sh"
VALUES = st.lists(st.integers(1, 255), max_size=40).map(bytes)
FEW = hypothesis_settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ODD = {
    "QUOTES": b"""it's "both" '' \\' ''""",
    "LINES": b"-----BEGIN-----\nline\r\n\n\ttab\n",
    "SHELL": b"$HOME ${X} $(touch canary) `touch canary` \\$ ; & | > canary ! # ~ *",
    "BACKSLASHES": b"\\ \\\\ \\n \\",
    "UNICODE": "é 日本 \u202e 😀".encode(),
    "INVALID": b"\xff\xfe\xe2\x82 caf\xe9'",
    "EVERY_BYTE": bytes(range(1, 256)),
    "SPACES": b"  a  b  ",
}


def settings(text: str) -> Settings:
    """What is in force with this text as the user's own file."""
    file = configuration.user_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return configuration.load()


def named_credentials(folder: Path, text: str | bytes | None = None) -> Path:
    path = folder / "service account.json"
    good = json.dumps({"type": "service_account", "private_key": f"-----\n{CANARY}\n"})
    content = good if text is None else text
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def default_credentials(home: Path, text: str | bytes | None = None) -> Path:
    folder = home / ".config" / "gcloud"
    folder.mkdir(parents=True)
    return named_credentials(folder, text).rename(folder / secrets.GCP_FILE)


# What goes in


def test_listed_variables_go_in_where_they_are_set(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)
    monkeypatch.setenv("GEMINI_API_KEY", "")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    found = secrets.collect(Settings())
    assert found.variables == {**DEFAULTS, "ANTHROPIC_API_KEY": CANARY.encode()}
    assert (found.files, found.warnings) == ({}, ())


@pytest.mark.parametrize(
    ("file", "here", "wanted"),
    [
        ("", {"ANTHROPIC_MODEL": "mine"}, {"ANTHROPIC_MODEL": "mine"}),
        ("", {"ANTHROPIC_MODEL": ""}, {}),
        ('set = {ANTHROPIC_MODEL = "set"}', {}, {"ANTHROPIC_MODEL": "set"}),
        (
            'set = {ANTHROPIC_MODEL = "set"}',
            {"ANTHROPIC_MODEL": "mine"},
            {"ANTHROPIC_MODEL": "mine"},
        ),
        ('set = {EDITOR = "nano"}', {"EDITOR": "emacs"}, {"EDITOR": "nano"}),
        ('pass = ["GH_TOKEN"]', {"GH_TOKEN": "x"}, {"GH_TOKEN": "x"}),
        ('pass = ["GH_TOKEN"]', {}, {}),
        ('pass = ["GH_TOKEN"]\nset = {GH_TOKEN = "set"}', {}, {"GH_TOKEN": "set"}),
        ('pass = ["GH_TOKEN"]\nset = {GH_TOKEN = "set"}', {"GH_TOKEN": "x"}, {"GH_TOKEN": "x"}),
        ('pass = ["CLOUD_ML_REGION"]', {}, {}),
        ('set = {EMPTY = ""}', {}, {"EMPTY": ""}),
        ('set = {WORD = "é\\\\"}', {}, {"WORD": "é\\"}),
    ],
)
def test_a_value_of_the_host_wins_over_the_settings_and_they_over_the_default(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    here: dict[str, str],
    wanted: dict[str, str],
) -> None:
    for name, value in here.items():
        monkeypatch.setenv(name, value)
    found = secrets.collect(settings(f"[env]\n{file}\n"))
    assert found.variables == {**DEFAULTS, **{k: v.encode() for k, v in wanted.items()}}


@pytest.mark.parametrize("name", ["PATH", "HOME", "LD_PRELOAD", "BASH_ENV", "ENV", "IFS",
                                  "SHELLOPTS", "UID", "PS4", "AGENT_VM_ENV_TOKEN"])  # fmt: skip
@pytest.mark.parametrize("line", ['pass = ["{}"]', 'set = {{{} = "x"}}'])
def test_variables_that_would_break_shells_inside_are_refused(
    home: Path, name: str, line: str
) -> None:
    with pytest.raises(UsageError, match=rf"^env\.(pass|set): {name} would change how shells"):
        secrets.collect(settings(f"[env]\n{line.format(name)}\n"))


def test_a_file_of_the_settings_goes_in_as_it_is(home: Path) -> None:
    content = b"\0" + ODD["EVERY_BYTE"]
    (home / "my npmrc").write_bytes(content)
    found = secrets.collect(settings('[secrets]\nfiles = {npmrc = "~/my npmrc"}\n'))
    assert (found.variables, found.files) == (DEFAULTS, {"npmrc": content})


def missing(_path: Path) -> None:
    pass


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def too_large(path: Path) -> None:
    path.write_text(CANARY.ljust(2**20 + 1))


def not_ours(path: Path) -> None:
    path.write_text(CANARY)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")


UNUSABLE = [
    (missing, "cannot be read: No such file or directory"),
    (a_folder, "is not a regular file"),
    (a_pipe, "is not a regular file"),
    (a_link_to_itself, "cannot be read: Too many levels of symbolic links"),
    (too_large, "is larger than 1 MiB"),
    (not_ours, "cannot be read: Permission denied"),
]


@pytest.mark.parametrize(("make", "why"), UNUSABLE)
def test_a_file_that_cannot_be_had_is_named_with_its_key(
    home: Path, make: Callable[[Path], None], why: str
) -> None:
    make(home / "npmrc")
    with pytest.raises(AgentVMError) as caught:
        secrets.collect(settings('[secrets]\nfiles = {npmrc = "~/npmrc"}\n'))
    assert caught.value.message == f"secrets.files.npmrc: {home}/npmrc {why}"
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("name", ["env", secrets.GCP_FILE])
def test_a_file_may_not_take_the_name_of_ours(home: Path, name: str) -> None:
    (home / "file").touch()
    with pytest.raises(UsageError, match=f"secrets.files.{name}: agent-vm has a file of that name"):
        secrets.collect(settings(f'[secrets]\nfiles = {{"{name}" = "~/file"}}\n'))


# Google's credentials


def test_the_variable_names_googles_credentials(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default_credentials(home, '{"type": "another"}')
    path = named_credentials(home)
    monkeypatch.setenv(secrets.GCP_VARIABLE, str(path))
    found = secrets.collect(settings('[env]\npass = ["GOOGLE_APPLICATION_CREDENTIALS"]\n'))
    assert found.files == {secrets.GCP_FILE: path.read_bytes()}
    assert found.variables[secrets.GCP_VARIABLE] == secrets.GCP_INSIDE.encode()
    monkeypatch.setenv(secrets.GCP_VARIABLE, f"~/{path.name}")
    assert secrets.collect(Settings()).files == found.files


def test_without_the_variable_it_is_the_default_file(home: Path) -> None:
    assert secrets.GCP_VARIABLE not in secrets.collect(Settings()).variables
    path = default_credentials(home)
    found = secrets.collect(Settings())
    assert found.files == {secrets.GCP_FILE: path.read_bytes()}
    assert (
        found.variables[secrets.GCP_VARIABLE] == b"/etc/google/application_default_credentials.json"
    )
    assert found.warnings == ()


def test_credentials_alone_do_not_switch_vertex_on(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    default_credentials(home)
    assert "CLAUDE_CODE_USE_VERTEX" not in secrets.collect(Settings()).variables
    monkeypatch.setenv("CLAUDE_CODE_USE_VERTEX", "1")
    assert secrets.collect(Settings()).variables["CLAUDE_CODE_USE_VERTEX"] == b"1"


MALFORMED = [
    "",
    CANARY,
    f'{{"type": "service_account", "private_key": "{CANARY}',
    f'["type", "{CANARY}"]',
    f'{{"private_key": "{CANARY}"}}',
    f'{{"type": 1, "private_key": "{CANARY}"}}',
    f'{{"type": "", "private_key": "{CANARY}"}}',
    f'{{"type": ["{CANARY}"]}}',
    f'"{CANARY}"',
    "null",
    "[" * 100_000 + CANARY,
    b"\xff\xfe" + CANARY.encode(),
    b'{"type": "\xff' + CANARY.encode() + b'"}',
]


@pytest.mark.parametrize("content", MALFORMED, ids=range(len(MALFORMED)))
def test_what_the_variable_names_has_to_be_a_credential_file(
    home: Path, monkeypatch: pytest.MonkeyPatch, content: str | bytes
) -> None:
    default_credentials(home)
    path = named_credentials(home, content)
    monkeypatch.setenv(secrets.GCP_VARIABLE, str(path))
    with pytest.raises(AgentVMError) as caught:
        secrets.collect(Settings())
    assert str(caught.value) == (
        f'GOOGLE_APPLICATION_CREDENTIALS: {path} is no JSON object with a "type"; '
        "`gcloud auth application-default login` writes one"
    )


@pytest.mark.parametrize(("make", "why"), UNUSABLE)
def test_what_the_variable_names_has_to_be_there(
    home: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None], why: str
) -> None:
    default_credentials(home)
    make(home / "key.json")
    monkeypatch.setenv(secrets.GCP_VARIABLE, str(home / "key.json"))
    with pytest.raises(AgentVMError) as caught:
        secrets.collect(Settings())
    assert str(caught.value) == (
        f"GOOGLE_APPLICATION_CREDENTIALS: {home}/key.json {why}; "
        "name the JSON file of your credentials, or unset the variable"
    )


@pytest.mark.parametrize("content", MALFORMED, ids=range(len(MALFORMED)))
def test_a_default_file_that_is_malformed_is_left_out_with_a_warning(
    home: Path, content: str | bytes
) -> None:
    path = default_credentials(home, content)
    found = secrets.collect(Settings())
    assert (found.files, found.variables) == ({}, DEFAULTS)
    assert found.warnings == (
        f'Google credentials: {path} is no JSON object with a "type"; the VM gets none',
    )


@pytest.mark.parametrize(("make", "why"), [case for case in UNUSABLE if case[0] is not missing])
def test_a_default_file_that_cannot_be_read_is_left_out_with_a_warning(
    home: Path, make: Callable[[Path], None], why: str
) -> None:
    path = home / ".config/gcloud" / secrets.GCP_FILE
    path.parent.mkdir(parents=True)
    make(path)
    found = secrets.collect(Settings())
    assert (found.files, found.variables) == ({}, DEFAULTS)
    assert found.warnings == (f"Google credentials: {path} {why}; the VM gets none",)


# How much


def test_a_value_that_no_program_could_be_started_with_is_refused(home: Path) -> None:
    value = "x" * (2**17 - len("LONG="))
    with pytest.raises(AgentVMError, match=r"^the variable LONG is longer than 128 KiB; hand"):
        secrets.collect(Settings(env=Env(set=(("LONG", value),))))


def test_more_than_a_mebibyte_is_refused(home: Path) -> None:
    for name in ("one", "two"):
        (home / name).write_bytes(bytes(2**19))
    text = '[secrets]\nfiles = {one = "~/one", two = "~/two"}\n'
    with pytest.raises(AgentVMError, match=r"^the variables and files .* larger than 1 MiB"):
        secrets.collect(settings(text))
    (home / "two").write_bytes(bytes(2**19 - 100))
    assert len(secrets.collect(settings(text)).files) == 2


# The token


def test_a_token_is_the_contents_own(home: Path) -> None:
    one = Secrets({"A": b"1", "B": b"2"}, {"f": b"x"})
    others = [
        Secrets({"A": b"1", "B": b"3"}, {"f": b"x"}),
        Secrets({"A": b"1", "B": b"2"}, {"f": b"y"}),
        Secrets({"A": b"1"}, {"f": b"x"}),
        Secrets({"A": b"1", "B": b"2"}, {}),
        Secrets({"A": b"1", "B": b"2", "f": b"x"}, {}),
        Secrets({"A": b"2", "B": b"1"}, {"f": b"x"}),
        Secrets({}, {}),
    ]
    first = secrets.token(VM, one)
    assert first == secrets.token(VM, Secrets({"B": b"2", "A": b"1"}, {"f": b"x"}))
    assert len({first, *(secrets.token(VM, other) for other in others)}) == len(others) + 1


def test_the_key_of_tokens_is_made_once_and_is_the_owners(home: Path) -> None:
    given = Secrets(DEFAULTS, {})
    first = secrets.token(VM, given)
    key = home / ".agent-vm" / VM / "secrets.key"
    assert key.stat().st_mode & 0o777 == 0o600
    kept = key.read_text()
    assert secrets.token(VM, given) == first
    assert key.read_text() == kept
    assert secrets.token("another", given) != first


@pytest.mark.parametrize("text", ["", "short", "z" * 64, "\xff" * 64])
def test_a_key_that_is_damaged_is_made_anew(home: Path, text: str) -> None:
    key = state.folder(VM) / "secrets.key"
    state.make(key.parent)
    key.write_text(text, "latin-1")
    assert secrets.token(VM, Secrets({}, {})) == secrets.token(VM, Secrets({}, {}))
    assert len(key.read_text()) == 64


# The way in


@pytest.fixture
def guest(guest: Guest, warm: None) -> Guest:
    return guest


@pytest.fixture
def loading(guest: Guest) -> Guest:
    """A VM whose shells load what is there, as a provisioned one's do."""
    for name in (".bashrc", ".profile"):
        (guest.home / name).write_text(f". {LOADER}\n")
    return guest


def environment(given: Secrets, command: str = "env -0") -> dict[str, bytes]:
    """What a command sees that `connect` runs."""
    file = Path("seen").resolve()
    assert workspaces.enter(VM, None, f"{command} > {file}", [], secrets.token(VM, given)) == 0
    return parsed(file.read_bytes())


def parsed(printed: bytes) -> dict[str, bytes]:
    pairs = (entry.partition(b"=") for entry in printed.split(b"\0"))
    return {name.decode(): value for name, _, value in pairs}


def over_ssh(command: str) -> str:
    """What a plain ssh command prints."""
    done = subprocess.run([*ssh_guest.ssh(VM), command], check=True, capture_output=True, text=True)
    return done.stdout


def test_odd_values_arrive_byte_for_byte(guest: Guest) -> None:
    given = Secrets(ODD, {})
    secrets.push(VM, given)
    for command in ("env -0", "bash -lc 'env -0'", "sh -c 'env -0'"):
        seen = environment(given, command)
        assert {name: seen[name] for name in ODD} == ODD
    assert not [*guest.home.rglob("canary"), *Path.cwd().rglob("canary")]


@given(values=st.lists(VALUES, max_size=4))
@example(values=[b"'", b"\\", b"", b"\n"])
@FEW
def test_any_value_arrives_byte_for_byte(guest: Guest, values: list[bytes]) -> None:
    given = Secrets({f"V{n}": value for n, value in enumerate(values)}, {})
    secrets.push(VM, given)
    seen = environment(given)
    assert {name: seen.get(name) for name in given.variables} == given.variables


def test_the_longest_value_arrives(guest: Guest) -> None:
    value = "x" * (2**17 - len("LONG=") - 1)
    given = secrets.collect(Settings(env=Env(set=(("LONG", value),))))
    secrets.push(VM, given)
    assert environment(given)["LONG"] == value.encode()


@pytest.mark.parametrize("shell", ["bash", "dash", "bash --posix"])
def test_every_kind_of_shell_loads_them(loading: Guest, shell: str) -> None:
    secrets.push(VM, Secrets(ODD, {}))
    asked = f"env -i AGENT_VM_SECRETS=$AGENT_VM_SECRETS {shell} -euc '. {LOADER}; env -0'"
    done = subprocess.run([*ssh_guest.ssh(VM), asked], check=True, capture_output=True)
    seen = parsed(done.stdout)
    assert {name: seen.get(name) for name in ODD} == ODD


@pytest.mark.parametrize("shell", ["bash", "dash", "bash --posix"])
def test_a_strict_script_survives_the_loader_where_nothing_is(loading: Guest, shell: str) -> None:
    assert over_ssh(f"{shell} -euc '. {LOADER}; echo alive'") == "alive\n"


def test_plain_ssh_commands_and_login_shells_have_them(loading: Guest) -> None:
    assert over_ssh("echo ${KEY-none}") == "none\n"
    secrets.push(VM, Secrets({"KEY": b"a b"}, {}))
    assert over_ssh('echo "$KEY"') == "a b\n"
    assert over_ssh("env -u AGENT_VM_ENV_TOKEN -u KEY bash -lc 'echo $KEY'") == "a b\n"


def test_what_a_session_sets_itself_stays(
    loading: Guest, capfd: pytest.CaptureFixture[str]
) -> None:
    given = Secrets({"KEY": b"ours"}, {})
    secrets.push(VM, given)
    own = "export KEY=mine; bash -c 'echo $KEY'; bash -lc 'echo $KEY'; bash -ic 'echo $KEY' 2>&-"
    assert workspaces.enter(VM, None, own, [], secrets.token(VM, given)) == 0
    assert capfd.readouterr().out == "mine\n" * 3
    assert over_ssh(f"unset KEY; {own.partition(';')[2]}") == "\n" * 3


def test_a_session_keeps_its_values_when_others_come(loading: Guest) -> None:
    secrets.push(VM, Secrets({"KEY": b"old"}, {}))
    ask = "read; bash -lc 'echo $KEY'"
    with subprocess.Popen([*ssh_guest.ssh(VM), f"echo; {ask}"], stdin=-1, stdout=-1) as session:
        assert session.stdout
        assert session.stdin
        session.stdout.readline()
        secrets.push(VM, Secrets({"KEY": b"new"}, {}))
        session.stdin.write(b"\n")
        session.stdin.flush()
        assert session.stdout.read() == b"old\n"
    assert over_ssh("echo $KEY") == "new\n"


def test_files_arrive_as_they_are_and_are_their_users_alone(guest: Guest) -> None:
    content = bytes(range(256)) * 100
    secrets.push(VM, Secrets({"A": b"1"}, {"key.json": content, "empty": b""}))
    folder = guest.home / ".secrets"
    assert (folder / "current" / "key.json").read_bytes() == content
    assert (folder / "current" / "empty").read_bytes() == b""
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "current").resolve().stat().st_mode & 0o777 == 0o700
    modes = {path.stat().st_mode & 0o777 for path in (folder / "current").iterdir()}
    assert modes == {0o600}


def test_what_is_not_handed_over_any_more_is_gone(guest: Guest) -> None:
    secrets.push(VM, Secrets({"A": CANARY.encode()}, {"file": CANARY.encode()}))
    assert secrets.push(VM, Secrets({"B": b"2"}, {}))
    assert held(guest) == {"current", "env"}
    assert CANARY not in (guest.home / ".secrets/current/env").read_text()


def test_pushing_the_same_again_is_told(guest: Guest) -> None:
    given = Secrets({"A": b"1"}, {"file": b"x"})
    assert secrets.push(VM, given)
    (guest.home / ".secrets/current/file").unlink()
    assert not secrets.push(VM, given)
    assert (guest.home / ".secrets/current/file").read_bytes() == b"x"
    assert secrets.push(VM, replace(given, files={"file": b"y"}))


def test_nothing_at_all_can_be_pushed(guest: Guest, capfd: pytest.CaptureFixture[str]) -> None:
    nothing = Secrets({}, {})
    secrets.push(VM, nothing)
    assert workspaces.enter(VM, None, "true", [], secrets.token(VM, nothing)) == 0


def held(guest: Guest) -> set[str]:
    """Names of all that is in memory; the folder behind `current` has a name of chance."""
    folder = guest.home / ".secrets"
    target = (folder / "current").resolve()
    return {path.name for path in folder.rglob("*") if path != target}


@pytest.mark.parametrize("blocks", range(7))
def test_a_transfer_that_is_cut_off_leaves_what_was_there(guest: Guest, blocks: int) -> None:
    """At each block of the tar: with one file, headers and contents make four."""
    old, new = Secrets({"A": b"old"}, {"file": b"old"}), Secrets({"A": b"new"}, {"file": b"new"})
    secrets.push(VM, old)
    archive = secrets._archive(secrets.token(VM, new), new)
    for cut in (blocks * 512, blocks * 512 + 100):
        if blocks < 4:
            with pytest.raises(AgentVMError):
                ssh_guest.feed(VM, "secrets-put.sh", archive[:cut])
            assert (guest.home / ".secrets/current/file").read_bytes() == b"old"
            assert held(guest) == {"current", "env", "file"}
            assert not secrets.push(VM, old)
        else:
            ssh_guest.feed(VM, "secrets-put.sh", archive[:cut])
            assert (guest.home / ".secrets/current/file").read_bytes() == b"new"
            assert held(guest) == {"current", "env", "file"}


def test_what_a_killed_transfer_left_goes_with_the_next(guest: Guest) -> None:
    secrets.push(VM, Secrets({"A": b"1"}, {}))
    left = guest.home / ".secrets" / "new.left"
    left.mkdir()
    (left / "file").write_text(CANARY)
    secrets.push(VM, Secrets({"A": b"1"}, {}))
    assert held(guest) == {"current", "env"}


def test_transfers_at_once_leave_one_of_them_whole(guest: Guest) -> None:
    contents = [Secrets({"A": b"%d" % n}, {"file": b"%d" % n * 5000}) for n in range(4)]
    pushes = [threading.Thread(target=secrets.push, args=(VM, one)) for one in contents]
    for each in pushes:
        each.start()
    for each in pushes:
        each.join()
    assert held(guest) == {"current", "env", "file"}
    now = guest.run("AGENT_VM_SECRETS=~/.secrets; . ~/.secrets/current/env; echo $A")
    assert (guest.home / ".secrets/current/file").read_text() == now * 5000


def test_they_can_be_cleared(loading: Guest) -> None:
    secrets.clear(VM)
    secrets.push(VM, Secrets({"KEY": CANARY.encode()}, {"file": CANARY.encode()}))
    secrets.clear(VM)
    assert list((loading.home / ".secrets").iterdir()) == []
    assert over_ssh("echo ${KEY-none}") == "none\n"


def test_a_guest_that_takes_nothing_is_one_line(guest: Guest) -> None:
    (guest.home / ".secrets").write_text("in the way")
    script = guest.home / "bin" / "sudo"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2; exit 1\n")
    script.chmod(0o755)
    with pytest.raises(AgentVMError, match=r"^sudo: a password is required$"):
        secrets.push(VM, Secrets({}, {}))


@pytest.mark.parametrize("file", [None, "", "export AGENT_VM_ENV_TOKEN=old\n", "syntax ' error"])
@pytest.mark.parametrize("loads", [True, False])
def test_entering_with_other_values_than_asked_for_has_a_status_of_its_own(
    guest: Guest, capfd: pytest.CaptureFixture[str], file: str | None, *, loads: bool
) -> None:
    if loads:
        (guest.home / ".bashrc").write_text(f". {LOADER}\n")
    if file is not None:
        current = guest.home / ".secrets" / "current"
        current.mkdir(parents=True)
        (current / "env").write_text(file)
    given = Secrets({"A": b"1"}, {})
    token = secrets.token(VM, given)
    assert workspaces.enter(VM, None, "echo ran", [], token) == secrets.STALE
    assert capfd.readouterr().out == ""
    assert workspaces.enter(VM, None, "echo ran", []) == 0
