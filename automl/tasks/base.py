"""The seam for tasks: what a trainer needs to know about data, loss and metrics, and nothing of Ray, Optuna or SQL.

Cheap to import, so that the file of a task may hold its section too, which is read wherever a space file is checked.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

from automl.head import Kind, Scale
from automl.lora import Hyperparameters
from automl.outcomes import Outcomes
from automl.space.spec import TaskSettings

if TYPE_CHECKING:
    import torch

Row = Mapping[str, Any]
"""One tokenised example: `input_ids` (list of int) and `labels` (int for a class, float for a number, else a list)."""

Batch: TypeAlias = "dict[str, torch.Tensor]"
"""Padded rows of one micro-batch, as the model's forward takes them: input_ids, attention_mask (N, T), labels."""

IGNORED = -100
"""Label of a token that carries no loss."""

TARGETS = "targets"
"""Field of a batch that has a column for each class where others have one for each token."""


class Share(NamedTuple):
    """A part of a mixture: its share of what is trained on, in (0, 1), and how many training rows it has."""

    weight: float
    rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Data that was read, checked, split and tokenised once, lying in the cache. JSON beside the rows.

    path: folder with the tokenised rows of each split.
    fingerprint: sha256 over split seed, contents and tokenizer.
    rows: number of rows by split (train, validation, test).
    labels: class names in the order of their ids.
    baseline: metrics that need no training at all (the majority class of the validation rows); may be empty.
    notes: what a person should know of the data before anything is trained, one line each.
    scale: of numbers that are predicted.
    shares: of the parts of a mixture, whose training rows lie one part after the other; empty where data is one place.
    """

    path: Path
    fingerprint: str
    rows: Mapping[str, int]
    labels: tuple[str, ...] = ()
    longest: int = 0  # tokens of the longest row
    baseline: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    scale: Scale | None = None
    shares: tuple[Share, ...] = ()

    def without_test(self) -> Prepared:
        """What a search is given: the same, but asking for the test rows is an error."""
        return replace(self, rows={split: count for split, count in self.rows.items() if split != "test"})


class Head(NamedTuple):
    """The kind of model a task trains, the names of what it tells apart, and the unit of a number that it predicts."""

    kind: Kind
    labels: tuple[str, ...] = ()
    scale: Scale | None = None


class LossParts(NamedTuple):
    """Sum of the losses of a micro-batch (scalar tensor with graph) and the number of terms in it.

    The loss of an effective batch is the sum of totals over the sum of counts, so splitting a batch into micro-batches
    changes nothing.
    """

    total: torch.Tensor
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls here


class Untuned(NamedTuple):
    """The model as it was before any trial, for tasks that compare with it.

    model: gives it, in eval mode, whatever trials do to the other one meanwhile. autocast: for a forward pass. folder:
    where what is found of it can be kept, named after everything that it depends on but the row.
    """

    model: Callable[[], torch.nn.Module]
    device: torch.device
    autocast: Callable[[], AbstractContextManager[object]]
    pad_id: int
    folder: Path


class Task(ABC):
    """Data + how a model reads it + loss + metrics. Implementations are final classes without mutable state.

    texts: how many texts of up to `max_length` tokens a row is. refers: it compares trials with the untuned model.
    """

    texts: ClassVar[int] = 1
    refers: ClassVar[bool] = False

    def __init__(self, settings: TaskSettings) -> None:
        self.settings = settings

    @abstractmethod
    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        """Read, check, split and tokenise the data, or find it in `cache`; raises DataError naming file, row, column.

        Atomic (build beside, rename) and keyed by content: any number of processes may call it at once.
        """

    def lengths(self, tokenizer: Any, rows: int) -> list[int]:
        """Tokens of the first `rows` training rows before any cut, those that can be used; raises DataError if none.

        A task that does not tell leaves `max_length` of a new space file at its default.
        """
        return []

    def target_lengths(self, tokenizer: Any, rows: int) -> list[int]:
        """Tokens of the targets of the same rows, where sources and targets are apart; else none."""
        return []

    @property
    def compares_rows(self) -> bool:
        """Whether the loss of a row depends on the others of its forward pass, so that they are not to be parted."""
        return False

    def row_tokens(self, row: Row) -> int:
        """Tokens of a row that a layer of the model sees at once, of its longest text; rows are put together by it."""
        return len(row["input_ids"])

    @abstractmethod
    def head(self, prepared: Prepared) -> Head:
        """The kind of model to load."""

    @abstractmethod
    def rows(self, prepared: Prepared, split: Literal["train", "validation", "test"]) -> Sequence[Row]:
        """The tokenised rows of one split, memory-mapped. The search must never ask for `test`."""

    def on(self, prepared: Prepared) -> Task:
        """The task as it is learnt from this data, for losses that depend on what all training rows are.

        By default the task itself.
        """
        return self

    def referred(
        self, rows: Sequence[Row], split: Literal["train", "validation", "test"], untuned: Untuned
    ) -> Sequence[Row]:
        """The rows with what the untuned model makes of them; asked of a task that refers to it only.

        It may be found when a row is read.
        """
        return rows

    def for_trial(self, hyper: Hyperparameters) -> Task:
        """The task as a trial of this configuration learns it: a loss may have hyperparameters of its own.

        Data and metrics are the same for all trials.
        """
        return self

    def briefly(self) -> Task:
        """The task as trials are measured before their last step: without what is wanted beside the objective."""
        brief = copy.copy(self)
        brief.settings = replace(self.settings, metrics=())
        return brief

    def refusal(self, prepared: Prepared, hyper: Hyperparameters) -> str:
        """Why this configuration cannot learn the data, in a line; empty if it can."""
        return ""

    @abstractmethod
    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        """Pad rows to the longest of them."""

    @abstractmethod
    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        """Loss of one micro-batch; the mean runs over rows (classification) or unmasked target tokens."""

    @abstractmethod
    def evaluate(self, model: torch.nn.Module, batches: Iterator[Batch], tokenizer: Any) -> dict[str, float]:
        """All metrics of this task over the batches, as Python floats, `loss` among them.

        The caller has set eval mode and no_grad. Generation metrics are computed only if `settings.measured` has them.
        """

    def evaluate_by_row(
        self, model: torch.nn.Module, batches: Iterator[Batch], tokenizer: Any
    ) -> tuple[dict[str, float], Outcomes | None]:
        """`evaluate`, and what the objective was made of, row by row in the order of the batches; None: not told."""
        return self.evaluate(model, batches, tokenizer), None


class BatchTask(Task):
    """A task that is evaluated batch by batch, so that many trials can be judged on one batch before the next."""

    @abstractmethod
    def judge(self, model: torch.nn.Module, batch: Batch) -> Any:
        """What the metrics need to know of the rows of one batch; tensors of it may stay on the device.

        The model is called once, with what the batch alone decides, and writes nothing.
        """

    @abstractmethod
    def scores(
        self, judged: Sequence[Any], model: torch.nn.Module, tokenizer: Any
    ) -> tuple[dict[str, float], Outcomes | None]:
        """What `evaluate_by_row` returns, of all that was judged, batch by batch."""

    def evaluate(self, model: torch.nn.Module, batches: Iterator[Batch], tokenizer: Any) -> dict[str, float]:
        return self.evaluate_by_row(model, batches, tokenizer)[0]

    def evaluate_by_row(
        self, model: torch.nn.Module, batches: Iterator[Batch], tokenizer: Any
    ) -> tuple[dict[str, float], Outcomes | None]:
        return self.scores([self.judge(model, batch) for batch in batches], model, tokenizer)
