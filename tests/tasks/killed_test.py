"""The tool ends at any moment: killed, or by Ctrl-C. The next command works and nothing is lost."""

from __future__ import annotations

import itertools
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import mount
from agent_vm_tasks import settings as configuration
from tests import forked
from tests.conftest import commit, git, mounts

if TYPE_CHECKING:
    from tests.conftest import Limactl
    from tests.forked import Ended

    from .conftest import Command

pytestmark = pytest.mark.slow

Run = Callable[..., "Ended"]
CutOff = Callable[..., int]
CONNECT = ["connect", "fix", "--", "cat", "README"]
CANARY = "canary-5f2c"


@pytest.fixture
def run(agent_vm: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in a process of its own; a secret is handed over, temporary files are here."""
    (home / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(home / "tmp"))
    monkeypatch.setenv("TMPDIR", str(home / "tmp"))
    monkeypatch.setenv("ANTHROPIC_API_KEY", CANARY)
    return lambda *argv, **more: forked.run(home / "ran", *argv, **more)


@pytest.fixture(params=[signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def cut_off(run: Run, home: Path, limactl: Limactl, request: pytest.FixtureRequest) -> CutOff:
    """End a command at each of the programs that it runs, each time from where `prepare` leads.

    What is asked next works (every other time that is `status`), then the same command does what it
    does, and `check` holds. Gives the number of programs.
    """

    def once(argv: list[str], at: int) -> bool:
        ended = run(*argv, at=at, kill=request.param)
        assert "Traceback" not in ended.err, ended.err
        if ended.children < at:
            assert ended.status == 0, ended.err
            return False
        if request.param == signal.SIGKILL:
            assert ended.status == -signal.SIGKILL
        elif ended.status != 0:
            told = ended.err.splitlines()[-1:] == ["agent-vm: interrupted"]
            on_terminal = argv == CONNECT and ended.status in {130, 255}  # it is for ssh to say
            assert (ended.status == 130 and told) or on_terminal, ended
        forked.no_orphans(home)
        assert secrets_in(home, limactl.folder) == []
        return True

    def everywhere(
        argv: list[str], prepare: Callable[[], object], check: Callable[[], object]
    ) -> int:
        for at in itertools.count(1):
            prepare()
            if not once(argv, at):
                return at - 1
            for words in (["status"], argv)[(at + request.param) % 2 :]:
                again = run(*words)
                assert again.status == 0 or is_done(again), f"after program {at}: {again.err}"
                assert "waiting for another" not in again.err
            check()
        raise AssertionError

    return everywhere


def is_done(again: Ended) -> bool:
    """Whether the command that was cut off had done its work already."""
    return "there is a workspace app-fix again" in again.err


def secrets_in(*folders: Path) -> list[Path]:
    """Files of this machine that hold what was handed over; the guest's own are not among them."""
    files = (file for folder in folders for file in folder.rglob("*") if file.is_file())
    return [file for file in files if CANARY.encode() in file.read_bytes()]


def well(ended: Ended) -> str:
    assert ended.status == 0, ended.err
    return ended.out


def work(run: Run) -> None:
    """Something that only the VM has: a file, and a commit on another branch."""
    line = "echo mine > uncommitted; git branch --force other $(git commit-tree -m x HEAD^{tree})"
    well(run("connect", "fix", "--command", line))


def intact(run: Run) -> str:
    """All of that is there, and the secret; the commit of the workspace."""
    line = (
        "cat uncommitted; git log -1 --format=%s other; echo $ANTHROPIC_API_KEY; git rev-parse fix"
    )
    *words, tip = well(run("connect", "fix", "--command", line)).splitlines()
    assert words == ["mine", "x", CANARY]
    return tip


def same(run: Run, repository: Path) -> None:
    """The branch is the same here and there, and nothing of the work is lost."""
    assert intact(run) == git(repository, "rev-parse", "fix")
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


def test_a_stop(cut_off: CutOff, run: Run, repository: Path, limactl: Limactl) -> None:
    def check() -> None:
        assert (limactl.instance() or {})["status"] == "Stopped"
        intact(run)

    work(run)
    assert cut_off(["stop"], lambda: well(run("start")), check) > 2


def test_a_destruction(
    cut_off: CutOff, run: Run, repository: Path, limactl: Limactl, guest_home: Path
) -> None:
    def check() -> None:
        assert limactl.instance() is None
        for folder in (".agent-vm", "workspace"):  # the disk is gone
            shutil.rmtree(guest_home / folder)
        well(run("start"))
        well(run("undo", "app-fix"))
        intact(run)

    work(run)
    assert cut_off(["destroy", "--force"], lambda: None, check) > 3


def test_a_connection_to_a_new_branch(cut_off: CutOff, run: Run, repository: Path) -> None:
    def prepare() -> None:
        well(run("clean-all", "--force"))
        no_branch(repository)

    def check() -> None:
        work(run)

    well(run("start"))
    assert cut_off(CONNECT, prepare, check) > 8


def test_a_push(cut_off: CutOff, run: Run, repository: Path) -> None:
    work(run)
    git(repository, "checkout", "--quiet", "fix")
    number = itertools.count()

    def prepare() -> None:
        commit(repository, "pushed", f"{next(number)}\n")

    assert cut_off(["push", "fix"], prepare, lambda: same(run, repository)) > 5


@pytest.mark.parametrize("checked_out", [True, False])
def test_a_fetch(cut_off: CutOff, run: Run, repository: Path, *, checked_out: bool) -> None:
    work(run)
    if checked_out:
        git(repository, "checkout", "--quiet", "fix")

    def prepare() -> None:
        line = "date +%N >> made && git add made && git commit --quiet --message=more"
        well(run("connect", "fix", "--command", line))

    def check() -> None:
        same(run, repository)
        assert git(repository, "status", "--porcelain") == ""

    assert cut_off(["fetch", "fix"], prepare, check) > 5


def test_a_cleaning(cut_off: CutOff, run: Run, repository: Path) -> None:
    def check() -> None:
        well(run("undo", "app-fix"))
        intact(run)

    assert cut_off(["clean", "fix", "--force"], lambda: work(run), check) > 4


def test_an_undo(cut_off: CutOff, run: Run, repository: Path) -> None:
    def prepare() -> None:
        work(run)
        well(run("clean", "fix", "--force"))

    assert cut_off(["undo", "app-fix"], prepare, lambda: intact(run)) > 1


def test_a_mount(cut_off: CutOff, run: Run, repository: Path, home: Path, sshfs: None) -> None:
    work(run)

    def prepare() -> None:
        mount.unmount(configuration.load(), force=True)

    def check() -> None:
        (point,) = mounts(home)
        assert (Path(point) / "app-fix" / "uncommitted").read_text() == "mine\n"

    assert cut_off(["mount"], prepare, check) > 3
