"""How much memory training one adapter takes, from names and shapes alone: for plans, not for admission."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from automl.errors import TargetError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.models.activations import COUNTED, ROWS_AT_ONCE, activations, bound, vocabulary
from automl.models.inventory import head_parameters, quantised_layers, resolve_targets
from automl.models.quantisation import bytes_per_weight
from automl.models.quantised import is_quantised
from automl.space.spec import Quantization

_WIDTHS = {"fp32": 4, "bf16": 2}

ROWS, TOKENS = 8, 128
"""The batch that methods are compared with: rows and tokens of a row, by default those of a space file."""

_STATE_BYTES = 16
"""Per trained parameter: value, gradient and AdamW's two moments, float32 each (Loshchilov & Hutter 2019)."""


_LOSS_WIDTH = 8
"""Bytes per logit in the backward pass of the loss, beside its kept logarithms: two gradients in float32."""

_ON_THE_WAY = 2
"""Tensors of a block's largest size that are there at once in its backward pass, beside what it has kept."""


class MemoryEstimate(NamedTuple):
    """Bytes of one training process.

    backbone: frozen weights. adapter: trained parameters, gradients, optimizer state. activations: kept for the
    backward pass, logits aside. logits: what the output over the vocabulary and the loss take. working: the rest of a
    pass at its peak. update: what the optimizer's step needs for a moment, when activations are gone.
    """

    backbone: int
    adapter: int
    activations: int
    logits: int
    working: int
    update: int

    @property
    def step(self) -> int:
        """What is there in a step and not between steps."""
        return max(self.activations + self.logits + self.working, self.update)

    @property
    def total(self) -> int:
        """At the peak; allocator overhead, data and libraries (0.5 to 1 GB) come on top."""
        return self.backbone + self.adapter + self.step


def estimate_bytes(
    model: nn.Module,
    hyper: Hyperparameters,
    *,
    tokens: int,
    rows: int = 0,
    dtype: str = "fp32",
    targets: Mapping[str, Sequence[str]] | None = None,
    recompute: bool = False,
    quantization: Quantization | None = None,
    length: int = COUNTED,
    attention: str = "sdpa",
    device: str = "cpu",
    is_packed: bool = False,
    is_bound: bool = False,
    is_joined: bool = False,
    is_banked: bool = False,
) -> MemoryEstimate:
    """Memory of training one adapter with `tokens` tokens, padding included, in a micro-batch; within about 10 %.

    rows: of the micro-batch, for methods that keep something for each of them. length: tokens of a row, which matters
    if `attention` is `eager`. recompute: with gradient checkpointing. quantization: how the backbone is held. device:
    its type. is_packed: by the trainer of packs, in which adapted layers that read the same share it; PEFT's have a
    copy each in bfloat16; one by one and not in a bank (is_banked), their losses never see all logits at once.
    is_bound: say more than it can be, but at once: nothing is counted. is_joined: rows are blocks of `length` tokens,
    which have a mask of so many squared.

    What the backbone keeps is counted (`automl.models.activations`); what the adapter itself adds the method says.
    """
    width = _WIDTHS[dtype]
    adapted = resolve_targets(model, hyper.target, targets)
    added = METHODS[hyper.method].footprint(model, adapted, hyper)
    is_low_rank = "rank" in METHODS[hyper.method].takes
    owned = sum(layer.in_features for layer in adapted) if is_low_rank and dtype != "fp32" and not is_packed else 0
    found = (
        bound(model, dtype)
        if is_bound
        else activations(
            model,
            adapted,
            hyper,
            tokens=length,
            dtype=dtype,
            attention=attention,
            is_shared=not owned and not (is_low_rank and hyper.dropout > 0.0),  # what dropout leaves is the method's
            is_joined=is_joined,
        )
    )
    share = tokens / found.tokens
    kept = share * (found.recomputed if recompute else found.body)
    kept += width * tokens * (added.per_token + owned) / (found.depth if recompute else 1)
    if is_bound and is_joined:
        kept += 4 * length * tokens * found.depth  # masks
    in_parts = is_packed and not is_banked and found.is_bare
    loss = (min(tokens, ROWS_AT_ONCE) if in_parts else tokens) * vocabulary(model) * _LOSS_WIDTH
    loss += _output_at_hand(model) if in_parts else 0
    trained = added.parameters + head_parameters(model)
    return MemoryEstimate(
        backbone=backbone_bytes(model, width, quantization),
        adapter=_STATE_BYTES * trained - added.spared,
        activations=round(kept)
        + 4 * (rows * added.per_row + added.per_pass)
        + (width * added.parameters if owned else 0),
        logits=loss if in_parts else round(share * found.head) + loss,
        working=max(0, round(share * found.widest * _ON_THE_WAY) - loss),
        update=4 * trained if device == "cuda" else 0,  # torch's AdamW over all parameters at once (foreach)
    )


def _output_at_hand(model: nn.Module) -> int:
    """Bytes of the output layer's weights in bfloat16, which a pack in bf16h makes for its losses if the rest is
    quantised.
    """
    if not any(map(is_quantised, model.modules())):
        return 0
    output: nn.Linear = model.get_output_embeddings()  # type: ignore[operator]
    return 2 * output.weight.numel()


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
