"""network-log: what the VM tried to reach, and what to paste to let it."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING

import pytest

from agent_vm_tasks import lima
from tests.conftest import VM

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Limactl

    from .conftest import Command

LINES = """\
1795637908.685 403 GET x.org 80 unlisted curl%2F8.14
1795637909.100 200 CONNECT pypi.org 443 - -
half a li
1795637907.000 403 G%1B[31mET %E2%80%AEevil.org 443 unlisted %1B]0;title%07%0A1795637999.0
1795637910.000 403 GET meta.org 80 private -
1795637911.000 400 NONE error:invalid-request - - -
1795637912.000 403 CONNECT x.org 8443 unlisted npm%20x
"""


@pytest.fixture
def log(home: Path, limactl: Limactl) -> Path:
    """The log of a VM that was made here."""
    run = lima.folder(VM) / "proxy" / "run"
    run.mkdir(parents=True)
    known = home / ".agent-vm" / VM / "known_hosts"
    known.parent.mkdir(parents=True)
    known.touch()
    return run / "log"


def test_the_log_is_told_in_order_and_escaped(log: Path, agent_vm: Command) -> None:
    log.write_text(LINES)
    said = agent_vm("network-log")
    rows = [line.split("  ") for line in said.out.splitlines()]
    assert len(rows) == 7
    assert "\x1b" not in said.out
    assert "\u202e" not in said.out
    assert r"\u202eevil.org:443" in said.out
    assert r"\x1b]0;title\x07\n1795637999.0" in said.out
    assert "refused: unlisted" in said.out.splitlines()[1]
    found = json.loads(agent_vm("network-log", "--json").out)
    assert [each["refused"] for each in found] == ["unlisted", "unlisted", None, "private",
                                                  "malformed", "unlisted"]  # fmt: skip
    assert found[2] == {"time": 1795637909.1, "refused": None, "status": 200, "method": "CONNECT",
                        "host": "pypi.org", "port": 443, "program": "", "why": None}  # fmt: skip


def test_what_was_refused_is_learned_as_toml_that_counts(
    log: Path, agent_vm: Command, home: Path
) -> None:
    log.write_text(LINES)
    said = agent_vm("network-log", "--learn").out
    assert tomllib.loads(said) == {"network": {"allow": ["x.org", "x.org:8443"]}}
    assert '"x.org:8443",  # 1 time, last by npm x' in said
    with (home / ".config/agent-vm/config.toml").open("a") as file:
        file.write(said)
    assert agent_vm("network-log", "--learn").out.startswith("# Nothing was refused that")


@pytest.mark.parametrize(
    "host",
    ["10.0.0.1", "[::1]", "localhost", "a.localhost", "printer.local", "db.internal", "x.home.arpa",
     "a.org%0A]", '"]#.org', "x_y.org", "2130706433", "0x7f.1"],
)  # fmt: skip
def test_what_can_be_no_public_host_is_not_learned(log: Path, agent_vm: Command, host: str) -> None:
    log.write_text(f"1.0 403 CONNECT {host} 443 unlisted curl\n")
    assert agent_vm("network-log", "--learn").out.startswith("# Nothing was refused that")


def test_what_the_guest_says_is_no_line_of_what_is_to_be_pasted(
    log: Path, agent_vm: Command
) -> None:
    log.write_text("1.0 403 CONNECT x.org 443 unlisted a%0Aevil%20=%201%1B[2J\n")
    said = agent_vm("network-log", "--learn").out
    assert "\x1b" not in said
    assert tomllib.loads(said) == {"network": {"allow": ["x.org"]}}


def test_private_names_are_not_learned(log: Path, agent_vm: Command) -> None:
    log.write_text("1.0 403 CONNECT intranet.org 443 private curl\n")
    assert agent_vm("network-log", "--learn").out.startswith("# Nothing was refused that")
