"""What is told to a trial of its best checkpoint, and kept of it in Optuna's tables before its last value is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict

from optuna.trial import FrozenTrial

from automl.space.spec import SearchSettings
from automl.study.open_trials import OpenTrial
from automl.study.outcome import BEST_CHECKPOINT
from automl.trial import BestCheckpoint, Measurement


def note(live: Mapping[int, OpenTrial], measurements: Iterable[Measurement], settings: SearchSettings) -> None:
    """Keep the best checkpoints that measurements tell. Before their values are: who finds those finds these too."""
    for item in measurements:
        opened = live.get(item.trial)
        if opened is None or item.best is None or opened.best == item.best:
            continue
        settled_at = opened.steps_of(item, settings)[-1]
        opened.trial.set_user_attr(BEST_CHECKPOINT, {**asdict(item.best), "settled_at": settled_at})
        opened.best, opened.settled_at = item.best, settled_at


def remember(opened: OpenTrial, frozen: FrozenTrial) -> None:
    """Give a trial that is opened again what was kept of it."""
    if kept := frozen.user_attrs.get(BEST_CHECKPOINT):
        opened.best = BestCheckpoint(step=kept["step"], metrics=kept["metrics"], reason=kept["reason"])
        opened.settled_at = kept["settled_at"]


def in_words(opened: OpenTrial, metric: str) -> str:
    """Why a trial that is over ended before its last step, and what it is worth instead of its last value."""
    best = opened.best
    if best is None or opened.last is None or not opened.is_settled or not (said := best.in_words(opened.last.step)):
        return ""
    return f"{said}, {metric} {best.metrics[metric]:.4g}"
