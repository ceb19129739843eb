"""limactl: list, create, start, stop, delete. Elsewhere it is only asked for its version."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import console, host, process
from .errors import AgentVMError, UsageError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Mapping

    from .console import Say

MIB = 1024 * 1024
START_TIMEOUT = 30 * 60
"""Seconds until a boot is given up; an emulated first boot takes a minute or two."""
CREATE_TIMEOUT = 10 * 60
GRACE = 60
"""Seconds that limactl may take beyond its own time limit."""
POLL = 0.25
"""Seconds between two looks at the logs of a boot."""
PATIENCE = 9.0
"""Seconds for limactl to tell of an instance."""
INCOMPLETE, UNKNOWN = "Incomplete", "Unknown"
"""The status, in our words, of an instance without a configuration, or with one that is no use."""
DISKS = ("disk", "diffdisk")

_NOWHERE = "/nonexistent"
"""A folder that nobody has (Debian Policy 9.2.3)."""

_SOCKET = "ssh.sock.1234567890123456"
"""What ssh names its socket before it is ready (Lima's filenames.LongestSock)."""

LOGS = ("serial.log", "ha.stderr.log", "ha.stdout.log")
PASST = "passt.pid"
"""Where the wrapper of network.py has passt leave its process id."""

_PASSED_ON = (
    "LANG", "LIMA_HOME", "PATH", "TMPDIR", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "SSL_CERT_DIR", "SSL_CERT_FILE",
)  # fmt: skip

# What the programs under limactl write when a start is lost, in which log, and what a user can do
# about it. The console's log is the guest's: a full disk there is not the host's.
_QEMU, _CONSOLE = "ha.stderr.log", "serial.log"
_FATAL = (
    (_CONSOLE, "Kernel panic", "the guest's kernel panicked", ""),
    (_QEMU, "Could not access KVM", "KVM cannot be used", 'set accel = "tcg" under [vm]'),
    (_QEMU, "failed to set MSR", "KVM is broken on this machine", 'set accel = "tcg" under [vm]'),
    (_QEMU, "Could not set up host forwarding rule", "the VM's ssh port was taken", "try again"),
    (_QEMU, "No space left on device", "the disk is full", "make room and try again"),
)


@dataclass(frozen=True)
class Instance:
    """What `limactl list` says of one instance."""

    name: str
    status: str
    dir: Path
    cpus: int
    memory: int
    disk: int
    ssh_port: int
    vm_type: str
    driver_pid: int = 0
    errors: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def running(self) -> bool:
        """Lima's word for "its processes live"; the guest may still be booting."""
        return self.status == "Running"

    @property
    def has_disk(self) -> bool:
        """Whether there is a disk, which the first start makes: somebody may have worked on it."""
        return any((self.dir / name).exists() for name in DISKS)

    @property
    def ran(self) -> bool:
        """Whether QEMU was ever to be started: its disk was whole then."""
        return any((self.dir / name).exists() for name in ("cidata.iso", "ssh.config"))


def find(name: str) -> Instance | None:
    """The instance of that name, or None.

    Asks by name and with a template: `--format json` fails for all when one instance is odd
    (Lima 2.2.0, cmd/limactl/list.go). Raises UsageError where Lima can keep no instance.
    """
    _check_home(name)
    result = _limactl("list", "--format", "{{json .}}", name, timeout=PATIENCE)
    if "No instance matching" in result.stderr and not result.stdout.strip():
        return None
    if "unable to load instance" in result.stderr and (half := _incomplete(name)):
        return half
    if not result.ok:
        raise AgentVMError(f"limactl list failed: {_message(result)}")
    try:
        return _instance(name, json.loads(result.stdout))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AgentVMError(f"limactl list gave no usable answer for {name}: {error!r}") from None


def create(name: str, yaml: str, say: Say) -> None:
    """Make the instance without booting it."""
    result = _limactl(
        "create", f"--name={name}", "--tty=false", "-", stdin=yaml, timeout=CREATE_TIMEOUT, say=say
    )
    if not result.ok:
        raise AgentVMError(f"limactl could not create {name}: {_message(result)}", _advice(result))


def start(instance: Instance, say: Say, extra_env: Mapping[str, str]) -> None:
    """Boot the instance and wait until ssh answers.

    `limactl start` sits on a panicked guest until its time-out and leaves processes behind; so its
    logs are watched here. Raises AgentVMError, with the VM stopped, when the boot is lost.
    """
    argv = [host.limactl(), "start", "--tty=false", f"--timeout={START_TIMEOUT}s", instance.name]
    user = host.service_user()
    for file in (*LOGS, PASST):  # they could be read as this boot's before they are written anew
        (instance.dir / file).unlink(missing_ok=True)
    if not instance.ran:
        _discard_disk(instance)
    env = {**environment(), **extra_env}
    child = process.popen(argv, env=env, cwd="/", user=user, mortal=True)
    try:
        _watch(child, instance.dir, say)
    except BaseException:
        process.kill(child)
        stop(instance.name, force=True)
        raise
    process.close(child)


def asked(instance: Instance) -> str:
    """The configuration the instance was made from, before Lima mixes the user's own into it."""
    try:
        return (instance.dir / "lima.yaml").read_text("utf-8")
    except (OSError, ValueError) as error:
        raise AgentVMError(
            f"the VM {instance.name} has lost its configuration: {error}",
            "`agent-vm destroy` removes it",
        ) from None


def filled(text: str) -> dict[str, Any]:
    """A configuration with Lima's own defaults, as if the user had no files of Lima's.

    Raises ValueError when it is none.
    """
    argv = [host.limactl(), "template", "copy", "--fill", "-", "-"]
    env = {**environment(), "LIMA_HOME": _NOWHERE}
    result = process.run(argv, check=False, stdin=text, env=env, cwd="/", timeout=PATIENCE,
                         user=host.service_user(), mortal=True)  # fmt: skip
    if not result.ok:
        raise ValueError(_message(result))
    from yaml import YAMLError, safe_load

    try:
        made = dict(safe_load(result.stdout))
    except (YAMLError, TypeError) as error:
        raise ValueError(str(error).partition("\n")[0]) from None
    made["vmType"] = made.get("vmType") or ("vz" if host.is_macos() else "qemu")
    return made


def stop(name: str, *, force: bool = False) -> None:
    """Power the VM down; with `force` by ending its processes (never fails)."""
    if force:
        with contextlib.suppress(AgentVMError):  # limactl may be missing, or hang
            _limactl("stop", "--tty=false", "--force", name, timeout=60)
        return
    result = _limactl("stop", "--tty=false", name, timeout=240)
    if not result.ok:
        raise AgentVMError(f"limactl could not stop {name}: {_message(result)}")


def delete(name: str) -> None:
    """Remove the instance with its disk; raises AgentVMError when it is still there after.

    limactl leaves alone what has no configuration that it could read.
    """
    result = _limactl("delete", "--tty=false", "--force", name, timeout=120)
    found = find(name)
    if found and found.status in {INCOMPLETE, UNKNOWN} and not (found.dir / "protected").exists():
        shutil.rmtree(found.dir, ignore_errors=True)
        found = find(name)
    if found is not None:
        raise AgentVMError(f"limactl could not delete {name}: {_message(result)}")


def wake(instance: Instance) -> bool:
    """Have its process go on if a signal stopped it (Ctrl-Z, a debugger); False when none did."""
    if not process.is_stopped(instance.driver_pid):
        return False
    with contextlib.suppress(OSError):
        os.kill(instance.driver_pid, signal.SIGCONT)
    return True


def started_since(instance: Instance, seconds: float) -> bool:
    """Whether it was started within the last seconds, by whatever command."""
    try:
        return time.time() - (instance.dir / "ha.pid").stat().st_mtime < seconds
    except OSError:
        return False


def panicked(instance: Instance) -> bool:
    """Whether its console has a kernel's last words; to be asked only of one that is silent.

    Anybody inside can write there.
    """
    return "Kernel panic" in _end_of(instance.dir / "serial.log")


def environment() -> dict[str, str]:
    """A small environment for limactl and what it starts: none of the user's API keys."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    for name in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):  # Go's library fails where one is relative
        if not kept.get(name, "/").startswith("/"):
            del kept[name]
    sbin = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
    kept["PATH"] = f"{kept['PATH']}:{sbin}" if "PATH" in kept else sbin
    return {**kept, "HOME": str(host.service_home())}


def log_tail(folder: Path, name: str, lines: int) -> str:
    """The end of one of the instance's logs; raises AgentVMError naming those there are."""
    logs = {path.stem: path for path in sorted(folder.glob("*.log"))}
    if name not in logs:
        raise AgentVMError(
            f"the VM has no log {name}", f"its logs: {', '.join(logs) or 'none before a start'}"
        )
    return "\n".join(_end_of(logs[name], 2**20).splitlines()[-lines:])


def _discard_disk(instance: Instance) -> None:
    """Remove what a first start that was cut off has copied: Lima would take it for the disk."""
    for name in ("image", *DISKS):
        (instance.dir / name).unlink(missing_ok=True)


def folder(name: str) -> Path:
    """Where Lima keeps the instance of that name, if there is one."""
    return _home() / name


def put(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files into a folder of Lima's, made where it is missing; raises AgentVMError.

    The account that works there does it: root would follow links that who has taken it over laid.
    """
    from . import stages

    modes = {name: 0o755 if text.startswith("#!") else 0o644 for name, text in texts.items()}
    files = {name: (text.encode(), modes[name]) for name, text in texts.items()}
    argv = ["sh", "-c", 'mkdir -p "$1" && tar -xf - -C "$1"', "sh", str(folder)]
    process.run(argv, stdin=stages.tar(files), env=environment(), cwd="/", user=host.service_user())


def _home() -> Path:
    """Where Lima keeps its instances."""
    return Path(os.environ.get("LIMA_HOME") or host.service_home() / ".lima")


def _check_home(name: str) -> None:
    """Refuse a folder in which the instance's longest socket would have no room, or no folder."""
    given = os.environ.get("LIMA_HOME", "")
    usable = Path(given).is_dir() or not os.path.lexists(given)
    if given and not (usable and given.startswith("/")):
        raise UsageError(f"LIMA_HOME: {given!r:.90} is no folder", "give a full path, or unset it")
    folder = os.path.realpath(_home())
    if len(os.fsencode(f"{folder}/{name}/{_SOCKET}")) >= (104 if host.is_macos() else 108):
        raise UsageError(
            f"{folder:.100} is too long a path for Lima's sockets", "set LIMA_HOME to a shorter one"
        )


def _watch(child: subprocess.Popen[bytes], folder: Path, say: Say) -> None:
    """Follow the boot through Lima's logs until `limactl start` ends."""
    began, told = time.time(), ""
    while child.poll() is None:
        _raise_if_lost(folder)
        if time.time() - began > START_TIMEOUT + GRACE:
            raise AgentVMError("limactl start does not come to an end", f"see {folder}/*.log")
        step = f"{_step(folder)} {(time.time() - began) // console.STILL:.0f}"
        if step != told:
            say(f"  {step.rpartition(' ')[0]} ({time.time() - began:.0f} s)")
            told = step
        time.sleep(POLL)
    if child.returncode:
        _raise_if_lost(folder)
        err = child.stderr.read().decode("utf-8", "replace") if child.stderr else ""
        raise AgentVMError(f"the VM did not start: {_last_message(err)}", f"see {folder}/*.log")


def _raise_if_lost(folder: Path) -> None:
    for name, sign, meaning, advice in _FATAL:
        if sign in _end_of(folder / name):
            hint = f"{advice}; see {folder / name}" if advice else f"see {folder / name}"
            raise AgentVMError(f"the VM did not start: {meaning}", hint)
    if _ended(folder / PASST):
        raise AgentVMError(
            "the VM did not start: passt, its network, crashed",
            "`agent-vm network open` goes without it, then `agent-vm start`",
        )


def _ended(pid_file: Path) -> bool:
    """Whether the process that wrote the file is gone."""
    try:
        return not Path(f"/proc/{int(pid_file.read_text('utf-8'))}").exists()
    except (OSError, ValueError):
        return False


def _step(folder: Path) -> str:
    """What Lima waits for, in our words."""
    tail = _end_of(folder / "ha.stderr.log")
    if "final requirement" in tail:
        return "the guest finishes booting"
    if "ssh" in tail and "is satisfied" in tail:
        return "ssh answers"
    return "the guest boots" if _end_of(folder / "serial.log") else "QEMU starts"


def _end_of(path: Path, size: int = 65536) -> str:
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def _limactl(*args: str, stdin: str = "", timeout: float, say: Say | None = None) -> process.Result:
    """Run limactl; with `say` it is told when that takes long.

    Killed, we take it with us: half a creation can be healed, one that goes on alone cannot.
    """
    return process.run(
        [host.limactl(), *args],
        check=False,
        stdin=stdin,
        env=environment(),
        cwd="/",
        timeout=timeout,
        user=host.service_user(),
        watch=_telling(f"limactl {args[0]}", say) if say else None,
        mortal=True,
    )


def _telling(what: str, say: Say) -> Callable[[str], None]:
    look = console.again(lambda taken: say(f"  {what} is still at work ({taken:.0f} s)"))
    return lambda _said: look()


def _incomplete(name: str) -> Instance | None:
    folder = _home() / name
    if not folder.is_dir() or (folder / "lima.yaml").exists():
        return None
    return Instance(name, INCOMPLETE, folder, 0, 0, 0, 0, "", errors=("it has no lima.yaml",))


def _instance(name: str, entry: dict[str, Any]) -> Instance:
    if entry["name"] != name or not isinstance(entry.get("config") or {}, dict):
        raise ValueError(entry["name"])
    return Instance(
        name=name,
        status=str(entry["status"] or UNKNOWN),
        dir=Path(entry["dir"]),
        cpus=int(entry.get("cpus", 0)),
        memory=int(entry.get("memory", 0)) // MIB,
        disk=int(entry.get("disk", 0)) // MIB,
        ssh_port=int(entry.get("sshLocalPort", 0)),
        vm_type=str(entry.get("vmType", "")),
        driver_pid=int(entry.get("driverPID", 0)),
        errors=tuple(str(error) for error in entry.get("errors") or ()),
        config=entry.get("config") or {},
    )


def _message(result: process.Result) -> str:
    return _last_message(result.stderr) or result.reason


def _last_message(stderr: str) -> str:
    """The text of the last log line limactl wrote: time="…" level=fatal msg="…"."""
    for line in reversed(stderr.splitlines()):
        if "level=fatal" in line or "level=error" in line:
            _, _, text = line.partition('msg="')
            return text.removesuffix('"').replace('\\"', '"')
    lines = stderr.strip().splitlines()
    return lines[-1] if lines else "limactl said nothing"


def _advice(result: process.Result) -> str:
    return next((advice for _, sign, _, advice in _FATAL if sign in result.stderr), "")
