"""`automl validate`: check a space file without touching model or data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automl.cli import console


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl validate space.yaml")
    def validate(
        space: Annotated[Path, typer.Argument(help="The space file (YAML).", metavar="SPACE.YAML")],
        as_json: Annotated[bool, typer.Option("--json", help="Print the problems as JSON.")] = False,
    ) -> None:
        """Check a space file and report everything that is wrong with it at once."""
        from automl.errors import ConfigError
        from automl.space.load import load_space

        try:
            spec = load_space(space)
        except ConfigError as problems:
            if not as_json:
                raise
            console.result_json({"valid": False, "problems": [_as_dict(problem) for problem in problems.problems]})
            raise typer.Exit(ConfigError.exit_code) from None
        if as_json:
            console.result_json({"valid": True, "study": spec.study, "sha256": spec.sha256, "problems": []})
        else:
            names = ", ".join([*(parameter.name for parameter in spec.space.parameters), *spec.space.auto])
            console.result(f"{space}: valid; study {spec.study!r} searches {names or 'nothing'}")


def _as_dict(problem: object) -> dict[str, object]:
    from dataclasses import asdict

    return asdict(problem)  # type: ignore[call-overload, no-any-return]  # always a Problem
