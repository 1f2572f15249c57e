"""What training a model takes on given devices, from its config.json alone: by strategy and part, and what fits."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from torch import nn

from automl.errors import TargetError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.methods.whole import InPlace
from automl.models.activations import Activations, activations, blocks_of
from automl.models.inventory import head_parameters, resolve_targets
from automl.models.memory import MemoryEstimate, backbone_bytes, estimate_bytes
from automl.models.strategies import RECIPES, STRATEGIES, Split, States, Strategy, buffers, split, states
from automl.packed.memory import capacity
from automl.space.sizes import gigabytes
from automl.space.spec import Quantization

ROOM = 0.95
"""Share of a device's memory that is planned with; the rest is for its context, libraries and gaps between tensors.

Makers give gigabytes of 2^30 bytes; they are read as 10^9 here, which leaves another 7 % free.
"""

FULL_TOKENS = 2048
"""Tokens of a pass from which a GPU is busy (docs/benchmarks.md, `gpu_packed`)."""

MOST_ROWS = 4096
"""Rows of a micro-batch beyond which nobody asks."""

_WIDTHS = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """count: devices that are alike. memory: bytes of one."""

    count: int
    memory: int

    @property
    def room(self) -> int:
        """Bytes of one that are planned with."""
        return int(ROOM * self.memory)

    def __str__(self) -> str:
        return f"{self.count} x {gigabytes(self.memory)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a device is asked to do at once. rows: of the micro-batch. length: tokens of each, padding included.

    attention: `eager`, `sdpa` or `flash`. recompute: gradient checkpointing; None: where only that makes room.
    """

    rows: int
    length: int
    attention: str = "sdpa"
    recompute: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One way of training. precision: fp32 or bf16. quantization: of what is frozen. targets: the user's own sets."""

    hyper: Hyperparameters
    precision: str
    quantization: Quantization | None = None
    targets: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        name = f"{self.hyper.method}, {self.precision}"
        return name if self.quantization is None else f"{name}, {self.quantization} weights"


class Cell(NamedTuple):
    """A strategy's memory on one device, in bytes. host: what lies in the host's memory for it.

    rows: of the micro-batch: as many as are wanted, or as fit. most_rows: of the largest one that fits, 0 if none does.
    recompute: with gradient checkpointing.
    """

    strategy: Strategy
    recompute: bool
    rows: int
    states: States
    host: int
    activations: int
    logits: int
    working: int
    buffers: int
    most_rows: int

    @property
    def total(self) -> int:
        """Bytes on the device at the peak of a step."""
        return self.states.total + self.activations + self.logits + self.working + self.buffers


class Slots(NamedTuple):
    """most: trials that one device trains at once on one copy of the frozen weights; 0: not even one, or not packed.

    usual: how many of them `slots: auto` takes at most. reason: why trials of this kind are not packed.
    """

    most: int
    usual: int
    reason: str = ""


class Sizer:
    """The arithmetic for one variant on a model; the model is walked through once."""

    def __init__(self, model: nn.Module, variant: Variant, load: Load) -> None:
        self.model, self.variant, self.load = model, variant, load
        self.layers = resolve_targets(model, variant.hyper.target, variant.targets)
        self.method = METHODS[variant.hyper.method]
        self.trained = self.method.trainable(model, self.layers, variant.hyper) + head_parameters(model)

    @property
    def is_in_place(self) -> bool:
        """Whether the model's own weights are trained."""
        return isinstance(self.method, InPlace)

    @cached_property
    def whole(self) -> States:
        """States of one copy. Adapters are trained in float32, whatever the precision."""
        width = _WIDTHS[self.variant.precision]
        frozen = backbone_bytes(self.model, width, self.variant.quantization)
        if self.is_in_place:
            return states(frozen - width * self.trained, self.trained, RECIPES[self.variant.precision])
        return states(frozen - width * head_parameters(self.model), self.trained, RECIPES["fp32"])

    @cached_property
    def counted(self) -> Activations:
        """What the backbone keeps for one row."""
        load, variant = self.load, self.variant
        return activations(
            self.model,
            self.layers,
            variant.hyper,
            tokens=load.length,
            dtype=variant.precision,
            attention="eager" if load.attention == "eager" else "sdpa",
        )

    def estimate(self, rows: int, *, recompute: bool) -> MemoryEstimate:
        """What a micro-batch of so many rows takes on one device."""
        load, variant = self.load, self.variant
        return estimate_bytes(
            self.model,
            variant.hyper,
            tokens=rows * load.length,
            rows=rows,
            dtype=variant.precision,
            recompute=recompute,
            targets=variant.targets,
            quantization=variant.quantization,
            length=load.length,
            attention="eager" if load.attention == "eager" else "sdpa",
            device="cuda",
        )

    @cached_property
    def largest_block(self) -> int:
        """Bytes of the weights that are gathered at a time where weights are shared out."""
        blocks = [sum(each.numel() for each in block.parameters()) for block in blocks_of(self.model).values()]
        embedded = [each.numel() for name, each in self.model.named_parameters() if "embed" in name]
        share = self.whole.frozen + self.whole.trained
        parameters = sum(each.numel() for each in self.model.parameters())
        return share * max([*blocks, *embedded], default=parameters) // parameters


def size(sizer: Sizer, devices: Devices) -> list[Cell]:
    """Every strategy that so many devices allow, the simplest first."""
    allowed = STRATEGIES if devices.count > 1 else ("one-device", "offload", "zero-3-offload")
    return [_cell(sizer, strategy, devices) for strategy in allowed]


def _cell(sizer: Sizer, strategy: Strategy, devices: Devices) -> Cell:
    """The strategy without gradient checkpointing, or with it if that is wanted or alone fills the device with work."""
    wanted = sizer.load.recompute
    plain = _sized(sizer, strategy, devices, recompute=bool(wanted))
    enough = min(sizer.load.rows, math.ceil(FULL_TOKENS / sizer.load.length))
    if wanted is not None or plain.most_rows >= enough:
        return plain
    again = _sized(sizer, strategy, devices, recompute=True)
    return again if again.most_rows > plain.most_rows or not plain.most_rows else plain


def _sized(sizer: Sizer, strategy: Strategy, devices: Devices, *, recompute: bool) -> Cell:
    count = 1 if strategy == "one-device" else devices.count
    part: Split = split(sizer.whole, strategy, count)
    one, two = (sizer.estimate(rows, recompute=recompute) for rows in (1, 2))
    width = RECIPES[sizer.variant.precision if sizer.is_in_place else "fp32"].gradients
    travelling = buffers(sizer.whole, strategy, largest_block=sizer.largest_block, gradient_width=width)
    update = 0 if strategy in ("offload", "zero-3-offload") else one.update * part.device.optimizer
    update //= max(1, sizer.whole.optimizer)

    def of_rows(rows: int) -> tuple[int, int, int]:
        """Activations, logits and working space grow by the same for each further row."""
        pairs = ((one.activations, two.activations), (one.logits, two.logits), (one.working, two.working))
        kept, logits, working = (first + (rows - 1) * (second - first) for first, second in pairs)
        return kept, logits, max(working, update - kept - logits)

    def needed(rows: int) -> int:
        return part.device.total + travelling + sum(of_rows(rows))

    most = bisect_right(range(1, MOST_ROWS + 1), devices.room, key=needed)
    rows = min(sizer.load.rows, most) or sizer.load.rows
    return Cell(strategy, recompute, rows, part.device, part.host.total, *of_rows(rows), travelling, most)


def slots(sizer: Sizer, devices: Devices, alone: Cell, usual: int) -> Slots:
    """Trials of this kind that one device holds at once: what `slots: auto` asks, for a device of this size.

    alone: one trial on one device.
    """
    variant = sizer.variant
    if not sizer.method.packable:
        return Slots(0, usual, f"trials of method {variant.hyper.method} are trained one by one")
    if not alone.most_rows:
        return Slots(0, usual, "one device has no room for one trial")
    most = capacity(
        sizer.model,
        variant.hyper,
        tokens=alone.rows * sizer.load.length,
        token_budget=max(FULL_TOKENS, alone.rows * sizer.load.length),
        available=devices.memory - sizer.whole.frozen,
        targets=variant.targets,
        dtype=variant.precision,
        recompute=alone.recompute,
        device="cuda",
    )
    return Slots(most, min(usual, most))


class Way(NamedTuple):
    """A variant with its strategies. refused: why it cannot be; there are none then."""

    variant: Variant
    trained: int
    cells: tuple[Cell, ...]
    slots: Slots
    refused: str = ""

    @property
    def best(self) -> Cell | None:
        """The simplest strategy with room for a row at least."""
        return next((cell for cell in self.cells if cell.most_rows), None)


def way(model: nn.Module, variant: Variant, load: Load, devices: Devices, usual: int) -> Way:
    """The variant sized, or why this model cannot have it."""
    try:
        sizer = Sizer(model, variant, load)
        cells = tuple(size(sizer, devices))
        return Way(variant, sizer.trained, cells, slots(sizer, devices, cells[0], usual))
    except TargetError as error:
        return Way(variant, 0, (), Slots(0, 0), str(error))


def as_json(found: Way) -> dict[str, Any]:
    """Plain JSON values."""
    best = found.best
    return {
        "method": found.variant.hyper.method,
        "rank": found.variant.hyper.rank if "rank" in METHODS[found.variant.hyper.method].takes else None,
        "target": found.variant.hyper.target if "target" in METHODS[found.variant.hyper.method].takes else None,
        "precision": found.variant.precision,
        "quantization": str(found.variant.quantization or ""),
        "trainable_params": found.trained,
        "refused": found.refused,
        "strategies": [_cell_as_json(cell) for cell in found.cells],
        "smallest": best.strategy if best else None,
        "slots": found.slots._asdict(),
    }


def _cell_as_json(cell: Cell) -> dict[str, Any]:
    plain = cell._asdict() | cell.states._asdict() | {"total": cell.total, "fits": cell.most_rows > 0}
    del plain["states"]
    return plain


def rows_of(cells: tuple[Cell, ...]) -> Iterator[tuple[object, ...]]:
    """A table's rows: a strategy each."""
    for cell in cells:
        yield (
            cell.strategy,
            *map(gigabytes, (cell.states.frozen + cell.states.trained, cell.states.gradients, cell.states.optimizer)),
            *map(gigabytes, (cell.activations, cell.logits, cell.buffers + cell.working, cell.total, cell.host)),
            "yes" if cell.recompute else "no",
            "yes" if cell.most_rows else "no",
            cell.rows,
            cell.most_rows,
        )
