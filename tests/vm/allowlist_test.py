"""A real guest whose only way out is the proxy. The internet is a namespace, as on the attacks.

What a package manager asks for comes from this host's own mirrors: they stand behind addresses of
the namespace that look public, as the proxy wants them.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import ssl
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import proxy
from tests.attacks import internet
from tests.attacks.proxy_test import PUBLIC, UNSHARE, Internet, reached

from .conftest import NAME, PROGRAM, User, inside, lima_home
from .network_test import own, services  # noqa: F401  fixtures

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from .network_test import Services

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
    if "Network: internet" not in vm.agent_vm("status"):
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
        assert made.stdin
        assert made.stdout
        ends.callback(made.stdout.close)
        ends.callback(made.wait)
        ends.callback(made.stdin.close)
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


# By the product's own proxy; `net` takes its port until the end


def test_what_was_tried_is_told_and_a_change_is_in_force_at_once(listed: User) -> None:
    assert "X-Agent-VM: this host" in inside(listed, "curl -sv http://late.org/ 2>&1")
    log = json.loads(listed.agent_vm("network-log", "--json"))
    assert ("late.org", 80, "unlisted") in {(x["host"], x["port"], x["refused"]) for x in log}
    lesson = listed.agent_vm("network-log", "--learn")
    assert '"late.org",  # 1 time, last by curl/' in lesson
    config = listed.home / ".config/agent-vm/config.toml"
    config.write_text(config.read_text().replace('".good.org"', '".good.org", "late.org"'))
    assert "X-Agent-VM: this host" not in inside(listed, "curl -sv http://late.org/ 2>&1")


def test_an_audit_asks_the_proxy(listed: User) -> None:
    found = json.loads(listed.run(PROGRAM, "audit", "--json").stdout)["findings"]
    assert [each["held"] for each in found if "by the proxy" in each["tried"]] == [True]


# By its rules in the test's internet


def test_the_list_is_all_that_is_reached(listed: User, net: Internet) -> None:
    said = ssh(listed, "curl -s http://good.org/; curl -s http://other.org/; "
                       "curl -sv http://metadata.good.org/ 2>&1")  # fmt: skip
    assert reached(said) == PUBLIC
    assert "GET to other.org:80 was refused" in said
    assert "X-Agent-VM: its address is private" in said
    tunnel = ssh(listed, "curl -sv https://other.org/ 2>&1")
    assert "X-Agent-VM: this host and port are not on the list" in tunnel


PATHS = """
for way in "http://192.168.5.2:{tcp}" "http://192.168.5.3:{tcp}" "http://192.168.5.100:{tcp}" \
    "http://[fec0::2]:{tcp}" "http://127.0.0.1:{tcp}" "http://inside.good.org:{tcp}" \
    "http://0x7f.1:{tcp}" "http://[::ffff:127.0.0.1]:{tcp}" "http://localhost:{tcp}" \
    "http://[::ffff:192.168.5.2]:{tcp}" "http://{own}:{at}" "http://[::ffff:{own}]:{at}"; do
    curl -s --http0.9 --max-time 5 --noproxy '*' "$way"
    curl -s --http0.9 --max-time 5 --noproxy '' "$way"
    curl -s --http0.9 --max-time 5 --noproxy '' --proxytunnel "$way"
done
"""


def test_no_way_leads_to_this_machine(
    listed: User,
    services: Services,  # noqa: F811
    own: Services,  # noqa: F811
) -> None:
    """By the product's own proxy; with mode open what is sought here arrives (network_test)."""
    tcp, (address, at) = services.tcp.getsockname()[1], own.tcp.getsockname()
    listed.agent_vm("network")
    said = ssh(listed, PATHS.format(tcp=tcp, own=address, at=at))
    assert "SECRET" not in said
    assert "was refused" in said
    for each in (services, own):
        assert each.tried(listed) == ""
        assert each.heard() == b""


@pytest.mark.parametrize(
    ("command", "comes"),
    [
        ("sudo apt-get update 2>&1 | tail -3", "Fetched .* in"),
        ("cd /tmp && apt-get download busybox-static 2>&1", "Fetched .* in"),
        ("npm view is-odd version 2>&1", r"\d+\.\d+\.\d+"),
        ("pip download --no-deps -d /tmp/dl six 2>&1", "Saved"),
        ("uv pip install --target /tmp/uvt six 2>&1", r"\+ six=="),
        (
            "cd $(mktemp -d) && go mod init x && go get rsc.io/quote@v1.5.2 2>&1",
            "added rsc.io/quote",
        ),
    ],
    ids=["sudo-apt", "apt", "npm", "pip", "uv", "go"],
)
def test_package_managers_need_no_set_up(
    listed: User, net: Internet, command: str, comes: str
) -> None:
    assert re.search(comes, ssh(listed, command))


CONTAINER = """
cd /tmp && dpkg -x busybox-static*.deb bb && tar -C bb -c . | sudo docker import - bb:1 > /dev/null
docker run --rm bb:1 /usr/bin/busybox wget -q -O - http://good.org/
docker run --rm bb:1 /usr/bin/busybox wget -q -O - http://other.org/ 2>&1
docker info 2> /dev/null | grep -i 'https proxy'
docker pull registry.good.org/x 2>&1
true
"""


def test_docker_and_its_containers_need_no_set_up(listed: User, net: Internet) -> None:
    said = ssh(listed, CONTAINER)
    assert reached(said) == PUBLIC
    assert "403" in said
    assert "HTTPS Proxy: http://192.168.5.100:3128" in said
    assert "CONNECT registry.good.org" in (net.folder / "run" / "log").read_text()


CLONE = """
echo "$ca" > /tmp/ca.pem
cd $(mktemp -d)
git -c http.sslCAInfo=/tmp/ca.pem clone https://git.good.org/x.git 2>&1
cat x/README
git ls-remote https://git.other.org/x.git 2>&1
"""


def test_git_over_https_needs_no_set_up(listed: User, net: Internet, tmp_path: Path) -> None:
    top = listed.repository("served")
    listed.git("clone", "--bare", "--quiet", str(top), str(tmp_path / "x.git"), cwd=top)
    listed.git("update-server-info", cwd=tmp_path / "x.git")
    with serving(net.folder, tmp_path):
        ca = (tmp_path / "cert.pem").read_text()
        net.do("names", {"git.good.org": [[internet.RELAYS[-1]]]})
        said = ssh(listed, f"ca='{ca}'\n{CLONE}")
    assert "hello" in said
    assert "CONNECT tunnel failed, response 403" in said


@contextlib.contextmanager
def serving(folder: Path, root: Path) -> Iterator[None]:
    """An https server of the files in `root` that is git.good.org in the namespace."""
    subject = ["-subj", "/CN=git.good.org", "-addext", "subjectAltName=DNS:git.good.org"]
    subprocess.run(["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt",
                    "ec_paramgen_curve:P-256", "-keyout", str(root / "key.pem"), "-out",
                    str(root / "cert.pem"), *subject], check=True, capture_output=True)  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(root / "cert.pem", root / "key.pem")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        path = f"{folder}/{internet.RELAYS[-1]}\\:443"
        to = f"TCP:127.0.0.1:{server.server_port}"
        with subprocess.Popen(["socat", f"UNIX-LISTEN:{path},fork,mode=777", to]) as joined:
            yield
            joined.kill()
        server.shutdown()


def test_a_flood_of_connections_ends_at_a_limit(listed: User, net: Internet) -> None:
    ssh(listed, FLOOD)
    helper = proxy.command(NAME).partition(" ")[2]
    count = subprocess.run(
        ["pgrep", "-c", "-f", "--", helper], capture_output=True, text=True, check=False
    )
    assert 100 < int(count.stdout) < 400
    assert ssh(listed, "echo back") == "back\n"


FLOOD = """
python3 - > /dev/null 2>&1 <<'PY' &
import socket, time
made = []
for _ in range(600):
    one = socket.socket()
    one.setblocking(False)
    one.connect_ex(("192.168.5.100", 3128))
    made.append(one)
    time.sleep(0.02)
time.sleep(20)
PY
sleep 18
"""


def test_another_mode_leaves_nothing_of_it(listed: User) -> None:
    listed.agent_vm("network", "internet")
    listed.agent_vm("restart")
    assert (
        inside(listed, "env | grep -i _proxy; ls /etc/apt/apt.conf.d; sudo env").count("3128") == 0
    )
    assert not proxy._pid(lima_home(listed) / NAME / "proxy")
