"""connect, push, fetch, clean and clean-all as they are typed."""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import guest as ssh_guest
from agent_vm_tasks import settings, workspaces
from agent_vm_tasks import vm as life
from tests.conftest import VM, commit, git, make_repository
from tests.programs import calls, script

if TYPE_CHECKING:
    from tests.cli import Said
    from tests.conftest import Guest, Limactl

    from .conftest import Command

WITH_BRANCH = ["connect", "git", "push", "fetch", "clean"]


@pytest.fixture
def started(home: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, first on PATH, that records which of these programs were started."""
    folder = home / "recorded"
    folder.mkdir()
    for name in ("git", "limactl", "sftp", "ssh", "sshfs"):
        script(folder, name, f'exec {shutil.which(name)} "$@"')
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def untouched(home: Path, limactl: Limactl, repository: Path | None = None) -> bool:
    """Whether a command made nothing: no VM, no file of one, no branch."""
    branches = git(repository, "for-each-ref", "refs/heads") if repository else ""
    files = [path for path in (home / ".agent-vm").glob("*/*") if path.name != "lock"]
    return not (limactl.calls() or files or len(branches.splitlines()) > 1)


def one_line(said: Said, status: int) -> str:
    """What a failed command said, which has to be all that it printed."""
    assert (said.status, said.out) == (status, "")
    assert said.err == f"{said.error}\n"
    return said.error.removeprefix("agent-vm: ")


@pytest.mark.parametrize("verb", [["connect", "fix"], ["connect", "--branch", "fix"]])
def test_connect_makes_what_is_missing_and_runs_in_the_workspace(
    vm: Guest, repository: Path, agent_vm: Command, verb: list[str]
) -> None:
    said = agent_vm(*verb, "--", "pwd")
    assert (said.status, said.out) == (0, f"{vm.home}/workspace/app-fix\n")
    assert "created branch fix from HEAD" in said.err
    assert git(repository, "rev-parse", "fix") == git(repository, "rev-parse", "main")
    assert (vm.workspaces / "app-fix" / "README").read_text() == "hello\n"
    assert git(repository, "branch", "--show-current") == "main"


def test_connect_warns_of_what_could_not_be_installed_and_goes_in(
    vm: Guest, repository: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_vm("connect", "--", "true")
    monkeypatch.setattr(life, "catch_up", lambda *_: ["provisioning failed in stage script-1"])
    said = agent_vm("connect", "fix", "--command", "cat README; exit 5")
    assert (said.status, said.out) == (5, "hello\n")
    assert "warning: provisioning failed in stage script-1\n" in said.err


def test_connect_warns_of_a_workspace_that_has_not_the_wall_asked_for(
    vm: Guest, repository: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_vm("connect", "fix", "--", "true")
    assert "wall" not in agent_vm("connect", "fix", "--", "true").err
    (repository / "agent-vm.toml").write_text("[workspace]\nwalls = true\n")
    monkeypatch.setattr(life, "catch_up", lambda *_: [])
    said = agent_vm("connect", "fix", "--", "true")
    assert said.status == 0
    assert "warning: app-fix has no wall, as it was made before" in said.err


def test_connect_creates_the_vm_as_well(
    limactl: Limactl, repository: Path, agent_vm: Command
) -> None:
    assert agent_vm("connect", "fix", "--", "cat", "README").out == "hello\n"
    assert [call[0] for call in limactl.calls()] == ["create", "start"]


def test_a_second_connect_goes_in_without_asking_lima(
    vm: Guest, limactl: Limactl, repository: Path, agent_vm: Command
) -> None:
    agent_vm("connect", "fix", "--", "true")
    (limactl.folder / "calls").unlink()
    said = agent_vm("connect", "fix", "--", "true")
    assert (said.status, said.out, said.err) == (0, "", "")
    assert not (limactl.folder / "calls").exists()


@pytest.mark.parametrize(
    "argv",
    [
        ["two  words", "", "$HOME", "*", "it's", 'say "x"', "back\\slash", "new\nline", "ünï"],
        ["--branch", "main", "--", "push", "status"],
        ["-la", "--help", "--version"],
    ],
)
def test_words_after_the_dashes_arrive_as_they_were_typed(
    vm: Guest, repository: Path, agent_vm: Command, argv: list[str]
) -> None:
    said = agent_vm("connect", "fix", "--", "printf", "%s\\0", *argv)
    assert said.out.split("\0")[:-1] == argv


def test_connect_with_only_a_command_runs_it_in_the_vms_home(
    vm: Guest, home: Path, agent_vm: Command
) -> None:
    assert agent_vm("connect", "--", "pwd").out == f"{vm.home}\n"


def test_a_command_line_is_the_shells(vm: Guest, repository: Path, agent_vm: Command) -> None:
    said = agent_vm("connect", "fix", "--command", 'echo "$((6 * 7))" > n; cat n; exit 3')
    assert (said.status, said.out) == (3, "42\n")
    assert (vm.workspaces / "app-fix" / "n").exists()


@pytest.mark.parametrize("status", [1, 2, 42, 130, 213, 255])
def test_the_commands_status_is_ours(
    vm: Guest, repository: Path, agent_vm: Command, status: int
) -> None:
    agent_vm("push", "fix")
    said = agent_vm("connect", "fix", "--", "sh", "-c", f"exit {status}")
    assert (said.status, said.err) == (status, "")


def test_a_command_that_does_not_exist(vm: Guest, repository: Path, agent_vm: Command) -> None:
    said = agent_vm("connect", "fix", "--", "no-such-command")
    assert said.status == 127
    assert "no-such-command" in said.err


@pytest.mark.parametrize("verb", [["git", "fix"], ["git", "--branch", "fix"]])
def test_git_looks_at_the_workspace(
    vm: Guest, repository: Path, agent_vm: Command, verb: list[str]
) -> None:
    agent_vm("push", "fix")
    (vm.workspaces / "app-fix" / "new\n\u202ename").touch()
    said = agent_vm(*verb, "--", "status", "--short", "--branch", "-z")
    assert (said.status, said.err) == (0, "")
    assert said.out == "## fix\\x00?? new\n\\u202ename\\x00"
    assert agent_vm(*verb, "--", "log", "--format=%s%n%n%d", "-1", "--", "README").out == (
        "change README\n\n (HEAD -> fix)\n"
    )


def test_gits_errors_and_status_pass_through(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix")
    said = agent_vm("git", "fix", "--", "show", "no-such")
    assert (said.status, said.out) == (128, "")
    assert said.err.startswith("fatal: ambiguous argument 'no-such': unknown revision")
    assert agent_vm("git", "fix", "--", "diff", "--quiet").status == 0
    for status in (1, 213, 255):
        assert agent_vm("git", "fix", "--", "-c", f"alias.x=!exit {status}", "x").status == status


def test_git_has_no_pager_terminal_or_input_and_takes_no_lock(
    vm: Guest, repository: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent_vm("push", "fix")
    inside = vm.workspaces / "app-fix"
    assert agent_vm("git", "fix", "--", "-c", "core.pager=less", "var", "GIT_PAGER").out == "cat\n"
    look = "alias.x=!tty; wc -c"
    assert agent_vm("git", "fix", "--", "-c", look, "x").out == "not a tty\n0\n"
    vm.run("touch -d 1970-01-02 README", cwd=inside)
    before = (inside / ".git/index").read_bytes()
    assert agent_vm("git", "fix", "--", "status", "--short").out == ""
    assert (inside / ".git/index").read_bytes() == before


def test_much_output_of_git_comes_through_as_it_comes(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix")
    text = "ü" * 100_001 + "\n" + "line\n" * 100_000
    (vm.workspaces / "app-fix" / "long").write_text(text)
    said = agent_vm("git", "fix", "--", "diff", "--no-index", "/dev/null", "long")
    assert said.out.replace("\n+", "\n").endswith(text)


def test_git_asks_the_vm_once(
    vm: Guest, limactl: Limactl, repository: Path, agent_vm: Command, started: Path
) -> None:
    agent_vm("push", "fix")
    (started / "calls").unlink()
    (limactl.folder / "calls").unlink(missing_ok=True)
    agent_vm("git", "fix", "--", "status")
    assert not (limactl.folder / "calls").exists()
    asked = [call for call in calls(started) if call.startswith("ssh ")]
    assert [" -O check " in call for call in asked] == [True, False]


def test_git_without_a_workspace_is_one_line(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("connect", "--", "true")
    assert one_line(agent_vm("git", "fix", "--", "status"), 1) == (
        "there is no workspace of fix; `agent-vm connect fix` makes it"
    )


def test_push_and_fetch_in_one_line(vm: Guest, repository: Path, agent_vm: Command) -> None:
    said = agent_vm("push", "fix", "fetch", "fix")
    assert said.status == 0
    assert said.out == "fix is in the VM.\nfix is up to date with the VM.\n"
    inside = vm.workspaces / "app-fix"
    new = commit(inside, "work")
    assert agent_vm("fetch", "fix").out == "fix is up to date with the VM.\n"
    assert git(repository, "rev-parse", "fix") == new


def test_fetch_names_what_stays_inside(vm: Guest, repository: Path, agent_vm: Command) -> None:
    agent_vm("push", "fix")
    inside = vm.workspaces / "app-fix"
    (inside / "README").write_text("changed\n")
    (inside / "new").touch()
    said = agent_vm("fetch", "fix")
    assert said.status == 0
    assert "warning: left in the workspace: 1 file with uncommitted changes\n" in said.err
    assert "warning: left in the workspace: 1 file untracked\n" in said.err


def test_both_sides_have_new_commits(vm: Guest, repository: Path, agent_vm: Command) -> None:
    agent_vm("push", "fix")
    commit(vm.workspaces / "app-fix", "theirs")
    git(repository, "switch", "--quiet", "fix")
    mine = commit(repository, "mine")
    pushed = agent_vm("push", "fix")
    assert (pushed.status, pushed.out) == (1, "")
    assert pushed.error == (
        "agent-vm: fix has new commits here and in the workspace; "
        "`agent-vm fetch fix`, merge here, then push again"
    )
    fetched = agent_vm("fetch", "fix")
    assert (fetched.status, fetched.out) == (1, "")
    assert "git merge refs/agent-vm/app-fix/fix" in fetched.error
    assert git(repository, "rev-parse", "fix") == mine


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("touch .git/index.lock",
         "git is at work in the workspace, or was cut off there; when none runs, delete "
         ".git/index.lock there, then push again"),
        ("git bisect start -q HEAD HEAD~",
         "a merge, rebase or bisect goes on in the workspace (BISECT_LOG); end it, "
         "then `git merge refs/agent-vm/in/fix` there"),
        ("git checkout -q --orphan new",
         "the workspace is on new, so its files stay; `git checkout fix` and "
         "`git merge refs/agent-vm/in/fix` there bring them"),
        ("git update-ref -d HEAD",
         "the branch fix was deleted in the workspace, so its files stay; "
         "`git branch fix refs/agent-vm/in/fix` there brings it back"),
        ("rm .git/index && mkdir .git/index",
         "git in the workspace does not take them: fatal: .git/index: unable to map index file: "
         "No such device; see to that, then `git merge refs/agent-vm/in/fix` there"),
        ("echo x > .git/HEAD",
         "workspace/app-fix has lost its .git in the VM, or that is broken: save its files, "
         "then clean it"),
    ],
)  # fmt: skip
def test_what_the_workspace_does_not_take_is_told_with_what_to_do(
    vm: Guest, repository: Path, agent_vm: Command, command: str, advice: str
) -> None:
    commit(repository, "second")
    agent_vm("push", "fix")
    vm.run(command, cwd=vm.workspaces / "app-fix")
    git(repository, "switch", "--quiet", "fix")
    commit(repository, "third")
    assert one_line(agent_vm("push", "fix"), 1) == advice
    assert not (vm.workspaces / "app-fix/third").exists()


def test_clean_refuses_without_a_terminal_and_says_what_would_be_lost(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix")
    commit(vm.workspaces / "app-fix", "work")
    said = agent_vm("clean", "fix")
    assert (said.status, said.out) == (1, "")
    assert "warning: would be lost: app-fix: 1 commit not fetched\n" in said.err
    assert said.error == ("agent-vm: will not delete app-fix without being asked to; add --force")
    assert (vm.workspaces / "app-fix").exists()
    back = "; `agent-vm undo` lists what can be brought back"
    assert agent_vm("clean", "fix", "--force").out == f"Deleted 1 workspace{back}.\n"
    assert not (vm.workspaces / "app-fix").exists()
    assert git(repository, "rev-parse", "fix")


def test_a_rewritten_branch_arrives_and_both_histories_are_named(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix")
    inside = vm.workspaces / "app-fix"
    old = commit(inside, "work")
    agent_vm("fetch", "fix")
    vm.run("git commit -q --amend -m rewritten", cwd=inside)
    said = agent_vm("fetch", "fix")
    assert said.status == 1
    ref = f"refs/agent-vm-earlier/app-fix/{old[:12]}"
    assert (
        f"warning: fix was rewritten in the VM; what was fetched before is at {ref}\n" in said.err
    )
    assert said.error == (
        "agent-vm: the work is at refs/agent-vm/app-fix/fix, fix was not moved; "
        "fix has diverged; merge it with `git merge refs/agent-vm/app-fix/fix`"
    )
    assert git(repository, "rev-parse", ref) == git(repository, "rev-parse", "fix") == old


def test_fetch_names_what_is_one_file_where_case_is_ignored(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix")
    commit(vm.workspaces / "app-fix", "Readme")
    said = agent_vm("fetch", "fix")
    assert said.status == 0
    assert "warning: one file where case is ignored: README and Readme\n" in said.err


def test_clean_lists_for_each_workspace_what_would_be_lost(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "one", "push", "two")
    one, two = (vm.workspaces / f"app-{name}" for name in ("one", "two"))
    vm.run(
        "git checkout -q -b idea; git commit -q --allow-empty -m i; git checkout -q one", cwd=one
    )
    vm.run("echo 1 > README; git stash -q; echo 2 > README; touch new", cwd=one)
    vm.run("rm -rf .git", cwd=two)
    said = agent_vm("clean-all")
    assert said.err.splitlines()[:-1] == [
        "warning: would be lost: app-one: 1 commit not fetched (1 on branch idea)",
        "warning: would be lost: app-one: 1 file with uncommitted changes",
        "warning: would be lost: app-one: 1 file untracked",
        "warning: would be lost: app-one: 1 stash kept",
        "warning: would be lost: app-two: contents that could not be looked at",
    ]
    assert said.status == 1
    assert sorted(path.name for path in vm.workspaces.iterdir()) == ["app-one", "app-two"]


def test_one_that_has_lost_its_git_beside_another_of_its_name_can_be_deleted(
    vm: Guest, repository: Path, home: Path, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_repository(home / "other" / "app")
    agent_vm("push", "fix")
    monkeypatch.chdir(home / "other" / "app")
    agent_vm("push", "fix")
    (inside,) = vm.workspaces.glob("app-fix-*")
    vm.run("rm -rf .git", cwd=inside)
    assert agent_vm("clean", "fix", "--force").status == 0
    assert [path.name for path in vm.workspaces.iterdir()] == ["app-fix"]


@pytest.mark.parametrize("typed", ["n\n", "\n", "", "nearly yes\n"])
def test_clean_at_a_terminal_takes_yes_only(
    vm: Guest,
    repository: Path,
    agent_vm: Command,
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
) -> None:
    agent_vm("push", "fix")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    assert agent_vm("clean", "fix").error.endswith("agent-vm: nothing was deleted")
    assert (vm.workspaces / "app-fix").exists()
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert agent_vm("clean", "fix").out == "Deleted 1 workspace.\n"
    assert not (vm.workspaces / "app-fix").exists()


@pytest.mark.parametrize("verb", [["clean", "fix"], ["clean-all"], ["destroy"]])
def test_what_an_agent_writes_while_the_person_is_asked_is_not_deleted(
    vm: Guest,
    repository: Path,
    agent_vm: Command,
    monkeypatch: pytest.MonkeyPatch,
    verb: list[str],
) -> None:
    agent_vm("push", "fix")
    inside = vm.workspaces / "app-fix"

    class Slow(Terminal):
        def readline(self, _size: int | None = -1) -> str:  # type: ignore[override]
            vm.run("echo more > work; git add work; git commit -qm work", cwd=inside)
            return "y\n"

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", Slow())
    said = agent_vm(*verb)
    assert said.error.endswith(
        "nothing was deleted, as something writes in app-fix; end what runs there, or add --force"
    )
    assert (inside / "work").exists()
    monkeypatch.setattr(sys, "stdin", Terminal("y\n"))
    assert agent_vm(*verb).status == 0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_clean_takes_one_workspace_only(vm: Guest, repository: Path, agent_vm: Command) -> None:
    agent_vm("push", "one", "push", "two")
    agent_vm("clean", "one", "--force")
    assert [path.name for path in vm.workspaces.iterdir()] == ["app-two"]
    assert agent_vm("clean", "one", "--force").out == "There is no workspace of one.\n"


def test_clean_all(vm: Guest, repository: Path, agent_vm: Command) -> None:
    agent_vm("push", "one", "push", "two")
    said = agent_vm("clean-all")
    assert said.status == 1
    assert said.error.endswith(
        "will not delete app-one, app-two without being asked to; add --force"
    )
    assert agent_vm("clean-all", "--force").out == "Deleted 2 workspaces.\n"
    assert list(vm.workspaces.iterdir()) == []


def test_clean_all_with_nothing_to_delete_asks_nothing(vm: Guest, agent_vm: Command) -> None:
    said = agent_vm("clean-all")
    assert (said.status, said.out) == (0, "Deleted 0 workspaces.\n")
    assert "would be lost" not in said.err


@pytest.mark.parametrize("argv", ["fetch fix", "clean fix", "git fix -- status"])
def test_no_vm_is_made_to_say_that_nothing_is_in_it(
    home: Path, limactl: Limactl, repository: Path, agent_vm: Command, argv: str
) -> None:
    error = one_line(agent_vm(*argv.split()), 1)
    assert error == "there is no VM agent-vm; `agent-vm start` creates it"
    assert untouched(home, limactl, repository)


def test_clean_all_without_a_vm(home: Path, limactl: Limactl, agent_vm: Command) -> None:
    error = one_line(agent_vm("clean-all", "--force"), 1)
    assert error == "there is no VM agent-vm; `agent-vm start` creates it"
    assert untouched(home, limactl)


def test_fetch_of_a_branch_without_a_workspace(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    error = agent_vm("fetch", "fix").error
    assert error == (
        "agent-vm: there is no workspace of fix in the VM; make it with `agent-vm connect fix`"
    )
    assert agent_vm("fetch", "fix").status == 1


@pytest.mark.parametrize("verb", ["git", "push", "fetch", "clean"])
def test_no_branch_is_never_guessed(
    home: Path, limactl: Limactl, repository: Path, agent_vm: Command, verb: str
) -> None:
    assert one_line(agent_vm(verb), 2) == "no branch is named; add --branch NAME"
    assert untouched(home, limactl, repository)


GIT_RULE = "git does not allow it (git-check-ref-format(1))"
BAD_BRANCHES = [
    ("", "it is empty"),
    ("-x", "it starts with a dash"),
    ("--upload-pack=x", "it starts with a dash"),
    ("@", "git gives that name another meaning"),
    ("HEAD", "git gives that name another meaning"),
    ("refs/heads/x", "git gives that name another meaning"),
    ("a\x1b[31m", "it holds control or formatting characters"),
    ("a\nb", "it holds control or formatting characters"),
    ("a\u202eb", "it holds control or formatting characters"),
    ("a\u2029b", "it holds control or formatting characters"),
    ("a\u200bb", "it holds control or formatting characters"),
    ("a\x7fb", "it holds control or formatting characters"),
    ("-D", "it starts with a dash"),
    ("refs/x", "git gives that name another meaning"),
    ("*", GIT_RULE),
    ("../..", GIT_RULE),
    ("x;touch y", GIT_RULE),
    ("x\\y", GIT_RULE),
    ("x^{tree}", GIT_RULE),
    ("x" * 201, "it is longer than 200 bytes"),
    ("é" * 101, "it is longer than 200 bytes"),
    ("a b", GIT_RULE),
    ("a..b", GIT_RULE),
    ("a.lock", GIT_RULE),
    ("a~1", GIT_RULE),
    ("/a", GIT_RULE),
    ("a/", GIT_RULE),
    (".a", GIT_RULE),
    ("a@{1}", GIT_RULE),
    ("a:b", GIT_RULE),
]


@pytest.mark.parametrize("verb", WITH_BRANCH)
@pytest.mark.parametrize(("branch", "rule"), BAD_BRANCHES)
def test_a_name_that_no_branch_can_have_is_refused_before_anything_is_made(
    home: Path,
    limactl: Limactl,
    repository: Path,
    agent_vm: Command,
    started: Path,
    *,
    verb: str,
    branch: str,
    rule: str,
) -> None:
    error = one_line(agent_vm(verb, f"--branch={branch}"), 2)
    asked = [] if rule is not GIT_RULE else [f"git check-ref-format refs/heads/{branch}"]
    assert calls(started) == asked
    assert error.endswith(f" is not a branch name: {rule}; give a name such as fix-login")
    assert error.isprintable()
    assert untouched(home, limactl, repository)


@pytest.mark.parametrize("name", [name for name, _ in BAD_BRANCHES])
def test_a_name_that_no_branch_can_have_is_no_deleted_workspace(
    repository: Path, agent_vm: Command, started: Path, name: str
) -> None:
    said = agent_vm("undo", f"--workspace={name}")
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("agent-vm: nothing is kept under ")
    assert calls(started) == []


@pytest.mark.parametrize("verb", WITH_BRANCH)
def test_outside_a_repository(home: Path, limactl: Limactl, agent_vm: Command, verb: str) -> None:
    error = one_line(agent_vm(verb, "fix"), 1)
    assert error == f"{home} is not in a git repository; cd into one, or run `git init`"
    assert untouched(home, limactl)


@pytest.mark.parametrize("verb", ["connect", "push"])
def test_a_repository_without_commits(
    home: Path,
    limactl: Limactl,
    agent_vm: Command,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    empty = home / "empty"
    empty.mkdir()
    git(empty, "init", "--quiet")
    monkeypatch.chdir(empty)
    error = one_line(agent_vm(verb, "fix"), 1)
    assert error == f"{empty} has no commits yet; commit something first"
    assert untouched(home, limactl)


def test_a_bare_repository(
    home: Path, limactl: Limactl, agent_vm: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = home / "bare.git"
    bare.mkdir()
    git(bare, "init", "--quiet", "--bare")
    monkeypatch.chdir(bare)
    assert one_line(agent_vm("push", "fix"), 1) == (
        f"{bare} has no working tree; use a normal clone of it"
    )
    assert untouched(home, limactl)


def test_a_branch_that_git_cannot_make(vm: Guest, repository: Path, agent_vm: Command) -> None:
    """A branch `a` leaves no room for a branch `a/b`."""
    git(repository, "branch", "a")
    said = agent_vm("push", "a/b")
    assert (said.status, said.out) == (1, "")
    assert said.error.startswith("agent-vm: there is a branch a, beside which git can make no a/b")
    assert not list(vm.workspaces.iterdir())


@pytest.mark.parametrize("verb", WITH_BRANCH)
def test_in_the_mount_nothing_is_done(
    home: Path, limactl: Limactl, agent_vm: Command, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    inside = home / ".agent-vm-mounts" / "workspace" / "app-fix"
    make_repository(inside)
    monkeypatch.chdir(inside)
    error = one_line(agent_vm(verb, "fix"), 1)
    assert error == (
        f"{inside} belongs to the VM; run agent-vm in your own repository on this machine"
    )
    assert untouched(home, limactl)


def test_a_lost_connection_says_how_to_return(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix")
    breaks = (
        "pid=$$; until [ $(cat /proc/$pid/comm) = sshd ]; "
        "do pid=$(cut -d' ' -f4 /proc/$pid/stat); done; kill -9 $pid"
    )
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    said = agent_vm("connect", "fix", "--command", breaks)
    assert said.status == 1
    assert said.error == "agent-vm: the connection was lost; return with `agent-vm connect fix`"
    assert agent_vm("connect", "fix", "--", "true").status == 0
    said = agent_vm("git", "fix", "--", "-c", f"alias.x=!{breaks}", "x")
    assert said.status == 1
    assert said.error == "agent-vm: the connection was lost; see `agent-vm status`"


def test_the_folder_of_a_workspace_is_as_promised(
    vm: Guest, repository: Path, agent_vm: Command
) -> None:
    agent_vm("push", "fix-login", "push", "feature/x")
    ws = workspaces.workspace(VM, workspaces.repository(repository), "feature/x")
    assert {path.name for path in vm.workspaces.iterdir()} == {"app-fix-login", ws.folder}
    assert settings.load().vm.name == VM
    assert ssh_guest.connected(VM)
