"""How far a search is, in training steps: parked trials are neither ended nor running, so their number says little."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from automl.space.entries import Survival
from automl.space.spec import SearchSettings
from automl.study.pruning import survival_of

Steps = Mapping[int, int]
"""Number of trials by their last step, 0 for those without a measurement."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """steps: trained so far, by all trials. left: what is expected to come, a guess; 0 once nothing is."""

    steps: int
    left: int

    @property
    def expected(self) -> int:
        """Steps of the whole search."""
        return self.steps + self.left

    @property
    def share(self) -> float:
        """How much of the search is done, in [0, 1]."""
        return self.steps / self.expected if self.left else 1.0


def outlook(settings: SearchSettings, *, reached: Steps, unfinished: Steps, to_come: int) -> Outlook:
    """What a search has spent, and what it takes yet if its pruner keeps as many trials as it is meant to.

    reached: by all trials, whatever became of them; unfinished: by those that are being trained, wait or are parked.
    to_come: trials that have not been started. `search.patience` and `search.time` may end it earlier.
    """
    steps = sum(step * trials for step, trials in reached.items())
    survival = survival_of(settings)
    if survival is None:
        left = _left_on_average(settings, reached, unfinished, to_come)
    else:
        left = _left_by_rungs(survival, reached, unfinished, to_come)
    if settings.max_steps is not None:
        left = min(left, settings.max_steps - steps)
    return Outlook(steps=steps, left=max(0, round(left)))


def _left_by_rungs(survival: Survival, reached: Steps, unfinished: Steps, to_come: int) -> float:
    """Each rung still gets as many trials as are to pass the one before it, if so many can get there."""
    left, below, expected = 0.0, 0, float(to_come + sum(reached.values()))
    for rung in survival.rungs:
        there = sum(trials for step, trials in reached.items() if step >= rung)
        on_the_way = to_come + sum(trials for step, trials in unfinished.items() if step < rung)
        coming = min(on_the_way, max(0.0, expected - there))
        left += coming * (rung - below)
        left -= sum((step - below) * trials for step, trials in unfinished.items() if below < step < rung)
        below, expected = rung, survival.of(there + coming)
    return left


def _left_on_average(settings: SearchSettings, reached: Steps, unfinished: Steps, to_come: int) -> float:
    """Trials get as far as those that have ended did on average; one that is beyond it has an evaluation before it."""
    ended = {step: trials - unfinished.get(step, 0) for step, trials in reached.items()}
    count = sum(ended.values())
    mean = sum(step * trials for step, trials in ended.items()) / count if count else float(settings.steps)
    least = float(settings.evaluate_every)
    return to_come * mean + sum(max(least, mean - step) * trials for step, trials in unfinished.items())
