"""How much memory training one adapter takes, from names and shapes alone: for plans, not for admission."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from automl.errors import TargetError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.models.inventory import head_parameters, linear_layers, quantised_layers, resolve_targets
from automl.models.quantisation import bytes_per_weight
from automl.space.spec import Quantization

_WIDTHS = {"fp32": 4, "bf16": 2}

ROWS, TOKENS = 8, 128
"""The batch that methods are compared with: rows and tokens of a row, by default those of a space file."""

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
    hyper: Hyperparameters,
    *,
    tokens: int,
    rows: int = 0,
    dtype: str = "fp32",
    targets: Mapping[str, Sequence[str]] | None = None,
    recomputed_layers: int = 0,
    quantization: Quantization | None = None,
) -> MemoryEstimate:
    """Memory of training one adapter with `tokens` tokens, padding included, in a micro-batch; within about 2x.

    rows: of the micro-batch, for methods that keep something for each of them.

    A linear layer is charged its input and its output per token: the output is kept by the activation, norm or
    attention that follows, the input by the low-rank branch or the norm before it. The method says what the adapter
    itself adds. The output over the vocabulary is charged twice in float32 (logits and
    their gradient). Attention is taken to be computed without storing its scores. recomputed_layers: with gradient
    checkpointing, the number of layers of which all but the input is computed again, one at a time. quantization: how
    the backbone is held.
    """
    width = _WIDTHS[dtype]
    adapted = resolve_targets(model, hyper.target, targets)
    added = METHODS[hyper.method].footprint(model, adapted, hyper)
    vocabulary = _vocabulary(model)
    features = sum(layer.in_features + layer.out_features for layer in linear_layers(model)) - vocabulary
    per_token = float(width * features)
    per_token += 4 * added.per_token
    if recomputed_layers:
        per_token = per_token / recomputed_layers + width * _hidden(model) * recomputed_layers
    return MemoryEstimate(
        backbone=backbone_bytes(model, width, quantization),
        adapter=_STATE_BYTES * (added.parameters + head_parameters(model)) - added.spared,
        activations=round(tokens * (per_token + 8 * vocabulary)) + 4 * (rows * added.per_row + added.per_pass),
    )


def backbone_bytes(model: nn.Module, width: int, quantization: Quantization | None) -> int:
    """Bytes of the frozen weights, `width` for each that is not quantised, with one layer's dense weight of float32."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if quantization is None:
        return width * parameters
    layers = [layer.in_features * layer.out_features for layer in quantised_layers(model)]
    few = bytes_per_weight(quantization) * sum(layers) + 4 * max(layers, default=0)
    return math.ceil(few) + width * (parameters - sum(layers))


class MethodCost(NamedTuple):
    """What a method costs in a model as it is by default. refused: why it cannot be; the numbers are 0 then.

    trainable_params: with the head. memory: bytes of one training process, as `estimate_bytes` has them.
    """

    method: str
    trainable_params: int = 0
    memory: int = 0
    refused: str = ""


def method_costs(model: nn.Module, targets: Mapping[str, Sequence[str]] | None = None) -> list[MethodCost]:
    """Each method with its default settings, in float32, for a batch of ROWS rows of TOKENS tokens."""
    return [_cost(model, name, targets) for name in METHODS.usable()]


def _cost(model: nn.Module, name: str, targets: Mapping[str, Sequence[str]] | None) -> MethodCost:
    hyper = Hyperparameters(method=name)
    try:
        trained = METHODS[name].trainable(model, resolve_targets(model, hyper.target, targets), hyper)
        memory = estimate_bytes(model, hyper, tokens=ROWS * TOKENS, rows=ROWS, targets=targets)
    except TargetError as error:
        return MethodCost(name, refused=str(error))
    return MethodCost(name, trained + head_parameters(model), memory.total)


def held_bytes(model: nn.Module) -> dict[str, int]:
    """Bytes of the frozen weights by the way they may be held; what is not quantised is in bfloat16 then."""
    ways = {
        str(each): each
        for each in (Quantization(kind="int8"), Quantization(kind="nf4"), Quantization(kind="nf4", double=True))
    }
    whole = {name: backbone_bytes(model, width, None) for name, width in _WIDTHS.items()}
    return whole | {name: backbone_bytes(model, _WIDTHS["bf16"], each) for name, each in ways.items()}


def _hidden(model: nn.Module) -> int:
    """Features of a token between two layers."""
    return int(model.config.get_text_config().hidden_size)  # type: ignore[operator, union-attr]


def _vocabulary(model: nn.Module) -> int:
    """Outputs of the lm_head; 0 for a classifier, whose logits are one row per text."""
    head = getattr(model, "lm_head", None)
    return head.out_features if isinstance(head, nn.Linear) else 0
