"""The tool ends at any moment: killed, or by Ctrl-C. The next command works and nothing is lost."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests import forked
from tests.conftest import commit, git

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Limactl
    from tests.forked import Ended

    from .conftest import Command

Run = Callable[..., "Ended"]
CutOff = Callable[..., int]
CONNECT = ["connect", "fix", "--", "cat", "README"]


@pytest.fixture
def run(agent_vm: Command, home: Path) -> Run:
    """Run a command in a process of its own."""
    return lambda *argv, **more: forked.run(home / "ran", *argv, **more)


@pytest.fixture(params=[signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def cut_off(run: Run, home: Path, request: pytest.FixtureRequest) -> CutOff:
    """End a command at each of the programs that it runs, each time from where `prepare` leads.

    The same command must then do what it does, and `check` holds. Gives the number of programs.
    """

    def everywhere(
        argv: list[str], prepare: Callable[[], object], check: Callable[[], object]
    ) -> int:
        for at in itertools.count(1):
            prepare()
            ended = run(*argv, at=at, kill=request.param)
            assert "Traceback" not in ended.err, ended.err
            if ended.children < at:
                assert ended.status == 0, ended.err
                return at - 1
            if request.param == signal.SIGKILL:
                assert ended.status == -signal.SIGKILL
            forked.no_orphans(home)
            again = run(*argv)
            assert again.status == 0 or is_done(again), f"after program {at}: {again.err}"
            check()
        raise AssertionError

    return everywhere


def is_done(again: Ended) -> bool:
    """Whether the command that was cut off had done its work already."""
    return "there is a workspace app-fix again" in again.err


def well(ended: Ended) -> str:
    assert ended.status == 0, ended.err
    return ended.out


def work(run: Run) -> None:
    """Something that only the VM has."""
    well(run("connect", "fix", "--command", "echo mine > uncommitted"))


def intact(run: Run) -> None:
    assert well(run("connect", "fix", "--", "cat", "uncommitted")) == "mine\n"


def same(run: Run, repository: Path) -> None:
    """The branch is the same here and there, and nothing of the work is lost."""
    intact(run)
    inside = well(run("connect", "fix", "--", "git", "rev-parse", "HEAD")).strip()
    assert inside == git(repository, "rev-parse", "fix")
    assert git(repository, "fsck", "--strict", "--no-dangling") == ""


def no_branch(repository: Path) -> None:
    if git(repository, "branch", "--list", "fix"):
        git(repository, "branch", "-D", "fix")


def test_a_creation(cut_off: CutOff, run: Run) -> None:
    def check() -> None:
        assert well(run("connect", "--", "echo", "in")) == "in\n"

    assert cut_off(["start"], lambda: run("destroy", "--force"), check) > 4


def test_a_start(cut_off: CutOff, run: Run, repository: Path) -> None:
    work(run)
    assert cut_off(["start"], lambda: well(run("stop")), lambda: intact(run)) > 3


@pytest.mark.parametrize("verb", ["stop", "restart"])
def test_a_stop(cut_off: CutOff, run: Run, repository: Path, verb: str) -> None:
    work(run)
    assert cut_off([verb], lambda: well(run("start")), lambda: intact(run)) > 2


def test_a_destruction(cut_off: CutOff, run: Run, repository: Path, limactl: Limactl) -> None:
    def check() -> None:
        assert limactl.instance() is None

    assert cut_off(["destroy", "--force"], lambda: well(run("start")), check) > 3


def test_a_connection_to_a_new_branch(cut_off: CutOff, run: Run, repository: Path) -> None:
    def prepare() -> None:
        well(run("clean-all", "--force"))
        no_branch(repository)

    def check() -> None:
        assert well(run(*CONNECT)) == "hello\n"

    well(run("start"))
    assert cut_off(CONNECT, prepare, check) > 8


def test_a_connection_that_makes_all(cut_off: CutOff, run: Run, repository: Path) -> None:
    def prepare() -> None:
        run("destroy", "--force")
        no_branch(repository)

    def check() -> None:
        assert well(run(*CONNECT)) == "hello\n"

    assert cut_off(CONNECT, prepare, check) > 12


def test_a_push(cut_off: CutOff, run: Run, repository: Path) -> None:
    work(run)
    git(repository, "checkout", "--quiet", "fix")
    number = itertools.count()

    def prepare() -> None:
        commit(repository, "pushed", f"{next(number)}\n")

    assert cut_off(["push", "fix"], prepare, lambda: same(run, repository)) > 5


def test_a_fetch(cut_off: CutOff, run: Run, repository: Path) -> None:
    work(run)

    def prepare() -> None:
        line = "date +%N >> made && git add made && git commit --quiet --message=more"
        well(run("connect", "fix", "--command", line))

    assert cut_off(["fetch", "fix"], prepare, lambda: same(run, repository)) > 5


def test_a_cleaning(cut_off: CutOff, run: Run, repository: Path) -> None:
    def check() -> None:
        well(run("undo", "app-fix"))
        intact(run)

    assert cut_off(["clean", "fix", "--force"], lambda: work(run), check) > 4


def test_an_undo(cut_off: CutOff, run: Run, repository: Path) -> None:
    def prepare() -> None:
        work(run)
        well(run("clean", "fix", "--force"))

    assert cut_off(["undo", "app-fix"], prepare, lambda: intact(run)) > 2
