"""`automl plan`: what a search will do and roughly cost, before anything is spent."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automl.cli import console


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl plan space.yaml")
    def plan(
        space: Annotated[Path, typer.Argument(help="The space file (YAML).", metavar="SPACE.YAML")],
        probe: Annotated[
            bool, typer.Option("--probe/--no-probe", help="Train a few steps here to estimate time and memory.")
        ] = True,
        as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
    ) -> None:
        """Show what would be searched: trials, steps, trainable parameters, memory, time, and what pruning may save."""
        from automl.results.folders import cache_folder
        from automl.setup.plan import make_plan
        from automl.space.load import load_space

        spec = load_space(space)
        console.note("preparing model and data" + (", then a short probe" if probe else ""))
        made = make_plan(spec, cache_folder(), probe=probe)
        if as_json:
            console.result_json(made.as_dict())
        else:
            console.results(made.lines())
