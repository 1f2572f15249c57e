"""Which precision `precision: auto` means for a study: decided once, recorded with it, and kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from automl.packed.kernels import choose_precision
from automl.space.spec import SweepSpec
from automl.sweep.ground import Ground
from automl.sweep.layout import Layout


def settle_precision(
    spec: SweepSpec, ground: Ground, layout: Layout, recorded: Mapping[str, Any] | None = None
) -> SweepSpec:
    """The spec with its precision fixed; one that is named stays as it is.

    recorded: what the study's first run wrote down (`sweep.record.GROUND`), None if there was none: its precision holds
    for the whole study. Otherwise `auto` is fp32 in shards, else bf16 on a GPU; on a CPU fp32, or bf16h if trials are
    packed and a short probe finds it clearly faster on this machine.
    """
    if spec.run.precision != "auto":
        return spec
    chosen: Any = (recorded or {}).get("precision") or _chosen(spec, ground, layout)
    return replace(spec, run=replace(spec.run, precision=chosen))


def _chosen(spec: SweepSpec, ground: Ground, layout: Layout) -> str:
    if layout.shards > 1:
        return "fp32"
    if layout.device == "cuda":
        return "bf16"
    if ground.obstacle or spec.run.slots == 1:
        return "fp32"
    return choose_precision(torch.device("cpu"), threads=layout.threads)
