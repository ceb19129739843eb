"""Settings: what is accepted, refused, found, and whose word counts."""

from __future__ import annotations

import dataclasses
import os
import re
import string
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agent_vm_tasks import checks, settings
from agent_vm_tasks.errors import UsageError

ROOT = Path(__file__).parent.parent
SHARED_FILES = hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    return folder


@pytest.fixture
def repo(home: Path) -> Path:
    folder = home / "repo"
    (folder / ".git").mkdir(parents=True)
    return folder


def write_user(home: Path, text: str) -> Path:
    path = home / ".config" / "agent-vm" / "config.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def write_repo(folder: Path, text: str) -> Path:
    path = folder / "agent-vm.toml"
    path.write_text(text, encoding="utf-8")
    return path


def key_paths() -> set[str]:
    empty = settings.Settings()
    tables = {f.name: getattr(empty, f.name) for f in dataclasses.fields(empty)}
    del tables["sources"]
    fields = {name: dataclasses.fields(table) for name, table in tables.items()}
    return {f"{name}.{f.name.rstrip('_')}" for name, each in fields.items() for f in each}


CPUS = "vm.cpus must be a whole number from 1 to 1024, not "
MEMORY = 'vm.memory must be GiB or a size like "8GiB", from 512MiB to 4096GiB, not '
DISK = 'vm.disk must be GiB or a size like "8GiB", from 4GiB to 65536GiB, not '
NAME = "vm.name must be at most 31 lower-case letters, digits and hyphens, a letter first, not "
IMAGE = (
    'vm.image must be "auto", "cloud", "build", a path from / or ~/, '
    "or an https URL without a password, not "
)
CERTS = 'vm.ca_certs must be "auto" or a list of files, not '
APT = "packages.apt[{}] must be a Debian package's name, not "
NPM = "packages.npm[0] must be an npm package like name, @scope/name or name@1.2, not "
PYTHON = "packages.python[0] must be a Python package like name, name[extra] or name==1.2, not "
PORT = "network.ports[{}] must be a whole number from 1024 to 65535, not "
INSIDE = "workspace.include[1] must be a path inside the repository, without . or .., not "
VISIBLE = "{} must be text without control characters and '{{{{', not "
HOST = " must be a path that begins with / or ~/ and has no .., not "

BAD = [
    # numbers
    ("[vm]\ncpus = true", CPUS + "true"),
    ("[vm]\ncpus = 0", CPUS + "0"),
    ("[vm]\ncpus = -4", CPUS + "-4"),
    ("[vm]\ncpus = 1025", CPUS + "1025"),
    ("[vm]\ncpus = 4.0", CPUS + "4.0"),
    ("[vm]\ncpus = nan", CPUS + "nan"),
    ('[vm]\ncpus = "4"', CPUS + "'4'"),
    ("[vm]\ncpus = [4]", CPUS + "a list"),
    ("[vm]\ncpus = {count = 4}", CPUS + "a table"),
    ("[vm]\ncpus = 2020-01-01", CPUS + "2020-01-01"),
    ("[vm]\ncpus = 99999999999999999999", CPUS + "a number beyond all use"),
    (f"[vm]\ncpus = 0x{'f' * 9000}", CPUS + "a number beyond all use"),
    (f"[vm]\ncpus = {'9' * 9000}", "agent-vm.toml:2: not valid TOML"),
    # sizes
    ("[vm]\nmemory = true", MEMORY + "true"),
    ("[vm]\nmemory = -1", MEMORY + "-1"),
    ("[vm]\nmemory = 0", MEMORY + "0"),
    ("[vm]\nmemory = 8.5", MEMORY + "8.5"),
    ("[vm]\nmemory = 8192", MEMORY + "8192"),
    ('[vm]\nmemory = "511MiB"', MEMORY + "'511MiB'"),
    ('[vm]\nmemory = "8"', MEMORY + "'8'"),
    ('[vm]\nmemory = "eight"', MEMORY + "'eight'"),
    ('[vm]\nmemory = "8TiB"', MEMORY + "'8TiB'"),
    ('[vm]\nmemory = "-8GiB"', MEMORY + "'-8GiB'"),
    ('[vm]\nmemory = "\\uFF18GiB"', MEMORY + "'\uff18GiB'"),
    ('[vm]\nmemory = "8GiB\\nmounts:\\n- location: /"', VISIBLE.format("vm.memory")),
    ('[vm]\nmemory = "8GiB\\n"', VISIBLE.format("vm.memory") + r"'8GiB\n'"),
    ("[vm]\ndisk = 3", DISK + "3"),
    ('[vm]\ndisk = "4095MiB"', DISK + "'4095MiB'"),
    (f'[vm]\ndisk = "{"9" * 5000}GiB"', f"not '{'9' * 57}...'"),
    # words
    ('[vm]\nname = ""', NAME + "''"),
    ('[vm]\nname = "Agent"', NAME),
    ('[vm]\nname = "-x"', NAME),
    ('[vm]\nname = "a/../b"', "not 'a/../b'"),
    ('[vm]\nname = "a$(id)"', "not 'a$(id)'"),
    (f'[vm]\nname = "{"a" * 32}"', f"not '{'a' * 32}'"),
    ("[vm]\nname = 7", NAME + "7"),
    ('[vm]\nname = "{{.Home}}"', VISIBLE.format("vm.name") + "'{{.Home}}'"),
    ('[vm]\nname = "vm\\u202E"', VISIBLE.format("vm.name") + r"'vm\u202e'"),
    ('[vm]\nvm_type = "wsl2"', 'vm.vm_type must be "auto", "qemu" or "vz", not \'wsl2\''),
    ("[vm]\nvm_type = []", 'vm.vm_type must be "auto", "qemu" or "vz", not a list'),
    ('[vm]\naccel = "KVM"', 'vm.accel must be "auto", "kvm" or "tcg", not \'KVM\''),
    ("[vm]\naccel = false", 'vm.accel must be "auto", "kvm" or "tcg", not false'),
    # where the disk and the certificates come from
    ('[vm]\nimage = "debian"', IMAGE + "'debian'"),
    ('[vm]\nimage = "images/x.qcow2"', "not 'images/x.qcow2'"),
    ('[vm]\nimage = "http://host/x.qcow2"', "not 'http://host/x.qcow2'"),
    ('[vm]\nimage = "/a/../b"', "not '/a/../b'"),
    ('[vm]\nimage = "~root/x"', "not '~root/x'"),
    ('[vm]\nimage = "/x/{{.Dir}}"', VISIBLE.format("vm.image") + "'/x/{{.Dir}}'"),
    ('[vm]\nca_certs = "none"', CERTS + "'none'"),
    ("[vm]\nca_certs = true", CERTS + "true"),
    ('[vm]\nca_certs = ["ca.pem"]', "vm.ca_certs[0]" + HOST + "'ca.pem'"),
    ('[vm]\nca_certs = ["/a.pem", "/b\\u0007"]', VISIBLE.format("vm.ca_certs") + r"'/b\x07'"),
    # packages
    ('[packages]\napt = "git"', "packages.apt must be a list, not 'git'"),
    ('[packages]\napt = ["git", "-oDebug::X=1"]', APT.format(1) + "'-oDebug::X=1'"),
    ('[packages]\napt = ["a$(id)"]', APT.format(0) + "'a$(id)'"),
    ('[packages]\napt = ["sudo-"]', APT.format(0) + "'sudo-'"),
    ('[packages]\napt = [""]', APT.format(0) + "''"),
    ("[packages]\napt = [1]", APT.format(0) + "1"),
    ('[packages]\napt = [["git"]]', APT.format(0) + "a list"),
    ('[packages]\napt = ["git", "git"]', "packages.apt names 'git' more than once"),
    ("[packages]\napt = {git = true}", "packages.apt must be a list, not a table"),
    ('[packages]\nnpm = ["user/repo"]', NPM + "'user/repo'"),
    ('[packages]\nnpm = ["--global"]', "not '--global'"),
    ('[packages]\nnpm = ["@/x"]', "not '@/x'"),
    ('[packages]\nnpm = ["@é/x"]', "not '@é/x'"),
    ('[packages]\nnpm = ["git+https://me:hunter2@host/x"]', "not 'git+https://***@host/x'"),
    ('[packages]\npython = ["ruff; id"]', PYTHON + "'ruff; id'"),
    ('[packages]\npython = ["-r/etc/passwd"]', "not '-r/etc/passwd'"),
    ('[packages]\npython = ["x @ https://h/x.whl"]', "not 'x @ https://h/x.whl'"),
    # switches
    ("[provision]\nenabled = 1", "provision.enabled must be true or false, not 1"),
    ('[provision]\nenabled = "yes"', "provision.enabled must be true or false, not 'yes'"),
    ("[mount]\nenabled = []", "mount.enabled must be true or false, not a list"),
    # the host's side
    ('[mount]\npath = "mnt"', "mount.path" + HOST + "'mnt'"),
    ('[mount]\npath = "~/../x"', "not '~/../x'"),
    ('[mount]\npath = "/"', "not '/'"),
    ('[mount]\npath = "~"', "not '~'"),
    ('[mount]\npath = ""', "mount.path" + HOST + "''"),
    ("[network]\nports = 8080", "network.ports must be a list, not 8080"),
    ("[network]\nports = [80]", PORT.format(0) + "80"),
    ("[network]\nports = [8080, 65536]", PORT.format(1) + "65536"),
    ('[network]\nports = ["8080"]', PORT.format(0) + "'8080'"),
    ("[network]\nports = [8080, 3000, 8080]", "network.ports names 8080 more than once"),
    ('[workspace]\ninclude = [".env", "/etc/passwd"]', INSIDE + "'/etc/passwd'"),
    ('[workspace]\ninclude = ["a/../../b"]', "not 'a/../../b'"),
    ('[workspace]\ninclude = [".."]', "not '..'"),
    ('[workspace]\ninclude = ["."]', "not '.'"),
    ('[workspace]\ninclude = ["~/.ssh"]', "not '~/.ssh'"),
    ('[workspace]\ninclude = ".env"', "workspace.include must be a list, not '.env'"),
    ('[provision]\nscript = "/bin/sh"', "provision.script must be a path inside"),
    ('[provision]\nscript = "../x.sh"', "not '../x.sh'"),
    ('[packages]\nnpm_registry = "https://me:hunter2@host/"', "not 'https://***@host/'"),
    ('[packages]\ndebian_mirror = "file:///srv"', "packages.debian_mirror must be an http or"),
    ('[packages]\ndebian_mirror = "http://mirror:abc/d"', "not 'http://mirror:abc/d'"),
    ('[packages]\nnpm_registry = "http://mirror:99999/x"', "not 'http://mirror:99999/x'"),
    ('[packages]\npython_index = "http://[::1/d"', "not 'http://[::1/d'"),
    ('[packages]\ngo_proxy = "http://:80/x"', "not 'http://:80/x'"),
    ('[packages]\nlima_releases = "http://mirror:/x"', "not 'http://mirror:/x'"),
    ('[env]\npass = ["A=b"]', "env.pass[0] must be a variable's name, not 'A=b'"),
    ("[env]\nset = []", "env.set must be a table, not a list"),
    ('[env]\nset = {"A;id" = "1"}', "env.set must be a variable's name, not 'A;id'"),
    ("[env]\nset = {A = 1}", "env.set.A must be text without control characters and '{{'"),
    ('[env]\nset = {A = "x\\ny"}', "env.set.A must be text without control characters and '{{'"),
    ('[secrets]\nfiles = {"../x" = "~/x"}', "secrets.files must be a plain file name"),
    ('[secrets]\nfiles = {x = "x"}', "secrets.files.x" + HOST + "'x'"),
    # keys and tables
    ("[vm]\nmem0ry = 8", "unknown key 'vm.mem0ry'; did you mean 'memory'?"),
    ("[vm]\nvcpu = 8", "unknown key 'vm.vcpu'; did you mean 'cpus'?"),
    ("[vm]\nxyz = 8", "unknown key 'vm.xyz'; known here: name, cpus, memory, disk"),
    ('[vm]\n"a\\nb" = 8', r"unknown key 'vm.a\nb'"),
    ("[nework]\nports = []", "unknown key 'nework'; did you mean 'network'?"),
    ("[package]\napt = []", "unknown key 'package'; did you mean 'packages'?"),
    ("cpus = 4", "unknown key 'cpus'; did you mean 'vm.cpus'?"),
    ("[qqq]", "unknown key 'qqq'; known here: vm, network, packages"),
    ("vm = 4", "vm must be a table, not 4"),
    ("[[vm]]\ncpus = 4", "vm must be a table, not a list"),
    # not TOML
    ("[vm]\ncpus = 4\ncpus = 5", "agent-vm.toml:3: not valid TOML: Cannot overwrite a value"),
    ("[vm]\n[vm]", "agent-vm.toml:2: not valid TOML: Cannot declare ('vm',) twice"),
    ("[vm]\n\ncpus: 4", "agent-vm.toml:3: not valid TOML: Expected '=' after a key"),
    ("[vm]\ncpus =", "agent-vm.toml:2: not valid TOML: Invalid value"),
    ('[vm]\nname = "x', "agent-vm.toml:2: not valid TOML"),
    ("x = " + "[" * 5000, "agent-vm.toml: lists or tables are nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "fragment"), BAD, ids=range(len(BAD)))
def test_bad_input_is_one_line_that_names_the_culprit(
    repo: Path, home: Path, text: str, fragment: str
) -> None:
    path = write_repo(repo, text)
    with pytest.raises(UsageError) as caught:
        settings.load(repo)
    said = str(caught.value)
    assert fragment in said
    assert said.startswith(str(path))
    assert caught.value.status == 2
    assert "\n" not in said
    assert len(said) < len(str(path)) + 250
    path.rename(write_user(home, ""))  # the user's own file is held to the same rules
    same = fragment.replace("agent-vm.toml", "config.toml")
    with pytest.raises(UsageError, match=re.escape(same)):
        settings.load(repo)


def test_the_table_of_bad_inputs_is_large() -> None:
    assert len(BAD) >= 60


def test_a_password_in_a_url_is_not_repeated(home: Path, repo: Path) -> None:
    write_user(home, '[vm]\nimage = "https://me:hunter2@host/x.qcow2"')
    with pytest.raises(UsageError) as caught:
        settings.load(repo)
    assert "https://***@host/x.qcow2" in str(caught.value)
    assert "hunter2" not in str(caught.value)


GOOD = [
    ("vm.cpus", "1024", 1024),
    ("vm.memory", "16", 16384),
    ("vm.memory", '"8GiB"', 8192),
    ("vm.memory", '"8 GB"', 8192),
    ("vm.memory", '"8gb"', 8192),
    ("vm.memory", '"8G"', 8192),
    ("vm.memory", '"512MiB"', 512),
    ("vm.memory", '"6000 M"', 6000),
    ("vm.disk", "4", 4096),
    ("vm.name", '"vm-2"', "vm-2"),
    ("vm.name", f'"{"a" * 31}"', "a" * 31),
    ("vm.image", '"build"', "build"),
    ("vm.image", '"~/images/debian 13.qcow2"', "~/images/debian 13.qcow2"),
    ("vm.image", '"/srv/x.qcow2"', "/srv/x.qcow2"),
    ("vm.image", '"https://host:8443/a/x.qcow2?v=1"', "https://host:8443/a/x.qcow2?v=1"),
    ("vm.ca_certs", '"auto"', "auto"),
    ("vm.ca_certs", "[]", ()),
    ("vm.ca_certs", '["~/ca.pem", "/etc/ca..pem"]', ("~/ca.pem", "/etc/ca..pem")),
    ("packages.apt", '["g++", "git=1:2.47.3-0+deb13u1", "libc6:i386", "7zip"]',
     ("g++", "git=1:2.47.3-0+deb13u1", "libc6:i386", "7zip")),
    ("packages.npm", '["@scope/name@1.2.3-rc.1", "prettier", "JSONStream", "x@^1.2", "y@latest"]',
     ("@scope/name@1.2.3-rc.1", "prettier", "JSONStream", "x@^1.2", "y@latest")),
    ("packages.python", '["ruff", "httpie[socks,x]==3.2.*", "Py_Thing~=1.0"]',
     ("ruff", "httpie[socks,x]==3.2.*", "Py_Thing~=1.0")),
    ("provision.enabled", "false", False),
    ("mount.enabled", "false", False),
    ("mount.path", '"/mnt/agents/"', "/mnt/agents/"),
    ("network.ports", "[1024, 65535]", (1024, 65535)),
    ("packages.debian_mirror", '"http://mirror:3142/debian"', "http://mirror:3142/debian"),
    ("packages.npm_registry", '"https://npm.example/"', "https://npm.example/"),
    ("packages.go_proxy", '"http://go_proxy:65535"', "http://go_proxy:65535"),
    ("packages.lima_releases", '"http://[fd00::1]:80/x"', "http://[fd00::1]:80/x"),
    ("packages.python_index", '""', ""),
    ("provision.script", '"tools/vm.sh"', "tools/vm.sh"),
    ("home.path", '"~/agent home"', "~/agent home"),
    ("env.pass", '["GH_TOKEN", "_x1"]', ("GH_TOKEN", "_x1")),
    ("env.set", '{A = "b \'c\' $d", E = ""}', (("A", "b 'c' $d"), ("E", ""))),
    ("secrets.files", '{npmrc = "~/.npmrc-agents"}', (("npmrc", "~/.npmrc-agents"),)),
    ("workspace.include", '[".env", "config/lokal é.json", "..a"]',
     (".env", "config/lokal é.json", "..a")),
]  # fmt: skip


@pytest.mark.parametrize(("path", "text", "value"), GOOD)
def test_good_values_arrive_exactly(
    home: Path, repo: Path, path: str, text: str, value: object
) -> None:
    table, key = path.split(".")
    write_user(home, f"[{table}]\n{key} = {text}")
    found = settings.value(settings.load(repo), path)
    assert found == value
    assert type(found) is type(value)


def test_without_files_the_defaults_are_in_force(repo: Path) -> None:
    found = settings.load(repo)
    assert found == settings.Settings()
    assert (found.vm.cpus, found.vm.memory, found.vm.disk) == (4, 8192, 102400)
    assert set(found.sources) == key_paths()
    assert set(found.sources.values()) == {"default"}


def test_settings_cannot_be_changed_in_place(repo: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.load(repo).vm.cpus = 5  # type: ignore[misc]


def test_every_key_of_the_dataclasses_is_checked() -> None:
    assert set(settings.CHECKS) == key_paths()


def test_repository_beats_user_beats_default_key_by_key(home: Path, repo: Path) -> None:
    mine = write_user(home, "[vm]\ncpus = 6\nmemory = 16\n")
    theirs = write_repo(repo, "[vm]\nmemory = 12\n")
    found = settings.load(repo)
    assert (found.vm.cpus, found.vm.memory, found.vm.disk) == (6, 12288, 102400)
    assert found.sources["vm.cpus"] == str(mine)
    assert found.sources["vm.memory"] == str(theirs)
    assert found.sources["vm.disk"] == "default"


def test_each_files_packages_add_to_the_others(home: Path, repo: Path) -> None:
    mine = write_user(home, '[packages]\napt = ["tmux", "gdb"]\nnpm = ["typescript"]\n')
    theirs = write_repo(repo, '[packages]\napt = ["gdb", "cowsay"]\n')
    found = settings.load(repo)
    assert found.packages.apt == ("tmux", "gdb", "cowsay")
    assert found.packages.npm == ("typescript",)
    assert found.sources["packages.apt"] == f"{mine}, {theirs}"
    assert found.sources["packages.npm"] == str(mine)


def test_flags_win_and_say_so(home: Path, repo: Path) -> None:
    write_user(home, "[vm]\ncpus = 6\n")
    write_repo(repo, "[vm]\nmemory = 6\n")
    before = settings.load(repo)
    found = settings.with_vm(before, cpus="8", memory="16", disk="200GiB")
    assert (found.vm.cpus, found.vm.memory, found.vm.disk) == (8, 16384, 204800)
    paths = ("vm.cpus", "vm.memory", "vm.disk", "vm.name")
    assert [found.sources[p] for p in paths] == ["--vcpu", "--memory", "--disk", "default"]
    assert before.vm.memory == 6144
    assert settings.with_vm(before) == before


@pytest.mark.parametrize("typed", ["16", 16, "16GiB", "16 GB", "16384MiB"])
def test_a_size_flag_takes_what_the_file_takes(typed: str | int) -> None:
    assert settings.with_vm(settings.Settings(), memory=typed).vm.memory == 16384


@pytest.mark.parametrize("flag", ["--vcpu", "--memory", "--disk"])
@pytest.mark.parametrize(
    "typed", ["0", "-1", "4.5", "x", "", " ", "4\n", "٤", "1e3", "True", True, "9" * 5000, "{{8}}"]
)
def test_a_bad_flag_is_named(flag: str, typed: str | int) -> None:
    key = {"--vcpu": "cpus", "--memory": "memory", "--disk": "disk"}[flag]
    given_flags: dict[str, Any] = {key: typed}
    with pytest.raises(UsageError) as caught:
        settings.with_vm(settings.Settings(), **given_flags)
    assert str(caught.value).startswith(f"{flag} must be ")
    assert caught.value.status == 2
    assert "\n" not in str(caught.value)


def test_explicit_tells_set_from_default(repo: Path) -> None:
    write_repo(repo, "[vm]\ncpus = 4\n")
    found = settings.with_vm(settings.load(repo), disk="50")
    assert settings.explicit(found, "vm.cpus")
    assert settings.explicit(found, "vm.disk")
    assert not settings.explicit(found, "vm.memory")
    with pytest.raises(KeyError):
        settings.explicit(found, "vm.cpu")


def test_a_sub_folder_finds_the_file_at_the_top(repo: Path) -> None:
    write_repo(repo, "[vm]\ncpus = 3\n")
    deep = repo / "src" / "deep"
    deep.mkdir(parents=True)
    assert settings.load(deep).vm.cpus == 3
    assert settings.load(deep / ".." / "..").vm.cpus == 3


def test_the_nearest_file_wins(repo: Path) -> None:
    write_repo(repo, "[vm]\ncpus = 3\n")
    (repo / "part").mkdir()
    write_repo(repo / "part", "[vm]\ncpus = 2\n")
    assert settings.load(repo / "part").vm.cpus == 2


def test_the_search_ends_at_the_repositorys_top(home: Path, repo: Path) -> None:
    write_repo(home, "[vm]\ncpus = 3\n")
    assert settings.load(repo).vm.cpus == 4


def test_a_worktree_ends_the_search_like_a_repository(repo: Path) -> None:
    write_repo(repo, "[vm]\ncpus = 3\n")
    tree = repo / "trees" / "fix"
    (tree / "src").mkdir(parents=True)
    assert settings.load(tree / "src").vm.cpus == 3
    (tree / ".git").write_text("gitdir: ../../.git/worktrees/fix\n")
    assert settings.load(tree / "src").vm.cpus == 4
    write_repo(tree, "[vm]\ncpus = 2\n")
    assert settings.load(tree / "src").vm.cpus == 2


def test_outside_a_repository_only_the_folder_itself_counts(home: Path) -> None:
    (home / "a" / "b").mkdir(parents=True)
    write_repo(home / "a", "[vm]\ncpus = 3\n")
    assert settings.load(home / "a").vm.cpus == 3
    assert settings.load(home / "a" / "b").vm.cpus == 4


def test_the_working_directory_is_where_it_starts(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_repo(repo, "[vm]\ncpus = 3\n")
    monkeypatch.chdir(repo)
    assert settings.load().vm.cpus == 3


def test_xdg_config_home_is_respected(
    home: Path, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_user(home, "[vm]\ncpus = 3\n")
    other = home / "else" / "agent-vm" / "config.toml"
    other.parent.mkdir(parents=True)
    other.write_text("[vm]\ncpus = 7\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "else"))
    assert settings.load(repo).vm.cpus == 7
    monkeypatch.setenv("XDG_CONFIG_HOME", "else")  # as the specification says: to be ignored
    monkeypatch.chdir(home)
    assert settings.load(repo).vm.cpus == 3


def test_what_lies_in_the_mount_is_not_read(home: Path) -> None:
    guest = home / ".agent-vm-mounts" / "workspace" / "repo-main"
    guest.mkdir(parents=True)
    write_repo(guest, "[vm]\ncpus = 3\n")
    assert settings.load(guest).vm.cpus == 4
    (home / "x").mkdir()
    assert settings.load(home / "x" / ".." / guest.relative_to(home)).vm.cpus == 4
    write_user(home, f'[mount]\npath = "{home}/link/ws"\n')
    assert settings.load(guest).vm.cpus == 3
    (home / "link").symlink_to(home / "real")
    (home / "real" / "ws").mkdir(parents=True)
    write_repo(home / "real" / "ws", "[vm]\ncpus = 3\n")
    assert settings.load(home / "real" / "ws").vm.cpus == 4
    assert settings.load(home / "link" / "ws").vm.cpus == 4


LOOSER = [
    ("vm.name", '"other"'),
    ("vm.cpus", "5"),
    ("vm.memory", '"8193MiB"'),
    ("vm.disk", "101"),
    ("vm.vm_type", '"qemu"'),
    ("network.ports", "[8080]"),
    ("mount.path", '"/mnt/x"'),
    ("workspace.include", '[".env"]'),
    ("vm.ca_certs", '["/etc/ca.pem"]'),
    ("vm.image", '"/srv/x.qcow2"'),
    ("vm.image", '"~/x.qcow2"'),
    ("vm.image", '"https://host/x.qcow2"'),
    ("packages.debian_mirror", '"http://mirror/debian"'),
    ("packages.npm_registry", '"https://mirror/npm"'),
    ("packages.python_index", '"https://mirror/simple"'),
    ("packages.go_proxy", '"https://mirror/go"'),
    ("packages.lima_releases", '"https://mirror/lima"'),
    ("home.path", '"~/x"'),
    ("env.pass", '["GH_TOKEN"]'),
    ("env.set", '{A = "b"}'),
    ("secrets.files", '{x = "~/x"}'),
    ("vm.accel", '"tcg"'),
    ("workspace.keep_days", "15"),
]


@pytest.mark.parametrize(("path", "text"), LOOSER)
def test_a_repository_cannot_open_the_host(repo: Path, path: str, text: str) -> None:
    table, key = path.split(".")
    file = write_repo(repo, f"[{table}]\n{key} = {text}\n")
    with pytest.raises(UsageError) as caught:
        settings.load(repo)
    assert str(caught.value) == (
        f"{file}: {path}: not approved by you; "
        "`agent-vm trust` shows and approves what an agent could have changed"
    )
    assert caught.value.status == 2


@pytest.mark.parametrize(("path", "text"), LOOSER)
def test_the_user_can(home: Path, repo: Path, path: str, text: str) -> None:
    table, key = path.split(".")
    mine = write_user(home, f"[{table}]\n{key} = {text}\n")
    assert settings.load(repo).sources[path] == str(mine)


@pytest.mark.parametrize("folder", ["outside", "repo/sub"])
def test_no_other_place_of_the_file_is_trusted(home: Path, repo: Path, folder: str) -> None:
    (home / folder).mkdir(parents=True)
    write_repo(home / folder, "[network]\nports = [8080]\n")
    with pytest.raises(UsageError, match=r"network\.ports: not approved"):
        settings.load(home / folder)


@pytest.mark.parametrize(
    ("table", "mine", "fewer", "other"),
    [  # in the user's file, in the repository's, and there as well but not approved
        ("vm", 'name = "mine"', 'name = "mine"', 'name = "agent-vm"'),
        ("vm", "cpus = 2", "cpus = 1", "cpus = 3"),
        ("vm", "memory = 16", "memory = 12", "memory = 17"),
        ("vm", "disk = 50", "disk = 50", "disk = 51"),
        ("vm", 'vm_type = "vz"', 'vm_type = "vz"', 'vm_type = "auto"'),
        ("vm", 'ca_certs = ["/a.pem"]', "ca_certs = []", 'ca_certs = "auto"'),
        ("network", "ports = [8080, 8081]", "ports = [8081]", "ports = [8081, 8082]"),
        ("env", 'pass = ["A", "B"]', "pass = []", 'pass = ["C"]'),
        ("env", 'set = {A = "1", B = "2"}', 'set = {B = "2"}', 'set = {B = "3"}'),
        ("mount", 'path = "~/x"', 'path = "~/x"', 'path = "~/y"'),
        ("mount", "enabled = false", "enabled = false", "enabled = true"),
        ("workspace", "keep_days = 99", "keep_days = 99", "keep_days = 14"),
        ("workspace", "walls = true", "walls = true", "walls = false"),
    ],
)
def test_what_loosens_is_more_than_the_user_has(
    home: Path, table: str, mine: str, fewer: str, other: str
) -> None:
    (repo := home / "repo").mkdir()
    write_user(home, f"[{table}]\n{mine}\n")
    write_repo(repo, f"[{table}]\n{fewer}\n")
    found = settings.load(repo)
    assert str(repo / "agent-vm.toml") in found.sources.values()
    write_repo(repo, f"[{table}]\n{other}\n")
    with pytest.raises(UsageError, match="not approved"):
        settings.load(repo)


def test_the_users_script_is_not_the_repositorys_of_the_same_name(home: Path, repo: Path) -> None:
    mine = write_user(home, '[provision]\nscript = "vm.sh"\n')
    for folder in (mine.parent, repo):
        (folder / "vm.sh").write_text("true\n")
    assert settings.load(repo).sources["provision.script"] == str(mine)
    write_repo(repo, '[provision]\nscript = "vm.sh"\n')
    with pytest.raises(UsageError, match=r"provision\.script: not approved"):
        settings.load(repo)


def test_a_repository_may_set_the_rest(repo: Path) -> None:
    allowed = {
        "vm": {
            "name": "agent-vm", "cpus": 1, "memory": 1, "disk": 4, "accel": "kvm",
            "vm_type": "auto", "image": "build", "ca_certs": [],
        },
        "packages": {"apt": ["git"], "npm": ["x"], "python": ["y"]},
        "provision": {"enabled": False},
        "mount": {"enabled": False},
    }  # fmt: skip
    write_repo(repo, tomli_w.dumps(allowed))
    found = settings.load(repo)
    assert found.vm == settings.Vm("agent-vm", 1, 1024, 4096, "build", "auto", "kvm", ())
    assert not found.mount.enabled
    write_repo(repo, '[vm]\nca_certs = "auto"\nimage = "auto"\n')
    assert settings.load(repo).vm.ca_certs == "auto"


def test_a_byte_order_mark_and_windows_line_ends_are_fine(repo: Path) -> None:
    (repo / "agent-vm.toml").write_bytes(b"\xef\xbb\xbf[vm]\r\ncpus = 3\r\n")
    assert settings.load(repo).vm.cpus == 3


def test_an_unreadable_file_is_not_passed_over(home: Path, repo: Path) -> None:
    path = write_user(home, "[vm]\ncpus = 3\n")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    with pytest.raises(UsageError, match=r"config\.toml cannot be read: Permission denied"):
        settings.load(repo)
    path.parent.chmod(0)
    try:
        with pytest.raises(UsageError, match=r"config\.toml cannot be read: Permission denied"):
            settings.load(repo)
    finally:
        path.parent.chmod(0o700)


def test_the_repositorys_own_file_loads_and_names_every_key(repo: Path) -> None:
    text = (ROOT / "agent-vm.toml").read_text(encoding="utf-8")
    write_repo(repo, text)
    settings.load(repo)
    seen, table = set(), ""
    for line in text.splitlines():
        if heading := re.match(r"\[(\w+)\]", line):
            table = heading[1]
        elif key := re.match(r"(?:# )?(\w+) = ", line):
            seen.add(f"{table}.{key[1]}")
    assert seen == key_paths()


def test_the_defaults_that_the_own_file_shows_are_true(home: Path, repo: Path) -> None:
    text = (ROOT / "agent-vm.toml").read_text(encoding="utf-8")
    shown = re.sub(r"^(\w.*)$", r"#\1", text, flags=re.MULTILINE)
    shown = re.sub(r"Default:\n((?:# \w+ = .*\n)+)", uncommented, shown)
    write_user(home, shown)
    found = settings.load(repo)
    commented = [path for path, source in found.sources.items() if source != "default"]
    assert len(commented) == 20
    assert settings.plain(found) == settings.plain(settings.Settings())


def uncommented(block: re.Match[str]) -> str:
    return "\n" + re.sub("^# ", "", block[1], flags=re.MULTILINE)


@given(st.integers(512, 4096 * 1024))
def test_a_size_survives_being_written_and_read(mebibytes: int) -> None:
    text = checks.size_text(mebibytes)
    assert checks.size(512, 4096 * 1024)("x", text) == mebibytes


@given(st.text() | st.integers() | st.floats() | st.booleans() | st.none())
def test_a_size_is_a_number_in_range_or_an_error(value: object) -> None:
    try:
        found = checks.size(512, 4096 * 1024)("vm.memory", value)
    except UsageError as error:
        assert error.message.startswith("vm.memory must be ")  # noqa: PT017
    else:
        assert type(found) is int
        assert 512 <= found <= 4096 * 1024


words = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=12)
folders = st.lists(words, min_size=1, max_size=4).map("/".join)
documents = st.fixed_dictionaries(
    {},
    optional={
        "vm": st.fixed_dictionaries(
            {},
            optional={
                "name": words.map(lambda word: f"a{word}"),
                "cpus": st.integers(1, 1024),
                "memory": st.integers(512, 4096 * 1024).map(checks.size_text),
                "disk": st.integers(4096, 65536 * 1024).map(checks.size_text),
                "image": st.sampled_from(["auto", "cloud", "build"]) | folders.map("/{}".format),
                "vm_type": st.sampled_from(["auto", "qemu", "vz"]),
                "accel": st.sampled_from(["auto", "kvm", "tcg"]),
                "ca_certs": st.just("auto")
                | st.lists(folders.map("~/{}".format), unique=True, max_size=3),
            },
        ),
        "network": st.fixed_dictionaries(
            {"ports": st.lists(st.integers(1024, 65535), unique=True, max_size=5)}
        ),
        "packages": st.fixed_dictionaries(
            {}, optional=dict.fromkeys(["apt", "npm", "python"], st.lists(words, unique=True))
        ),
        "mount": st.fixed_dictionaries({"enabled": st.booleans()}),
        "env": st.fixed_dictionaries({"set": st.dictionaries(words.map("A{}".format), words)}),
        "workspace": st.fixed_dictionaries({"include": st.lists(folders, unique=True)}),
    },
)


@SHARED_FILES
@given(documents)
def test_what_is_written_is_what_is_loaded(
    home: Path, repo: Path, document: dict[str, dict[str, Any]]
) -> None:
    mine = write_user(home, tomli_w.dumps(document))
    found = settings.load(repo)
    written = {f"{table}.{key}": v for table, keys in document.items() for key, v in keys.items()}
    plain = settings.plain(found)
    assert {path: plain[path] for path in written} == written
    assert {p for p, source in found.sources.items() if source == str(mine)} == set(written)


@SHARED_FILES
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_file_at_all_gives_settings_or_a_usage_error(repo: Path, raw: bytes) -> None:
    (repo / "agent-vm.toml").write_bytes(raw)
    try:
        settings.load(repo)
    except UsageError as error:
        assert str(repo / "agent-vm.toml") in str(error)  # noqa: PT017


leaves = st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates()
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=2)
)


@SHARED_FILES
@given(st.sampled_from(sorted(settings.CHECKS)), values)
def test_any_value_of_any_key_gives_settings_or_names_the_key(
    home: Path, repo: Path, path: str, value: object
) -> None:
    table, key = path.split(".")
    write_user(home, tomli_w.dumps({table: {key: value}}))
    try:
        settings.load(repo)
    except UsageError as error:
        assert f"config.toml: {path}" in str(error)  # noqa: PT017
