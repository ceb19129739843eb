"""The one hardened way to run git on the host.

The guest's answers are hostile input and the user's own configuration was not written with that in
mind, so transfers run without it: no hooks, signing, submodules, url rewriting or helpers.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from . import guest, process
from .errors import AgentVMError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from .console import Say

_SAFE = {
    "core.alternateRefsCommand": "true",  # what the user has besides is nobody's business
    "core.fsmonitor": "false",
    "core.hooksPath": "/dev/null",
    "fetch.fsckObjects": "true",
    "fetch.unpackLimit": "0",  # with another and fsckObjects, fetch-pack of git 2.39 crashes
    "fetch.uriProtocols": "",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "protocol.allow": "never",
    "protocol.ssh.allow": "always",
    "push.followTags": "false",
    "push.gpgSign": "false",
    "push.recurseSubmodules": "no",
    "submodule.recurse": "false",
    "transfer.bundleURI": "false",
}

_CALM = (
    "--no-optional-locks", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false",
    "-c", "submodule.recurse=false",
)  # fmt: skip
_QUIET = {"GIT_LFS_SKIP_SMUDGE": "1", "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}

LARGEST_PACK = 4 * 2**30
"""Bytes that the guest may send in one fetch: a pack can be made to fill any disk."""
LARGEST_MEMORY = 2 * 2**30
"""Bytes of memory for what reads it: 30 kB of a pack can ask for 64 GiB."""
MOST_SAID = 16 * 2**20
"""Bytes of what git and the guest may say during a transfer."""

_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of characters that act instead of being seen."""
_STEP = re.compile(r"(remote: )?[A-Z][a-z ]+: +\d.{,80}")
"""How git says how far it is: `Writing objects:  45% (9/20), 8.00 MiB | 4.00 MiB/s`."""

_BARE = """\
[core]
repositoryFormatVersion = 1
bare = true
[extensions]
objectFormat = {}
"""

_LENT = Path("objects/info/alternates")
"""Where git looks which other objects count as its own (gitrepository-layout(5))."""

# What would point git elsewhere than at the folder it is told to work in (git(1), ENVIRONMENT).
_STEERING = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR",
    "GIT_NAMESPACE", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_PREFIX",
)  # fmt: skip


def run(
    repository: Path, *args: str, check: bool = True, stdin: str = "", most: int = process.MOST
) -> process.Result:
    """Git as the user has it set up, for what happens in their own repository.

    But no hooks and no fsmonitor: they may be files of the tree, which a fetch writes. Nor a
    download by git-lfs: in commits from the guest, .lfsconfig names the server. Questions change
    nothing, not even the index.
    """
    env = {key: value for key, value in os.environ.items() if key not in _STEERING}
    argv = ["git", "-C", str(repository), *_CALM, *args]
    return process.run(argv, env={**env, **_QUIET}, check=check, stdin=stdin, most=most)


def change(repository: Path, *args: str, stdin: str = "") -> process.Result:
    """Like `run`, for what writes: git that Ctrl-C ends may leave locks, or half of a checkout."""
    with process.interrupts_later():
        return run(repository, *args, check=False, stdin=stdin)


def output(repository: Path, *args: str) -> str:
    return run(repository, *args).stdout.strip()


def commit(repository: Path, name: str) -> str:
    """The id of the commit; "" where there is none of that name."""
    return object_id(repository, f"{name}^{{commit}}")


def object_id(repository: Path, name: str) -> str:
    """The id of the object; "" where there is none of that name."""
    return run(repository, "rev-parse", "--quiet", "--verify", name, check=False).stdout.strip()


def transfer(
    repository: Path, name: str, *args: str, say: Say = lambda _line: None
) -> process.Result:
    """Hardened git that talks to the VM `name`; the result's status is the caller's to judge.

    Where it takes long, `say` gets its progress (of a push with --progress).
    What it takes in is limited in size, on disk and in memory. Raises UnreachableError when the VM
    falls silent, and AgentVMError when it says too much.
    """
    options = [part for key, value in _SAFE.items() for part in ("-c", f"{key}={value}")]
    # Ownership was checked by the user's own git before; their safe.directory is out of sight here.
    options += ["-c", f"safe.directory={repository}"]
    receiving = "fetch-pack" in args
    limits = ["prlimit", f"--fsize={LARGEST_PACK}", f"--data={LARGEST_MEMORY}"]
    limited = limits if receiving and shutil.which("prlimit") else []
    argv = [*limited, "git", "-C", str(repository), *options, *args]
    with _progress(say) as hear:
        result = process.run(
            argv, env=_environment(name), check=False, watch=guest.watch(name, hear),
            most=MOST_SAID,
        )  # fmt: skip
    cut_off = (file.stat().st_size for file in repository.glob("objects/pack/tmp_*"))
    if not result.ok and receiving and max(cut_off, default=0) >= LARGEST_PACK:
        said = f"fatal: the VM sent more than {LARGEST_PACK >> 30} GiB, which is refused"
        return replace(result, stderr=said)
    return result


@contextlib.contextmanager
def exchange(
    common: Path, object_format: str, refs: str, *, taking: bool = False
) -> Iterator[Path]:
    """A bare repository to push from: the objects of `common`, `refs`, and nothing else of it.

    Its settings do not count there, and git is quick to match refs by a pattern where it takes
    seconds for many that are named. With `taking` it is one to fetch into: what comes in is kept
    apart from those objects, in a folder among them that git clears away if we cannot.
    """
    import tempfile

    objects = common / "objects"
    where = objects if taking else None
    with tempfile.TemporaryDirectory(prefix="tmp_objdir-agent-vm-", dir=where) as name:
        made = Path(name)
        (made / "refs").mkdir()
        (made / "HEAD").write_text("ref: refs/heads/none\n", "utf-8")
        (made / "config").write_text(_BARE.format(object_format), "utf-8")
        (made / "packed-refs").write_text(refs, "utf-8")
        (made / "shallow").symlink_to(common / "shallow")
        if taking:
            (made / _LENT).parent.mkdir(parents=True)
            (made / _LENT).write_text(f"{objects}\n", "utf-8", "surrogateescape")
        else:
            (made / "objects").symlink_to(objects)
        yield made


def take(apart: Path, common: Path, new: str, known: Sequence[str]) -> None:
    """Move what was fetched into an `exchange` to the objects of `common`.

    Git counts an object of ours as sent when the VM only names it, a private commit for one, which
    the next push would then bring in. So all that is not part of `known`, which the VM was given,
    must have come. Raises AgentVMError.
    """
    names = ("--git-dir=.", "--no-replace-objects", "rev-list", "--objects", "--no-object-names")
    asked = run(apart, *names, new, *(f"^{commit}" for commit in known), check=False)
    if not asked.ok:
        raise explain(asked, "looking at what the VM sent")
    (apart / _LENT).unlink()
    came = ("--git-dir=.", "cat-file", "--batch-all-objects", "--batch-check=%(objectname)")
    unsent = set(asked.stdout.split()).difference(output(apart, *came).split())
    if unsent and known:
        unsent.difference_update(output(common, *names, *known).split())
    if unsent:
        raise AgentVMError(f"the VM named {min(unsent)}, which it did not send")
    for suffix in ("pack", "rev", "idx"):  # with its index a pack counts
        for file in apart.glob(f"objects/pack/*.{suffix}"):
            file.rename(common / "objects" / "pack" / file.name)


@contextlib.contextmanager
def _progress(say: Say) -> Iterator[Callable[[str], None]]:
    """What tells by git's words so far, some of which are the guest's, how far it is."""
    told = False

    def hear(said: str) -> None:
        nonlocal told
        whole = re.split(r"[\r\n]+", said)[:-1]
        if step := next(filter(None, map(_STEP.match, reversed(whole))), None):
            told = True
            say(f"{step[0].rstrip()}\r")

    try:
        yield hear
    finally:
        if told:
            say("\r")


def check_branch(branch: str) -> None:
    """Refuse what is not the plain name of a branch; raises UsageError naming the rule."""
    import unicodedata

    def refuse(rule: str) -> None:
        raise UsageError(
            f"{branch!r:.80} is not a branch name: {rule}", "give a name such as fix-login"
        )

    if not branch:
        refuse("it is empty")
    if branch.startswith("-"):
        refuse("it starts with a dash")
    if branch in {"@", "HEAD"} or branch.startswith("refs/"):
        refuse("git gives that name another meaning")
    if any(unicodedata.category(char) in _UNSEEN for char in branch):
        refuse("it holds control or formatting characters")
    if len(branch.encode()) > 200:  # noqa: PLR2004
        refuse("it is longer than 200 bytes")
    asked = process.run(["git", "check-ref-format", f"refs/heads/{branch}"], check=False)
    if asked.status == 1:
        refuse("git does not allow it (git-check-ref-format(1))")
    if not asked.ok:
        raise explain(asked, "looking at the name of the branch")


def _environment(name: str) -> dict[str, str]:
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_SSH_COMMAND": shlex.join(["ssh", "-F", str(guest.config(name))]),
        "GIT_SSH_VARIANT": "ssh",
        **_QUIET,
    }


def explain(result: process.Result, doing: str) -> AgentVMError:
    return AgentVMError(f"{doing} failed: {reason(result)}")


def reason(result: process.Result) -> str:
    """Why git failed, in one line of limited length: the guest may have written it."""
    lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
    said = next(filter(re.compile("(remote: )?(fatal|error):").match, lines), result.reason)
    files = ", ".join(line.strip() for line in lines if line.startswith("\t"))
    return f"{said} {files}".strip()[: process.LONGEST_REASON]
