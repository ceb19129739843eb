"""Git on the host: what names are refused, and what of the user's set-up a transfer sees."""

from __future__ import annotations

import os
import unicodedata
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_vm_tasks import git, process
from agent_vm_tasks.errors import AgentVMError, UsageError
from agent_vm_tasks.process import Result

from .conftest import VM, commit, make_repository
from .conftest import git as plain_git
from .programs import script

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import Guest


@pytest.mark.parametrize(
    "branch",
    ["fix", "feature/x", "it's", "$(id)", "`id`", "a;b", "é/日本", "#1", "a@b", "x" * 200, "main"],
)
def test_names_that_git_has_as_branches(branch: str) -> None:
    git.check_branch(branch)


@pytest.mark.parametrize(
    ("branch", "rule"),
    [
        ("", "empty"),
        ("-x", "dash"),
        ("--upload-pack=x", "dash"),
        ("@", "another meaning"),
        ("HEAD", "another meaning"),
        ("refs/heads/x", "another meaning"),
        ("@{-1}", "git does not allow it"),
        ("a/../../b", "git does not allow it"),
        (";rm -rf ~", "git does not allow it"),
        ("a b", "git does not allow it"),
        ("a..b", "git does not allow it"),
        ("a.lock", "git does not allow it"),
        (".a", "git does not allow it"),
        ("a//b", "git does not allow it"),
        ("a\nb", "control or formatting"),
        ("a\x1b[31mb", "control or formatting"),
        ("a\u202eb", "control or formatting"),
        ("a\u2028b", "control or formatting"),
        ("a\udcffb", "control or formatting"),
        ("x" * 201, "longer than 200 bytes"),
        ("é" * 101, "longer than 200 bytes"),
    ],
)
def test_names_that_are_refused_with_the_rule(branch: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule) as caught:
        git.check_branch(branch)
    assert caught.value.status == 2


@given(st.text())
def test_any_other_text_is_a_name_or_a_usage_error(text: str) -> None:
    try:
        git.check_branch(text)
    except UsageError:
        return
    assert text
    assert not {unicodedata.category(char) for char in text} & {"Cc", "Cf", "Cs"}


def test_questions_are_about_the_folder_not_the_environment(
    repository: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_repository(home / "other")
    commit(home / "other", "more")
    here = plain_git(repository, "rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", str(home / "other/.git"))
    assert git.output(repository, "rev-parse", "HEAD") == here
    monkeypatch.delenv("GIT_DIR")
    monkeypatch.setenv("GIT_INDEX_FILE", str(home / "index"))
    assert git.output(repository, "status", "--porcelain") == ""


def test_a_failing_git_is_told_by_its_reason(repository: Path) -> None:
    with pytest.raises(AgentVMError, match=r"^git failed: fatal: Needed a single revision$"):
        git.run(repository, "rev-parse", "--verify", "nothing")


def test_the_reason_is_the_line_that_says_it() -> None:
    said = "remote: noise\nfatal: the trouble\nhint: more noise\n"
    assert str(git.explain(Result(("git",), 128, "", said), "pushing x")) == (
        "pushing x failed: fatal: the trouble"
    )
    silent = Result(("git",), 128, "", "")
    assert str(git.explain(silent, "pushing x")) == "pushing x failed: exit status 128"


def test_a_transfer_does_not_see_the_users_configuration(
    guest: Guest, repository: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_git(home, "config", "--global", "core.sshCommand", f"touch {home}/canary; false")
    plain_git(home, "config", "--global", f"url.{home}/elsewhere.insteadOf", f"{VM}:")
    monkeypatch.setenv("GIT_SSH_COMMAND", f"touch {home}/canary; false")
    monkeypatch.setenv("GIT_TRACE", f"{home}/canary")
    guest.run("git init --quiet --bare target")
    result = git.transfer(repository, VM, "push", f"{VM}:target", "main")
    assert result.ok, result
    assert not (home / "canary").exists()
    assert guest.run("git -C target show main:README") == "hello"


@pytest.mark.parametrize("url", ["{home}/other", "file://{home}/other", "ext::touch% {home}/x"])
def test_a_transfer_speaks_ssh_only(guest: Guest, repository: Path, home: Path, url: str) -> None:
    make_repository(home / "other")
    result = git.transfer(repository, VM, "fetch", url.format(home=home), "main")
    assert "not allowed" in result.stderr
    assert not (home / "x").exists()


def test_what_a_guest_says_as_progress_is_cut_and_what_is_none_is_not_told(
    guest: Guest, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WATCH", 0.05)
    (guest.home / "bin").mkdir()
    words = f"printf 'hello\\nremote: Eating disks: 1{'x' * 1000}\\nfatal: no\\nHalf a line: 5' >&2"
    script(guest.home / "bin", "git-receive-pack", f"{words}; sleep 0.5")
    said: list[str] = []
    git.transfer(repository, VM, "push", "--progress", f"{VM}:target", "main", say=said.append)
    assert set(said) == {f"remote: Eating disks: 1{'x' * 80}\r", "\r"}


def test_progress_does_not_stay_where_a_transfer_is_broken_off(
    guest: Guest, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "WATCH", 0.05)
    (guest.home / "bin").mkdir()
    script(guest.home / "bin", "git-receive-pack", "echo 'Eating disks: 1' >&2; exec sleep 100")
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line != "\r":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        git.transfer(repository, VM, "push", "--progress", f"{VM}:target", "main", say=say)
    assert said == ["Eating disks: 1\r", "\r"]


def test_a_transfer_trusts_only_the_repository_it_works_in(
    guest: Guest, repository: Path, home: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a repository to another user")
    os.chown(repository, 65534, 65534)
    os.chown(repository / ".git", 65534, 65534)
    plain_git(home, "config", "--global", "safe.directory", str(repository))
    guest.run("git init --quiet --bare target")
    assert git.transfer(repository, VM, "push", f"{VM}:target", "main").ok
