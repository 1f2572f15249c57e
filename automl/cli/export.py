"""`automl export`: the best adapter as a PEFT folder, or merged into the model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, StudyArgument, opened, spec_to_measure


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl export bbc-topics --output my-adapter")
    def export(
        output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist.")],
        study: StudyArgument = None,
        url: DatabaseOption = None,
        trial: Annotated[int | None, typer.Option("--trial", help="Export this trial. Default: the best.")] = None,
        merged: Annotated[bool, typer.Option("--merged", help="Merge into the model and write a whole model.")] = False,
        check: Annotated[
            bool,
            typer.Option("--check/--no-check", help="Load it in a fresh process, as printed, and compare its metric."),
        ] = True,
        as_json: JsonOption = False,
    ) -> None:
        """Write a trial's adapter where PEFT can load it, and prove that it reproduces its metric."""
        from automl.sweep.export import export_trial

        with opened(study, url) as (database, name):
            exported = export_trial(
                database, spec_to_measure(database, name, study), output, trial, merged=merged, check=check
            )
        if as_json:
            console.result_json(exported.as_dict())
            return
        console.result(f"trial {exported.trial} of {name} written to {exported.folder}")
        if exported.measured is not None:
            console.result(
                f"checked: {exported.metric} {exported.measured:.6f} reloaded, {exported.recorded:.6f} in the database"
            )
        if exported.unquantised is not None:
            console.result(f"on the model as it is stored, not quantised: {exported.metric} {exported.unquantised:.6f}")
        if exported.merging is not None:
            console.result(f"merged into 16-bit weights: the loss is {exported.merging:+.6f} beside the adapter's")
        console.results(exported.how_to_load())
