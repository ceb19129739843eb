"""Provisioning: what makes a stage run again, what happens on failure, what the user hears."""

from __future__ import annotations

import fcntl
import itertools
import os
import re
import shutil
import signal
import stat
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_vm_tasks import data, lima_archive, provision, stages
from agent_vm_tasks.errors import AgentVMError
from agent_vm_tasks.settings import Packages, Settings
from agent_vm_tasks.stages import Stage

from .conftest import wait_until
from .programs import calls, script

if TYPE_CHECKING:
    from .conftest import Guest


def stage(name: str, settings: Settings | None = None) -> Stage:
    return next(s for s in stages.stages(settings or Settings()) if s.name == name)


@dataclass(frozen=True)
class Sandbox:
    """What the runner writes to in a guest, in a temporary folder."""

    folder: Path

    @property
    def marker(self) -> Path:
        return self.folder / "etc" / "agent-environment"

    def log(self, name: str) -> str:
        return (self.folder / "var" / "log" / "agent-vm" / f"{name}.log").read_text()

    def rewritten(self, text: str) -> str:
        """The same script for this folder's /var and /etc."""
        for place in ("/var/lib/agent-vm", "/var/log/agent-vm", "/etc/"):
            text = text.replace(place, f"{self.folder}{place}")
        return text

    def start(self, plan: dict[str, tuple[str, str]], *args: str) -> subprocess.Popen[str]:
        """Start the runner on stages of these stamps and scripts."""
        sent = self.folder / "sent it"
        sent.mkdir(exist_ok=True)
        (sent / "provision.sh").write_text(self.rewritten(data.script("provision.sh")))
        lines = [f"{name} {stamp}\n" for name, (stamp, _) in plan.items()]
        (sent / "plan").write_text("".join(lines))
        for name, (_, text) in plan.items():
            (sent / f"{name}.sh").write_text(text)
        return subprocess.Popen(
            ["bash", str(sent / "provision.sh"), *args],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def run(
        self, plan: dict[str, tuple[str, str]], *args: str, quiet: bool = True
    ) -> tuple[int, list[str]]:
        with self.start(plan, *args) as child:
            out, err = child.communicate(timeout=20)
        assert err == "" or not quiet
        return child.returncode, re.sub(r"(?m)^(@done .*) \d+$", r"\1", out).splitlines()


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    (tmp_path / "etc").mkdir()
    return Sandbox(tmp_path)


def test_every_stage_runs_once_and_then_is_kept(sandbox: Sandbox) -> None:
    plan = {"one": ("1", "echo hello; echo oops >&2"), "two": ("2", "true")}
    assert sandbox.run(plan) == (0, ["@start one", "@done one", "@start two", "@done two"])
    assert sandbox.log("one") == "hello\noops\n"
    assert sandbox.marker.read_text() == "agent-vm\n"
    assert not (sandbox.folder / "sent it").exists()
    assert sandbox.run(plan) == (0, ["@kept one", "@kept two"])


def test_a_stage_with_another_stamp_runs_again_alone(sandbox: Sandbox) -> None:
    sandbox.run({"one": ("1", "true"), "two": ("2", "true")})
    again = sandbox.run({"one": ("1", "exit 1"), "two": ("3", "true")})
    assert again == (0, ["@kept one", "@start two", "@done two"])


def test_a_failure_stops_says_the_last_words_and_the_next_run_resumes_there(
    sandbox: Sandbox,
) -> None:
    bad = r"printf '1\n2\n3\n4\n\n  \n'; false; echo never"
    plan = {"one": ("1", "true"), "two": ("2", bad), "three": ("3", "true")}
    said = ["@start one", "@done one", "@start two", "@failed two 4"]
    assert sandbox.run(plan) == (1, said)
    assert not sandbox.marker.exists()
    assert not (sandbox.folder / "sent it").exists()
    plan["two"] = ("2", "true")
    said = ["@kept one", "@start two", "@done two", "@start three", "@done three"]
    assert sandbox.run(plan) == (0, said)
    assert sandbox.marker.exists()


def test_the_marker_is_away_while_something_is_not_in_force(sandbox: Sandbox) -> None:
    sandbox.run({"one": ("1", "true")})
    assert sandbox.marker.exists()
    assert sandbox.run({"one": ("2", "false")})[0] == 1
    assert not sandbox.marker.exists()


@pytest.mark.parametrize("bad", ["false; true", "false | true", 'echo "$UNSET"', "exit 3", "if"])
def test_any_step_that_fails_fails_the_stage(sandbox: Sandbox, bad: str) -> None:
    status, said = sandbox.run({"one": ("1", bad)})
    assert status == 1
    assert said[0] == "@start one"
    assert said[1].startswith("@failed one ")


WAIT = "for n in $(seq 100); do [ -e {} ] && exit; sleep 0.1; done; exit 1"


def test_stages_side_by_side_are_all_waited_for_and_one_that_fails_is_named(
    sandbox: Sandbox,
) -> None:
    one, two = (f"cd {sandbox.folder}; touch {a}; " + WAIT.format(b) for a, b in ("ab", "ba"))
    plan = {"one": ("1 beside", one), "two": ("2", two), "three": ("3", "true")}
    status, said = sandbox.run(plan)
    assert (status, said[-1], set(said[2:4])) == (0, "@done three", {"@done one", "@done two"})
    plan = {"four": ("4 beside", "sleep 1; echo no luck; false"), "five": ("5", "true")}
    status, said = sandbox.run({**plan, "six": ("6", "true")})
    assert status == 1
    assert said[-1] == "@failed four no luck"
    assert "@start six" not in said


@pytest.mark.parametrize("place", range(3))
def test_a_run_that_is_killed_in_any_stage_is_resumed_there(sandbox: Sandbox, place: int) -> None:
    names = ["one", "two", "three"]
    hang = f"touch {sandbox.folder}/here; sleep 60"
    plan = {name: (name, hang if at == place else "true") for at, name in enumerate(names)}
    with sandbox.start(plan) as child:
        wait_until((sandbox.folder / "here").exists, f"stage {place} does not begin")
        os.killpg(child.pid, signal.SIGKILL)
    assert not sandbox.marker.exists()
    kept = [f"@kept {name}" for name in names[:place]]
    began = [line for name in names[place:] for line in (f"@start {name}", f"@done {name}")]
    status, said = sandbox.run({name: (name, "true") for name in names})
    said = [line for line in said if line != "@waiting"]  # for what is killed to let go of the lock
    assert (status, said) == (0, kept + began)
    assert sandbox.marker.exists()


def test_what_only_lacks_an_item_does_not_stop_what_follows(sandbox: Sandbox) -> None:
    lacking = "echo 'not installed: x'; exit 3"
    plan = {"one": ("1", lacking), "two": ("2", "true"), "three": ("3", "exit 1")}
    said = ["@start one", "@failed one not installed: x", "@start two", "@done two"]
    assert sandbox.run({**plan, "three": ("3", "true")})[0] == 1
    status, lines = sandbox.run(plan)
    assert (status, lines[:2]) == (1, said[:2])
    assert "@kept two" in lines
    assert not sandbox.marker.exists()


def test_a_stage_that_cannot_be_noted_has_failed(sandbox: Sandbox) -> None:
    stamps = sandbox.folder / "var" / "lib" / "agent-vm" / "stamps"
    stamps.mkdir(parents=True)
    assert sandbox.run({"one": ("1", f"mkdir {stamps}/one")}, quiet=False)[0] == 1
    (stamps / "one").rmdir()
    assert sandbox.run({"one": ("1", "true")}) == (0, ["@start one", "@done one"])


def test_an_upgrade_runs_again_what_can_renew_and_tells_it_so(sandbox: Sandbox) -> None:
    plan = {"one": ("1 renews", "echo ${UPGRADE-no}"), "two": ("2", "true")}
    sandbox.run(plan)
    assert sandbox.log("one") == "no\n"
    assert sandbox.run(plan, "upgrade") == (0, ["@start one", "@done one", "@kept two"])
    assert sandbox.log("one") == "yes\n"


def test_a_stage_does_not_see_the_mirrors_of_an_older_session(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "http://gone/")
    sandbox.run({"one": ("1", 'echo "${NPM_CONFIG_REGISTRY-none}"')})
    assert sandbox.log("one") == "none\n"


def test_a_stage_that_reads_its_input_does_not_eat_the_plan(sandbox: Sandbox) -> None:
    plan = {"one": ("1", "cat"), "two": ("2", "true")}
    assert sandbox.run(plan)[1][-1] == "@done two"
    assert sandbox.log("one") == ""


def test_a_stage_knows_its_folder_and_asks_nothing(sandbox: Sandbox) -> None:
    sandbox.run({"one": ("1", 'echo "$PROVISION_FOLDER/$DEBIAN_FRONTEND"')})
    assert sandbox.log("one") == f"{sandbox.folder}/sent it/noninteractive\n"


def test_a_second_run_waits_for_the_first(sandbox: Sandbox) -> None:
    lock = sandbox.folder / "var" / "lib" / "agent-vm" / "lock"
    lock.parent.mkdir(parents=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        child = sandbox.start({"one": ("1", f"touch {sandbox.folder}/ran")})
        time.sleep(0.3)
        assert not (sandbox.folder / "ran").exists()
    assert child.communicate(timeout=20)[0].splitlines()[:2] == ["@waiting", "@start one"]
    assert (sandbox.folder / "ran").exists()


STREAM = "@kept a\n@start b\n@done b 3\n@start c\nsome text\n@failed c E: last\n\n"


def heard(chunks: list[str]) -> tuple[list[str], dict[str, str], bool]:
    said: list[str] = []
    listener = provision._Listener(said.append)
    for chunk in chunks:
        assert listener.write(chunk) == len(chunk)
    return said, listener.failed, listener.worked


def test_the_runners_lines_become_progress() -> None:
    said = ["  installing: b", "  installed: b 3 s", "  installing: c"]
    assert heard([STREAM]) == (said, {"c": "E: last"}, True)
    assert heard(["@kept a\n"]) == ([], {}, False)


@given(st.lists(st.integers(0, len(STREAM))))
def test_however_the_network_cuts_it(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[a:b] for a, b in itertools.pairwise(places)]
    assert heard(chunks) == heard([STREAM])


@pytest.fixture
def vm(guest: Guest, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Guest:
    """A guest where the runner writes into the sandbox, and sudo is nothing special."""
    real = data.script
    monkeypatch.setattr(data, "script", lambda name: sandbox.rewritten(real(name)))
    for name in ("STAMPS", "MARKER"):
        monkeypatch.setattr(provision, name, f"{sandbox.folder}{getattr(provision, name)}")
    programs(guest).mkdir()
    script(programs(guest), "sudo", 'exec "$@"')
    script(programs(guest), "runuser", 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"')
    script(programs(guest), "mktemp", f'exec {shutil.which("mktemp")} "$@" -p "$HOME"')
    return guest


def programs(guest: Guest) -> Path:
    return guest.home / "bin"


def test_a_run_tells_what_it_does_and_whether_it_did_anything(
    vm: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = (
        Stage("one", "true", "1"),
        Stage("two", "echo hi", "2"),
    )
    said: list[str] = []
    assert provision.run(Settings(), plan, said.append) is True
    assert [line.rstrip(" 0123456789s") for line in said] == [
        "  installing: one", "  installed: one", "  installing: two", "  installed: two",
    ]  # fmt: skip
    said.clear()
    assert provision.run(Settings(), plan, said.append) is False
    assert said == []


def sent(vm: Guest) -> int:
    """How often something was sent to the guest to be run."""
    return len([call for call in calls(programs(vm)) if call.startswith("mktemp")])


def test_only_what_is_due_is_sent(vm: Guest) -> None:
    large = Stage("large", "grep -q x $PROVISION_FOLDER/file", "1", files={"file": b"x" * 10**6})
    assert provision.run(Settings(), (large,), lambda _: None)
    assert sent(vm) == 1
    assert not provision.run(Settings(), (large,), lambda _: None)
    assert sent(vm) == 1
    small = Stage("small", "test ! -e $PROVISION_FOLDER/file", "2")
    assert provision.run(Settings(), (large, small), lambda _: None)
    assert sent(vm) == 2


def test_the_marker_comes_back_where_only_it_is_missing(vm: Guest, sandbox: Sandbox) -> None:
    plan = (Stage("one", "true", "1"), Stage("two", "true", "2"))
    provision.run(Settings(), plan, lambda _: None)
    sandbox.marker.unlink()
    assert not provision.run(Settings(), plan, lambda _: None)
    assert sandbox.marker.exists()


def test_every_stage_that_failed_is_named_on_one_line(vm: Guest) -> None:
    plan = (Stage("one", "echo 'not installed: x (gone)'; exit 3", "1", beside=True),
            Stage("two", "echo 'not installed: y (gone)'; exit 3", "2"),
            Stage("three", "true", "3"))  # fmt: skip
    with pytest.raises(AgentVMError) as caught:
        provision.run(Settings(), plan, lambda _: None)
    said = str(caught.value)
    assert "in stage one: not installed: x (gone)" in said
    assert "in stage two: not installed: y (gone)" in said
    assert "/var/log/agent-vm/one.log" in said
    assert "/var/log/agent-vm/two.log" in said
    assert "\n" not in said
    again: list[str] = []
    plan = (Stage("one", "true", "1"), Stage("two", "true", "2"), Stage("three", "false", "3"))
    assert provision.run(Settings(), plan, again.append)
    assert not [line for line in again if "three" in line]


def test_an_upgrade_takes_what_is_in_force_as_well(vm: Guest, sandbox: Sandbox) -> None:
    plan = (Stage("one", "echo ${UPGRADE-no}", "1", renews=True), Stage("two", "true", "2"))
    provision.run(Settings(), plan, lambda _: None)
    said: list[str] = []
    assert provision.run(Settings(), plan, said.append, upgrade=True)
    assert sandbox.log("one") == "yes\n"
    assert not [line for line in said if "two" in line]


@pytest.mark.parametrize("end", ["\\n", ""])
def test_a_failed_stage_is_named_with_its_last_words_and_its_log(
    vm: Guest, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    bad = f"echo first; printf 'E: no route to mirror{end}'; exit 100"
    plan = (
        Stage("one", "true", "1"),
        Stage("two", bad, "2"),
    )
    with pytest.raises(AgentVMError) as caught:
        provision.run(Settings(), plan, lambda _: None)
    assert caught.value.message == "provisioning failed in stage two: E: no route to mirror"
    assert caught.value.hint == (
        "its log is /var/log/agent-vm/two.log in the VM; `agent-vm start` resumes there"
    )


def test_a_runner_that_does_not_even_start_names_no_log(
    vm: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(programs(vm), "sudo", 'echo "sudo: a password is required" >&2; exit 1')
    plan = (Stage("one", "true", "1"),)
    with pytest.raises(AgentVMError) as caught:
        provision.run(Settings(), plan, lambda _: None)
    assert str(caught.value) == (
        "provisioning failed in stage start: sudo: a password is required; "
        "`agent-vm start` resumes there"
    )


@pytest.mark.parametrize("program", ["grep", "mktemp", "sudo"])
@pytest.mark.parametrize("much", ["50000000 /dev/zero", "3000000 /dev/zero >&2"])
def test_a_vm_that_says_too_much_is_cut_off(vm: Guest, program: str, much: str) -> None:
    talks = f'echo $$ > "$HOME/talks"; exec head -c {much}'
    script(programs(vm), program, talks)
    with pytest.raises(AgentVMError, match="provisioning was cut off: the VM says too much; "):
        provision.run(Settings(), (Stage("one", "true", "1"),), lambda _: None)
    pid = (vm.home / "talks").read_text().strip()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "it goes on talking")


def test_a_vm_that_names_a_folder_for_the_file_is_an_error(vm: Guest) -> None:
    script(programs(vm), "mktemp", 'mkdir -p "$HOME/a/provision.tar"; echo "$HOME/a"')
    with pytest.raises(AgentVMError, match="provisioning was cut off: Can't put"):
        provision.run(Settings(), (Stage("one", "true", "1"),), lambda _: None)


def test_a_reader_of_the_progress_that_is_gone_is_what_ends_it(vm: Guest) -> None:
    def say(_line: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        provision.run(Settings(), (Stage("one", "true", "1"),), say)


def test_a_connection_that_breaks_is_an_error_not_a_wait(
    vm: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks = """
pid=$$
until [ "$(cat /proc/$pid/comm)" = sshd ]; do pid=$(cut -d' ' -f4 /proc/$pid/stat); done
kill -9 $pid
"""
    if not Path("/proc/self/stat").exists():
        pytest.skip("needs /proc")
    plan = (Stage("one", breaks, "1"),)
    began = time.monotonic()
    with pytest.raises(AgentVMError, match="stage one"):
        provision.run(Settings(), plan, lambda _: None)
    assert time.monotonic() - began < 10


def test_a_stage_whose_files_cannot_be_had_is_left_out_and_is_due_the_next_time(
    vm: Guest, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> Path:
        raise AgentVMError("no network")

    monkeypatch.setattr(lima_archive, "archive", fails)
    plan = (Stage("one", "true", "1"), Stage("nested", "cat $PROVISION_FOLDER/lima.tar.gz", "2"))
    said: list[str] = []
    assert provision.run(Settings(), plan, said.append) is True
    assert any("no Lima for VMs inside it: no network" in line for line in said)
    assert sandbox.marker.exists()
    assert provision.run(Settings(), plan, said.append) is False
    archive = sandbox.folder / "lima"
    archive.write_text("content\n")
    monkeypatch.setattr(lima_archive, "archive", lambda *_: archive)
    assert provision.run(Settings(), plan, said.append) is True
    assert sandbox.log("nested") == "content\n"
    assert provision.run(Settings(), plan, said.append) is False


def apt(guest: Guest, known: str) -> None:
    """An apt that knows some packages; none is installed."""
    folder = programs(guest)
    script(folder, "dpkg-query", "exit 1")
    script(folder, "apt-cache", f'case " {known} " in *" $2 "*) ;; *) exit 100 ;; esac')
    script(folder, "apt-get")


def test_a_debian_package_that_does_not_exist_is_named(
    vm: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Settings(packages=Packages(apt=("cowsay", "nosuch-thing")))
    apt(vm, " ".join((*data.package_list("apt-packages.txt"), "cowsay")))
    plan = (stage("packages", wanted),)
    with pytest.raises(AgentVMError, match=r"stage packages: not installed: nosuch-thing \(there"):
        provision.run(wanted, plan, lambda _: None)
    (install,) = [call for call in calls(programs(vm)) if call.startswith("apt-get install")]
    assert "cowsay" in install.split()
    assert "nosuch-thing" not in install


def test_only_missing_debian_packages_are_installed(
    vm: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Settings(packages=Packages(apt=("cowsay", "sl=5.02-1")))
    apt(vm, "cowsay sl=5.02-1")
    have = 'case "$4" in cowsay) ;; sl) echo "installed 5.01-1" ;; *) echo "installed 1" ;; esac'
    script(programs(vm), "dpkg-query", have)
    plan = (stage("packages", wanted),)
    assert provision.run(wanted, plan, lambda _: None)
    assert [call for call in calls(programs(vm)) if call.startswith("apt-get")] == [
        "apt-get update --error-on=any",
        "apt-get install -y --no-install-recommends -- cowsay sl=5.02-1",
    ]


def test_an_image_that_has_all_packages_needs_no_network(
    vm: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    apt(vm, "")
    script(programs(vm), "dpkg-query", 'echo "installed 1.0"')
    plan = (stage("packages"),)
    assert provision.run(Settings(), plan, lambda _: None)
    assert not [call for call in calls(programs(vm)) if call.startswith("apt")]


def without_account(one: Stage, sandbox: Sandbox) -> Stage:
    """The stage for the sandbox's /etc and /home, and for whoever runs the test."""
    text = sandbox.rewritten(one.script).replace("/home/agent", f"{sandbox.folder}/home")
    text = text.replace(" -o agent -g agent", "").replace("agent:agent", str(os.getuid()))
    return replace(one, script=text)


@pytest.fixture
def npm(vm: Guest, sandbox: Sandbox) -> Path:
    """An npm that fails at names with no-such in them, and where its packages are."""
    (sandbox.folder / "etc" / "environment").write_text("A=b\n")
    said = "npm error code E404\nnpm error 404 Not Found"
    body = f'echo "{said}"; case "$*" in *no-such*) exit 1 ;; esac'
    script(programs(vm), "npm", body)
    folder = sandbox.folder / "node_modules"
    for package in stages.npm(Settings()):
        have(folder, stages.base_name(package), package.rpartition("@")[2])
    return folder


def have(modules: Path, name: str, version: str) -> None:
    (modules / name).mkdir(parents=True, exist_ok=True)
    (modules / name / "package.json").write_text(f'{{"name": "{name}", "version": "{version}"}}')


def npm_stage(wanted: Settings, sandbox: Sandbox, modules: Path) -> Stage:
    found = without_account(stage("npm", wanted), sandbox)
    return replace(found, script=found.script.replace("/usr/local/lib/node_modules", str(modules)))


def installs(vm: Guest, program: str) -> list[str]:
    """What was asked for, one line a call: without the options, and what every VM gets."""
    lines = [call.split() for call in calls(programs(vm)) if call.startswith(f"{program} ")]
    asked = [[word for word in line if not word.startswith("--")] for line in lines]
    return [" ".join(line[2:]) for line in asked if line[1:2] in (["install"], ["tool"])]


def test_npm_packages_that_are_there_are_not_installed_again(
    vm: Guest, sandbox: Sandbox, npm: Path
) -> None:
    wanted = Settings(packages=Packages(npm=("prettier@3.0.0", "x@^1.2", "@a/b@latest", "y", "z")))
    for name, version in (("x", "1.3.0"), ("@a/b", "2.0.0"), ("y", "1.0.0")):
        have(npm, name, version)
    plan = (npm_stage(wanted, sandbox, npm),)
    provision.run(wanted, plan, lambda _: None)
    assert sorted(installs(vm, "npm")) == ["prettier@3.0.0", "z"]
    provision.run(wanted, plan, lambda _: None, upgrade=True)
    again = ["@a/b@latest", "prettier@3.0.0", "x@^1.2", "y", "z"]
    assert sorted(installs(vm, "npm")[2:]) == again


def test_an_npm_package_that_cannot_be_had_is_named_and_the_others_installed(
    vm: Guest, sandbox: Sandbox, npm: Path
) -> None:
    wanted = Settings(packages=Packages(npm=("no-such-thing", "left-pad")))
    said = r"stage npm: not installed: no-such-thing \(npm error 404 Not Found\);"
    with pytest.raises(AgentVMError, match=said):
        provision.run(wanted, (npm_stage(wanted, sandbox, npm),), lambda _: None)
    assert sorted(installs(vm, "npm")) == ["left-pad", "no-such-thing"]


def test_a_full_disk_is_the_reason_whatever_npm_names_first(
    vm: Guest, sandbox: Sandbox, npm: Path
) -> None:
    full = "npm error nospc ENOSPC: no space left on device, write"
    said = f"npm error code ENOSPC\nnpm error path /root/.npm/_cacache/x\n{full}"
    script(programs(vm), "npm", f'echo "{said}"; exit 1')
    wanted = Settings(packages=Packages(npm=("left-pad",)))
    with pytest.raises(AgentVMError, match="ENOSPC: no space left on device"):
        provision.run(wanted, (npm_stage(wanted, sandbox, npm),), lambda _: None)


def test_without_a_network_npm_says_so_and_names_no_package(
    vm: Guest, sandbox: Sandbox, npm: Path
) -> None:
    said = "npm error code EAI_AGAIN\nnpm error request to https://registry failed, EAI_AGAIN"
    script(programs(vm), "npm", f'echo "{said}"; exit 1')
    wanted = Settings(packages=Packages(npm=("left-pad", "is-odd")))
    with pytest.raises(AgentVMError, match="stage npm: npm error request to https://registry fail"):
        provision.run(wanted, (npm_stage(wanted, sandbox, npm),), lambda _: None)


def test_a_mirror_that_does_not_answer_is_named(vm: Guest) -> None:
    wanted = Settings(packages=Packages(apt=("cowsay",)))
    apt(vm, "")
    said = "Err:1 http://m trixie\nE: Failed to fetch http://m/d  404\nE: Some index files failed."
    script(programs(vm), "apt-get", f'echo "{said}"; exit 100')
    with pytest.raises(AgentVMError, match="stage packages: E: Failed to fetch http://m/d  404;"):
        provision.run(wanted, (stage("packages", wanted),), lambda _: None)


def test_many_packages_that_cannot_be_had_are_no_wall_of_text(
    vm: Guest, sandbox: Sandbox, npm: Path
) -> None:
    wanted = Settings(packages=Packages(npm=tuple(f"no-such-{n}" for n in range(9))))
    with pytest.raises(AgentVMError, match=r"no-such-2 \([^)]*\); and 6 more;"):
        provision.run(wanted, (npm_stage(wanted, sandbox, npm),), lambda _: None)


def test_python_tools_that_are_there_are_not_installed_again(vm: Guest, sandbox: Sandbox) -> None:
    (sandbox.folder / "etc" / "environment").write_text("A=b\n")
    ours = [package.split("==") for package in stages.python(Settings())]
    there = [*ours, ["my-thing", "1.0"], ["httpie", "3.0"]]
    listing = "".join(f"{name} v{version}\\n- {name}\\n" for name, version in there)
    script(programs(vm), "uv", f"""
case "$*" in
    "tool list") printf '{listing}' ;;
    *gone*) echo "error: No solution found when resolving" >&2; exit 1 ;;
esac""")  # fmt: skip
    mine = ("My_Thing", "httpie[socks]==3.2", "gone==9", "new")
    script(programs(vm), "chown")
    wanted = Settings(packages=Packages(python=mine))
    plan = (without_account(stage("python", wanted), sandbox),)
    with pytest.raises(AgentVMError, match=r"installed: gone==9 \(error: No solution found"):
        provision.run(wanted, plan, lambda _: None)
    done = ["httpie[socks]==3.2", "gone==9", "new"]
    assert installs(vm, "uv") == ["list", *(f"install {name}" for name in done)]
    given = [call.split()[-1] for call in calls(programs(vm)) if call.startswith("chown -R agent:")]
    assert given == ["/opt/uv-tools/httpie", "/opt/uv-tools/new"]


def test_home_files_are_put_down_once_and_the_users_own_are_kept(
    vm: Guest, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = sandbox.folder / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("mine\n")
    plan = (without_account(stage("home"), sandbox),)
    assert provision.run(Settings(), plan, lambda _: None)
    source = data.root() / "common" / "homedir"
    assert (home / ".gitconfig").read_text() == "mine\n"
    assert (home / ".claude.json").read_text() == (source / ".claude.json").read_text()
    assert (home / ".local" / "bin" / "start-claude").stat().st_mode & stat.S_IXUSR
    assert (home / ".claude" / "skills" / "agent-vm" / "SKILL.md").is_file()


def test_home_files_without_the_first_of_them_are_an_error(
    vm: Guest, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    (sandbox.folder / "home").mkdir()
    broken = replace(stage("home"), files={**stage("home").files, "home.tar": stages.tar({})})
    plan = (without_account(broken, sandbox),)
    with pytest.raises(AgentVMError, match=r"the home files are incomplete: \.claude\.json"):
        provision.run(Settings(), plan, lambda _: None)


def test_users_can_be_set_up_again_without_harm(sandbox: Sandbox) -> None:
    (sandbox.folder / "etc" / "profile.d").mkdir()
    (sandbox.folder / "etc" / "bash.bashrc").write_text("# Debian's\n")
    folder = sandbox.folder / "bin"
    folder.mkdir()
    for name in ("usermod", "loginctl"):
        script(folder, name)
    script(folder, "getent", '[ "$2" = docker ]')
    script(folder, "runuser", "exit 1")  # as where the package with the bus could not be had
    text = without_account(stage("users"), sandbox).script
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], env=env, check=True)
    assert (sandbox.folder / "etc" / "subuid").read_text() == "agent:200000:65536\n"
    assert "usermod -aG docker agent" in calls(folder)
    assert "usermod -aG kvm agent" not in calls(folder)
    assert "loginctl enable-linger agent" in calls(folder)
    lines = (sandbox.folder / "etc" / "environment").read_text().splitlines()
    environment = dict(line.partition("=")[::2] for line in lines)
    assert environment["PATH"].startswith(f'"{sandbox.folder}/home/.local/bin:')
    assert "ca-certificates.crt" in environment["NODE_EXTRA_CA_CERTS"]
