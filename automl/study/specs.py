"""What a worker is told of a trial."""

from __future__ import annotations

from automl.methods.registry import METHODS
from automl.space.length import own_evaluations, own_step
from automl.space.spec import SearchSettings
from automl.study.open_trials import OpenTrial
from automl.study.seeding import data_seed, trial_seed
from automl.trial import TrialSpec


def spec_for(opened: OpenTrial, settings: SearchSettings, *, metric: str, attempt: int) -> TrialSpec:
    """The trial as it is handed out for the attempt of this number, in steps of its own. metric: the objective.

    A method that takes ranks away while it trains has the rank it was given at the end only: there the last counts.
    """
    has_best = settings.checkpoint == "best" and not METHODS[opened.hyper.method].finds_ranks
    return TrialSpec(
        number=opened.number,
        params=opened.params,
        hyper=opened.hyper,
        seed=trial_seed(settings.seed, opened.number),
        data_seed=data_seed(settings.seed),
        steps=own_step(settings, settings.steps, opened.hyper.batch_size),
        evaluate_every=settings.evaluate_every,
        evaluations=own_evaluations(settings, opened.hyper.batch_size),
        attempt=attempt,
        best_by=metric if has_best else "",
        early_stopping=has_best and settings.early_stopping,
    )
