"""Commands about settings: show what is in force, write the first file."""

from __future__ import annotations

from json import dumps
from pathlib import Path

from invoke.context import Context  # noqa: TC002  Invoke reads signatures
from invoke.tasks import task

from agent_vm_tasks import git, settings
from agent_vm_tasks.console import printable
from agent_vm_tasks.errors import AgentVMError

from ._edge import guarded

HEADER = """\
# Settings of agent-vm for this repository; `agent-vm config-show` tells what is in force.
# Sizes are whole GiB (8) or text ("8GiB", "512MiB"). The packages are added to the built-in ones.
# What opens the host to the VM (ports, the mount's path, files to copy) waits for `agent-vm trust`,
# as an agent can change this file; in ~/.config/agent-vm/config.toml it counts at once.

# Left to each developer's own file: set here they win over it, and more than a machine has is an
# error there.
# [vm]
# cpus = 4
# memory = "8GiB"

"""
TEAM = ("packages.apt", "packages.npm", "packages.python")
TASKS = """\
# The agent-vm commands as tasks of this repository: `invoke --list` shows them.
from agent_vm_tasks import ns
namespace = ns
"""


@task(help={"json": "print one JSON object: {key: {value, source}}"})
@guarded
def config_show(_context: Context, json: bool = False) -> None:
    """Show the settings in force and where each comes from.

    Example: agent-vm config-show --json
    """
    found = settings.load()
    values = settings.plain(found)
    if json:
        shown = {key: {"value": v, "source": found.sources[key]} for key, v in values.items()}
        print(dumps(shown, indent=2))
    else:
        texts = {key: dumps(v, ensure_ascii=False) for key, v in values.items()}
        print(printable(_aligned([(key, v, found.sources[key]) for key, v in texts.items()])))


@task
@guarded
def init(_context: Context) -> None:
    """Write agent-vm.toml, and a tasks.py where there is none, at the repository's top.

    Overwrites nothing. Example: agent-vm init
    """
    top = _repository_top()
    _write_new(top / settings.FILE_NAME, _first_settings())
    if (top / "tasks" / "__init__.py").exists():  # Invoke would prefer a new tasks.py to it
        print(printable(f"left {top / 'tasks'} as it is"))
    else:
        _write_new(top / "tasks.py", TASKS)


def _aligned(rows: list[tuple[str, str, str]]) -> str:
    keys, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(
        f"{key:{keys}} = {value:{min(values, 40)}}   ({source})" for key, value, source in rows
    )


def _repository_top() -> Path:
    here = settings.here()
    result = git.run(here, "rev-parse", "--show-toplevel", check=False)
    if not result.ok:
        raise AgentVMError(
            f"{here} is not in a git repository's working tree ({result.reason})",
            "change to one, or run `git init` first",
        )
    return Path(result.stdout.removesuffix("\n"))


def _first_settings() -> str:
    import tomli_w

    values = settings.plain(settings.Settings())
    document: dict[str, dict[str, object]] = {}
    for path in TEAM:
        table, _, key = path.partition(".")
        document.setdefault(table, {})[key] = values[path]
    return HEADER + tomli_w.dumps(document)


def _write_new(path: Path, text: str) -> None:
    """Write `path` unless something has that name: even a broken link is left alone."""
    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError:
        print(printable(f"left {path} as it is"))
        return
    try:
        with file:
            file.write(text)
    except BaseException:
        path.unlink()
        raise
    print(printable(f"wrote {path}"))
