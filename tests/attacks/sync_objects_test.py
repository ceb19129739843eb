"""Objects, packs and peers made to harm: refused, in one line, and within bounds."""

from __future__ import annotations

import hashlib
import os
import re
import struct
import subprocess
import zlib
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import git as host_git
from agent_vm_tasks import sync
from agent_vm_tasks.errors import AgentVMError
from tests.conftest import commit, git

if TYPE_CHECKING:
    from pathlib import Path

    from agent_vm_tasks.sync import Fetched
    from agent_vm_tasks.workspaces import Workspace
    from tests.conftest import Guest

FILE, LINK, FOLDER = b"100644", b"120000", b"40000"

pytestmark = pytest.mark.usefixtures("warm")


def fetch(ws: Workspace) -> Fetched:
    return sync.fetch(ws, print)[0]


def put(inside: Path, kind: str, content: bytes) -> str:
    """An object that git would not make itself; its id."""
    argv = ["git", "-C", str(inside), "hash-object", "-t", kind, "-w", "--literally", "--stdin"]
    return subprocess.run(argv, input=content, check=True, capture_output=True).stdout.decode()[:40]


def tree(inside: Path, *entries: tuple[bytes, bytes, str]) -> str:
    content = b"".join(
        mode + b" " + name + b"\0" + bytes.fromhex(id_) for mode, name, id_ in entries
    )
    return put(inside, "tree", content)


def offer(guest: Guest, inside: Path, files: str) -> str:
    """Have the branch lead to this tree, which the guest itself need not look at; the commit."""
    guest.run("git checkout -q --detach", cwd=inside)
    made = guest.run(f"git commit-tree -p HEAD -m x {files}", cwd=inside)
    guest.run(f"git update-ref refs/heads/fix {made}", cwd=inside)
    return made


def state(repository: Path) -> tuple[str, dict[str, bytes], list[str]]:
    """What a fetch that is refused leaves as it was; what is left of a pack that came."""
    files = {str(path): path.read_bytes() for path in repository.glob("[!.]*") if path.is_file()}
    left = [path.name for path in (repository / ".git/objects/pack").glob("tmp_*")]
    return git(repository, "for-each-ref"), files, left


def unchecked(ws: Workspace, made: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetch where objects are not checked: it comes in."""
    monkeypatch.setitem(host_git._SAFE, "fetch.fsckObjects", "false")
    fetch(ws)
    assert git(ws.repository.path, "rev-parse", ws.ref) == made


def refused(ws: Workspace) -> str:
    """What a fetch says that has to fail and to change nothing."""
    before = state(ws.repository.path)
    with pytest.raises(AgentVMError) as caught:
        fetch(ws)
    assert state(ws.repository.path) == before
    said = str(caught.value)
    assert said.startswith("fetching fix failed: ")
    assert len(said.splitlines()) == 1
    assert len(said) < 600
    return said


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        (b".git", "hasDotgit"),
        (b".GIT", "hasDotgit"),
        (b"git~1", "hasDotgit"),
        (b".git ", "hasDotgit"),
        (b".g\xe2\x80\x8cit", "hasDotgit"),
        (b"..", "hasDotdot"),
        (b".", "hasDot"),
        (b"a/b", "fullPathname"),
    ],
)
@pytest.mark.parametrize("loose", [False, True])
def test_a_path_that_leads_out_or_into_git_is_refused(
    guest: Guest,
    ws: Workspace,
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    name: bytes,
    rule: str,
    loose: bool,
) -> None:
    """Also where the user's own fetches are not checked."""
    if loose:
        git(ws.repository.path, "config", "fetch.fsckObjects", "false")
    evil = tree(inside, (FILE, b"config", put(inside, "blob", b"[core]\n\tfsmonitor = touch x\n")))
    made = offer(guest, inside, tree(inside, (FOLDER, name, evil)))
    assert f": {rule}: " in refused(ws)
    unchecked(ws, made, monkeypatch)


def test_two_things_of_one_name_are_refused(
    guest: Guest, ws: Workspace, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A link, and files below it: who writes the link first writes the files where it leads."""
    blob = put(inside, "blob", b"evil\n")
    below = tree(inside, (FILE, b"authorized_keys", blob))
    link = put(inside, "blob", b"../../.ssh")
    offer(guest, inside, tree(inside, (LINK, b"x", link), (FOLDER, b"x", below)))
    assert ": duplicateEntries: " in refused(ws)
    made = offer(guest, inside, tree(inside, (FILE, b"x", blob), (FILE, b"x", link)))
    assert ": duplicateEntries: " in refused(ws)
    unchecked(ws, made, monkeypatch)


@pytest.mark.parametrize(
    ("mode", "content", "rule"),
    [
        (LINK, b"/etc/passwd", "gitmodulesSymlink"),
        (
            FILE,
            b'[submodule "a"]\n\tpath = a\n\turl = --upload-pack=touch${IFS}x\n',
            "gitmodulesUrl",
        ),
        (FILE, b'[submodule "a"]\n\tpath = -x\n\turl = https://example.com\n', "gitmodulesPath"),
        (FILE, b'[submodule "../../hooks"]\n\tpath = a\n\turl = https://a.b\n', "gitmodulesName"),
    ],
)
def test_settings_of_submodules_that_run_something_are_refused(
    guest: Guest,
    ws: Workspace,
    inside: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    mode: bytes,
    content: bytes,
    rule: str,
) -> None:
    made = offer(guest, inside, tree(inside, (mode, b".gitmodules", put(inside, "blob", content))))
    assert f": {rule}: " in refused(ws)
    unchecked(ws, made, monkeypatch)


def test_what_is_no_commit_is_refused(guest: Guest, ws: Workspace, inside: Path) -> None:
    blob = put(inside, "blob", b"no commit\n")
    (inside / ".git/refs/heads/fix").write_text(f"{blob}\n")
    assert refused(ws) == "fetching fix failed: the VM sent something else than commits"


@pytest.mark.parametrize("files", [1, 120])
def test_a_pack_beyond_the_limit_is_cut_off(
    guest: Guest, ws: Workspace, inside: Path, monkeypatch: pytest.MonkeyPatch, files: int
) -> None:
    for number in range(files):
        (inside / f"{number}").write_bytes(os.urandom(2**21 // files))
    guest.run("git add . && git commit -q -m large", cwd=inside)
    with monkeypatch.context() as patch:
        patch.setattr(host_git, "LARGEST_PACK", 2**20)
        assert "the VM sent more than" in refused(ws)
    assert fetch(ws).merged


def test_a_file_that_takes_more_memory_than_there_is_ends_git_alone(
    guest: Guest, ws: Workspace, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some hundred bytes that say: copy what is there 4000 times; git does so in memory."""
    offer(guest, inside, bomb(guest, inside, copies=4000))
    with monkeypatch.context() as patch:
        patch.setattr(host_git, "LARGEST_MEMORY", 2**27)
        assert "emory" in refused(ws)
    assert fetch(ws).merged


def bomb(guest: Guest, inside: Path, copies: int) -> str:
    """A tree of two files: one of 64 KiB, and one that is `copies` times the first."""
    size = 2**16
    base = put(inside, "blob", bytes(size))
    delta = _number(size) + _number(size * copies) + b"\x80" * copies
    large = f"blob {size * copies}\0".encode()
    digest = hashlib.sha1(large)  # noqa: S324  git's
    for _ in range(copies):
        digest.update(bytes(size))
    packed = b"PACK" + struct.pack(">II", 2, 1) + _head(7, len(delta)) + bytes.fromhex(base)
    packed += zlib.compress(delta, 9)
    pack = packed + hashlib.sha1(packed).digest()  # noqa: S324
    argv = ["git", "-C", str(inside), "index-pack", "--stdin", "--fix-thin"]
    subprocess.run(argv, input=pack, check=True, capture_output=True)
    return tree(inside, (FILE, b"base", base), (FILE, b"large", digest.hexdigest()))


def _number(value: int) -> bytes:
    """As a delta has its sizes: seven bits a byte, the lowest first."""
    found = bytearray()
    while value >= 128:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _head(kind: int, size: int) -> bytes:
    """As a pack has the kind and size of an object: four bits, then seven a byte."""
    first = kind << 4 | size & 15
    return bytes([first | 128]) + _number(size >> 4) if size >> 4 else bytes([first])


def test_more_files_than_can_be_looked_at_are_not_checked_out(
    guest: Guest, ws: Workspace, inside: Path
) -> None:
    """Nine objects make a hundred million files."""
    files = tree(inside, *((FILE, b"%d" % n, put(inside, "blob", b"x")) for n in range(10)))
    for _ in range(7):
        files = tree(inside, *((FOLDER, b"%d" % n, files) for n in range(10)))
    made = offer(guest, inside, files)
    before = git(ws.repository.path, "rev-parse", "fix")
    for _ in range(2):
        fetched = fetch(ws)
        assert (fetched.merged, fetched.ref) == (False, ws.ref)
        assert fetched.advice == "git was ended: it printed more than 64 MiB"
    assert git(ws.repository.path, "rev-parse", ws.ref) == made
    assert git(ws.repository.path, "rev-parse", "fix") == before


def test_files_beyond_the_limit_are_not_written_unasked(
    guest: Guest, ws: Workspace, inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "LARGEST_CHECKOUT", 2**20)
    (inside / "zeros").write_bytes(bytes(2**21))
    guest.run("git add . && git commit -q -m large", cwd=inside)
    fetched = fetch(ws)
    assert fetched.advice == f"its files take 2 MiB; `git merge --ff-only {ws.ref}` writes them"
    assert not (ws.repository.path / "zeros").exists()
    git(ws.repository.path, "merge", "--quiet", "--ff-only", ws.ref)
    assert fetch(ws).merged


# A peer that does not speak as git does


def serve(guest: Guest, body: str) -> None:
    """Have this answer the host's fetch; `say` writes a line of the protocol."""
    program = guest.home / "bin/git-upload-pack"
    program.parent.mkdir(exist_ok=True)
    program.write_text(
        "#!/usr/bin/env python3\nimport os, sys\nout = sys.stdout.buffer\n"
        "def say(line): out.write(b'%04x' % (len(line) + 4) + line); out.flush()\n"
        f"{body}\n"
    )
    program.chmod(0o755)


ASK = (
    "out.write(b'0000'); out.flush()\n"
    "while (line := sys.stdin.buffer.readline()) and b'done' not in line: pass\n"
)
CAPABLE = "side-band-64k ofs-delta"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("pass", "fatal: Could not read from remote repository"),
        ("print('HTTP/1.1 200 OK')", "fatal: protocol error: bad line length character: HTTP"),
        ("while True: out.write(b'y\\n' * 9999)", "fatal: protocol error: bad line length"),
        ("say(b'ERR not today')", "fatal: remote error: not today"),
        ("sys.stderr.write('x' * 99999 + '\\nfatal: ' + 'y' * 99999)", "fatal: yyyyyy"),
    ],
)
def test_a_peer_that_says_nothing_or_nonsense(
    guest: Guest, ws: Workspace, body: str, said: str
) -> None:
    serve(guest, body)
    assert said in refused(ws)


def test_a_peer_that_offers_what_it_does_not_have(guest: Guest, ws: Workspace) -> None:
    empty = b"PACK" + struct.pack(">II", 2, 0)
    empty += hashlib.sha1(empty).digest()  # noqa: S324
    serve(
        guest,
        f"say(b'{'1' * 40} refs/heads/fix\\0 ofs-delta\\n')\n{ASK}"
        f"say(b'NAK\\n'); out.write({empty!r})",
    )
    assert re.search(
        "did not send all necessary objects|bad object|not a valid object", refused(ws)
    )


COMMIT, TREE, BLOB, CHANGE = 1, 2, 3, 7
"""The kinds of what a pack holds (gitformat-pack(5))."""
KINDS = {COMMIT: "commit", TREE: "tree", BLOB: "blob"}
SECRET = "secret\n" * 10


def named(kind: int, content: bytes) -> str:
    """The id of an object."""
    head = f"{KINDS[kind]} {len(content)}\0".encode()
    return hashlib.sha1(head + content).hexdigest()  # noqa: S324


def packed(*entries: tuple[int, bytes]) -> bytes:
    """A pack; the content of a change begins with the id of the object that it changes."""
    body = b"PACK" + struct.pack(">II", 2, len(entries))
    for kind, whole in entries:
        base, content = (whole[:20], whole[20:]) if kind == CHANGE else (b"", whole)
        body += bytes([kind << 4 | len(content) & 15 | 0x80, len(content) >> 4])
        body += base + zlib.compress(content)
    return body + hashlib.sha1(body).digest()  # noqa: S324


def stolen(private: dict[str, str], parent: str, what: str) -> tuple[str, bytes]:
    """What a guest that knows ids of private objects, and no more, offers and sends for it."""
    if what == "commit":
        return private["commit"], packed()
    blob, sent = private["file"], list[tuple[int, bytes]]()
    if what == "change":  # the whole file, and a dot
        size, base = len(SECRET), bytes.fromhex(blob)
        sent.append((CHANGE, base + bytes([size, size + 1, 0x90, size, 1]) + b"."))
        blob = named(BLOB, f"{SECRET}.".encode())
    tree, folder = private["folder"], b"100644 taken\0" + bytes.fromhex(blob)
    if what != "folder":
        tree = named(TREE, folder)
        sent.append((TREE, folder))
    who = "A <a@example.org> 1 +0000"
    text = f"tree {tree}\nparent {parent}\nauthor {who}\ncommitter {who}\n\nx\n".encode()
    return named(COMMIT, text), packed(*sent, (COMMIT, text))


@pytest.mark.parametrize("what", ["commit", "folder", "file", "change"])
def test_what_the_guest_only_names_does_not_become_part_of_the_branch(
    fetching: bool, guest: Guest, ws: Workspace, repository: Path, what: str
) -> None:
    """It would go in with the next push."""
    parent = git(repository, "rev-parse", "fix")
    git(repository, "checkout", "--quiet", "-b", "private")
    commit(repository, "taken", SECRET)
    names = {"commit": "HEAD", "folder": "HEAD^{tree}", "file": "HEAD:taken"}
    private = {name: git(repository, "rev-parse", spec) for name, spec in names.items()}
    git(repository, "checkout", "--quiet", "main")
    tip, pack = stolen(private, parent, what)
    serve(
        guest,
        f"say(b'{tip} refs/heads/fix\\0 side-band-64k ofs-delta thin-pack\\n')\n{ASK}"
        f"say(b'NAK\\n'); say(b'\\1' + {pack!r}); out.write(b'0000')",
    )
    if fetching:
        said = refused(ws)
        assert ("which it did not send" in said) or ("unresolved delta" in said)
    else:
        fetch(ws)
        assert git(repository, "show", f"{ws.ref}:taken").startswith("secret")


def test_a_peer_that_sends_another_repository(guest: Guest, ws: Workspace, inside: Path) -> None:
    other = guest.home / "other"
    guest.run(f"git init -q -b fix {other}")
    theirs = commit(other, "README", "another\n")
    serve(guest, f"os.execvp('git', ['git', 'upload-pack', {str(other)!r}])")
    git(ws.repository.path, "checkout", "--quiet", "main")
    before = git(ws.repository.path, "rev-parse", "fix")
    fetched = fetch(ws)
    assert not fetched.merged
    assert git(ws.repository.path, "rev-parse", "fix") == before
    assert git(ws.repository.path, "rev-parse", ws.ref) == theirs


@pytest.mark.parametrize("where", ["progress", "stderr", "progress of half a pack"])
def test_a_peer_that_talks_without_end(guest: Guest, ws: Workspace, where: str) -> None:
    talk = {
        "progress": "say(b'\\x02' + b'noise \\n' * 5000)",
        "stderr": "sys.stderr.write('noise \\n' * 5000)",
    }
    pack = b"\x01PACK" + struct.pack(">II", 2, 1000)
    serve(
        guest,
        f"say(b'{'1' * 40} refs/heads/fix\\0 {CAPABLE}\\n')\n{ASK}say(b'NAK\\n')\n"
        f"if 'pack' in {where!r}: say({pack!r})\n"
        f"while True: {talk[where.partition(' ')[0]]}",
    )
    before = state(ws.repository.path)
    with pytest.raises(AgentVMError, match="was ended: it printed more than 16 MiB"):
        fetch(ws)
    assert state(ws.repository.path) == before


def test_a_peer_that_offers_very_many_branches(
    guest: Guest, ws: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_git, "LARGEST_MEMORY", 2**26)
    serve(
        guest,
        f"say(b'{'1' * 40} refs/heads/a\\0 {CAPABLE}\\n')\n"
        "for n in range(200000):\n"
        f"    line = b'{'1' * 40} refs/heads/%d' % n + b'x' * 1000 + b'\\n'\n"
        "    out.write(b'%04x' % (len(line) + 4) + line)\n"
        "out.write(b'0000')",
    )
    assert "emory" in refused(ws)
