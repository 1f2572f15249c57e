"""`automl init`: write a commented space file for a model and a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automl.cli import console


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl init ./MiniLM reviews.jsonl --task classification -o space.yaml")
    def init(
        model: Annotated[str, typer.Argument(help="Hub id, folder or .gguf file of the base model.", metavar="MODEL")],
        data: Annotated[
            str,
            typer.Argument(help="JSON, JSONL, CSV, TSV, Parquet or text file, text folder, or hub id.", metavar="DATA"),
        ],
        task: Annotated[
            str | None,
            typer.Option(
                "--task",
                "-t",
                help="classification, multi_label, regression, instruction … Default: read off the data.",
            ),
        ] = None,
        study: Annotated[
            str | None, typer.Option("--study", help="Name of the study. Default: the data's name.")
        ] = None,
        method: Annotated[
            list[str] | None,
            typer.Option("--method", help="How adapters are trained; given twice, the search compares. Default: lora."),
        ] = None,
        output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write. Default: stdout.")] = None,
        force: Annotated[bool, typer.Option("--force", "-f", help="Replace an existing file.")] = False,
    ) -> None:
        """Write a commented space.yaml: ranges by the size of the model, a length and a budget by the data."""
        from automl.errors import ConfigError, Problem
        from automl.setup.starter import starting_space

        if output is not None and output.exists() and not force:
            raise ConfigError([Problem(str(output), 0, 0, "", "exists already; add --force to replace it")])
        folder = output.parent if output is not None else None
        start = starting_space(model, data, task_type=task, study=study, methods=method or (), folder=folder)
        for line in start.advice:
            console.warning(line)
        if output is None:
            console.result(start.text.rstrip("\n"))
            return
        output.write_text(start.text, encoding="utf-8")
        console.result(f"wrote {output}; next: automl plan {output}, then automl search {output}")
