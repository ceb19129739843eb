"""A home of its own for every test, and an sshd on loopback that stands in for the VM.

Nothing here reads or writes the real home. OpenSSH asks the account database for it, not $HOME;
what we run therefore always names its configuration.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import shlex
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest
import yaml

from agent_vm_tasks import (
    data,
    host,
    lima,
    network,
    render,
    settings,
    state,
    sync,
    vm,
    workspaces,
)
from agent_vm_tasks import guest as ssh_guest

from .family import send

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent_vm_tasks.settings import Settings
    from agent_vm_tasks.workspaces import Workspace

# How long an example takes is the machine's business; benchmarks are in bench.py.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Started in the background of a script, or by nohup, we would hand an ignored Ctrl-C or hangup on
# to every program below.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

VM = "agent-vm"
USER = getpass.getuser()
OURS = (
    "AGENT_VM_", "GIT_", "GOOGLE_", "INVOKE_", "LIMA_", "QEMU_", "SSH_", "XDG_",
)  # fmt: skip
_STAND_INS = Path(__file__).parent / "stand_ins"
_GITCONFIG = """\
[user]
	name = {who}
	email = {who}@example.com
[init]
	defaultBranch = main
[advice]
	detachedHead = false
"""
_SSHD = """\
AuthorizedKeysFile {folder}/client.pub
ForceCommand {folder}/enter
KbdInteractiveAuthentication no
KexAlgorithms curve25519-sha256,curve25519-sha256@libssh.org
ListenAddress 127.0.0.1
MaxSessions 100
MaxStartups 100
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
SetEnv HOME={folder}/guest SHLVL=1 AGENT_VM_SECRETS={folder}/guest/.secrets
StrictModes no
Subsystem sftp {sftp}
UseDNS no
"""
# sshd starts a command in the account's real home; here it has to be the guest's. SHLVL: the shell
# that first runs for an ssh command reads .bashrc; only the guest's is wanted. bin: programs that a
# test puts there.
_ENTER = """\
#!/bin/bash
export SHLVL=0 PATH=$HOME/bin:$PATH
cd || exit
[ -z "$SSH_ORIGINAL_COMMAND" ] && exec bash -l
exec bash -c "$SSH_ORIGINAL_COMMAND"
"""


@dataclass(frozen=True)
class Sshd:
    """Where sshd's keys and settings are, and the home of those who log in."""

    folder: Path
    home: Path
    program: str

    @property
    def identity(self) -> Path:
        return self.folder / "client"

    def public_key(self, name: str = "host") -> str:
        return (self.folder / f"{name}.pub").read_text().strip()

    def argv(self, host_key: Path, port: int) -> list[str]:
        config = str(self.folder / "sshd_config")
        return [self.program, "-D", "-e", "-f", config, "-h", str(host_key), "-p", str(port)]


@dataclass(frozen=True)
class Guest:
    """The VM as the tests see it; `home` is the folder that commands in it start in."""

    name: str
    home: Path
    port: int
    sshd: Sshd

    @property
    def workspaces(self) -> Path:
        return self.home / "workspace"

    def run(self, command: str, *, cwd: Path | None = None, check: bool = True) -> str:
        """What an agent does inside, without the way through ssh."""
        env = {"HOME": str(self.home), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
        argv = ["bash", "-c", command]
        done = subprocess.run(
            argv, check=False, env=env, cwd=cwd or self.home, capture_output=True, text=True
        )
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()


@dataclass(frozen=True)
class Limactl:
    """The stand-in: its state, what it was asked, and what it shall fail at."""

    folder: Path
    sshd: Sshd

    def calls(self) -> list[list[str]]:
        """Every argv so far, without the calls that only look."""
        log = self.folder / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        calls: list[list[str]] = [json.loads(line) for line in lines]
        return [call for call in calls if call[0] not in {"list", "--version", "template"}]

    def fail(self, verb: str, message: str = "it broke", status: int = 1) -> None:
        """From now on `limactl VERB` ends with this; `repair` takes it back."""
        (self.folder / f"fail-{verb}").write_text(json.dumps([message, status]))

    def repair(self, verb: str) -> None:
        for trouble in ("fail", "script"):
            (self.folder / f"{trouble}-{verb}").unlink(missing_ok=True)

    def does(self, verb: str, script: str) -> None:
        """From now on `limactl VERB` is this shell script; `repair` takes it back."""
        (self.folder / f"script-{verb}").write_text(script)

    @property
    def lima(self) -> Path:
        return self.folder / "lima"

    def driver(self, name: str = VM) -> int:
        """The process that is the running VM, as QEMU is: an sshd."""
        return int((self.lima / name / "ha.pid").read_text())

    def signal(self, number: signal.Signals, name: str = VM) -> None:
        """Send a signal to all of the VM, its connections included."""
        send(number, self.driver(name))

    def instance(self, name: str = VM) -> dict[str, Any] | None:
        """What it keeps of an instance."""
        path = self.folder / "lima" / name / "instance.json"
        return json.loads(path.read_text()) if path.exists() else None

    def change(self, name: str = VM, **values: object) -> None:
        """Put values over those of an instance, making it: status="Broken", errors=["…"]."""
        path = self.folder / "lima" / name / "instance.json"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_text(json.dumps({**(self.instance(name) or {}), "name": name, **values}))

    def adopt(self, guest: Guest) -> None:
        """Have the sshd of `guest` as the running instance, as after `agent-vm start`."""
        self.change(guest.name, status="Running", cpus=4, memory=8192 * 2**20, disk=102400 * 2**20,
                    vmType="qemu", sshLocalPort=guest.port, config={})  # fmt: skip


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty $HOME that is also the working directory; short, as a socket's path has to be."""
    folder = Path(tempfile.mkdtemp(prefix="home-", dir="/tmp")).resolve()
    handed_over = {line.partition("=")[0] for line in data.package_list("envvars.txt")}
    for name in list(os.environ):
        if name in handed_over or name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(folder))
    (folder / ".gitconfig").write_text(_GITCONFIG.format(who="developer"))
    monkeypatch.chdir(folder)
    yield folder
    unmount(folder)
    remove(folder)


@pytest.fixture
def repository(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit on main; the working directory is its top."""
    folder = home / "src" / "app"
    make_repository(folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def sshd() -> Iterator[Sshd]:
    """Keys and settings for sshd; starts none."""
    found = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")
    sftp = _first("openssh/sftp-server", "ssh/sftp-server", "sftp-server")
    if not found or not sftp:
        pytest.skip("sshd or its sftp-server is not installed (package openssh-server)")
    folder = Path(tempfile.mkdtemp(prefix="sshd-", dir="/tmp")).resolve()
    for name in ("host", "client", "other"):
        make_key(folder / name)
    made = Sshd(folder, folder / "guest", found)
    (folder / "sshd_config").write_text(_SSHD.format(folder=folder, sftp=sftp))
    (folder / "enter").write_text(_ENTER)
    (folder / "enter").chmod(0o755)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    yield made
    remove(folder)


@pytest.fixture(scope="session")
def sshd_port(sshd: Sshd) -> Iterator[int]:
    """An sshd for the whole run; its port."""
    with running_sshd(sshd, sshd.folder / "host") as port:
        yield port


@pytest.fixture
def guest_home(sshd: Sshd) -> Iterator[Path]:
    """An empty home inside the VM."""
    (sshd.home / "workspace").mkdir(parents=True)
    (sshd.home / ".gitconfig").write_text(_GITCONFIG.format(who="agent"))
    yield sshd.home
    remove(sshd.home)


@pytest.fixture
def guest(home: Path, guest_home: Path, sshd: Sshd, sshd_port: int) -> Iterator[Guest]:
    """A VM that is up: provisioned, its configuration for ssh written, no connection open yet."""
    state.write(ssh_guest.known_hosts(VM), f"{VM} {sshd.public_key()}\n")
    state.write(ssh_guest.config(VM), ssh_config(sshd, sshd_port))
    (state.folder(VM) / "ready").touch()
    yield Guest(VM, guest_home, sshd_port, sshd)
    ssh_guest.disconnect(VM)


@pytest.fixture
def warm(shared_connection: Path, guest: Guest) -> Iterator[None]:
    """Lend the test the run's open connection; it is not to be closed."""
    socket = state.control_path(VM)
    socket.symlink_to(shared_connection)
    yield
    socket.unlink()


@pytest.fixture(scope="session")
def shared_connection(sshd: Sshd, sshd_port: int) -> Iterator[Path]:
    """A connection for the whole run: opening one for each test takes long. Its socket."""
    known_hosts, config = sshd.folder / "known_hosts", sshd.folder / "ssh.config"
    known_hosts.write_text(f"{VM} {sshd.public_key()}\n")
    socket = sshd.folder / "ssh.sock"
    config.write_text(ssh_config(sshd, sshd_port, known_hosts=known_hosts, control_path=socket))
    subprocess.run(["ssh", "-F", str(config), "-fN", VM], check=True)
    yield socket
    subprocess.run(["ssh", "-F", str(config), "-O", "exit", VM], check=True, capture_output=True)


@pytest.fixture
def sshfs() -> None:
    """An sshfs that can mount here."""
    if not shutil.which("sshfs"):
        pytest.skip("sshfs is not installed")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing, or closed to this account")


@pytest.fixture
def limactl(
    home: Path, guest_home: Path, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Limactl]:
    """A limactl on PATH. What it starts is an sshd with the host key that it was given."""
    folder = Path(tempfile.mkdtemp(prefix="lima-", dir="/tmp")).resolve()
    made = Limactl(folder, sshd)
    _install_limactl(made)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("LIMA_HOME", str(made.lima))
    monkeypatch.setattr(host, "service_user", lambda: None)  # one account is enough here
    monkeypatch.setattr(network, "_lack", lambda _: "")  # as where passt is installed
    monkeypatch.setattr(host, "room", lambda _: 2**20)  # enough
    monkeypatch.setattr(render, "GUEST_USER", USER)
    monkeypatch.setattr(lima, "POLL", 0.01)
    yield made
    ssh_guest.disconnect(VM)
    for instance in made.lima.glob("*/ha.pid"):
        made.signal(signal.SIGKILL, instance.parent.name)
    remove(folder)


@pytest.fixture
def started(limactl: Limactl, guest: Guest, sshfs: None, home: Path, tmp_path: Path) -> Settings:
    """A VM that was created, started and mounted by us, with nothing to be installed."""
    (tmp_path / "disk").touch()
    sizes = 'cpus = 1\nmemory = "1GiB"\ndisk = "8GiB"\n'
    asked = f'[vm]\nimage = "{tmp_path}/disk"\nca_certs = []\n{sizes}[provision]\nenabled = false\n'
    (home / ".config/agent-vm").mkdir(parents=True)
    (home / ".config/agent-vm/config.toml").write_text(asked)
    chosen = settings.load()
    vm.start(chosen, print)
    return chosen


@contextlib.contextmanager
def bare_mount(folder: Path) -> Iterator[Path]:
    """The workspaces by an sshfs with none of our options."""
    folder.mkdir()
    argv = ["sshfs", "-F", str(ssh_guest.config(VM)), f"{VM}-mount:workspace", str(folder),
            "-o", "no_contain_symlinks"]  # fmt: skip
    subprocess.run(argv, check=True)
    yield folder
    unmount(folder)


WORKS = host.Kvm(works=True, reason="a guest ran on it")


def a_host(
    monkeypatch: pytest.MonkeyPatch,
    *,
    cpus: int = 8,
    memory: int = 16384,
    kvm: host.Kvm = WORKS,
    qemu: tuple[int, int, int] | None = (10, 0, 2),
    arch: str = "x86_64",
) -> None:
    monkeypatch.setattr(host, "cpus", lambda: cpus)
    monkeypatch.setattr(host, "memory", lambda: memory)
    monkeypatch.setattr(host, "kvm", lambda: kvm)
    monkeypatch.setattr(host, "qemu_version", lambda: qemu)
    monkeypatch.setattr(host, "arch", lambda: arch)
    monkeypatch.setattr(host, "is_macos", lambda: False)


def make_key(path: Path, kind: str = "ed25519") -> None:
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "", "-f", str(path)]
    subprocess.run(argv, check=True)


def make_repository(folder: Path, *options: str) -> None:
    """A repository with one commit, of one file README, on main."""
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", *options)
    commit(folder, "README", "hello\n")


def git(folder: Path, *args: str) -> str:
    """Run git; what it says, without the last line break."""
    argv = ["git", "-C", str(folder), *args]
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"git {shlex.join(args)}: {done.stdout}{done.stderr}"
    return done.stdout.rstrip("\n")


def commit(folder: Path, file: str, text: str = "text\n") -> str:
    """Commit one file; the commit's id."""
    path = folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    git(folder, "add", "--force", "--", file)
    git(folder, "commit", "--quiet", "--message", f"change {file}")
    return git(folder, "rev-parse", "HEAD")


def ssh_config(
    sshd: Sshd, port: int, known_hosts: Path | None = None, control_path: Path | None = None
) -> str:
    """Our configuration for ssh, as `guest.attach` writes it."""
    return render.ssh_config(
        name=VM,
        user=USER,
        port=port,
        identity=sshd.identity,
        known_hosts=known_hosts or ssh_guest.known_hosts(VM),
        control_path=control_path or state.control_path(VM),
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def running_sshd(sshd: Sshd, host_key: Path) -> Iterator[int]:
    """An sshd with that host key; its port."""
    port, log = free_port(), sshd.folder / "log"
    with log.open("wb") as file, subprocess.Popen(sshd.argv(host_key, port), stderr=file) as child:
        try:
            wait_until(lambda: answers(port), f"sshd does not start, see {log}")
            yield port
        finally:
            child.terminate()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def leading(*argv: str, **more: Any) -> Iterator[subprocess.Popen[str]]:  # noqa: ANN401
    """Run a program that leads a process group, which is ended with it."""
    with subprocess.Popen(argv, start_new_session=True, text=True, **more) as child:
        try:
            yield child
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def wait_until(check: Any, what: str, seconds: float = 10) -> None:  # noqa: ANN401  any callable
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, what
        time.sleep(0.01)


def mounts(folder: Path) -> list[str]:
    """What is mounted at or below a folder, as the kernel has it."""
    table = Path("/proc/self/mountinfo")
    lines = table.read_text().splitlines() if table.exists() else []
    points = (line.split()[4] for line in lines)
    return [point for point in points if Path(point).is_relative_to(folder)]


def unmount(folder: Path) -> None:
    for point in mounts(folder):
        subprocess.run(["fusermount3", "-uz", point], check=False)


def remove(folder: Path) -> None:
    """Delete a folder, whatever rights are missing in it."""
    for path, folders, _ in os.walk(folder):
        for name in folders:
            if not Path(path, name).is_symlink():
                Path(path, name).chmod(stat.S_IRWXU)
    shutil.rmtree(folder, ignore_errors=True)


def _first(*names: str) -> str:
    folders = ("/usr/lib", "/usr/libexec", "/usr/local/libexec", "/opt/homebrew/libexec")
    found = (Path(folder, name) for folder in folders for name in names)
    return next((str(path) for path in found if path.is_file()), "")


def _install_limactl(made: Limactl) -> None:
    """The stand-in gets a small environment: what it needs is written into its first lines."""
    keys = made.folder / "lima" / "_config"
    keys.mkdir(parents=True)
    shutil.copy2(made.sshd.identity, keys / "user")
    program = made.folder / "bin" / "limactl"
    program.parent.mkdir()
    argv = made.sshd.argv(Path("KEY"), 0)
    folders = shlex.quote(str(Path(yaml.__file__).parents[1]))  # instead of a slow search
    words = [sys.executable, "-S", str(_STAND_INS / "limactl.py"), str(made.folder)]
    call = shlex.join([*words, json.dumps(argv)])
    program.write_text(f'#!/bin/sh\nPYTHONPATH={folders} exec {call} "$@"\n')
    program.chmod(0o755)


@pytest.fixture
def ws(guest: Guest, warm: None, repository: Path) -> Workspace:
    """A workspace of branch fix, just pushed; the host has main checked out."""
    made = workspaces.workspace(VM, workspaces.repository(repository), "fix")
    sync.push(made, lambda _line: None)
    return made


@pytest.fixture
def inside(guest: Guest, ws: Workspace) -> Path:
    """The workspace's folder as the guest has it."""
    return guest.workspaces / ws.folder
