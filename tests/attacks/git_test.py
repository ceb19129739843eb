"""A workspace whose git would run programs here, where git looked at it through the mount."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import mount, settings

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Guest


@pytest.fixture
def mounted(guest: Guest, sshfs: None) -> Path:
    chosen = settings.load()
    mount.mount(chosen)
    return mount.point(chosen)


def mount_with(monkeypatch: pytest.MonkeyPatch, *more: str) -> Path:
    """Mount without an owner and with programs; where."""
    off = ("uid=", "gid=", "noexec")
    kept = (option for option in mount._OPTIONS if not option.startswith(off))
    monkeypatch.setattr(mount, "_OPTIONS", (*kept, *more))
    chosen = settings.load()
    mount.mount(chosen)
    return mount.point(chosen)


@pytest.fixture
def ours(guest: Guest, sshfs: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mount as it would be if its files belonged to whoever looks."""
    return mount_with(monkeypatch, f"uid={os.geteuid()}", f"gid={os.getegid()}")


@pytest.mark.parametrize("owner", [None, "65533", "0"])
def test_git_refuses_to_work_in_the_mount(
    guest: Guest, home: Path, mounted: Path, owner: str | None
) -> None:
    """Each of these settings runs a program as soon as git obeys them."""
    run = f"touch {home}/ran; false"
    guest.run("git init -q app && cd app && echo a > a && git add . && git commit -q -m a")
    for key in ("core.fsmonitor", "core.sshCommand", "core.pager", "diff.external", "gpg.program"):
        guest.run(f"git -C app config {key} '{run}'")
    guest.run("git -C app config log.showSignature true && echo b > app/a && mv app workspace")
    if owner and os.geteuid() == 0:
        guest.run(f"chown -R {owner} workspace/app")
    for args in ("status", "log -1", "diff", "fetch", "add -A", "checkout -- .", "gc"):
        argv = ["git", "-C", str(mounted / "app"), *args.split()]
        env = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1"}
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env=env)
        assert done.returncode, args
        assert args == "diff" or "dubious ownership" in done.stderr
    assert not (home / "ran").exists()


@dataclass(frozen=True)
class Trick:
    """What an agent does in a repository so that git on the host runs $RUN, and then which git."""

    inside: str
    command: str = "status"
    folder: str = "."


TRICKS = {
    "fsmonitor": Trick('git config core.fsmonitor "$RUN"'),
    "hook": Trick("hook .git/hooks"),
    "folder of hooks": Trick("hook h && git config core.hooksPath h"),
    "clean filter": Trick(
        'git config filter.x.clean "$RUN; cat" && echo "* filter=x" > .gitattributes'
    ),
    "smudge filter": Trick(
        'git config filter.x.smudge "$RUN; cat" && echo "* filter=x" > .git/info/attributes',
        "checkout -- file",
    ),
    "process filter": Trick(
        'git config filter.x.process "$RUN" && echo "* filter=x" > .git/info/attributes', "add file"
    ),
    "textconv": Trick(
        'git config diff.x.textconv "$RUN; cat" && echo "* diff=x" > .gitattributes', "log -p"
    ),
    "external diff": Trick('git config diff.external "$RUN; true"', "diff"),
    "merge driver": Trick(
        'git config merge.x.driver "$RUN; false" && echo "* merge=x" > .git/info/attributes && '
        "git stash -q && git checkout -q -b b && echo b > file && git commit -qam b && "
        "git checkout -q main && echo m > file && git commit -qam m",
        "merge b",
    ),
    "alias": Trick('git config alias.st "!$RUN"', "st"),
    "editor": Trick('git config core.editor "$RUN; false"', "commit -a"),
    "ssh command": Trick('git config core.sshCommand "$RUN"', "fetch ssh://localhost/x"),
    "upload-pack": Trick(
        'git config remote.x.url . && git config remote.x.uploadpack "$RUN; false"', "fetch x"
    ),
    "remote helper": Trick(
        'git config remote.x.url "ext::$RUN" && git config protocol.ext.allow always',
        "fetch x",
    ),
    "credential helper": Trick('git config credential.helper "!$RUN;"', "credential fill"),
    "include": Trick(
        'git config --file inc core.fsmonitor "$RUN" && git config include.path ../inc'
    ),
    "conditional include": Trick(
        'git config --file inc core.fsmonitor "$RUN" && git config includeIf.gitdir:**.path ../inc'
    ),
    "settings of a worktree": Trick(
        'git config extensions.worktreeConfig true && git config --worktree core.fsmonitor "$RUN"'
    ),
    "another worktree": Trick(
        'git worktree add -q w && git config core.fsmonitor "$RUN" && '
        'echo "gitdir: ../.git/worktrees/w" > w/.git && echo ../.. > .git/worktrees/w/commondir',
        folder="w",
    ),
    "files elsewhere": Trick(
        'touch ran && git add ran && git commit -q -m x && git config core.worktree "$HOST"',
        "checkout -- :/ran",
    ),
    "git folder elsewhere": Trick(
        'git config core.fsmonitor "$RUN" && mv .git ../g && echo "gitdir: ../g" > .git'
    ),
    "submodule": Trick(
        "git init -q sub && cd sub && git commit -q --allow-empty -m x && cd .. && "
        'git add sub && git -C sub config core.fsmonitor "$RUN"'
    ),
    "bare repository": Trick(
        "git init -q --bare bare && cd bare && git config core.bare false && "
        'git config core.worktree . && git config core.fsmonitor "$RUN"',
        folder="bare",
    ),
    "bare repository among files": Trick(
        "mv .git/* . && rmdir .git && git config --file config core.bare false && "
        'git config --file config core.worktree . && git config --file config core.fsmonitor "$RUN"'
    ),
}


def play(guest: Guest, home: Path, mounted: Path, trick: Trick) -> subprocess.CompletedProcess[str]:
    """Have the guest prepare it and git on the host fall for it, or not."""
    run = f"touch {home}/ran"
    helper = (
        'hook() { mkdir -p $1; printf "#!/bin/sh\\n%s\\n" "$RUN" > $1/post-index-change; '
        "chmod +x $1/post-index-change; }; "
    )
    make = "git init -q app && cd app && echo a > file && git add . && git commit -q -m a"
    change = "echo b > file"
    guest.run(
        f"{helper}export RUN='{run}' HOST={home}; {make} && {change} && {trick.inside}",
        cwd=guest.workspaces,
    )
    folder = mounted / "app" / trick.folder
    env = {**os.environ, "GIT_CONFIG_NOSYSTEM": "1"}
    return subprocess.run(
        ["git", *trick.command.split()], check=False, cwd=folder, env=env, timeout=60,
        input="protocol=https\nhost=x\n\n", capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("trick", TRICKS)
def test_what_would_run_here_does_not(guest: Guest, home: Path, mounted: Path, trick: str) -> None:
    done = play(guest, home, mounted, TRICKS[trick])
    assert done.returncode
    assert not (home / "ran").exists()


@pytest.mark.parametrize("trick", TRICKS)
def test_it_runs_where_the_tree_seems_to_be_ours(
    guest: Guest, home: Path, ours: Path, trick: str
) -> None:
    done = play(guest, home, ours, TRICKS[trick])
    assert (home / "ran").exists(), done


@pytest.mark.parametrize("owner", ["nobody", "the host's user"])
def test_without_an_owner_of_its_own_the_guests_root_decides(
    guest: Guest, home: Path, sshfs: None, monkeypatch: pytest.MonkeyPatch, owner: str
) -> None:
    """Why the mount shows one owner for all: a chown inside would be enough."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    mounted = mount_with(monkeypatch)
    trick = TRICKS["fsmonitor"]
    chown = f"{trick.inside} && chown -R {65533 if owner == 'nobody' else os.geteuid()} ."
    play(guest, home, mounted, replace(trick, inside=chown))
    assert (home / "ran").exists() is (owner != "nobody")


def test_a_git_folder_that_is_named_is_not_asked_for_its_owner(
    guest: Guest, home: Path, mounted: Path
) -> None:
    """A limit: this is git's way to say that one knows what one does."""
    play(guest, home, mounted, TRICKS["fsmonitor"])
    assert not (home / "ran").exists()
    app = mounted / "app"
    argv = ["git", f"--git-dir={app}/.git", f"--work-tree={app}", "status"]
    subprocess.run(argv, check=True, capture_output=True)
    assert (home / "ran").exists()
