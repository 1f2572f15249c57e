"""Trials of a study as Python and a notebook show them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from automl.library.html import cell, table
from automl.storage.trials import TrialRow
from automl.trial import Scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial as it was when it was read.

    state: RUNNING, PARKED, COMPLETE, PRUNED or FAIL.
    value: the objective at the last measurement of an ended trial, or at its best checkpoint.
    metrics: the latest values of those measured beside it (`task.metrics`), or those of that checkpoint.
    best_step: the step of that checkpoint, None where the last one counts.
    steps, seconds: trained so far.
    trainable_params: in adapter and head.
    size: the second objective of a complete trial, if there are two.
    forgetting: by how much it is worse on the rows of `keep_data` than the untuned model; None if not measured.
    adapter: its folder, while it is kept.
    error: what a failed trial said last.
    """

    number: int
    state: str
    value: float | None
    metrics: Mapping[str, float]
    params: Mapping[str, Scalar]
    steps: int
    seconds: float
    trainable_params: int | None
    size: float | None
    forgetting: float | None
    stop_reason: str | None
    best_step: int | None
    adapter: Path | None
    error: str

    @classmethod
    def of(cls, row: TrialRow) -> Trial:
        """The trial of a row of the database."""
        return cls(
            number=row.number,
            state=row.shown_state,
            value=row.value,
            metrics=dict(row.metrics),
            params=dict(row.params),
            steps=row.steps,
            seconds=row.seconds,
            trainable_params=row.trainable_params,
            size=row.size,
            forgetting=row.forgetting,
            stop_reason=row.stop_reason,
            best_step=None if row.checkpoint is None else row.checkpoint.step,
            adapter=None if row.adapter is None else Path(row.adapter),
            error=row.error,
        )

    def _repr_html_(self) -> str:
        shown = {"trial": self.number, "state": self.state, "value": self.value, **self.metrics, **self.params}
        if self.forgetting is not None:
            shown["forgetting"] = self.forgetting
        shown |= {"steps": self.steps, "seconds": self.seconds, "trainable_params": self.trainable_params}
        return table(("", ""), ((name, cell(value)) for name, value in shown.items()))


class Trials(tuple[Trial, ...]):
    """Trials by number; a notebook shows them as a table."""

    __slots__ = ()

    def records(self) -> Iterator[dict[str, object]]:
        """One flat mapping for each, parameters as `params_rank`; every trial has the same names."""
        names = list(dict.fromkeys(name for trial in self for name in trial.params))
        beside = list(dict.fromkeys(name for trial in self for name in trial.metrics))
        for trial in self:
            yield {
                "number": trial.number,
                "state": trial.state,
                "value": trial.value,
                **{f"metrics_{name}": trial.metrics.get(name) for name in beside},
                **{f"params_{name}": trial.params.get(name) for name in names},
                "steps": trial.steps,
                "seconds": trial.seconds,
                "trainable_params": trial.trainable_params,
                "forgetting": trial.forgetting,
                "stop_reason": trial.stop_reason,
                "best_step": trial.best_step,
                "adapter": None if trial.adapter is None else str(trial.adapter),
            }

    def _repr_html_(self) -> str:
        names = list(dict.fromkeys(name for trial in self for name in trial.params))
        rows = (
            (cell(trial.number), trial.state, cell(trial.value), *(cell(trial.params.get(name)) for name in names))
            for trial in self
        )
        return table(("trial", "state", "value", *names), rows)
