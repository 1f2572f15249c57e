"""The part of `automl plan` that is about devices: from a model's config.json alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from automl.cli import console
from automl.errors import ConfigError, Problem

if TYPE_CHECKING:
    from automl.setup.device_request import DevicePlan


class Asked(NamedTuple):
    """The options of the command, as they were given."""

    model: str | None
    space: Path | None
    labels: int
    gpus: int
    memory: str | None
    method: str | None
    rank: int
    target: str
    dropout: float
    rows: int | None
    length: int | None
    precision: str | None
    quantization: str | None
    attention: str
    recompute: bool | None


def show(asked: Asked, *, explain: bool, as_json: bool) -> None:
    """Work the plan out and print it."""
    made = _made(asked)
    if as_json:
        console.result_json(_as_json(made, explain=explain))
        return
    config: Any = made.described.model.config
    console.result(
        f"{type(made.described.model).__name__}: {made.described.parameters:,} parameters ({config.model_type})"
    )
    load = made.load
    console.result(
        f"on {made.devices}, micro-batch of {load.rows} rows of {load.length} tokens, {load.attention} attention"
    )
    _show_ways(made)
    if not made.ways[0].refused:
        _show_strategies(made)
    if explain:
        console.results(_explained(made))
    from automl.setup.device_advice import advice

    console.results(f"note: {text}" for text in made.described.notes)
    console.results(f"advice: {text}" for text in advice(made.ways, made.sizer, made.devices))


def _made(asked: Asked) -> DevicePlan:
    from automl.lora import Hyperparameters
    from automl.models.described import describe
    from automl.setup.device_plan import Load
    from automl.setup.device_request import devices_of, plan_devices, request_of, variants_of
    from automl.space.load import load_space

    if asked.memory is None:
        raise ConfigError([Problem("", 0, 0, "--gpu-memory", "is missing; say what one device has, as in 80GB")])
    devices = devices_of(asked.gpus, asked.memory)
    if asked.space is not None:
        described, variants, load = request_of(load_space(asked.space))
    else:
        base = Hyperparameters(rank=asked.rank, target=asked.target, dropout=asked.dropout)
        variants = variants_of(asked.method, asked.precision, asked.quantization, base)
        described, load = describe(str(asked.model), asked.labels), Load(rows=8, length=512)
    load = Load(
        rows=asked.rows or load.rows,
        length=asked.length or load.length,
        attention=asked.attention,
        recompute=asked.recompute,
    )
    return plan_devices(described, variants, load, devices)


def _show_ways(made: DevicePlan) -> None:
    from automl.space.sizes import gigabytes

    if len(made.ways) == 1:
        return
    rows = []
    for each in made.ways:
        best = each.best
        fits = (
            (best.strategy, gigabytes(best.total), "yes" if best.recompute else "no", best.most_rows) if best else None
        )
        rows.append(
            (str(each.variant), f"{each.trained:,}", *(fits or ("nothing fits", "", "", "")), each.slots.most or "")
        )
    columns = ("way", ">trained", "smallest that fits", ">per device", "checkpointing", ">most rows", ">slots")
    console.table("ways of training, and the smallest strategy that fits", columns, rows)


def _show_strategies(made: DevicePlan) -> None:
    from automl.setup.device_plan import rows_of

    columns = ("strategy", *(f">{name}" for name in ("weights", "gradients", "optimizer", "activations", "logits")))
    columns += (">buffers", ">total", ">on the host", "checkpointing", "fits", ">rows", ">most rows")
    first = made.ways[0]
    console.table(f"{first.variant}: memory of one device", columns, rows_of(first.cells))


def _explained(made: DevicePlan) -> Iterator[str]:
    from automl.setup.device_advice import explained
    from automl.space.sizes import gigabytes

    first = made.ways[0]
    cell = first.best or (first.cells[0] if first.cells else None)
    if cell is None:
        return
    yield f"{first.variant}, {cell.strategy}, by its parts:"
    for line in explained(made.sizer, cell, made.devices):
        source = f"  [{line.source}]" if line.source else ""
        yield f"  {line.what:<16} {gigabytes(line.size):>10} = {line.formula}{source}"


def _as_json(made: DevicePlan, *, explain: bool) -> dict[str, Any]:
    from automl.setup.device_advice import advice, explained
    from automl.setup.device_plan import as_json

    found: dict[str, Any] = {
        "model": made.described.source,
        "parameters": made.described.parameters,
        "gpus": made.devices.count,
        "gpu_memory": made.devices.memory,
        "planned_with": made.devices.room,
        "rows": made.load.rows,
        "max_length": made.load.length,
        "attention": made.load.attention,
        "ways": [as_json(each) for each in made.ways],
        "notes": list(made.described.notes),
        "advice": list(advice(made.ways, made.sizer, made.devices)),
    }
    first = made.ways[0]
    cell = first.best or (first.cells[0] if first.cells else None)
    if explain and cell is not None:
        found["explained"] = [line._asdict() for line in explained(made.sizer, cell, made.devices)]
    return found
