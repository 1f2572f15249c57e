"""How one trial is spread over processes: the seam, and the one process that has all of it.

A strategy is given to `SoloHost` and `SoloTrial`, which do everything else alike. Several processes with a share each
are `training.sharded`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from automl.tasks.base import Row
from automl.tasks.batches import require_targets
from automl.training.memory import halving
from automl.training.optim import Parameters
from automl.training.state import TrainState

T = TypeVar("T")


class BatchLoss(NamedTuple):
    """Sum of the losses of some rows with its graph, number of its terms, and tokens without padding."""

    total: Tensor
    terms: int
    tokens: int


class StepLoss(NamedTuple):
    """Sum, number of terms and tokens of the whole batch of a step, as numbers."""

    total: float
    terms: int
    tokens: int


Forward = Callable[[Sequence[Row]], BatchLoss]
"""The forward pass over some rows at once."""


class ParallelStrategy(ABC):
    """What processes that train one trial do about each other. All of them call the same, in the same order.

    keeps_backbone: a trial that is detached leaves the backbone as it was before; otherwise the next trial needs
    another, read anew.
    """

    keeps_backbone: ClassVar[bool]

    @property
    @abstractmethod
    def is_writer(self) -> bool:
        """Whether files are this process's business; it is in exactly one process."""

    @abstractmethod
    def wait(self) -> None:
        """Return when every process has come here."""

    @abstractmethod
    def naming_lost_peers(self) -> AbstractContextManager[None]:
        """Raise PeerLost for what goes wrong inside the block because another process is gone."""

    @abstractmethod
    def distribute(self, model: nn.Module, *, seed: int | None = None) -> None:
        """Put this process's share of a whole model on its device. seed: for the dropout masks, if there are any."""

    @abstractmethod
    def full(self, tensor: Tensor) -> Tensor:
        """All of a tensor of which this process may hold a share only."""

    @abstractmethod
    def gather(self, masks: Tensor | None) -> Tensor | None:
        """The states of the dropout generators of all processes, (bytes,) uint8, for the slot file."""

    @abstractmethod
    def scatter(self, state: TrainState, parameters: Parameters) -> TrainState:
        """This process's share of a trial's state. parameters: those of the model, distributed already."""

    @abstractmethod
    def within_memory(self, size: int, work: Callable[[int], T], *, what: str) -> tuple[T, int]:
        """`work(size)` and the size, which may become smaller. Raises OutOfMemory, which names `what`."""

    @abstractmethod
    def accumulate(
        self, rows: Sequence[Row], at_once: int, forward: Forward, parameters: Parameters, *, step: int
    ) -> StepLoss:
        """Gradients of the mean loss over all rows of the batch of `step`; they were cleared before.

        at_once: rows of one forward pass. Raises DataError if no row has a target.
        """

    @abstractmethod
    def after_evaluation(self, model: nn.Module) -> None:
        """Let go of what an evaluation has gathered."""


class SingleProcess(ParallelStrategy):
    """This process has the whole trial, and there is no other."""

    keeps_backbone: ClassVar[bool] = True

    @property
    def is_writer(self) -> bool:
        """Always."""
        return True

    def wait(self) -> None:
        """There is nobody to wait for."""

    def naming_lost_peers(self) -> AbstractContextManager[None]:
        """There is nobody to lose."""
        return nullcontext()

    def distribute(self, model: nn.Module, *, seed: int | None = None) -> None:
        """The model is on its device as it is."""

    def full(self, tensor: Tensor) -> Tensor:
        """The tensor."""
        return tensor

    def gather(self, masks: Tensor | None) -> Tensor | None:
        """The one generator's state."""
        return masks

    def scatter(self, state: TrainState, parameters: Parameters) -> TrainState:
        """The state."""
        return state

    def within_memory(self, size: int, work: Callable[[int], T], *, what: str) -> tuple[T, int]:
        """See `halving`."""
        return halving(size, work, what=what)

    def accumulate(
        self, rows: Sequence[Row], at_once: int, forward: Forward, parameters: Parameters, *, step: int
    ) -> StepLoss:
        """The gradient of the sum is gathered first and divided by the number of terms at the end.

        So the result is the same however the rows are split.
        """
        total, count, tokens = 0.0, 0, 0
        for start in range(0, len(rows), at_once):
            part = forward(rows[start : start + at_once])
            torch.autograd.backward(part.total)
            total += float(part.total.detach())
            count += part.terms
            tokens += part.tokens
        require_targets(count, step=step)
        for parameter in parameters.values():
            if parameter.grad is not None:
                parameter.grad.div_(count)
        return StepLoss(total, count, tokens)

    def after_evaluation(self, model: nn.Module) -> None:
        """Nothing was gathered."""


SINGLE_PROCESS = SingleProcess()
