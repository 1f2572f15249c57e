"""The learning rate to try first, by the family and the size of a model: what was best where somebody has looked.

Published ones are those of the Tinker cookbook (thinking-machines-lab/tinker-cookbook at 02face3): the best of sweeps
on Tulu 3 with alpha 32, batches of 128 rows, 780 steps. Below 500 M they are our own: rank 16 on all linear layers of
MiniLM and SmolLM2-135M, five text sets and one of instructions, 200 steps of 16 rows (`benchmarks/recorded/squeeze`):
the median of the best rates at alpha 16 is 2e-3, which is 1.4e-3 at alpha 32, as the best rate goes with alpha^-1/2
(arXiv 2602.06204). They are where a search begins, not where it ends: batch, steps and data move the best rate.
"""

from __future__ import annotations

from typing import NamedTuple

from automl.methods.lora import LARGE, SMALL

RANK = 16
ALPHA_RATIO = 2.0
"""Alpha 32 at rank 16, what the rates are for."""

_COOKBOOK = "best in published sweeps of"
_OURS = "best on small models in sweeps of our own"


class Prior(NamedTuple):
    """A learning rate for alpha 32, and where it comes from in a few words."""

    rate: float
    source: str


class _Family(NamedTuple):
    """Models of a type as `config.json` names it, from `low` to below `high` parameters."""

    model_type: str
    low: float
    high: float
    rate: float
    name: str


_ANY = float("inf")
_FAMILIES = (
    _Family("llama", SMALL, 5e9, 1e-3, "Llama 3.2 1B and 3B"),
    _Family("llama", 5e9, _ANY, 3e-4, "Llama 3.1 8B and 70B"),
    _Family("qwen3", LARGE, 15e9, 1e-3, "Qwen3 4B and 8B"),
    _Family("qwen3", 15e9, _ANY, 3e-4, "Qwen3 32B"),
    _Family("qwen3_moe", 0, 100e9, 1e-3, "Qwen3 30B-A3B"),
    _Family("qwen3_moe", 100e9, _ANY, 3e-4, "Qwen3 235B-A22B"),
    _Family("qwen3_5", LARGE, _ANY, 3e-4, "Qwen3.5"),
    _Family("qwen3_5_moe", LARGE, _ANY, 3e-4, "Qwen3.5"),
    _Family("gpt_oss", 0, 60e9, 1e-4, "gpt-oss-20b"),
    _Family("gpt_oss", 60e9, _ANY, 3e-4, "gpt-oss-120b"),
    _Family("deepseek_v3", 0, _ANY, 4e-4, "DeepSeek-V3.1"),
    _Family("kimi_k2", 0, _ANY, 3e-4, "Kimi-K2"),
)


def prior_of(model_type: str, parameters: int) -> Prior | None:
    """What to try first with LoRA in a model of this type and size; None where nothing is known."""
    for family in _FAMILIES:
        if family.model_type == model_type and family.low <= parameters < family.high:
            return Prior(family.rate, f"{_COOKBOOK} {family.name}")
    return Prior(1.4e-3, _OURS) if parameters < SMALL else None
