"""All slots of a pack in four matrices, each padded to the same rank and the same layers, and AdamW over all of them.

For the batched kernel (`automl.packed.lora_batched`): the slots' matrices of one layer lie at equal distances, so that
one batched product serves them all, and a slot is replaced by writing into its row. What is beyond a slot's own rank or
layers is zero, gets exactly zero gradient and moments, and so stays zero under AdamW, weight decay included. One row
more than there are slots belongs to nobody: it fills packs up to a shape and takes what a warm-up leaves behind.
Legend: K slots and the spare row, P padded parameters of a slot, R largest rank, I, O features of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from automl.errors import OutOfMemory
from automl.lora import Hyperparameters, LinearShape
from automl.packed.layout import VectorLayout, a_name, adapter_layout, b_name, head_name

BETAS = (0.9, 0.999)
EPSILON = 1e-8
"""AdamW's, with BETAS: torch's defaults, as everywhere in the project."""


class Storage(NamedTuple):
    """Where an adapter lives: a layout and four vectors of its size. bank, row: None and -1 outside of one."""

    layout: VectorLayout
    params: Tensor
    gradient: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    bank: Bank | None = None
    row: int = -1


class Stack(NamedTuple):
    """The matrices of all slots for one layer. a: (K, R, I), b: (K, O, R), and their gradients."""

    a: Tensor
    b: Tensor
    a_grad: Tensor
    b_grad: Tensor


class BankSize(NamedTuple):
    """Room for a number of slots of at most this rank, on any of these target sets."""

    slots: int
    rank: int
    targets: tuple[str, ...]


class _Step(NamedTuple):
    """One optimizer step that is to be made. number: the step's, from 1."""

    hyper: Hyperparameters
    terms: int
    learning_rate: float
    number: int


class Bank:
    """Room for `slots` adapters of at most `rank` on any of `layers`."""

    def __init__(
        self,
        layers: Sequence[LinearShape],
        heads: Mapping[str, nn.Module],
        *,
        slots: int,
        rank: int,
        device: torch.device,
    ) -> None:
        self.rank = rank
        self.slots = slots
        self.device = device
        self._layout = adapter_layout(layers, lambda path: rank, heads)
        shape = (slots + 1, self._layout.size)
        self._params, self._grads, self._exp_avg, self._exp_avg_sq = (
            torch.zeros(shape, dtype=torch.float32, device=device) for _ in range(4)
        )
        self.stacks = {layer.path: self._stack(layer) for layer in layers}
        self.heads = {
            f"{head}.{name}": (self._all(self._params, key), self._all(self._grads, key))
            for head, module in heads.items()
            for name, _ in module.named_parameters()
            for key in (head_name(head, name),)
        }
        self._free = list(range(slots - 1, -1, -1))
        self._due: dict[int, _Step] = {}
        self._factors = torch.zeros(len(_FACTORS), slots + 1, 1, device=device)

    @property
    def spare(self) -> int:
        """The row that belongs to nobody."""
        return self.slots

    def holds(self, paths: Iterable[str], rank: int) -> bool:
        """Whether an adapter of at most this rank on the layers at these paths fits into a row."""
        return rank <= self.rank and all(path in self.stacks for path in paths)

    def take(self, rank: int) -> Storage:
        """A row of zeros. Raises OutOfMemory if none is free, ValueError if the rank is above the bank's."""
        if rank > self.rank:
            raise ValueError(f"rank {rank} is above the {self.rank} that the bank was built for")
        if not self._free:
            raise OutOfMemory(f"all {self.slots} slots of the bank are taken")
        row = self._free.pop()
        self._due.pop(row, None)
        params, grads, exp_avg, exp_avg_sq = (
            matrix[row].zero_() for matrix in (self._params, self._grads, self._exp_avg, self._exp_avg_sq)
        )
        return Storage(self._layout, params, grads, exp_avg, exp_avg_sq, self, row)

    def give_back(self, storage: Storage) -> None:
        """Free the row; what it holds stays until it is taken again."""
        self._due.pop(storage.row, None)
        self._free.append(storage.row)

    def finish_step(self, row: int, hyper: Hyperparameters, *, count: int, learning_rate: float, number: int) -> None:
        """Note that the slot's gradient, a sum over `count` terms, is complete for its step `number` (from 1).

        `update` makes the step; the slot's tensors must not be read before.
        """
        self._due[row] = _Step(hyper, count, learning_rate, number)

    def update(self) -> None:
        """The steps that were noted, all at once; the other rows keep every bit. Waits for nothing."""
        if not self._due:
            return
        columns = [_factors(self._due.get(row)) for row in range(self.slots + 1)]
        host = torch.tensor(columns, dtype=torch.float64).t().unsqueeze(-1).float()  # (factors, K, 1)
        if self._factors.is_cuda:
            host = host.pin_memory()
        self._factors.copy_(host, non_blocking=True)
        self._due.clear()
        # Not by a factor: rows of a trial that diverges leave what is no number there, and it would stay.
        self._grads[self.spare].zero_()
        adamw_rows(self._params, self._grads, self._exp_avg, self._exp_avg_sq, self._factors)

    def _stack(self, layer: LinearShape) -> Stack:
        return Stack(
            *(self._all(matrix, name(layer.path)) for matrix in (self._params, self._grads) for name in _NAMES)
        )

    def _all(self, matrix: Tensor, name: str) -> Tensor:
        place = self._layout.places[name]
        return matrix[:, place.start : place.start + place.elements].view(-1, *place.shape)


def adamw_rows(params: Tensor, grads: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, factors: Tensor) -> None:
    """One AdamW step of every row that is due, in place; its gradient is zero afterwards. All but factors: (K, P).

    factors: (7, K, 1), see `_factors`. A number of operations that does not depend on K, about 25 passes over one
    matrix; two matrices of the same size are needed for a moment. Gradients are divided and clipped first, as
    `torch.nn.utils.clip_grad_norm_` does it: factor min(1, clip / (norm + 1e-6)). Source: Loshchilov & Hutter 2019, in
    the order of operations of `torch.optim.adamw._single_tensor_adamw`.
    """
    share, clip, keep, decay, rate, root, is_due = factors
    grads.mul_(share)
    norm = torch.linalg.vector_norm(grads, dim=1, keepdim=True)  # (K, 1)
    grads.mul_((clip / (norm + 1e-6)).clamp_(max=1.0).where(is_due > 0, 1.0))
    params.mul_(decay)
    one, two = (1.0 - beta for beta in BETAS)
    exp_avg.lerp_(grads, is_due * one)
    exp_avg_sq.lerp_(grads.square(), is_due * two)
    params.addcdiv_(exp_avg * rate, exp_avg_sq.sqrt().div_(root).add_(EPSILON), value=-1.0)
    grads.mul_(keep)


_NAMES = (a_name, b_name)
_FACTORS = ("share", "clip", "keep", "decay", "rate", "root", "is_due")
_REST = (1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 0.0)
"""Factors of a row that is not due: nothing is changed."""


def _factors(step: _Step | None) -> tuple[float, ...]:
    """What one row's step comes to, in the order of `_FACTORS`.

    share: on the summed gradient. clip: largest norm, infinite without clipping. keep: 0 clears the gradient. decay: on
    the parameters. rate: learning rate over the first bias correction. root: root of the second. is_due: 1 or 0.
    """
    if step is None:
        return _REST
    hyper, number = step.hyper, step.number
    return (
        1.0 / step.terms,
        hyper.clip if hyper.clip > 0 else float("inf"),
        0.0,
        1.0 - step.learning_rate * hyper.weight_decay,
        step.learning_rate / (1.0 - BETAS[0] ** number),
        (1.0 - BETAS[1] ** number) ** 0.5,
        1.0,
    )


def own_storage(layout: VectorLayout, device: torch.device) -> Storage:
    """Vectors for one adapter alone, without padding."""
    # Not rows of one tensor: autograd would take writing a gradient for a change of the parameters it has saved.
    params, grads, exp_avg, exp_avg_sq = (
        torch.zeros(layout.size, dtype=torch.float32, device=device) for _ in range(4)
    )
    return Storage(layout, params, grads, exp_avg, exp_avg_sq)
