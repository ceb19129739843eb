"""Text from the guest cannot steer the terminal it is printed on."""

from __future__ import annotations

import json
import os
import shlex
import time
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_vm_tasks import console, process, stages, sync, workspaces
from agent_vm_tasks.console import printable
from agent_vm_tasks.guest import ssh as guest_ssh
from agent_vm_tasks.main import program
from agent_vm_tasks.stages import Stage
from tests.conftest import VM, commit, git, wait_until
from tests.terminals import terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.conftest import Guest, Limactl

EVIL = "\x1b]0;owned\x07\x1b[2J\x7f\x9b31m\u202e\r"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x7f\x9b31m\u202e\r"
FAKE = "agent-vm: all is well"
LIE = f"{EVIL}\n{FAKE}\n"
WORSE = f"{LIE}worse: {EVIL}\n"
ANSWERS = {
    "complains": ("", WORSE, 1),
    "lies": (f"{LIE}\0" * 24, LIE, 0),
    "says numbers": (f"{'9' * 5000}\0" * 24, "", 0),
    "stays away": ("", WORSE, 255),
}
"""What a guest without a shell of ours prints, complains and returns, whatever it is asked."""
VERBS = [
    "clean fix --force", "clean-all", "clean-all --force", "destroy", "destroy --force",
    "fetch fix", "provision", "provision --upgrade", "push fix", "refresh-home",
    "refresh-home --force", "secrets", "secrets --clear", "start", "status", "status --json",
    "tools", "tools --json",
]  # fmt: skip
TOLD = [("refresh-home", "lies")]
"""The verbs that print what the guest gives as an answer; its complaints all of them print."""


@pytest.fixture
def inside(
    guest: Guest, limactl: Limactl, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A workspace in a VM that limactl knows."""
    limactl.adopt(guest)
    monkeypatch.setattr(stages, "stages", lambda _: (Stage("npm", "true", "1"),))
    settings = repository / "agent-vm.toml"
    settings.write_text("[mount]\nenabled = false\n[provision]\nenabled = false\n")
    ws = workspaces.workspace(VM, workspaces.repository(repository), "fix")
    sync.push(ws, lambda _line: None)
    return guest.workspaces / ws.folder


def said(capfd: pytest.CaptureFixture[str], *words: str) -> str:
    """All that a command prints: no character that a terminal obeys, no line of the guest's own."""
    capfd.readouterr()
    program.run(["agent-vm", *words], exit=False)
    out, err = capfd.readouterr()
    for char in out + err:
        assert char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf"}, (out, err)
    assert FAKE not in (out + err).splitlines(), (out, err)
    return out + err


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("verb", VERBS)
def test_a_guest_that_answers_as_it_likes(
    guest: Guest, inside: Path, capfd: pytest.CaptureFixture[str], verb: str, answer: str
) -> None:
    out, complaint, status = ANSWERS[answer]
    (guest.home / "out").write_text(out)
    (guest.home / "complaint").write_text(complaint)
    executable(guest.home / "bin/bash", f"cat ~/out; cat ~/complaint >&2; exit {status}")
    told = answer in {"complains", "stays away"} or (verb.split(maxsplit=1)[0], answer) in TOLD
    text = said(capfd, *verb.split())
    assert (SHOWN[:10] in text or SHOWN[:10].replace("x", "u00") in text) is told, text


@given(st.text())
def test_printable_text_is_printable(text: str) -> None:
    for char in printable(text):
        assert char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_all_that_git_tells_of_a_workspace(
    guest: Guest, inside: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["agent-vm", "git", "fix", "--", "log", "--format=%C(red)%B", "-1"]
    monkeypatch.setattr("sys.argv", argv)
    guest.run(f"git config color.ui always && git commit -q --allow-empty -m {q(EVIL)}", cwd=inside)
    executable(guest.home / "bin/git", f"printf %s {q(EVIL)} >&2")
    text = said(capfd, *argv[1:])
    shown = SHOWN.removesuffix(r"\r")
    assert rf"\x1b[31m{shown}" in text
    assert text.endswith(SHOWN)


def test_a_folders_name_in_the_inventory(
    guest: Guest, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (guest.workspaces / f"{EVIL}\nState: Stopped").mkdir()
    (inside / ".git/agent-vm").write_text(f"{EVIL}\n{EVIL}repository\n{EVIL}branch\n")
    text = said(capfd, "status")
    for name in (f"{SHOWN}\\nState: Stopped", f"{SHOWN}repository", f"{SHOWN}branch"):
        assert name in text
    assert "\nState: Stopped" not in text
    assert r"\u001b]0;owned" in said(capfd, "status", "--json")


def test_a_folders_name_before_it_is_deleted(
    guest: Guest, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (guest.workspaces / f"{EVIL}x").mkdir()
    text = said(capfd, "clean-all")
    assert f"would be lost: {SHOWN}x: " in text
    assert "add --force" in text
    assert (guest.workspaces / f"{EVIL}x").exists()


def test_a_branchs_name_in_what_stays_inside(
    guest: Guest, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    guest.run("git checkout -q -b 'a\u202eb' && git commit -q --allow-empty -m x", cwd=inside)
    guest.run("git checkout -q fix", cwd=inside)
    assert r"1 commit on branch a\u202eb" in said(capfd, "fetch", "fix")


def test_a_files_name_that_is_in_the_way(
    guest: Guest, inside: Path, repository: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    git(repository, "checkout", "--quiet", "fix")
    commit(repository, f"{EVIL}x")
    (inside / f"{EVIL}x").touch()
    assert r"\x9b31m\u202e" in said(capfd, "push", "--branch", "fix")


@pytest.mark.parametrize("command", ["git-upload-pack", "git-receive-pack", "git"])
def test_an_error_of_the_guests_programs(
    guest: Guest, inside: Path, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    executable(guest.home / "bin" / command, f"echo {q('fatal: ' + EVIL)} >&2; exit 1")
    verbs = {"git-upload-pack": "fetch", "git-receive-pack": "push", "git": "fetch"}
    assert r"\x1b]0;owned" in said(capfd, verbs[command], "--branch", "fix")


def test_what_a_hook_of_the_workspace_says(
    guest: Guest, inside: Path, repository: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Git's sideband: what the other side prints while it takes commits."""
    git(repository, "checkout", "--quiet", "fix")
    for status, then in ((0, "fix is in the VM."), (1, "agent-vm: pushing fix failed: ")):
        commit(repository, f"file{status}")
        executable(inside / ".git/hooks/pre-receive", f"echo {q(LIE)} >&2; exit {status}")
        assert then in said(capfd, "push", "fix")


def test_a_branchs_name_that_is_checked_out_instead(
    guest: Guest, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (inside / ".git/HEAD").write_text(f"ref: refs/heads/{EVIL}\n")
    assert SHOWN in said(capfd, "push", "fix")


def test_a_files_name_that_would_run_here(
    guest: Guest, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    commit(inside, f"{LIE}/.envrc")
    assert rf"{SHOWN}\n{FAKE}\n/.envrc (the shell" in said(capfd, "fetch", "fix")


def test_what_the_guest_called_a_workspace_that_was_deleted(
    guest: Guest, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (inside / ".git/agent-vm").write_text(f"{EVIL}\nrepository\n{EVIL}\n")
    commit(inside, "work")
    inside.rename(inside.parent / f"{LIE}x")
    said(capfd, "clean-all", "--force")
    assert SHOWN in said(capfd, "undo")
    assert r"\u001b]0;owned" in said(capfd, "undo", "--json")
    assert f"{FAKE}\\nx is in the VM again" in said(capfd, "undo", f"{LIE}x")
    executable(guest.home / "bin/bash", f"echo {q(LIE)} >&2; exit 1")
    assert FAKE in said(capfd, "undo", f"{LIE}x")


def test_what_is_said_where_the_mount_is_served(
    guest: Guest, inside: Path, sshfs: None, capfd: pytest.CaptureFixture[str]
) -> None:
    for out, complaint, status in ANSWERS.values():
        (guest.home / "out").write_text(out)
        (guest.home / "complaint").write_text(complaint)
        executable(guest.home / "bin/bash", f"cat ~/out; cat ~/complaint >&2; exit {status}")
        assert "could not be mounted" in said(capfd, "mount")


def test_the_console_of_the_vm(
    limactl: Limactl, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (limactl.folder / "lima" / VM / "serial.log").write_text(EVIL)
    assert said(capfd, "logs") == SHOWN.removesuffix(r"\r") + "\n"


def test_progress_of_the_guests_programs(
    guest: Guest, inside: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WATCH", 0.1)
    progress(inside, guest)
    assert "Resolving deltas: 1" + SHOWN.removesuffix(r"\r") in said(capfd, "push", "fix")


def test_a_files_name_that_looks_like_a_line_of_ours(
    guest: Guest, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (inside / "x\nfix is up to date with the VM.").mkdir()
    (inside / "x\nfix is up to date with the VM./.envrc").touch()
    (inside / f"{EVIL}.code-workspace").touch()
    guest.run("git add . && git commit -q -m x", cwd=inside)
    text = said(capfd, "fetch", "fix")
    assert text.splitlines().count("fix is up to date with the VM.") == 1
    assert r"look at it first: x\nfix is up to date" in text
    assert f"look at it first: {SHOWN}.code-workspace (the editor)" in text


def test_a_folders_name_that_looks_like_a_line_of_ours(
    guest: Guest, inside: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (guest.workspaces / "x\nDeleted 0 workspaces.").mkdir()
    text = said(capfd, "clean-all")
    assert r"would be lost: x\nDeleted 0 workspaces.: " in text
    assert "Deleted 0 workspaces." not in text.splitlines()


def a_deleted_workspace(inside: Path, _: Guest) -> None:
    commit(inside, "work")
    inside.rename(inside.parent / f"{EVIL}x")
    program.run(["agent-vm", "clean-all", "--force"], exit=False)


def progress(_: Path, guest: Guest) -> None:
    words = f"printf %s {q('Resolving deltas: 1' + EVIL)} >&2; sleep 1"
    executable(guest.home / "bin/git-receive-pack", words)


WOULD: dict[str, tuple[str, Callable[[Path, Guest], object]]] = {
    "a folder": ("status", lambda inside, _: (inside.parent / f"{EVIL}x").mkdir()),
    "a folder, as JSON": ("status --json", lambda inside, _: (inside.parent / f"{EVIL}x").mkdir()),
    "a file": ("fetch fix", lambda inside, _: commit(inside, f"{EVIL}/.envrc")),
    "an error": (
        "fetch fix",
        lambda _, guest: executable(
            guest.home / "bin/git-upload-pack", f"echo {q('fatal: ' + EVIL)} >&2; exit 1"
        ),
    ),
    "a commit": (
        "git fix -- log -1",
        lambda inside, guest: guest.run(f"git commit -q --allow-empty -m {q(EVIL)}", cwd=inside),
    ),
    "a deleted workspace": ("undo", a_deleted_workspace),
    "a deleted workspace, as JSON": ("undo --json", a_deleted_workspace),
    "progress": ("push fix", progress),
    "the console": (
        "logs",
        lambda *_: (Path(os.environ["LIMA_HOME"]) / VM / "serial.log").write_text(EVIL),
    ),
    "a refusal": (
        "secrets",
        lambda _, guest: executable(guest.home / "bin/bash", f"echo {q(EVIL)} >&2; exit 1"),
    ),
}
"""What the guest makes, and the command that prints it."""


@pytest.mark.parametrize("what", WOULD)
def test_what_is_not_escaped_would_steer_it(
    guest: Guest,
    inside: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    what: str,
    on: bool,
) -> None:
    command, make = WOULD[what]
    make(inside, guest)
    capfd.readouterr()
    if not on:
        monkeypatch.setattr(console, "_escape", str)
        real = json.dumps
        monkeypatch.setattr(json, "dumps", lambda *given, **more: unescaped(real(*given, **more)))
    monkeypatch.setattr(process, "WATCH", 0.1)
    monkeypatch.setattr("sys.argv", ["agent-vm", *command.split()])
    program.run(exit=False)
    out, err = capfd.readouterr()
    assert ("\x1b[2J" in out + err) is not on
    assert (r"\x1b[2J" in out + err or r"\u001b[2J" in out + err) is on


def unescaped(text: str) -> str:
    return text.encode().decode("unicode_escape")


def q(text: str) -> str:
    return shlex.quote(text)


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    rest = f'PATH=${{PATH#*:}}; exec {path.name} "$@"'
    path.write_text(f"#!/bin/sh\n{text}\n{rest}\n")
    path.chmod(0o755)


def test_a_session_in_tmux_does_not_fill_the_clipboard(
    guest: Guest, tmp_path: Path, *, on: bool
) -> None:
    """The session's bytes are the guest's; tmux with its default drops OSC 52 (tmux(1))."""
    copy = "printf '\\033]52;c;c3RvbGVu\\007'; touch copied"
    connect = shlex.join([*guest_ssh(VM), "-t", "-e", "none", copy])
    tmux = ["tmux", "-S", str(tmp_path / "socket"), "-f", "/dev/null"]
    clipboard = ["set-option", "-s", "set-clipboard", "external" if on else "on"]
    hold = ["new-session", "-d", "sleep 60"]
    try:
        process.run([*tmux, *hold, ";", *clipboard, ";", "new-window", f"{connect}; sleep 60"])
        wait_until((guest.home / "copied").exists, "the session does not start")
        time.sleep(0.5)
        assert process.run([*tmux, "show-buffer"], check=False).stdout == ("" if on else "stolen")
    finally:
        process.run([*tmux, "kill-server"], check=False)


def test_tmux_hands_on_nothing_that_is_wrapped_for_its_own_terminal(
    guest: Guest, tmp_path: Path, *, on: bool
) -> None:
    """Its default, too (allow-passthrough); where it is on, set-clipboard does not matter."""
    wrapped = r"printf '\033Ptmux;\033\033]52;c;c3RvbGVu\007\033\\'; echo co''pied"
    connect = shlex.join([*guest_ssh(VM), "-t", "-e", "none", wrapped])
    conf = "set -s set-clipboard off\n" + ("" if on else "set -g allow-passthrough on\n")
    (tmp_path / "conf").write_text(conf)
    tmux = ["tmux", "-S", str(tmp_path / "socket"), "-f", str(tmp_path / "conf")]
    env = {**os.environ, "TERM": "xterm-256color"}
    try:
        with terminal([*tmux, "new-session", f"{connect}; sleep 60"], env=env) as outer:
            outer.wait_for("copied")
            assert (b"\x1b]52;c;c3RvbGVu" in outer.seen) is not on
    finally:
        process.run([*tmux, "kill-server"], check=False)
