"""Tiny models whose weights are large enough that every part of them, its non-linearities included, shows in a loss."""

from __future__ import annotations

import torch
from torch import nn

from tests.architectures import tiny_model


def lively_model(architecture: str, *, kind: str = "classification") -> nn.Module:
    """A tiny model of the architecture with such weights; frozen, without dropout."""
    return enlivened(tiny_model(architecture, kind=kind))


def enlivened(model: nn.Module) -> nn.Module:
    """The model with weights of standard deviation 0.3, biases of 0.2, norms around 1."""
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=draws)
            is_norm = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1.0 + 0.2 * drawn if is_norm else (0.3 if parameter.dim() > 1 else 0.2) * drawn)
    return model
