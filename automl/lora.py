"""What a LoRA trial is made of: its hyperparameters, the named target sets, and the arithmetic that follows from them.

Values and formulas only; which modules of a real model a target set means is resolved in `automl.models.inventory`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

ScheduleName = Literal["constant", "linear", "cosine"]

TARGET_SETS: dict[str, str] = {
    "qv": "query and value projections of every attention layer",
    "attention": "query, key, value and output projections of every attention layer",
    "mlp": "the linear layers of every feed-forward block",
    "all-linear": "every linear layer of the backbone; pooler, classifier and lm_head excluded",
}
"""Named target sets every architecture resolves: name -> what it means. `targets:` in space.yaml adds more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """One complete configuration of a trial, defaults included.

    rank, batch_size: >= 1. alpha: > 0, absolute (a ratio in space.yaml is already multiplied by the rank).
    dropout: in [0, 1). warmup: share of all steps, in [0, 1]. clip: largest gradient norm, 0 = no clipping.
    target: name of a target set. The defaults are the usual ones of PEFT users, kept as the reference configuration
    that every search should beat (`DEFAULT` in reports).
    """

    method: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target: str = "all-linear"
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    batch_size: int = 8
    warmup: float = 0.06
    schedule: ScheduleName = "linear"
    clip: float = 1.0
    use_rslora: bool = False

    @property
    def scaling(self) -> float:
        """Factor of the low-rank update: alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA.

        Source: Hu et al. 2021, section 4.1; Kalajdzievski 2023 (rsLoRA), eq. 3.
        """
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)


class LinearShape(NamedTuple):
    """A linear layer of the backbone: dotted module path and its (in, out) features, whatever its storage order."""

    path: str
    in_features: int
    out_features: int


def lora_parameters(layers: Iterable[LinearShape], rank: int) -> int:
    """Trainable parameters that LoRA of this rank adds to these layers: sum of rank * (in + out)."""
    return sum(rank * (layer.in_features + layer.out_features) for layer in layers)
