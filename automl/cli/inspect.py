"""`automl inspect`: the linear layers of a model and what each target set would train."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from automl.cli import console


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl inspect ./SmolLM2-135M")
    def inspect(
        model: Annotated[str, typer.Argument(help="Hub id, folder or .gguf file.", metavar="MODEL")],
        task: Annotated[str, typer.Option("--task", help="classification or causal-lm: decides the head.")] = "",
        as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    ) -> None:
        """Show a model's linear layers, their shapes, and the trainable parameters per target set and rank."""
        from automl.sweep.start import inspect_location

        report = inspect_location(model, task)
        if as_json:
            console.result_json(asdict(report))
            return
        console.result(f"{model}: {report.architecture}, {report.parameters:,} parameters")
        console.table(
            "Linear layers",
            ("module", ">count", ">in", ">out"),
            ((kind.pattern, kind.count, kind.in_features, kind.out_features) for kind in report.kinds),
        )
        ranks = report.ranks
        console.table(
            "Trainable parameters (LoRA and trained head)",
            ("target", ">modules", *(f">r={rank}" for rank in ranks)),
            (
                (row.target, row.modules, *(f"{row.trainable[rank]:,}" for rank in ranks))
                for row in report.targets
            ),
        )
