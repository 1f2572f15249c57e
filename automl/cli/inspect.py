"""`automl inspect`: the linear layers of a model and what each target set would train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from automl.cli import console

if TYPE_CHECKING:
    from automl.models.memory import MethodCost


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl inspect ./SmolLM2-135M")
    def inspect(
        model: Annotated[str, typer.Argument(help="Hub id, folder, .gguf file, or a space file.", metavar="MODEL")],
        labels: Annotated[
            int, typer.Option("--labels", min=0, help="Classes of a classification head; 0 = a language model.")
        ] = 0,
        methods: Annotated[
            bool, typer.Option("--methods", help="Show what each method trains by default, and its memory, instead.")
        ] = False,
        as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    ) -> None:
        """Show a model's linear layers, their shapes, and the trainable parameters per target set and rank."""
        from automl.setup.starter import inspect_location, inspect_methods

        if methods:
            _show_methods(inspect_methods(model, labels), as_json=as_json)
            return
        report = inspect_location(model, labels)
        if as_json:
            console.result_json(asdict(report))
            return
        console.result(f"{report.architecture}: {report.parameters:,} parameters")
        held = ", ".join(f"{size / 2**30:.2f} GiB in {way}" for way, size in report.weights.items())
        console.result(f"frozen weights: {held}")
        console.table(
            "linear layers",
            ("module", ">count", ">in", ">out", "target sets"),
            (
                (kind.kind, kind.count, kind.in_features, kind.out_features, ", ".join(kind.sets))
                for kind in report.layers
            ),
        )
        ranks = list(next(iter(report.trainable.values()), {}))
        console.table(
            f"trainable parameters (LoRA + {report.head_parameters:,} of the head)",
            ("target", *(f">rank {rank}" for rank in ranks)),
            ((name, *(f"{count:,}" for count in by_rank.values())) for name, by_rank in report.trainable.items()),
        )
        console.results(f"not in this model: {name} ({why})" for name, why in report.unresolved.items())
        console.results(f"note: {note}" for note in report.notes)


def _show_methods(costs: Sequence[MethodCost], *, as_json: bool) -> None:
    """A row for each method, smallest first; a line for each that this model cannot have."""
    from automl.models.memory import ROWS, TOKENS
    from automl.results.summary import memory_text

    if as_json:
        console.result_json({"rows": ROWS, "tokens": TOKENS, "methods": [each._asdict() for each in costs]})
        return
    possible = [each for each in costs if not each.refused]
    console.table(
        f"methods as they are by default, with the head; memory in float32 with {ROWS} rows of {TOKENS} tokens",
        ("method", ">trainable parameters", ">memory"),
        (
            (each.method, f"{each.trainable_params:,}", memory_text(each.memory))
            for each in sorted(possible, key=lambda each: each.trainable_params)
        ),
    )
    console.results(f"not in this model: {each.method} ({each.refused})" for each in costs if each.refused)
