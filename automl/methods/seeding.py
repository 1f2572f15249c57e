"""Randomness of one trial: initial adapter and head, and dropout masks, all from the trial's seed.

Nothing here reads or moves torch's global generators, so a trial's curve does not depend on what else runs in the
process. Every tensor has a stream of its own, named by its path: which other layers are adapted does not matter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import nn

from automl.errors import CheckpointError

_LEVELS = 1 << 16


def stream(seed: int, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for one purpose of a trial, seeded by the first 63 bits of sha256("<seed>:<name>")."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def initialise_adapter(a: torch.Tensor, b: torch.Tensor, *, seed: int, path: str, how: str = "default") -> None:
    """Start A of shape (rank, in) and B of shape (out, rank) so that their product is nothing.

    how: default: A uniform in ±1/sqrt(in), B zero; gaussian: A normal with standard deviation 1/rank, B zero;
    orthogonal: A and B in the span of odd and even rows of one orthogonal matrix, so that B A is zero and neither is.
    Drawn on the CPU in float32 in row-major order from streams "<path>.lora_A" and so on. The bound is kaiming-uniform
    with a = sqrt(5), as PEFT's default (peft/tuners/lora/layer.py, reset_lora_parameters and orthogonal_init).
    """
    rank, inputs = a.shape
    draws = stream(seed, f"{path}.lora_A")
    with torch.no_grad():
        b.zero_()
        if how == "orthogonal":
            q, _ = torch.linalg.qr(torch.randn(rank, rank, generator=draws))
            odd, even = q[0::2], q[1::2]
            a.copy_((torch.randn(inputs, len(odd), generator=draws) @ odd).mT / 10.0)
            mixed = torch.randn(b.shape[0], len(even), generator=stream(seed, f"{path}.lora_B"))
            b.copy_(mixed @ even / 10.0)
        elif how == "gaussian":
            a.copy_(torch.empty(a.shape).normal_(0.0, 1.0 / rank, generator=draws))
        else:
            bound = 1.0 / math.sqrt(inputs)
            a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=draws))


def initialise_head(head: nn.Module, *, seed: int, path: str, std: float) -> None:
    """Linear weights normal with standard deviation `std`, biases zero, norms as new; as transformers starts a head.

    Each weight is drawn on the CPU in float32 from the stream "<path to it>.weight".
    """
    for name, module in head.named_modules():
        if isinstance(module, nn.Linear):
            key = ".".join(part for part in (path, name, "weight") if part)
            drawn = torch.empty(module.weight.shape).normal_(0.0, std, generator=stream(seed, key))
            with torch.no_grad():
                module.weight.copy_(drawn)
                if module.bias is not None:
                    module.bias.zero_()
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()


def dropout_mask(shape: Sequence[int], p: float, generator: torch.Generator) -> torch.Tensor:
    """A float32 mask of this shape on the generator's device: 0 with probability p, else 1 / (1 - p).

    Sixteen random bits for each element, so p is rounded to a multiple of 2**-16 (and the scale with it): less than
    half the time of torch's Bernoulli draws on a CPU. p: in (0, 1).
    """
    count, kept = math.prod(shape), min(max(1, round((1.0 - p) * _LEVELS)), _LEVELS - 1)
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device=generator.device)
    drawn = bits.random_(-(2**63), None, generator=generator).view(torch.int16)[:count].view(*shape)
    return (drawn < kept - _LEVELS // 2).to(torch.float32).mul_(_LEVELS / kept)


class SeededDropout(nn.Module):
    """Dropout whose masks come from a given generator: x * mask in training mode (`dropout_mask`), x otherwise.

    One generator serves all dropout modules of a trial; masks are drawn in the order in which the modules run, over
    exactly the rows they are given. It must be on the device of x.
    """

    def __init__(self, p: float, generator: torch.Generator) -> None:
        super().__init__()
        self.p = p
        self.generator = generator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x * dropout_mask(x.shape, self.p, self.generator).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def dropout_state(model: nn.Module) -> torch.Tensor | None:
    """State of the trial's dropout generator as a uint8 vector for the slot file; None without dropout."""
    generator = _generator(model)
    return None if generator is None else generator.get_state()


def set_dropout_state(model: nn.Module, state: torch.Tensor | None) -> None:
    """Continue the dropout masks where `dropout_state` was taken; raises CheckpointError if one side has no dropout."""
    generator = _generator(model)
    if (generator is None) != (state is None):
        raise CheckpointError("the slot file and the trial disagree on whether there is dropout")
    if generator is not None and state is not None:
        if state.shape != generator.get_state().shape:
            raise CheckpointError("the slot file's dropout masks were made in another way, or on another device")
        generator.set_state(state.cpu())


def _generator(model: nn.Module) -> torch.Generator | None:
    return next((module.generator for module in model.modules() if isinstance(module, SeededDropout)), None)
