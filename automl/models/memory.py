"""How much memory training one adapter takes, from names and shapes alone: for plans, not for admission."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from automl.models.inventory import linear_layers, resolve_targets, trainable_parameters

_WIDTHS = {"fp32": 4, "bf16": 2}

_STATE_BYTES = 16
"""Per trained parameter: value, gradient and AdamW's two moments, float32 each (Loshchilov & Hutter 2019)."""


class MemoryEstimate(NamedTuple):
    """Bytes of one training process: frozen weights, trained parameters with optimizer state, saved activations."""

    backbone: int
    adapter: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of the three; allocator overhead, data and libraries (0.5 to 1 GB on a CPU) come on top."""
        return sum(self)


def estimate_bytes(
    model: nn.Module,
    target: str,
    rank: int,
    *,
    tokens: int,
    dtype: str = "fp32",
    dropout: float = 0.0,
    targets: Mapping[str, Sequence[str]] | None = None,
    recomputed_layers: int = 0,
) -> MemoryEstimate:
    """Memory of training one adapter with `tokens` tokens, padding included, in a micro-batch; within about 2x.

    A linear layer is charged its input and its output per token: the output is kept by the activation, norm or
    attention that follows, the input by the low-rank branch or the norm before it. Adapter dropout adds its mask and
    the masked input of each adapted layer. The output over the vocabulary is charged twice in float32 (logits and
    their gradient). Attention is taken to be computed without storing its scores. recomputed_layers: with gradient
    checkpointing, the number of layers of which all but the input is computed again, one at a time.
    """
    width = _WIDTHS[dtype]
    adapted = resolve_targets(model, target, targets)
    vocabulary = _vocabulary(model)
    features = sum(layer.in_features + layer.out_features for layer in linear_layers(model)) - vocabulary
    per_token = float(width * features)
    low_rank = sum(rank + (2 * layer.in_features if dropout > 0.0 else 0) for layer in adapted)
    per_token += 4 * low_rank
    if recomputed_layers:
        per_token = per_token / recomputed_layers + width * _hidden(model) * recomputed_layers
    return MemoryEstimate(
        backbone=width * sum(parameter.numel() for parameter in model.parameters()),
        adapter=_STATE_BYTES * trainable_parameters(model, target, rank, targets),
        activations=round(tokens * (per_token + 8 * vocabulary)),
    )


def _hidden(model: nn.Module) -> int:
    """Features of a token between two layers."""
    return int(model.config.get_text_config().hidden_size)  # type: ignore[operator, union-attr]


def _vocabulary(model: nn.Module) -> int:
    """Outputs of the lm_head; 0 for a classifier, whose logits are one row per text."""
    head = getattr(model, "lm_head", None)
    return head.out_features if isinstance(head, nn.Linear) else 0
