"""Hundreds of random operations, faults among them, after each of which no work may be missing.

    invoke stress --runs 20 --steps 200 --seed 1

Agents and people work with git in three workspaces and two repositories; agent-vm goes between
them, and is killed, interrupted, cut off and starved. After each step all places are looked at:
what was in one of them has to be where places.losses tells. A failure prints all steps of its run;
the same seed makes the same runs, but for what hangs on the moment of a fault.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from agent_vm_tasks import vm
from tests.conftest import a_host
from tests.tasks.conftest import CONFIG

from .people import FILES, HERE, INSIDE, UNREADABLE
from .places import changed, contains, losses
from .world import Fault, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from tests.conftest import Limactl
    from tests.forked import Ended

    from .places import Everything
    from .world import Target

RUNS = int(os.environ.get("STRESS_RUNS", "5"))
STEPS = int(os.environ.get("STRESS_STEPS", "200"))
UNSEEN = "no copy is kept of them"
"""What `destroy` says of workspaces in a VM that does not answer."""

KINDS = ("kill", "kill", "interrupt", "cut", "power off", "full", "full", "guest full")
FAULTS = st.builds(
    Fault,
    st.sampled_from(("none",) * len(KINDS) + KINDS),  # half of the commands are left in peace
    child=st.integers(1, 8),
    delay=st.sampled_from([0, 0.002, 0.01, 0.03, 0.1]),
    size=st.sampled_from([0, 30, 100, 200, 500, 1000, 3000]),
)
AT = {"at": st.sampled_from([0, 0, 0, 1, 2])}
DISTURBED = {**AT, "fault": FAULTS}
FORCE = {"force": st.sampled_from([True, True, False])}
FILE = {"file": st.sampled_from(FILES)}
AT_ONCE = st.sampled_from(["push", "fetch", "clean", "clean-all", "undo", "status"])
MORE_INSIDE = ["commit", "commit", "commit", "edit", "make a file", "return", "return"]
MORE_HERE = ["commit elsewhere", "edit", "edit", "merge", "merge", "change branch", "change branch"]
"""What happens more often than the rest."""
BESIDE = ["edit", "edit", "stage", "commit", "commit elsewhere", "rewrite"]
OPERATIONS: dict[str, tuple[int, dict[str, st.SearchStrategy[Any]]]] = {
    "an_agent": (8, {**AT, "what": st.sampled_from([*INSIDE, *MORE_INSIDE]), **FILE}),
    "a_person": (5, {**AT, "what": st.sampled_from([*HERE, *MORE_HERE]), **FILE}),
    "both_at_work": (
        3,
        {
            **DISTURBED,
            "what": st.sampled_from(BESIDE),
            "last": st.sampled_from(["fetch", "fetch", "push"]),
            **FILE,
        },
    ),
    "push": (2, DISTURBED),
    "fetch": (4, DISTURBED),
    "clean": (4, {**DISTURBED, **FORCE}),
    "clean_all": (1, {"fault": FAULTS, **FORCE}),
    "destroy": (1, {"fault": FAULTS, **FORCE}),
    "undo": (2, {**DISTURBED, "number": st.integers(0, 5)}),
    "connect": (1, DISTURBED),
    "the_vm": (1, {"verb": st.sampled_from(["start", "restart", "stop"]), "fault": FAULTS}),
    "something_happens": (1, {"how": st.sampled_from(["cut", "power off", "delete the instance"])}),
    "two_at_once": (2, {"one": AT_ONCE, "first": AT["at"], "other": AT_ONCE, "second": AT["at"]}),
}
"""The methods of Stress, how often each is called, and with what."""


class Stress(RuleBasedStateMachine):
    """One run."""

    make: Callable[[], World]
    failures: list[str]
    worlds = 0

    def __init__(self) -> None:
        super().__init__()
        if self.failures:  # what hangs on a moment need not fail again, nor has it to
            pytest.skip("one is enough")
        type(self).worlds += 1
        self.world = self.make()
        self.steps: list[str] = []

    def teardown(self) -> None:
        print(f"world {self.worlds}", *self.steps, sep="\n")  # pytest -s shows it
        self.world.close()

    @property
    def now(self) -> Everything:
        return self.world.now

    @rule(name=st.sampled_from([name for name, (n, _) in OPERATIONS.items() for _ in range(n)]),
          data=st.data())  # fmt: skip
    def step(self, name: str, data: st.DataObject) -> None:
        """Of several rules hypothesis leaves out half in each run: few runs would tell little."""
        getattr(self, name)(**data.draw(st.fixed_dictionaries(OPERATIONS[name][1])))

    # People and agents

    def an_agent(self, at: int, what: str, file: str) -> None:
        target = self.world.targets[at]
        place = self.now.spaces.get(target.key)
        if not place:
            self.push(at, Fault())
        elif not place.broken or what in UNREADABLE:
            with self._step(f"inside {target.key}: {what} {file}"):
                words = {**target.words, "file": file}
                self.world.people["inside"].does(INSIDE[what], place.folder, words)
                self._settle(target.key, INSIDE[what].may_lose)

    def a_person(self, at: int, what: str, file: str) -> None:
        target = self.world.targets[at]
        with self._step(f"here {target.repository}: {what} {file} {target.branch}"):
            words = {**target.words, "file": file}
            folder = self.world.repository(target.repository)
            self.world.people["here"].does(HERE[what], folder, words)
            self._settle(target.repository, HERE[what].may_lose)

    def both_at_work(self, at: int, what: str, file: str, last: str, fault: Fault) -> None:
        """They agree on the branch; then both go on, and one hears of the other."""
        self.an_agent(at, "repair", file)
        self.an_agent(at, "return", file)
        self.fetch(at, Fault())
        self.a_person(at, "merge", file)
        self.push(at, Fault())
        self.an_agent(at, "commit", file)
        self.a_person(at, what, file)
        getattr(self, last)(at, fault)

    # agent-vm

    def push(self, at: int, fault: Fault) -> None:
        target, before = self.world.targets[at], self.now
        with self._command(target, "push", target.branch, fault=fault, may=_both(target)) as said:
            host, inside = self.now.hosts[target.repository], self.now.spaces.get(target.key)
            if said.status == 0:
                assert inside, "there is no workspace"
                assert inside.head == target.head
                assert inside.refs[target.head] == host.refs[target.head]
                was = before.spaces.get(target.key)
                assert inside.files.items() <= (was.files.items() if was else set())
            elif fault.kind == "none":
                assert target.key in before.spaces or "are taken" in said.err
                assert (inside and inside.broken) or before.spaces.get(target.key) == inside

    def fetch(self, at: int, fault: Fault) -> None:
        target, before = self.world.targets[at], self.now
        may = {target.repository}
        with self._command(target, "fetch", target.branch, fault=fault, may=may) as said:
            was, host = before.hosts[target.repository], self.now.hosts[target.repository]
            inside = self.now.spaces.get(target.key)
            made = inside.refs.get(target.head) if inside else None
            if said.status == 0:
                assert made, "there is no branch"
                assert contains(host, host.refs[target.head], made)
            elif fault.kind == "none":
                assert not made or "the work is at" in said.err
                assert was == host
            if fault.kind == "none":
                assert not made or made in host.commits
                assert (host.files, host.staged) == (was.files, was.staged)

    def clean(self, at: int, fault: Fault, *, force: bool) -> None:
        target = self.world.targets[at]
        in_its_place = {key for key, place in self.now.spaces.items()
                        if place.broken and place.folder.name in target.folders}  # fmt: skip
        may = {target.key, "undo", *in_its_place}
        words = ("clean", target.branch, *(["--force"] if force else []))
        with self._command(target, *words, fault=fault, may=may if force else set()) as said:
            assert said.status or target.key not in self.now.spaces

    def clean_all(self, fault: Fault, *, force: bool, verb: str = "clean-all") -> None:
        may = {*self.now.spaces, "undo"} if force else set()
        words = (verb, *(["--force"] if force else []))
        with self._command(self.world.targets[0], *words, fault=fault, may=may) as said:
            assert said.status or not self.now.spaces
        if not self.world.limactl.instance():
            self.the_vm("start", Fault())

    def destroy(self, fault: Fault, *, force: bool) -> None:
        self.clean_all(fault, force=force, verb="destroy")

    def undo(self, at: int, fault: Fault, number: int) -> None:
        wanted = self._deleted(number)
        if not wanted:
            return
        copy, target = self.now.copies[wanted], self.world.targets[at]
        may = {copy.key or copy.folder, *(set(self.now.owners) if not copy.key else ())}
        with self._command(target, "undo", wanted, fault=fault, may=may) as said:
            if said.status == 0:
                back = [
                    each for each in self.now.spaces.values() if each.folder.name == copy.folder
                ]
                assert [copy.place] == back
                assert copy.place.commits == back[0].commits

    def connect(self, at: int, fault: Fault) -> None:
        """Have a command make a file."""
        target, file = self.world.targets[at], f"made {len(self.steps)}"
        words = ("connect", target.branch, "--command", f"echo made > '{file}'")
        with self._command(target, *words, fault=fault, may=_both(target)) as said:
            if said.status == 0:
                assert self.now.spaces[target.key].has(file, b"made\n")

    def the_vm(self, verb: str, fault: Fault) -> None:
        with self._command(self.world.targets[0], verb, fault=fault) as said:
            assert not said.status or fault.kind != "none" or "there is no VM" in said.err

    def something_happens(self, how: str) -> None:
        """To the VM, while nothing is at work."""
        acts = {"power off": self.world.power_off, "cut": self.world.cut}
        with self._step(how):
            acts.get(how, self.world.delete_instance)()
            self.world.look()
        if not self.world.limactl.instance():
            self.the_vm("start", Fault())

    def two_at_once(self, one: str, first: int, other: str, second: int) -> None:
        both = [(self.world.targets[at], self._words(verb, self.world.targets[at]))
                for verb, at in ((one, first), (other, second))]  # fmt: skip
        names = [f"{target.repository}: agent-vm {' '.join(words)}" for target, words in both]
        before = self.now
        with self._step(" AND ".join(names)):
            running = [self.world.start(target.repository, words, number)
                       for number, (target, words) in enumerate(both)]  # fmt: skip
            for each in running:
                self._told(self.world.end(each))
            self.world.look()
            assert not losses(before, self.now)
        self._status()

    def _words(self, verb: str, target: Target) -> tuple[str, ...]:
        words = {
            "clean-all": ("--force",),
            "clean": (target.branch, "--force"),
            "status": ("--json",),
            "undo": (self._deleted(0) or "nothing",),
        }
        return (verb, *words.get(verb, (target.branch,)))

    def _deleted(self, number: int) -> str:
        """The name of a kept copy, rather of one that is not there again; "" for none."""
        found = sorted(self.now.copies, reverse=True)
        away = [name for name in found if self.now.copies[name].key not in self.now.spaces]
        return (away or found or [""])[number % max(1, len(away or found))]

    # What is checked after each

    def _settle(self, where: str, may_lose: frozenset[str]) -> None:
        before = self.now
        self.world.look_at(where)
        lost = losses(before, self.now)
        assert not {each for each in lost if each.place != where or each.kind not in may_lose}

    @contextlib.contextmanager
    def _command(
        self, target: Target, *words: str, fault: Fault, may: Iterable[str] = ()
    ) -> Iterator[Ended]:
        """Run `agent-vm`, which may change these places only."""
        before, locks = self.now, self.world.locks()
        with self._step(f"{target.repository}: agent-vm {' '.join(words)}{fault}"):
            said = self.world.run(target.repository, *words, fault=fault)
            self._told(said)
            self.world.look()
            assert UNSEEN in said.err or not losses(before, self.now)
            assert changed(before, self.now) <= set(may)
            assert words[0] == "undo" or not self.world.locks() - locks
            yield said
        if fault.kind != "none":
            self._status()

    def _status(self, *, healed: bool = False) -> None:
        """The next command works and tells the truth; `start` heals what was killed in a start."""
        with self._command(self.world.targets[0], "status", "--json", fault=Fault()) as said:
            assert said.status == 0
            told = json.loads(said.out)
            assert not (healed and told["trouble"])
            if not told["trouble"] and self.world.runs():
                self._compare(told["workspaces"])
        if told["trouble"]:
            self.the_vm("start", Fault())
            self._status(healed=True)

    def _compare(self, listed: list[dict[str, Any]]) -> None:
        rows = {row["folder"]: row for row in listed}
        assert set(rows) == {each.folder.name for each in self.now.spaces.values()}
        for key, place in self.now.spaces.items():
            row = rows[place.folder.name]
            if not place.broken:
                counts = (*place.counts, len(place.stashes))
                assert (row["uncommitted"], row["untracked"], row["stashes"]) == counts
                host = self.now.hosts[self.now.owners[key]].commits
                assert row["unfetched"] or place.commits <= host

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        """Keep all steps of a run that fails."""
        self.steps.append(f"{len(self.steps) + 1:3} {what}")
        try:
            yield
        except Exception as error:
            where = f"world {self.worlds}, step {len(self.steps)}: {error!s:.3000}"
            self.failures.append("\n".join([where, *self.steps]))
            raise

    def _told(self, said: Ended) -> None:
        last = (said.err or said.out).strip().splitlines()[-1:]
        self.steps[-1] += f"\n      -> {said.status} {''.join(last)}"


def _both(target: Target) -> set[str]:
    return {target.key, target.repository}


@pytest.mark.stress
def test_no_work_is_lost(home: Path, limactl: Limactl, monkeypatch: pytest.MonkeyPatch) -> None:
    a_host(monkeypatch)
    monkeypatch.setattr(vm, "BOOT_LIMIT", 2)
    monkeypatch.setattr(vm, "PAUSE", 0.05)
    (home / "disk.qcow2").touch()
    config = home / ".config/agent-vm/config.toml"
    config.parent.mkdir(parents=True)
    config.write_text(CONFIG)
    how = settings(
        max_examples=RUNS + 1,  # the first is the simplest there is
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    failures: list[str] = []
    make = staticmethod(lambda: World(home, limactl))
    run = type("Run", (Stress,), {"make": make, "failures": failures})
    try:
        run_state_machine_as_test(run, settings=how)
    except BaseException:
        if not failures:
            raise
    if failures:
        pytest.fail(failures[0], pytrace=False)
