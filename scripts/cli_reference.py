"""Print docs/reference/cli.md, made from the commands themselves.

Usage: python scripts/cli_reference.py > docs/reference/cli.md
"""

from __future__ import annotations

from collections.abc import Iterator

import typer
from typer.main import get_command

from automl.cli.main import app

HEADER = """\
# Command line

Made from the commands themselves by `python scripts/cli_reference.py > docs/reference/cli.md`; a test compares.

Results go to stdout, progress and notes to stderr. `--json` prints one JSON document. Options before the command:
`--debug` (tracebacks and debug messages), `--quiet`, `--log-format json` (one JSON object per line on stderr),
`--version`.

| exit code | meaning |
|--:|---|
| 0 | done |
| 1 | finished without a usable result |
| 2 | usage or configuration: the command line, the space file, the data, the model |
| 3 | storage: the database, another driver, a violated invariant |
| 4 | interrupted; the same command continues |
| 5 | resources: disk, memory, device |
| 6 | nightly regression: worse than the last successful night, beyond noise |
"""


def reference() -> str:
    """The whole page."""
    root = get_command(app)
    context = typer.Context(root, info_name="automl")
    return HEADER + "".join(_sections(root, "automl", context))


def _sections(group: object, path: str, context: typer.Context) -> Iterator[str]:
    for name, command in sorted(group.commands.items()):  # type: ignore[attr-defined]  # a click Group
        inner = typer.Context(command, info_name=name, parent=context)
        yield f"\n## {path} {name}\n\n{command.help}\n"
        if hasattr(command, "commands"):
            yield from _sections(command, f"{path} {name}", inner)
            continue
        rows = [record for parameter in command.get_params(inner) if (record := _row(parameter))]
        yield "".join(f"\n- `{left}`: {right}" for left, right in rows) + "\n"
        if command.epilog:
            yield f"\n    {command.epilog.removeprefix('Example: ')}\n"


def _row(parameter: object) -> tuple[str, str] | None:
    names = [*parameter.opts, *parameter.secondary_opts]  # type: ignore[attr-defined]  # a click Parameter
    if "--help" in names:
        return None
    is_option = names[0].startswith("-")
    left = ", ".join(names) if is_option else str(parameter.metavar)  # type: ignore[attr-defined]
    return left, str(parameter.help)  # type: ignore[attr-defined]


if __name__ == "__main__":
    print(reference(), end="")
