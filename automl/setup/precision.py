"""Which precision `precision: auto` means for a study: decided once, recorded with it, and kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from automl.methods.registry import METHODS
from automl.packed.kernels import choose_kernel, choose_precision, product_seconds
from automl.provenance import processor
from automl.setup.machine import Layout
from automl.setup.prepare import Inputs
from automl.space.extremes import methods_of
from automl.space.spec import SweepSpec

logger = logging.getLogger(__name__)

_TOO_SLOW = 1.5  # times fp32's; a CPU that knows bfloat16 is below 1


def settle_precision(
    spec: SweepSpec, inputs: Inputs, layout: Layout, recorded: Mapping[str, Any] | None = None
) -> SweepSpec:
    """The spec with its precision fixed; one that is named stays as it is.

    recorded: what the study's first run wrote down (`results.recorded.GROUND`), None if there was none: its precision
    holds for the whole study, unless it was chosen on a CPU that is made for it and this one is not. Otherwise `auto`
    is fp32 with methods that need it, else bf16 on a GPU; on a CPU fp32, or bf16h if trials are packed and a short
    probe finds it clearly faster on this machine.
    """
    if spec.run.precision != "auto":
        return spec
    chosen: Any = _kept(recorded, layout) if (recorded or {}).get("precision") else _chosen(spec, inputs, layout)
    return replace(spec, run=replace(spec.run, precision=chosen))


def settle_untimed(spec: SweepSpec, layout: Layout, recorded: Mapping[str, Any] | None = None) -> SweepSpec:
    """The spec with its precision fixed without timing anything: where `auto` would time this CPU, it is fp32."""
    if spec.run.precision != "auto":
        return spec
    usual = "bf16" if layout.device == "cuda" and _is_halvable(spec) else "fp32"
    chosen: Any = (recorded or {}).get("precision") or usual
    return replace(spec, run=replace(spec.run, precision=chosen))


def _kept(recorded: Mapping[str, Any] | None, layout: Layout) -> str:
    """What an earlier run chose; fp32 instead of a bf16h that this CPU can only imitate."""
    before = str((recorded or {})["precision"])
    if before != "bf16h" or layout.device != "cpu" or not is_another_cpu(recorded or {}):
        return before
    seconds = product_seconds(torch.device("cpu"), threads=layout.threads)
    slowdown = seconds["bf16h"] / seconds["fp32"]
    if slowdown < _TOO_SLOW:
        return before
    logger.warning(
        "the study began in precision bf16h on another CPU; on this one a product takes %.1f times as long in it as in"
        " fp32 (%.0f and %.0f ms): trials run in fp32 from now on, and those under way begin anew",
        slowdown,
        1e3 * seconds["bf16h"],
        1e3 * seconds["fp32"],
    )
    return "fp32"


def is_another_cpu(recorded: Mapping[str, Any]) -> bool:
    """Whether a run that recorded this was on a CPU of another name, or of which another kernel was the fastest."""
    kernel = choose_kernel(recorded["precision"], torch.device("cpu"))
    return bool(recorded.get("kernel", kernel) != kernel or recorded.get("processor", processor()) != processor())


def _chosen(spec: SweepSpec, inputs: Inputs, layout: Layout) -> str:
    if not _is_halvable(spec):
        return "fp32"
    if layout.device == "cuda":
        return "bf16"
    if inputs.obstacle or spec.run.slots == 1 or layout.shards > 1:
        return "fp32"
    return choose_precision(torch.device("cpu"), threads=layout.threads)


def _is_halvable(spec: SweepSpec) -> bool:
    """Whether every method the space can choose does with a backbone in 16 bits."""
    return all(METHODS[name].halvable for name in methods_of(spec.space))
