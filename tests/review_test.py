"""What a fetch brought that would run here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import review

from .conftest import commit, git

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def base(repository: Path) -> str:
    return git(repository, "rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("path", "who"),
    [
        (".githooks/pre-commit", "git hooks"),
        (".husky/post-merge", "git hooks"),
        ("web/.husky/post-merge", "git hooks"),
        (".pre-commit-config.yaml", "git hooks"),
        ("lefthook.yml", "git hooks"),
        ("docs/.gitattributes", "git's filters"),
        (".gitmodules", "git's settings"),
        (".lfsconfig", "git's settings"),
        ("etc/.gitconfig", "git's settings"),
        (".envrc", "the shell that enters the folder"),
        ("mise.toml", "the shell that enters the folder"),
        (".mise.toml", "the shell that enters the folder"),
        (".tool-versions", "the shell that enters the folder"),
        (".vscode/tasks.json", "the editor"),
        (".idea/workspace.xml", "the editor"),
        (".exrc", "the editor"),
        (".nvimrc", "the editor"),
        (".nvim.lua", "the editor"),
        ("app.code-workspace", "the editor"),
        (".devcontainer/devcontainer.json", "the editor"),
        (".claude/settings.json", "coding agents here"),
        (".mcp.json", "coding agents here"),
        (".gemini/settings.json", "coding agents here"),
        (".cursor/mcp.json", "coding agents here"),
        (".opencode/config.jsonc", "coding agents here"),
        ("opencode.json", "coding agents here"),
        (".github/workflows/ci.yml", "the CI"),
        (".github/actions/x/action.yml", "the CI"),
        (".gitlab-ci.yml", "the CI"),
        (".circleci/config.yml", "the CI"),
        ("Jenkinsfile", "the CI"),
        ("agent-vm.toml", "agent-vm and invoke"),
        ("tasks.py", "agent-vm and invoke"),
    ],
)
def test_a_file_that_something_runs_is_named_with_what_runs_it(
    repository: Path, base: str, path: str, who: str
) -> None:
    text = "[submodule]\n" if path == ".gitmodules" else "text\n"
    assert review.what_runs(repository, base, commit(repository, path, text)) == [f"{path} ({who})"]


def test_a_name_counts_in_any_case(repository: Path, base: str) -> None:
    new = commit(repository, ".ENVRC")
    assert review.what_runs(repository, base, new) == [".ENVRC (the shell that enters the folder)"]


def test_a_link_to_a_folder_of_hooks_is_named(repository: Path, base: str) -> None:
    (repository / ".husky").symlink_to("src")
    git(repository, "add", ".")
    new = commit(repository, "src/pre-commit")
    assert review.what_runs(repository, base, new) == [".husky (git hooks)"]


@pytest.mark.parametrize("folder", ["ci/checks", "./ci/checks/", "ci/../ci/checks"])
def test_the_users_own_folder_of_hooks_is_named(
    repository: Path, base: str, home: Path, folder: str
) -> None:
    git(home, "config", "--global", "core.hooksPath", "/usr/share/hooks")
    new = commit(repository, "ci/checks/pre-commit")
    assert review.what_runs(repository, base, new) == []
    git(repository, "config", "core.hooksPath", folder)
    assert review.what_runs(repository, base, new) == ["ci/checks/pre-commit (git hooks)"]


def test_names_that_are_one_where_case_is_ignored(repository: Path, base: str) -> None:
    def clashes(old: str, new: str) -> list[str]:
        return sorted(review.clashes(repository, old, new))

    first = commit(repository, "dir/file")
    assert clashes(base, first) == []
    second = commit(repository, "Dir/other")
    assert clashes(first, second) == ["Dir and dir"]
    third = commit(repository, "cafe\u0301")
    assert clashes(second, third) == []
    fourth = commit(repository, "CAF\u00e9")
    assert clashes(third, fourth) == ["CAF\u00e9 and cafe\u0301"]
    assert clashes(fourth, commit(repository, "dir/file", "changed\n")) == []


def test_other_files_are_not_named(repository: Path, base: str) -> None:
    for path in ("src/main.py", "hooks.md", "docs/envrc.txt", "x.vscode", "my.gitattributes"):
        new = commit(repository, path)
    assert review.what_runs(repository, base, new) == []


def test_a_file_that_is_executable_now_is_named(repository: Path, base: str) -> None:
    (repository / "README").chmod(0o755)
    git(repository, "commit", "-qam", "x")
    new = git(repository, "rev-parse", "HEAD")
    found = review.what_runs(repository, base, new)
    assert found == ["README (whoever starts it: it is executable now)"]
    assert review.what_runs(repository, new, commit(repository, "README", "changed\n")) == []


def test_npm_scripts_are_named_when_they_change(repository: Path, base: str) -> None:
    def package(**values: object) -> str:
        return commit(repository, "web/package.json", json.dumps({"name": "x", **values}))

    plain = package()
    assert review.what_runs(repository, base, plain) == []
    first = package(scripts={"postinstall": "./x"})
    assert review.what_runs(repository, plain, first) == ["web/package.json (npm)"]
    assert review.what_runs(repository, first, package(scripts={"postinstall": "./x"}, a=1)) == []
    for text in ("[" * 100_000, "{", "5"):
        broken = commit(repository, "web/package.json", text)
        assert review.what_runs(repository, plain, broken) == ["web/package.json (npm)"]


def test_npm_scripts_in_a_file_that_is_too_large_to_read_are_named(
    repository: Path, base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(review, "_LARGEST_PACKAGE", 4)
    assert review.what_runs(repository, base, commit(repository, "package.json", "{}  ")) == []
    large = commit(repository, "package.json", "{}   ")
    assert review.what_runs(repository, base, large) == ["package.json (npm)"]


def test_what_the_host_has_changed_since_is_not_the_guests(repository: Path) -> None:
    base = commit(repository, ".envrc", "of both\n")
    new = commit(repository, "theirs/.envrc")
    git(repository, "reset", "-q", "--hard", base)
    ours = commit(repository, ".envrc", "ours\n")
    assert review.what_runs(repository, ours, new) == [
        "theirs/.envrc (the shell that enters the folder)"
    ]


def test_without_a_common_commit_everything_is_new(repository: Path, base: str) -> None:
    git(repository, "checkout", "-q", "--orphan", "other")
    new = commit(repository, ".envrc")
    expected = [".envrc (the shell that enters the folder)"]
    assert review.what_runs(repository, base, new) == expected
    assert review.what_runs(repository, "", new) == expected


def test_the_users_own_settings_of_git_run_nothing(repository: Path, base: str) -> None:
    git(repository, "config", "diff.external", "touch /tmp/should-not-be; false")
    git(repository, "config", "diff.x.textconv", "false")
    commit(repository, ".gitattributes", "* diff=x\n")
    assert review.what_runs(repository, base, "HEAD") == [".gitattributes (git's filters)"]


def test_the_size_of_what_a_checkout_writes(repository: Path, base: str) -> None:
    commit(repository, "a", "x" * 1000)
    new = commit(repository, "b", "y" * 500)
    assert review.written(repository, base, new) == 1500
    assert review.written(repository, new, new) == 0
