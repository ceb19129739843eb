"""docs/trust-model.md: no sentence without a test or a source, and both are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent_vm_tasks import audit, intact

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs/trust-model.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`((?:\w+/)*\w+_test\.py)`", TEXT)))
PROMISES = sorted({each.promise for each in (*audit.ATTACKS, *intact.FACTS)})
SOURCE = r"_test\.py`|https://|CVE-\d|\w\(\d\)"
"""A test, or where it is written."""


def blocks() -> list[str]:
    """Rows of tables, points of lists and paragraphs, but for headings and what opens a list."""
    found: list[str] = []
    for part in re.split(r"\n\n+", TEXT):
        if part.startswith(("|", "- ")):
            found += re.split(r"\n(?=[|-])", re.sub(r"^\|.*\n\| ---.*\n", "", part))
        elif not part.startswith("#") and not part.endswith(":"):
            found.append(part)
    return found


def test_each_test_that_it_names_is_there() -> None:
    assert NAMED
    assert [name for name in NAMED if not (TESTS / name).is_file()] == []


@pytest.mark.parametrize("promise", PROMISES)
def test_each_promise_that_is_audited_is_in_it(promise: str) -> None:
    assert f"**{promise}**" in TEXT


@pytest.mark.parametrize("promise", re.findall(r"\| \*\*(\w+)\*\*", TEXT))
def test_each_promise_in_it_is_audited_and_attacked(promise: str) -> None:
    assert promise in {each.promise for each in audit.ATTACKS}
    (row,) = [each for each in blocks() if each.startswith(f"| **{promise}**")]
    assert re.search(rf"`(attacks|vm)/{promise}_test\.py`", row)


@pytest.mark.parametrize(
    "name", sorted(path.name for path in (TESTS / "attacks").glob("*_test.py"))
)
def test_each_file_of_attacks_is_in_it(name: str) -> None:
    assert f"attacks/{name}" in NAMED


def test_each_claim_has_a_test_or_a_source() -> None:
    assert [each for each in blocks() if not re.search(SOURCE, each)] == []
