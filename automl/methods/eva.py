"""EVA (Paischer et al. 2024): A begins as the directions in which the inputs of its layer vary most, B as nothing.

The directions of a layer's inputs are those of their covariance, largest first, so that one set of them serves every
rank. They are found outside of this module; the model is told how to ask for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from automl.errors import TargetError
from automl.lora import Hyperparameters

Directions = Mapping[str, Tensor]
"""Orthonormal rows by path of the layer, (n, in) float32, those along which inputs vary most first."""

ROWS_AT_ONCE = 256
"""Inputs that are added in one decomposition: its cost for each of them grows with their number."""

_FIND = "_automl_input_directions"
_IS_START = "_automl_eva"


def know_inputs(model: nn.Module, find: Callable[[int], Directions]) -> None:
    """Let trials on this model start from its layers' inputs. find: at least so many directions of each, if there are.

    It is a plain function, which copies of the model share, and is called when a trial begins.
    """
    setattr(model, _FIND, find)


def starting_matrices(model: nn.Module, hyper: Hyperparameters, paths: Sequence[str]) -> dict[str, Tensor]:
    """A of every layer at these paths, (rank, in) float32 on the CPU; not to be written to.

    Raises TargetError if the model does not know its layers' inputs, or of one too few directions.
    """
    find: Callable[[int], Directions] | None = getattr(model, _FIND, None)
    if find is None:
        raise TargetError("init eva starts from inputs of the model's layers, which are not known here")
    known = find(max(map(hyper.rank_of, paths)))
    for path in paths:
        if (count := len(known[path]) if path in known else 0) < hyper.rank_of(path):
            raise TargetError(
                f"init eva: rank {hyper.rank_of(path)} is above the {count} directions that are found in the inputs of"
                f" {path}; lower the rank, or use another init"
            )
    return {path: known[path][: hyper.rank_of(path)] for path in paths}


def start_from_inputs(layer: Any, start: Tensor) -> None:
    """Let A of PEFT's layer begin there, and B as nothing."""
    from automl.methods.attaching import ADAPTER  # PEFT takes seconds to import

    with torch.no_grad():
        layer.lora_A[ADAPTER].weight.copy_(start)
        layer.lora_B[ADAPTER].weight.zero_()
    setattr(layer, _IS_START, True)


def frozen_starts(layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """A of the layers that began so and do not train it, by path: found anew, it could differ in the last bit."""
    from automl.methods.attaching import ADAPTER

    own = {path: layer.lora_A[ADAPTER].weight for path, layer in layers.items() if hasattr(layer, _IS_START)}
    return {path: a for path, a in own.items() if not a.requires_grad}


class InputVariation:
    """Directions in which the inputs of a layer vary most, from as many of them as are added, a few at a time.

    Sequential Karhunen-Loeve by Ross et al. 2008, as scikit-learn's and PEFT's IncrementalPCA have it, which PEFT uses
    for EVA: the mean is taken away, and of what was added before the first `count` directions are kept. In float64.
    """

    def __init__(self, count: int) -> None:
        self.seen = 0
        self._count = count
        self._mean = torch.empty(0)
        self._scaled = torch.empty(0)  # the kept directions, each as long as its singular value: (n, in)

    def add(self, inputs: Tensor) -> None:
        """Take in more of them. inputs: (n, in)."""
        for part in torch.split(inputs, ROWS_AT_ONCE):
            self._add(part.double())

    def directions(self) -> Tensor:
        """Directions as many as were asked for, or as inputs or features allow, (n, in) float32 on the CPU.

        Signs are such that the largest number of each is positive. Where inputs vary along fewer directions, others
        that are orthogonal to them follow.
        """
        if not self.seen:
            return torch.empty(0, 0)
        features = self._scaled.shape[1]
        found = self._scaled / torch.linalg.vector_norm(self._scaled, dim=1, keepdim=True)
        wanted = min(self._count, features, self.seen - 1)
        if len(found) < wanted:
            whole, _ = torch.linalg.qr(found.mT, mode="complete")  # (in, in), the found ones first up to their signs
            found = torch.cat([found, whole.mT[len(found) : wanted]])
        largest = found.gather(1, found.abs().argmax(dim=1, keepdim=True))
        signed: Tensor = found * largest.sign()
        return signed.float().cpu()

    def _add(self, part: Tensor) -> None:
        if not len(part):
            return
        mean, count = part.mean(dim=0), self.seen + len(part)
        rows = part - mean
        if self.seen:
            moved = math.sqrt(self.seen * len(part) / count) * (self._mean - mean)
            rows = torch.cat([self._scaled, rows, moved.unsqueeze(0)])
            mean = mean + (self._mean - mean) * (self.seen / count)
        self._mean, self.seen = mean, count
        self._scaled = _largest(rows, self._count)


def _largest(rows: Tensor, count: int) -> Tensor:
    """The first right singular vectors of `rows`, (m, in), each as long as its singular value: (at most count, in).

    By eigenvectors of the smaller of both products with itself; those within its rounding are left out.
    """
    is_wide = len(rows) <= rows.shape[1]
    squares, vectors = torch.linalg.eigh(rows @ rows.mT if is_wide else rows.mT @ rows)  # ascending
    squares, vectors = squares.flip(0)[:count], vectors.flip(1)[:, :count]
    kept = squares > squares[0] * max(rows.shape) * torch.finfo(rows.dtype).eps
    lengths = squares[kept].sqrt().unsqueeze(1)
    found: Tensor = vectors[:, kept].mT @ rows if is_wide else lengths * vectors[:, kept].mT
    return found
