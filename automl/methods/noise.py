"""NEFTune (Jain et al. 2023): uniform noise on the embeddings while training, whatever the method.

Noise of a step depends on the trial's seed and the step alone, and is drawn for real tokens only, row after row:
neither padding nor how many rows are computed at once changes it, and a trial that goes on needs nothing remembered.
Legend: N rows, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from automl.methods.seeding import stream


class Noise(NamedTuple):
    """The noise of one trial in one step. alpha: > 0."""

    alpha: float
    generator: torch.Generator

    def on(self, embedded: Tensor, mask: Tensor) -> Tensor:
        """Embeddings (N, T, D) plus noise uniform in ±alpha / sqrt(length * D), length being each row's own.

        mask: 1 for real tokens, (N, T). The noise is next in the generator's order.
        """
        real = mask.bool()
        features = embedded.shape[-1]
        drawn = torch.rand(int(real.sum()), features, generator=self.generator, device=self.generator.device)
        noise = torch.zeros(embedded.shape, dtype=torch.float32, device=embedded.device)
        noise[real] = 2.0 * drawn - 1.0
        bounds = self.alpha / (real.sum(dim=1) * features).clamp_(min=1).sqrt()  # (N,)
        return embedded + (noise * bounds.view(-1, 1, 1)).to(embedded.dtype)


class NoisyRows(NamedTuple):
    """Rows [start, start + N) of a batch that get this noise. mask: theirs, (N, T)."""

    noise: Noise
    start: int
    mask: Tensor


def step_noise(alpha: float, seed: int, step: int, device: torch.device) -> Noise | None:
    """The noise of a trial in a step (from 0), from its beginning; None without any."""
    return Noise(alpha, stream(seed, f"neftune.{step}", device)) if alpha > 0.0 else None


@contextmanager
def noisy(model: nn.Module, parts: Sequence[NoisyRows]) -> Iterator[None]:
    """Inside the block the model embeds these rows with noise; it costs nothing if there are none."""
    if not parts:
        yield
        return

    def hook(module: nn.Module, inputs: Any, embedded: Tensor) -> Tensor:
        for noise, start, mask in parts:
            rows = slice(start, start + len(mask))
            if embedded[rows].shape[:2] == mask.shape:  # otherwise a decoder embeds what it is to write
                embedded = torch.cat([embedded[:start], noise.on(embedded[rows], mask), embedded[rows.stop :]])
        return embedded

    handle = _embeddings(model).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _embeddings(model: Any) -> nn.Module:
    """What embeds a text: of a model with an encoder the encoder's, which may be a module beside the model's own."""
    if not model.config.is_encoder_decoder:
        return cast("nn.Module", model.get_input_embeddings())
    return cast("nn.Module", model.get_encoder().get_input_embeddings())
