"""Dropout that draws from a generator of its own, so that a trial's masks depend on its seed and step alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SeededDropout(nn.Module):
    """Inverted dropout with probability `p` in (0, 1): zeroes elements and divides the rest by 1 - p.

    Masks come from `generator`, in the order of the calls, and never from torch's global generator. Does nothing in
    eval mode.
    """

    def __init__(self, p: float, generator: torch.Generator) -> None:
        super().__init__()
        self.p = p
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape on the generator's device."""
        if not self.training:
            return x
        keep = 1.0 - self.p
        return x * torch.empty_like(x).bernoulli_(keep, generator=self.generator).div_(keep)


def seed_dropout(model: nn.Module, generator: torch.Generator) -> int:
    """Replace every active `nn.Dropout` of the model by one that draws from `generator`; returns how many.

    The frozen backbone has dropout 0 (`models.backbone.load_backbone`), so what is replaced belongs to the adapter and
    goes with it. The order of the draws is the order in which the modules run.
    """
    found = [(path, module.p) for path, module in model.named_modules() if isinstance(module, nn.Dropout) and module.p]
    for path, p in found:
        model.set_submodule(path, SeededDropout(p, generator))
    return len(found)
