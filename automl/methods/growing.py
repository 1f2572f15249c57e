"""Makes a decoder of more blocks from the one there is, until the added ones are taken out again."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from automl.methods.in_place import substitute


def grow(model: Any, blocks: Sequence[nn.Module], sources: Sequence[int]) -> None:
    """Put a trained copy behind each of these blocks, in float32, that adds nothing yet.

    sources: indices into `blocks`, once for each copy. Configuration and positions in the cache follow.
    """
    origins = [index for index in range(len(blocks)) for _ in range(1 + sources.count(index))]
    grown = [
        blocks[index] if number == origins.index(index) else _copy(blocks[index])
        for number, index in enumerate(origins)
    ]
    substitute(model, getattr(model, model.base_model_prefix), "layers", nn.ModuleList(grown))
    for position, block in enumerate(grown):
        for part in block.modules():
            if hasattr(part, "layer_idx"):
                substitute(model, part, "layer_idx", position)
    _configure(model, origins)


def _configure(model: Any, origins: Sequence[int]) -> None:
    """Let the configuration say as much of the blocks that there are now: lists by layer go with their layers."""
    config, before = model.config, model.config.num_hidden_layers
    lists = {
        name: value
        for name, value in vars(config).items()
        if "layer" in name and isinstance(value, list) and len(value) == before
    }
    for name, value in lists.items():
        substitute(model, config, name, [value[index] for index in origins])
    substitute(model, config, "num_hidden_layers", len(origins))


def _copy(block: Any) -> nn.Module:
    made = copy.deepcopy(block).to(torch.float32).requires_grad_(True)
    for end in (made.self_attn.o_proj, made.mlp.down_proj):
        for parameter in end.parameters():
            nn.init.zeros_(parameter)
    made.register_forward_hook(_as_it_came)
    assert isinstance(made, nn.Module)
    return made


def _as_it_came(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """In the type of what came in: that of the frozen blocks."""
    return output.to(inputs[0].dtype)
