"""A limactl that boots no VM: `start` runs an sshd with the host key found in the given YAML.

Arguments: the folder of its state, sshd's argv as JSON, then limactl's own. The tests call it
hundreds of times, so that modules are imported where they are used.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, NoReturn

FOLDER = Path(sys.argv[1])
SSHD: list[str] = json.loads(sys.argv[2])
UNITS = {"MiB": 2**20, "GiB": 2**30}


def main(argv: list[str]) -> None:
    with (FOLDER / "calls").open("a") as log:
        print(json.dumps(argv), file=log)
    verb = argv[0]
    trouble = FOLDER / f"fail-{verb}"
    if trouble.exists():
        message, status = json.loads(trouble.read_text())
        fatal(message, status)
    odd = FOLDER / f"script-{verb}"
    if odd.exists():
        os.execv("/bin/sh", ["sh", str(odd)])  # noqa: S606  it is a shell
    if verb == "--version":
        print("limactl version 2.2.0")
        return
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in argv if word[:2] == "--")
    if verb == "template":  # copy --fill - -
        sys.stdout.write(sys.stdin.read())
        return
    verbs = {"list": show, "create": create, "start": start, "stop": stop, "delete": delete}
    verbs[verb](flags.get("name") or argv[-1])


def show(name: str) -> None:
    if not path(name).parent.exists():
        print('time="now" level=warning msg="No instance matching ' + name + '"', file=sys.stderr)
        sys.exit(1)
    if not path(name).exists():
        fatal(f"unable to load instance {name}: open lima.yaml: no such file or directory")
    entry = load(name)
    if entry["status"] == "Running" and (pid := driver(name)):
        alive = lives(pid)
        entry |= {"status": "Running" if alive else "Stopped", "driverPID": pid if alive else 0}
    print(json.dumps({"dir": str(path(name).parent), **entry}))


def create(name: str) -> None:
    import yaml

    config = yaml.safe_load(sys.stdin)
    try:
        path(name).parent.mkdir(mode=0o700, parents=True)
    except FileExistsError:
        fatal(f'instance "{name}" already exists')
    (path(name).parent / "lima.yaml").write_text(yaml.safe_dump(config))
    config["vmType"] = config["vmType"] or "qemu"
    save(name, name=name, status="Stopped", cpus=config["cpus"], memory=size(config["memory"]),
         disk=size(config["disk"]), vmType="qemu", sshLocalPort=0, config=config)  # fmt: skip


def start(name: str) -> None:
    import re
    import subprocess

    entry = load(name)
    disk = path(name).parent / "disk"
    if disk.exists() and not disk.read_text():  # the copy was cut off, and nobody noticed
        fatal("the guest finds no root file system")
    disk.touch()
    disk.write_text("whole")
    (path(name).parent / "cidata.iso").touch()
    boot = "\n".join(step["script"] for step in entry["config"]["provision"])
    found = re.search(r"-----BEGIN.*?KEY-----\n.*?-----END[^\n]*-----\n", boot, re.DOTALL)
    key = path(name).parent / "host_key"
    key.touch(mode=0o600)
    key.write_text(found[0] if found else "")
    port = free_port()
    words = {"KEY": str(key), "0": str(port)}
    with (path(name).parent / "serial.log").open("wb") as log:
        child = subprocess.Popen(
            [words.get(word, word) for word in SSHD], stderr=log, start_new_session=True
        )
    (path(name).parent / "ha.pid").write_text(str(child.pid))
    wait(port)
    save(name, **{**entry, "status": "Running", "sshLocalPort": port})


def stop(name: str) -> None:
    import signal

    if pid := driver(name):
        sys.path.append(str(Path(__file__).parents[2]))
        from tests.family import send

        send(signal.SIGKILL, pid)  # with the connections, as they end with a VM
    (path(name).parent / "ha.pid").unlink(missing_ok=True)
    save(name, **{**load(name), "status": "Stopped", "sshLocalPort": 0})


def delete(name: str) -> None:
    if not path(name).exists():
        return  # Lima ignores what has no configuration
    stop(name)
    for file in path(name).parent.iterdir():
        file.unlink()
    path(name).parent.rmdir()


def path(name: str) -> Path:
    return FOLDER / "lima" / name / "instance.json"


def driver(name: str) -> int:
    """The process that is the running VM."""
    pid = path(name).parent / "ha.pid"
    return int(pid.read_text()) if pid.exists() else 0


def lives(pid: int) -> bool:
    """Whether it does, and is not only waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


def load(name: str) -> dict[str, Any]:
    if not path(name).exists():
        fatal(f'instance "{name}" does not exist')
    entry: dict[str, Any] = json.loads(path(name).read_text())
    return entry


def save(instance: str, **entry: object) -> None:
    new = path(instance).with_suffix(".new")
    new.write_text(json.dumps(entry))
    new.replace(path(instance))


def size(text: str) -> int:
    return int(text[:-3]) * UNITS[text[-3:]]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait(port: int) -> None:
    import socket
    import time

    for _ in range(500):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.01)
    fatal("sshd does not start")


def fatal(message: str, status: int = 1) -> NoReturn:
    print(f'time="now" level=fatal msg="{message}"', file=sys.stderr)
    sys.exit(status)


main(sys.argv[3:])
