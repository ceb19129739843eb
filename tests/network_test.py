"""What the VM may reach: the modes, and the wrapper between Lima and QEMU."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from agent_vm_tasks import host, lima, network, render, settings
from agent_vm_tasks.errors import AgentVMError

from .conftest import VM
from .programs import calls, script

NETDEV = "user,id=net0,net=192.168.5.0/24,dhcpstart=192.168.5.15,hostfwd=tcp:127.0.0.1:60022-:22"
ASKED = ["-m", "8192", "-netdev", NETDEV, "-device", "virtio-net-pci,netdev=net0,mac=52:55:55:1",
         "-drive", "file=/a b/disk"]  # fmt: skip


@pytest.fixture
def wrapped(tmp_path: Path) -> Path:
    """A folder with a QEMU and a passt that record how they are called."""
    script(
        tmp_path, "qemu", 'printf "%s\\n" "$@" > "$(dirname "$0")/words"; exec sleep "${RUNS:-0}"'
    )
    script(tmp_path, "passt", 'sleep 60 > /dev/null 2>&1 & echo $! > "$(dirname "$0")/passt.pid"')
    return tmp_path


def run(folder: Path, mode: str, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """What the wrapper does when Lima starts it so."""
    path = folder / "wrapper"
    proxy = "/a,b/socat STDIO TCP:127.0.0.1:49152" if mode == "allowlist" else ""
    text = render.qemu(
        mode=mode, qemu=str(folder / "qemu"), passt=str(folder / "passt"), folder=folder,
        proxy=proxy,
    )  # fmt: skip
    path.write_text(text)
    return subprocess.run(["bash", str(path), *argv], env={**os.environ, **env}, text=True,
                          capture_output=True, check=False)  # fmt: skip


def words(folder: Path) -> list[str]:
    return (folder / "words").read_text().splitlines()


def test_offline_leaves_nothing_but_the_way_in(wrapped: Path) -> None:
    assert run(wrapped, "offline", *ASKED).returncode == 0
    assert words(wrapped) == [word + ",restrict=on" * (word == NETDEV) for word in ASKED]
    assert [call.split()[0] for call in calls(wrapped)] == ["qemu"]


def test_allowlist_leaves_the_way_in_and_one_to_the_proxy(wrapped: Path) -> None:
    script(
        wrapped, "qemu", f'printf "%s\\n" "$@" > {wrapped}/words; ulimit -H -n > {wrapped}/files'
    )
    assert run(wrapped, "allowlist", *ASKED).returncode == 0
    way = "guestfwd=tcp:192.168.5.100:3128-cmd:/a,,b/socat STDIO TCP:127.0.0.1:49152"
    joined = f"{NETDEV},restrict=on,{way}"
    told = ["-fw_cfg", "name=opt/org.agent-vm/proxy,string=http://192.168.5.100:3128"]
    assert words(wrapped) == [joined if word == NETDEV else word for word in ASKED] + told
    assert [call.split()[0] for call in calls(wrapped)] == ["qemu"]
    assert int((wrapped / "files").read_text()) < 400


def test_internet_goes_by_passt_without_the_way_to_the_hosts_loopback(wrapped: Path) -> None:
    assert run(wrapped, "internet", *ASKED, RUNS="1").returncode == 0
    joined = f"stream,id=net0,server=off,addr.type=unix,addr.path={wrapped}/passt.sock"
    assert words(wrapped) == [joined if word == NETDEV else word for word in ASKED]
    passt = calls(wrapped)[0].split()
    assert passt[0] == "passt"
    assert {"--no-map-gw", "--ipv4-only", "--one-off"} < set(passt)
    assert passt[passt.index("--tcp-ports") + 1] == "127.0.0.1/60022:22"
    assert passt[passt.index("--udp-ports") + 1] == "none"


@pytest.mark.parametrize("asked", [ASKED, ["-netdev", "user,id=other"]])
def test_open_leaves_the_network_as_lima_wants_it(wrapped: Path, asked: list[str]) -> None:
    assert run(wrapped, "open", *asked).returncode == 0
    assert words(wrapped) == asked


@pytest.mark.parametrize("mode", ["offline", "allowlist", "internet", "open"])
@pytest.mark.parametrize("asked", [["-M", "none", "-accel", "help"], ["--version"]])
def test_what_lima_asks_of_qemu_itself_is_passed_on(
    wrapped: Path, mode: str, asked: list[str]
) -> None:
    assert run(wrapped, mode, *asked).returncode == 0
    assert words(wrapped) == asked
    assert len(calls(wrapped)) == 1


@pytest.mark.parametrize("mode", ["offline", "allowlist", "internet"])
@pytest.mark.parametrize(
    "other",
    [
        [],
        ["-netdev", "user,id=net0"],
        ["-netdev", NETDEV.replace("192.168.5.0/24", "10.0.0.0/8")],
        [*ASKED, "-netdev", "user,id=net1"],
        [*ASKED, "-nic", "tap,id=net1"],
    ],
    ids=["none", "plain", "other", "second", "tap"],
)
def test_a_network_that_is_not_known_is_refused(wrapped: Path, mode: str, other: list[str]) -> None:
    assert run(wrapped, mode, *other).returncode == 1
    assert not (wrapped / "words").exists()


def test_passt_does_not_outlive_a_qemu_that_failed(wrapped: Path) -> None:
    run(wrapped, "internet", *ASKED)
    passt = int((wrapped / "passt.pid").read_text())
    end = time.monotonic() + 15
    while alive(passt):
        assert time.monotonic() < end
        time.sleep(0.2)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# Modes


def made(boot: str = f"DNS={render.RESOLVER}") -> lima.Instance:
    """A VM whose boot script is this."""
    config = {"provision": [{"script": boot}]}
    return lima.Instance(VM, "Stopped", Path("/"), 1, 1, 1, 1, "qemu", config=config)


@pytest.fixture
def here(repository: Path, home: Path) -> Path:
    (home / ".config" / "agent-vm").mkdir(parents=True)
    return repository


def asked(here: Path, ours: str, repositorys: str) -> str:
    files = {
        Path.home() / ".config/agent-vm/config.toml": ours,
        here / "agent-vm.toml": repositorys,
    }
    for path, mode in files.items():
        path.write_text(f'[network]\nmode = "{mode}"\n' if mode else "")
    return network.wanted(settings.load(here))


@pytest.mark.parametrize(
    ("ours", "repositorys", "counts"),
    [
        ("", "", "internet"),
        ("open", "", "open"),
        ("", "open", "internet"),
        ("", "offline", "offline"),
        ("open", "internet", "internet"),
        ("offline", "open", "offline"),
        ("", "allowlist", "allowlist"),
        ("allowlist", "internet", "allowlist"),
        ("offline", "allowlist", "offline"),
    ],
)
def test_a_repository_only_tightens(here: Path, ours: str, repositorys: str, counts: str) -> None:
    assert asked(here, ours, repositorys) == counts


@pytest.mark.parametrize(
    ("ours", "repositorys", "told", "counts"),
    [
        ("", "", "open", "open"),
        ("offline", "", "internet", "internet"),
        ("", "offline", "open", "offline"),
        ("open", "internet", "offline", "offline"),
    ],
)
def test_what_was_told_goes_before_the_users_file_and_not_before_the_repositorys(
    here: Path, ours: str, repositorys: str, told: str, counts: str
) -> None:
    network.choose(VM, told)
    assert asked(here, ours, repositorys) == counts


@pytest.mark.parametrize(
    ("mode", "macos", "passt", "planned", "warns"),
    [
        ("internet", False, True, "internet", False),
        ("internet", False, False, "open", True),
        ("internet", True, False, "open", True),
        ("open", False, False, "open", False),
        ("offline", False, False, "offline", False),
        ("offline", True, False, "", False),
    ],
)
def test_what_a_host_cannot_enforce_is_told_or_refused(
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    mode: str,
    macos: bool,
    passt: bool,
    planned: str,
    warns: bool,
) -> None:
    asked(here, mode, "")
    monkeypatch.setattr(host, "is_macos", lambda: macos)
    monkeypatch.setattr(host, "passt_day", lambda: 20260728 if passt else 0)
    monkeypatch.setattr(host, "qemu_version", lambda: (10, 0, 0))
    if not planned:
        with pytest.raises(AgentVMError, match="cannot be offline"):
            network.plan(settings.load(here), made())
        return
    plan = network.plan(settings.load(here), made())
    assert (plan.mode, bool(plan.warning)) == (planned, warns)


@pytest.mark.parametrize(
    ("macos", "programs", "boot", "lacks"),
    [
        (False, ("squid", "socat"), render.PROXY_NOTE, ""),
        (False, ("socat",), render.PROXY_NOTE, "not installed: squid; `agent-vm setup` installs"),
        (False, ("squid", "socat"), "true", "an older agent-vm made the VM"),
        (True, ("squid", "socat"), render.PROXY_NOTE, "on Linux only"),
    ],
)
def test_an_allowlist_that_cannot_be_enforced_is_refused(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, macos: bool,
    programs: tuple[str, ...], boot: str, lacks: str,
) -> None:  # fmt: skip
    asked(here, "allowlist", "")
    for each in programs:
        script(tmp_path, each)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host, "_SYSTEM_FOLDERS", "")
    monkeypatch.setattr(host, "is_macos", lambda: macos)
    if not lacks:
        assert network.plan(settings.load(here), made(boot)) == network.Plan("allowlist")
        return
    with pytest.raises(AgentVMError, match="the network cannot be allowlist: ") as told:
        network.plan(settings.load(here), made(boot))
    assert lacks in str(told.value)


@pytest.mark.parametrize(("qemu", "planned"), [((7, 1, 0), "open"), ((7, 2, 0), "internet")])
def test_an_old_qemu_cannot_be_joined_to_passt(
    here: Path, monkeypatch: pytest.MonkeyPatch, qemu: tuple[int, int, int], planned: str
) -> None:
    monkeypatch.setattr(host, "passt_day", lambda: 20260728)
    monkeypatch.setattr(host, "qemu_version", lambda: qemu)
    plan = network.plan(settings.load(here), made())
    assert (plan.mode, "older than 7.2" in plan.warning) == (planned, planned == "open")


@pytest.mark.parametrize(("mode", "planned"), [("internet", "open"), ("offline", "offline")])
def test_a_vm_of_an_older_version_keeps_its_names(
    here: Path, monkeypatch: pytest.MonkeyPatch, mode: str, planned: str
) -> None:
    monkeypatch.setattr(host, "passt_day", lambda: 20260728)
    monkeypatch.setattr(host, "qemu_version", lambda: (10, 0, 0))
    asked(here, mode, "")
    plan = network.plan(settings.load(here), made(boot="true"))
    assert (plan.mode, "older agent-vm" in plan.warning) == (planned, planned == "open")


@pytest.mark.parametrize(
    ("said", "planned"),
    [
        ("passt 0.0~git20260728.f8df3f1", "internet"),
        ("passt 2026_10_02.cba3570", "internet"),
        ("passt 0.0~git20250503.587980c-2", "open"),
        ("passt 0.0~git20230309.7c7625d-1", "open"),
        ("passt unknown version", "open"),
    ],
)
def test_a_passt_that_loses_connections_is_not_used(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, planned: str
) -> None:
    script(tmp_path, "passt", f"[ -t 1 ] && echo '{said}'")  # 2025_05_03 tells it to no pipe
    script(tmp_path, f"qemu-system-{host.arch()}", "echo QEMU emulator version 10.0.0")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(host, "_OUR_FOLDERS", ())
    plan = network.plan(settings.load(here), made())
    assert (plan.mode, "2026 or newer" in plan.warning) == (planned, planned == "open")
