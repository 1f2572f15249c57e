"""What a worker is told: how many trials it holds at once, whether it trains them together, and all it needs for it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from automl.errors import ConfigError, Problem
from automl.lora import Hyperparameters
from automl.models.memory import estimate_bytes
from automl.packed.build import disagreement, examine
from automl.packed.kernels import choose_kernel
from automl.packed.memory import available_bytes, capacity
from automl.packed.trainer import TOKEN_BUDGET
from automl.space.spec import SweepSpec
from automl.sweep.costs import extremes, highest, target_names
from automl.sweep.folders import proofs_folder, study_folder
from automl.sweep.ground import Ground
from automl.sweep.layout import Layout
from automl.sweep.precision import settle_untimed
from automl.training.bench import HostSettings, stored_dtype

logger = logging.getLogger(__name__)

DEFAULT_SLOTS = {"cpu": 4, "cuda": 8}
"""Trials in a pack unless the file says how many, by type of device.

On a CPU the gain is nearly all there at 4, and gone beyond 8. On a GPU it should be there at 8; that is an estimate.
"""

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


def choose_packing(spec: SweepSpec, ground: Ground, layout: Layout) -> Packing:
    """Packed wherever that is possible, unless `run.slots` is 1: then the plain PEFT loop is wanted.

    The precision of `spec` is settled.
    """
    solo = _why_solo(spec, ground, layout)
    if solo:
        return Packing(slots=spec.run.slots or 1, solo=solo)
    if spec.run.slots is not None:
        return Packing(slots=spec.run.slots)
    share = math.ceil(spec.search.trials / layout.workers)
    return Packing(slots=min(DEFAULT_SLOTS[layout.device], share, _room(spec, ground, layout)))


def host_settings(spec: SweepSpec, ground: Ground, layout: Layout, packing: Packing) -> HostSettings:
    """What a worker needs to build its host; picklable, without a database URL or any other secret.

    The precision of `spec` is settled (`sweep.precision`).
    """
    return HostSettings(
        backbone=ground.backbone,
        task=spec.task,
        prepared=ground.prepared.without_test(),
        targets=ground.space.targets,
        output=str(study_folder(spec)),
        precision=spec.run.precision,
        device=layout.device,
        threads=layout.threads,
        capacity=packing.slots,
        packed=packing.is_packed,
        importance=spec.search.importance,
        largest=_largest(ground),
        choices=tuple(target_names(ground.space)),
        tokens=_most_tokens(spec, ground),
        workers=layout.workers,
        shards=layout.shards,
        proofs=str(proofs_folder(ground.cache)),
    )


def prove(
    spec: SweepSpec,
    ground: Ground,
    layout: Layout,
    recorded: Mapping[str, Any] | None = None,
    *,
    is_thorough: bool = True,
) -> Ground:
    """The ground, with an obstacle if packed training does not follow PEFT on this model: found out once, then known.

    recorded: as for `settle_precision`, which comes afterwards. is_thorough: load the model to find it out; otherwise
    what is not known yet is no obstacle. Raises ConfigError if the precision is for packed training only.
    """
    settled = settle_untimed(spec, layout, recorded)
    packing = choose_packing(settled, ground, layout)
    if not packing.is_packed:
        return ground
    settings = host_settings(settled, ground, layout, packing)
    found = examine(settings, ground.model) if is_thorough else disagreement(settings, ground.model, bench=None)
    if not found:
        return ground
    obstacle = f"packed, {type(ground.model).__name__} would not follow PEFT: {found}"
    is_fixed = spec.run.precision != "auto" or (recorded or {}).get("precision")
    if settled.run.precision == "bf16h" and is_fixed:
        raise ConfigError([Problem(spec.source, 0, 0, "run.precision", f"bf16h is for packed training; {obstacle}")])
    logger.warning("trials are trained one at a time; %s", obstacle)
    return replace(ground, obstacle=obstacle)


def kernel_of(spec: SweepSpec, layout: Layout, packing: Packing) -> str:
    """Which kernel computes the products with frozen weights, if the workers are like this machine."""
    return choose_kernel(spec.run.precision, torch.device(layout.device)) if packing.is_packed else "peft"


def _why_solo(spec: SweepSpec, ground: Ground, layout: Layout) -> str:
    precision = spec.run.precision
    if layout.shards > 1:
        return f"shared out over {layout.shards} processes"
    if precision == "bf16h":  # there is no other way to train in it
        return ""
    if precision == "bf16" and layout.device != "cuda":
        return "precision bf16 cannot be packed on a CPU, bf16h can"
    return ground.obstacle or ("slots: 1" if spec.run.slots == 1 else "")


def worker_bytes(spec: SweepSpec, ground: Ground, layout: Layout, packing: Packing, *, target: str, rank: int) -> int:
    """Estimated memory of a worker whose trials all have this target set and rank, and the largest batch.

    Of one process, where several hold a trial together.
    """
    together = packing.slots if packing.is_packed else 1
    tokens = _most_tokens(spec, ground)
    estimate = estimate_bytes(
        ground.model,
        target,
        rank,
        tokens=max(tokens, min(TOKEN_BUDGET[layout.device], together * tokens)),
        dtype=stored_dtype(spec.run.precision),
        dropout=highest(ground.space, "dropout"),
        targets=ground.space.targets,
    )
    backbone = _BACKBONE_BYTES[layout.device] * ground.backbone.parameters if packing.is_packed else estimate.backbone
    if layout.shards > 1:
        return math.ceil((backbone + estimate.adapter) / layout.shards) + estimate.activations
    return backbone + together * estimate.adapter + estimate.activations


def _room(spec: SweepSpec, ground: Ground, layout: Layout) -> int:
    """Trials like the costliest of the space that fit into a worker's share of the memory."""
    if layout.device == "cuda":
        available = torch.cuda.get_device_properties(0).total_memory
    else:
        available = available_bytes(torch.device("cpu")) // layout.workers
    return capacity(
        ground.model,
        _largest(ground),
        tokens=_most_tokens(spec, ground),
        token_budget=TOKEN_BUDGET[layout.device],
        dtype=stored_dtype(spec.run.precision),
        recompute=layout.device == "cuda",
        available=max(0, available - _BACKBONE_BYTES[layout.device] * ground.backbone.parameters),
        targets=ground.space.targets,
    )


def _largest(ground: Ground) -> Hyperparameters:
    """The trial of the space that takes the most memory."""
    return Hyperparameters(
        rank=extremes(ground.space, "rank")[-1],
        target=max(
            target_names(ground.space),
            key=lambda name: ground.derive(Hyperparameters(target=name))["trainable_params"],
        ),
        dropout=highest(ground.space, "dropout"),
    )


def _most_tokens(spec: SweepSpec, ground: Ground) -> int:
    """Of one trial's batch."""
    return extremes(ground.space, "batch_size")[-1] * min(spec.task.max_length, ground.prepared.longest)
