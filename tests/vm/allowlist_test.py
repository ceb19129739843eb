"""A real guest whose only way out is the proxy. The internet is a namespace, as on the attacks.

What a package manager asks for comes from this host's own mirrors: they stand behind addresses of
the namespace that look public, as the proxy wants them.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import proxy
from tests.attacks import internet
from tests.attacks.proxy_test import PUBLIC, UNSHARE, Internet

from .conftest import NAME, User, lima_home
from .network_test import Services, services, works  # noqa: F401  a fixture

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.vm

MIRRORS = ("deb.debian.org", "pypi.org", "files.pythonhosted.org", "registry.npmjs.org",
           "proxy.golang.org", "sum.golang.org")  # fmt: skip
NAMES = {
    "good.org": [[PUBLIC]], "other.org": [[PUBLIC]], "inside.good.org": [["127.0.0.1"]],
    "metadata.good.org": [["169.254.169.254"]],
} | {name: [[internet.RELAYS[at]]] for at, name in enumerate(MIRRORS)}  # fmt: skip


@pytest.fixture(scope="module")
def listed(vm: User) -> Iterator[User]:
    """The person, with a list of their own in force."""
    if proxy.lacks():
        pytest.skip(f"the proxy is {proxy.lacks()}")
    config = vm.home / ".config/agent-vm/config.toml"
    before = config.read_text()
    config.write_text(f'{before}\n[network]\nallow = [".good.org"]\n')
    vm.agent_vm("network", "allowlist")
    vm.agent_vm("restart")
    assert "Network: allowlist" in vm.agent_vm("status")
    yield vm
    config.write_text(before)
    vm.agent_vm("network", "internet")
    vm.agent_vm("restart")


@pytest.fixture(scope="module")
def net(listed: User, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    """The product's own rules, run by a squid in the namespace, at the port that QEMU knows."""
    if subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces are not permitted here")
    folder, ours = tmp_path_factory.mktemp("net"), lima_home(listed) / NAME / "proxy"
    port = (ours / "port").read_text()
    shutil.copytree(ours, folder, dirs_exist_ok=True, ignore=lambda *_: ["run"])
    rules = (ours / "squid.conf").read_text().replace(str(ours), str(folder))
    rules = rules.replace(f"127.0.0.1:{port}", f"127.0.0.1:{internet.PROXY}")
    (folder / "squid.conf").write_text(f"{rules}\ndns_nameservers 127.0.0.1\n")
    (folder / "run").mkdir()
    for place in (folder / "run", folder, *folder.parents):
        place.chmod(place.stat().st_mode | (0o777 if place == folder / "run" else 0o755))
    argv = [*UNSHARE, sys.executable, internet.__file__, str(folder)]
    with contextlib.ExitStack() as ends:
        made = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ends.callback(made.wait)
        ends.callback(made.kill)
        assert made.stdout
        assert made.stdout.readline() == '"ready"\n'
        join = f"nsenter --target {made.pid} --net socat STDIO TCP\\:127.0.0.1\\:{internet.PROXY}"
        proxy._kill(ours)
        joined = [["socat", f"TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr", f"EXEC:{join}"]]
        joined += [
            [
                "socat",
                f"UNIX-LISTEN:{folder}/{address}\\:{number},fork,mode=777",
                f"TCP:{name}:{number}",
            ]
            for address, name in zip(internet.RELAYS, MIRRORS, strict=False)
            for number in (80, 443)
        ]
        for each in joined:
            started = subprocess.Popen(each)
            ends.callback(started.wait)
            ends.callback(started.kill)
        world = Internet(folder, made)
        world.do("names", NAMES)
        yield world


def ssh(vm: User, command: str, limit: int = 600) -> str:
    """What a command prints in the VM, both streams; agent-vm itself would mend the proxy."""
    config = vm.home / ".agent-vm" / NAME / "ssh.config"
    done = subprocess.run(["ssh", "-F", str(config), NAME, command], env=vm.env, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                          stdin=subprocess.DEVNULL, timeout=limit)  # fmt: skip
    return done.stdout
