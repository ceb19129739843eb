"""Provisioning: what makes a stage run again, what happens on failure, what the user hears."""

from __future__ import annotations

import fcntl
import io
import itertools
import os
import re
import shutil
import stat
import subprocess
import tarfile
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

from .programs import calls, script

if TYPE_CHECKING:
    from .conftest import Guest


def stamps(settings: Settings) -> dict[str, str]:
    return {stage.name: stage.stamp for stage in stages.stages(settings)}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def stage(name: str, settings: Settings | None = None) -> Stage:
    return next(s for s in stages.stages(settings or Settings()) if s.name == name)


def test_stamps_are_the_same_for_the_same_settings() -> None:
    assert stamps(Settings()) == stamps(Settings())
    assert len(set(stamps(Settings()).values())) == len(stamps(Settings()))


@pytest.mark.parametrize(
    ("packages", "again"),
    [(Packages(apt=("cowsay",)), {"packages"}), (Packages(npm=("left-pad",)), {"npm"})],
)
def test_another_package_makes_its_own_stage_run_again(packages: Packages, again: set[str]) -> None:
    assert changed(stamps(Settings()), stamps(Settings(packages=packages))) == again


@pytest.fixture
def copy_of_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("templates", "common"):
        shutil.copytree(data.root() / name, tmp_path / name)
    monkeypatch.setattr(data, "root", lambda: tmp_path)
    return tmp_path


def test_a_home_file_makes_the_home_stage_run_again(copy_of_data: Path) -> None:
    first = stamps(Settings())
    file = copy_of_data / "common" / "homedir" / ".gitconfig"
    os.utime(file, (1, 1))
    assert changed(first, stamps(Settings())) == set()
    file.write_text("[user]\n")
    second = stamps(Settings())
    assert changed(first, second) == {"home"}
    file.chmod(0o755)
    assert changed(second, stamps(Settings())) == {"home"}


def test_a_pinned_version_makes_its_stage_run_again(copy_of_data: Path) -> None:
    first = stamps(Settings())
    file = copy_of_data / "common" / "packages" / "versions.txt"
    lines = file.read_text().splitlines()
    file.write_text("\n".join("uv=0.0.1" if line.startswith("uv=") else line for line in lines))
    assert "node" in changed(first, stamps(Settings()))
    assert "packages" not in changed(first, stamps(Settings()))


def test_the_archive_of_home_files_keeps_names_and_exec_bits() -> None:
    top = data.root() / "common" / "homedir"
    with tarfile.open(fileobj=io.BytesIO(stages.tar(stages.home_files()))) as archive:
        modes = {entry.name: entry.mode for entry in archive}
    assert set(modes) == {str(p.relative_to(top)) for p in top.rglob("*") if p.is_file()}
    assert modes[".local/bin/start-claude"] == 0o755
    assert modes[".gitconfig"] == 0o644


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

    def start(self, plan: dict[str, tuple[str, str]]) -> subprocess.Popen[str]:
        """Start the runner on stages of these stamps and scripts."""
        sent = self.folder / "sent it"
        sent.mkdir(exist_ok=True)
        (sent / "provision.sh").write_text(self.rewritten(data.script("provision.sh")))
        lines = [f"{name} {stamp}\n" for name, (stamp, _) in plan.items()]
        (sent / "plan").write_text("".join(lines))
        for name, (_, text) in plan.items():
            (sent / f"{name}.sh").write_text(text)
        argv = ["bash", str(sent / "provision.sh")]
        return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, plan: dict[str, tuple[str, str]]) -> tuple[int, list[str]]:
        with self.start(plan) as child:
            out, err = child.communicate(timeout=20)
        assert err == ""
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
    said = ["@start one", "@done one", "@start two", "@failed two", "2", "3", "4"]
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
    assert said[:2] == ["@start one", "@failed one"]


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
    assert said[-2:] == ["@failed four", "no luck"]
    assert "@start six" not in said


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


STREAM = "@kept a\n@start b\n@done b 3\n@start c\nsome text\n@failed c\nE: first\nE: last\n\n"


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
        "apt-get update",
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


def test_an_npm_package_that_cannot_be_had_is_named(
    vm: Guest, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Settings(packages=Packages(npm=("no-such-thing",)))
    (sandbox.folder / "etc" / "environment").write_text("A=b\n")
    npm = 'echo "npm error 404" >&2; case "$*" in *no-such*) exit 1 ;; esac'
    script(programs(vm), "npm", npm)
    plan = (without_account(stage("npm", wanted), sandbox),)
    with pytest.raises(
        AgentVMError, match=r"stage npm: not installed: no-such-thing \(npm error 404\);"
    ):
        provision.run(wanted, plan, lambda _: None)


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
    folder = sandbox.folder / "bin"
    folder.mkdir()
    script(folder, "usermod")
    script(folder, "getent", '[ "$2" = docker ]')
    text = without_account(stage("users"), sandbox).script
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    for _ in range(2):
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], env=env, check=True)
    assert (sandbox.folder / "etc" / "subuid").read_text() == "agent:200000:65536\n"
    assert "usermod -aG docker agent" in calls(folder)
    assert "usermod -aG kvm agent" not in calls(folder)
    lines = (sandbox.folder / "etc" / "environment").read_text().splitlines()
    environment = dict(line.partition("=")[::2] for line in lines)
    assert environment["PATH"].startswith(f'"{sandbox.folder}/home/.local/bin:')
    assert "ca-certificates.crt" in environment["NODE_EXTRA_CA_CERTS"]
