"""`automl plan`: what a search will do and roughly cost, or what training takes on given devices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automl.cli import console
from automl.cli.plan_devices import Asked, show
from automl.errors import ConfigError, Problem

_OF_A_MODEL = ("method", "rank", "target", "dropout", "precision", "quantization", "labels")
_OF_DEVICES = ("gpus", "batch_size", "max_length", "attention", "checkpointing", "explain")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl plan --model ./Llama-2-13b --gpu-memory 24GB --method qlora --rank 64")
    def plan(
        context: typer.Context,
        space: Annotated[Path | None, typer.Argument(help="The space file (YAML).", metavar="SPACE.YAML")] = None,
        probe: Annotated[
            bool, typer.Option("--probe/--no-probe", help="Train a few steps here to estimate time and memory.")
        ] = True,
        as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
        model: Annotated[
            str | None, typer.Option("--model", help="Plan for this model instead: folder, config.json or hub id.")
        ] = None,
        gpus: Annotated[int, typer.Option("--gpus", help="Devices, all alike.")] = 1,
        gpu_memory: Annotated[
            str | None, typer.Option("--gpu-memory", help="Memory of one device, as in 80GB: plan what fits into it.")
        ] = None,
        method: Annotated[
            str | None, typer.Option("--method", help="Method, or qlora; otherwise LoRA and full fine-tuning.")
        ] = None,
        rank: Annotated[int, typer.Option("--rank", min=1, max=65536, help="Rank of the adapter.")] = 8,
        target: Annotated[str, typer.Option("--target", help="Target set.")] = "all-linear",
        dropout: Annotated[float, typer.Option("--dropout", min=0.0, max=0.99, help="Dropout of the adapter.")] = 0.0,
        batch_size: Annotated[
            int | None, typer.Option("--batch-size", min=1, max=4096, help="Rows at once; otherwise 8.")
        ] = None,
        max_length: Annotated[
            int | None, typer.Option("--max-length", min=1, max=1_000_000, help="Tokens of a row; otherwise 512.")
        ] = None,
        precision: Annotated[str | None, typer.Option("--precision", help="fp32 or bf16; otherwise bf16.")] = None,
        quantization: Annotated[
            str | None, typer.Option("--quantization", help="none, int8, nf4 or fp4; otherwise all but the last.")
        ] = None,
        attention: Annotated[str, typer.Option("--attention", help="eager, sdpa or flash.")] = "sdpa",
        checkpointing: Annotated[
            bool | None,
            typer.Option("--checkpointing/--no-checkpointing", help="Recompute activations; otherwise where it helps."),
        ] = None,
        labels: Annotated[
            int, typer.Option("--labels", min=0, max=1_000_000, help="Classes of --model's head; 0 = a language model.")
        ] = 0,
        explain: Annotated[bool, typer.Option("--explain", help="Say how each number comes about.")] = False,
    ) -> None:
        """Show what would be searched: trials, steps, trainable parameters, memory, time, and what pruning may save.

        With --model or --gpu-memory: what training takes on such devices, and the smallest strategy that fits, from the
        model's config.json alone.
        """
        if (space is None) == (model is None):
            raise ConfigError([Problem("", 0, 0, "plan", "name a space file, or a model with --model, and not both")])
        if space is not None:
            _check_given(context, is_for_devices=gpu_memory is not None)
        if model is None and gpu_memory is None:
            assert space is not None
            _plan_search(space, probe=probe, as_json=as_json)
            return
        asked = Asked(
            model=model,
            space=space,
            labels=labels,
            gpus=gpus,
            memory=gpu_memory,
            method=method,
            rank=rank,
            target=target,
            dropout=dropout,
            rows=batch_size,
            length=max_length,
            precision=precision,
            quantization=quantization,
            attention=attention,
            recompute=checkpointing,
        )
        show(asked, explain=explain, as_json=as_json)


def _check_given(context: typer.Context, *, is_for_devices: bool) -> None:
    """Raises ConfigError for an option that would say nothing beside a space file."""
    wrong = dict.fromkeys(_OF_A_MODEL, "is said by the space file; leave it out, or plan for --model")
    if not is_for_devices:
        wrong |= dict.fromkeys(_OF_DEVICES, "is for a plan for devices; add --gpu-memory, or leave it out")
    for name, message in wrong.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise ConfigError([Problem("", 0, 0, f"--{name.replace('_', '-')}", message)])


def _plan_search(space: Path, *, probe: bool, as_json: bool) -> None:
    from automl.results.folders import cache_folder
    from automl.setup.affordable import needs_together
    from automl.setup.plan import make_plan
    from automl.space.load import load_spaces

    specs = load_spaces(space)
    console.note("preparing model and data" + (", then a short probe" if probe else ""))
    plans = [make_plan(spec, cache_folder(), probe=probe) for spec in specs]
    if as_json:
        found = [made.as_dict() for made in plans]
        console.result_json(found[0] if len(found) == 1 else {"studies": found})
        return
    for made in plans:
        console.results(made.lines())
    if len(plans) > 1:
        shared = needs_together(made.needs for made in plans)
        console.results(f"budget, all tasks together: {need}" for need in shared)
        console.results(f"advice: {need.advice}" for need in shared if need.is_too_much)
