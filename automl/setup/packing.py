"""What a worker is told: how many trials it holds at once, whether it trains them together, and all it needs for it."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from automl.errors import ConfigError, Problem
from automl.lora import Hyperparameters
from automl.models.activations import COUNTED
from automl.models.memory import MemoryEstimate, backbone_bytes, estimate_bytes
from automl.packed.build import disagreement, examine
from automl.packed.kernels import choose_kernel
from automl.packed.memory import available_bytes, capacity
from automl.results.folders import proofs_folder, study_folder
from automl.setup.machine import Layout
from automl.setup.precision import settle_untimed
from automl.setup.prepare import Inputs
from automl.space.extremes import corners, extremes, own_values, starts_from_inputs, target_names
from automl.space.spec import RunSettings, SearchSpace, SweepSpec, TaskSettings
from automl.tasks import make_task
from automl.training.memory import TOKEN_BUDGET
from automl.training.runtime import HostSettings, stored_dtype

logger = logging.getLogger(__name__)

DEFAULT_SLOTS = {"cpu": 4, "cuda": 8}
"""Trials in a pack unless the file says how many, by type of device.

On a CPU the gain is nearly all there at 4, and gone beyond 8. On a GPU it should be there at 8; that is an estimate.
"""

_STRETCH = 1.5
"""How many times the usual slots are taken where that saves a round."""

_BACKBONE_BYTES = {"cpu": 12, "cuda": 6}
"""Per parameter of a packed backbone, at most: the weight, and the copies that the kernels of the device make of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """slots: trials that a worker holds at once. solo: why it trains them one by one, empty if it packs them."""

    slots: int
    solo: str = ""

    @property
    def is_packed(self) -> bool:
        """Whether a worker trains its trials together."""
        return not self.solo

    def __str__(self) -> str:
        if self.solo:
            return f"one trial at a time ({self.solo})"
        return f"{self.slots} trials packed"


def choose_packing(spec: SweepSpec, inputs: Inputs, layout: Layout) -> Packing:
    """Packed wherever that is possible, unless `run.slots` is 1: then the plain PEFT loop is wanted.

    The precision of `spec` is settled.
    """
    solo = _why_solo(spec, inputs, layout)
    if solo:
        return Packing(slots=spec.run.slots or 1, solo=solo)
    if spec.run.slots is not None:
        return Packing(slots=spec.run.slots)
    share = math.ceil(spec.search.trials / layout.workers)
    return Packing(slots=_room(spec, inputs, layout, min(DEFAULT_SLOTS[layout.device], share)))


def pack_evenly(packing: Packing, spec: SweepSpec, inputs: Inputs, layout: Layout, trainings: int) -> Packing:
    """The packing for so many trainings of equal length: as few rounds as the usual slots allow, all rounds alike.

    Nine trainings on two workers that usually hold 4 are 5 and 4 at once, rather than 4 and 4, and one that is left.
    """
    if not packing.is_packed or spec.run.slots is not None:
        return packing
    share = math.ceil(trainings / layout.workers)
    rounds = math.ceil(share / (DEFAULT_SLOTS[layout.device] * _STRETCH))
    return replace(packing, slots=_room(spec, inputs, layout, math.ceil(share / rounds)))


def host_settings(spec: SweepSpec, inputs: Inputs, layout: Layout, packing: Packing) -> HostSettings:
    """What a worker needs to build its host; picklable, without a database URL or any other secret.

    The precision of `spec` is settled (`setup.precision`).
    """
    return HostSettings(
        backbone=inputs.backbone,
        task=spec.task,
        prepared=inputs.prepared.without_test(),
        targets=inputs.space.targets,
        output=str(study_folder(spec)),
        precision=spec.run.precision,
        device=layout.device,
        threads=layout.threads,
        capacity=packing.slots,
        packed=packing.is_packed,
        importance=spec.search.importance,
        largest=_largest(inputs),
        choices=tuple(target_names(inputs.space)),
        tokens=_batch_tokens(spec, inputs),
        whole_batches=has_whole_batches(spec.task, inputs.space),
        workers=layout.workers,
        memory=spec.run.memory,
        shards=layout.shards,
        proofs=str(proofs_folder(inputs.cache)),
        keep=inputs.keep,
        input_rank=extremes(inputs.space, "rank")[-1] if starts_from_inputs(inputs.space) else 0,
    )


def prove(
    spec: SweepSpec,
    inputs: Inputs,
    layout: Layout,
    recorded: Mapping[str, Any] | None = None,
    *,
    is_thorough: bool = True,
) -> Inputs:
    """The inputs, with an obstacle if packed training does not follow PEFT on this model: found out once, then known.

    recorded: as for `settle_precision`, which comes afterwards. is_thorough: load the model to find it out; otherwise
    what is not known yet is no obstacle. On a device that only other machines have, the workers find it out. Raises
    ConfigError if the precision is for packed training only.
    """
    settled = settle_untimed(spec, layout, recorded)
    packing = choose_packing(settled, inputs, layout)
    if not packing.is_packed or not layout.is_here:
        return inputs
    settings = host_settings(settled, inputs, layout, packing)
    found = examine(settings, inputs.model) if is_thorough else disagreement(settings, inputs.model, runtime=None)
    if not found:
        return inputs
    obstacle = f"packed, {type(inputs.model).__name__} would not follow PEFT: {found}"
    is_fixed = spec.run.precision != "auto" or (recorded or {}).get("precision")
    if settled.run.precision == "bf16h" and is_fixed:
        raise ConfigError([Problem(spec.source, 0, 0, "run.precision", f"bf16h is for packed training; {obstacle}")])
    logger.warning("trials are trained one at a time; %s", obstacle)
    return replace(inputs, obstacle=obstacle)


def kernel_of(spec: SweepSpec, layout: Layout, packing: Packing) -> str:
    """Which kernel computes the products with frozen weights, if the workers are like this machine."""
    return choose_kernel(spec.run.precision, torch.device(layout.device)) if packing.is_packed else "peft"


def _why_solo(spec: SweepSpec, inputs: Inputs, layout: Layout) -> str:
    precision = spec.run.precision
    if layout.shards > 1:
        return f"shared out over {layout.shards} processes"
    if precision == "bf16h":  # there is no other way to train in it
        return ""
    if precision == "bf16" and layout.device != "cuda":
        return "precision bf16 cannot be packed on a CPU, bf16h can"
    return inputs.obstacle or ("slots: 1" if spec.run.slots == 1 else "")


def worker_bytes(spec: SweepSpec, inputs: Inputs, layout: Layout, packing: Packing, hyper: Hyperparameters) -> int:
    """Estimated memory of a worker whose trials all are like this one, with the largest batch.

    Of one process, where several hold a trial together.
    """
    together = packing.slots if packing.is_packed else 1
    tokens = _most_tokens(spec, inputs, layout)
    estimate = _estimate(
        spec,
        inputs,
        layout,
        packing,
        hyper,
        tokens=max(tokens, min(TOKEN_BUDGET[layout.device], together * tokens)),
        rows=extremes(inputs.space, "batch_size")[-1],
    )
    backbone = _packed_bytes(inputs, layout) if packing.is_packed else estimate.backbone
    return _on_one(layout, backbone, together * estimate.adapter, estimate.step)


def least_bytes(
    spec: SweepSpec,
    inputs: Inputs,
    layout: Layout,
    packing: Packing,
    hyper: Hyperparameters,
    *,
    is_bound: bool = False,
) -> int:
    """Estimated memory of a worker with one trial like this one, which is trained row by row: it cannot do with less.

    The frozen weights are there once, whatever copies of them kernels may make. is_bound: as of `estimate_bytes`.
    """
    estimate = _estimate(
        spec,
        inputs,
        layout,
        packing,
        hyper,
        tokens=_row_tokens(spec, inputs),
        rows=make_task(spec.task).texts,
        recompute=packing.is_packed,  # a pack computes activations again where only that makes room
        is_bound=is_bound,
    )
    return _on_one(layout, estimate.backbone, estimate.adapter, estimate.step)


def _estimate(
    spec: SweepSpec,
    inputs: Inputs,
    layout: Layout,
    packing: Packing,
    hyper: Hyperparameters,
    *,
    tokens: int,
    rows: int,
    recompute: bool = False,
    is_bound: bool = False,
) -> MemoryEstimate:
    return estimate_bytes(
        inputs.model,
        hyper,
        tokens=tokens,
        rows=rows,
        dtype=stored_dtype(spec.run.precision),
        targets=inputs.space.targets,
        recompute=recompute,
        quantization=inputs.backbone.quantization,
        device=layout.device,
        is_packed=packing.is_packed,
        is_bound=is_bound,
        length=_block(spec) or COUNTED,
        is_joined=_block(spec) > 0,
    )


def _on_one(layout: Layout, frozen: int, trained: int, step: int) -> int:
    """Bytes of one process of as many as hold a trial together."""
    return math.ceil((frozen + trained) / layout.shards) + step


def worker_memory(run: RunSettings, layout: Layout) -> int:
    """Bytes that a worker may take: what the file says, else its device or its share of what is free here.

    Of a device that only other machines have there is no end: its worker sees how much fits.
    """
    if run.memory is not None:
        return run.memory
    if not layout.is_here:
        return sys.maxsize
    if layout.device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return available_bytes(torch.device("cpu")) // (layout.workers * layout.shards)


def known_memory(run: RunSettings, layout: Layout) -> int | None:
    """Bytes that a worker may take; None where that is other machines' to say."""
    is_elsewhere = run.address is not None or not layout.is_here
    return None if run.memory is None and is_elsewhere else worker_memory(run, layout)


def _packed_bytes(inputs: Inputs, layout: Layout) -> int:
    """Bytes of a packed backbone, at most; a quantised layer has no copies."""
    width = _BACKBONE_BYTES[layout.device]
    if inputs.backbone.quantization is None:
        return width * inputs.backbone.parameters
    return backbone_bytes(inputs.model, width, inputs.backbone.quantization)


def _room(spec: SweepSpec, inputs: Inputs, layout: Layout, wanted: int) -> int:
    """Trials like the costliest of the space that fit into a worker's share of the memory, at most `wanted`."""
    available = worker_memory(spec.run, layout)
    return capacity(
        inputs.model,
        _largest(inputs),
        tokens=_most_tokens(spec, inputs, layout),
        token_budget=TOKEN_BUDGET[layout.device],
        dtype=stored_dtype(spec.run.precision),
        recompute=layout.device == "cuda",
        device=layout.device,
        block=_block(spec),
        available=max(0, available - _packed_bytes(inputs, layout)),
        targets=inputs.space.targets,
        wanted=wanted,
    )


def _largest(inputs: Inputs) -> Hyperparameters:
    """The trial of the space that takes the most memory."""
    return max(corners(inputs.space), key=inputs.derive.most_parameters)


def _batch_tokens(spec: SweepSpec, inputs: Inputs) -> int:
    """Most tokens of one trial's batch, padding included."""
    return extremes(inputs.space, "batch_size")[-1] * _row_tokens(spec, inputs)


def _row_tokens(spec: SweepSpec, inputs: Inputs) -> int:
    """Tokens of the longest row, or of all its texts."""
    return make_task(spec.task).texts * min(spec.task.longest_row, inputs.prepared.longest)


def _most_tokens(spec: SweepSpec, inputs: Inputs, layout: Layout) -> int:
    """Most tokens of one trial that a process computes at once; a larger batch is computed in parts.

    Processes that hold a trial together compute their rows of it at once.
    """
    if layout.shards > 1:
        rows = extremes(inputs.space, "batch_size")[-1]
        return math.ceil(rows / layout.shards) * _row_tokens(spec, inputs)
    if has_whole_batches(spec.task, inputs.space):
        return _batch_tokens(spec, inputs)
    return max(_row_tokens(spec, inputs), min(_batch_tokens(spec, inputs), TOKEN_BUDGET[layout.device]))


def has_whole_batches(settings: TaskSettings, space: SearchSpace) -> bool:
    """Whether the space can choose a loss that compares the rows of a batch."""
    task = make_task(settings)
    own = [((name, value),) for name, values in own_values(space).items() for value in values]
    return any(task.for_trial(Hyperparameters(own=each)).compares_rows for each in own)


def _block(spec: SweepSpec) -> int:
    """Tokens of a block where rows are joined, else 0."""
    return spec.task.max_length if spec.task.short_texts else 0
