"""How much each searched parameter mattered, with the uncertainty that few trials leave. Reads only.

Two estimates side by side: PED-ANOVA (what the good trials have in common; Watanabe et al. 2023, arXiv 2304.10255) and,
where scikit-learn is installed, fANOVA (share of the variance over the whole space; Hutter et al. 2014). Both are
repeated over resampled trials, fANOVA with a new forest each time, so that an accident of a few trials is visible.
"""

from __future__ import annotations

import importlib.util
import math
import random
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, create_trial
from optuna.trial import TrialState as OptunaState

from automl.metric import Direction, as_loss
from automl.study.outcome import BEST_CHECKPOINT, direction_of

if TYPE_CHECKING:  # at run time only when a report is made: it loads scikit-learn, and workers wait for the driver
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

    _Evaluator = PedAnovaImportanceEvaluator | FanovaImportanceEvaluator

FEWEST_TRIALS = 10
"""With fewer trials at one step nothing is said."""
_QUANTILE = 0.25
_FOREST = 16  # trees; the spread over repeats shows what a larger forest would hide
_DRAWN = 200  # trials per repeat at most: forests are slow, and fewer trials only widen the interval
_INTERVAL = (0.05, 0.95)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Importance of one parameter: mean over the repeats and a 90 % interval, all in [0, 1]; the means add to 1."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterImportance:
    """Importance by estimator ("PED-ANOVA", "fANOVA") and parameter, most important first.

    step, trials: judged by the objective at this step, over the trials that reached it, pruned ones included. A trial
    that is worth its best checkpoint counts with that value at the last step, wherever it ended itself.
    shares is empty if there are too few trials; `note` says so.
    """

    step: int
    trials: int
    repeats: int
    shares: Mapping[str, Mapping[str, Share]]
    note: str = ""


@dataclass(frozen=True, slots=True)
class _Sample:
    trial: FrozenTrial
    loss: float


def parameter_importance(
    storage: BaseStorage, study_name: str, *, repeats: int = 12, seed: int = 0
) -> ParameterImportance:
    """Estimate the importance of every parameter that all trials have.

    Pruned trials count: trials are compared at the last step that at least half of those with any value (and ten) have
    reached, since values of different steps do not compare. Objectives after the first are ignored.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # each repeat is a study of its own in memory
    study = optuna.load_study(study_name=study_name, storage=storage)
    direction = direction_of(study.directions[0])
    step, samples = _at_a_common_step(study.get_trials(deepcopy=False), direction)
    if len(samples) < FEWEST_TRIALS:
        note = f"{len(samples)} comparable trials are too few to tell; at least {FEWEST_TRIALS} are needed"
        return ParameterImportance(step=step, trials=len(samples), repeats=0, shares={}, note=note)
    if len({sample.loss for sample in samples}) == 1:
        note = f"all {len(samples)} trials have the same value at step {step}"
        return ParameterImportance(step=step, trials=len(samples), repeats=0, shares={}, note=note)
    shares = {name: _repeated(samples, make, repeats=repeats, seed=seed) for name, make in _estimators().items()}
    found = {name: rows for name, rows in shares.items() if rows}
    note = "" if found else "no parameter is common to all trials, or none varies"
    return ParameterImportance(step=step, trials=len(samples), repeats=repeats, shares=found, note=note)


def _estimators() -> dict[str, Callable[[int], _Evaluator]]:
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

    made: dict[str, Callable[[int], _Evaluator]] = {
        "PED-ANOVA": lambda seed: PedAnovaImportanceEvaluator(target_quantile=_QUANTILE)
    }
    if importlib.util.find_spec("sklearn") is not None:
        made["fANOVA"] = lambda seed: FanovaImportanceEvaluator(n_trees=_FOREST, max_depth=16, seed=seed)
    return made


def _at_a_common_step(trials: Sequence[FrozenTrial], direction: Direction) -> tuple[int, list[_Sample]]:
    """The last step that enough trials have reached (else the one that most have), and those trials' losses there."""
    ended = [trial for trial in trials if trial.state.is_finished() and trial.intermediate_values]
    deepest = max((max(trial.intermediate_values) for trial in ended), default=0)
    reached: dict[int, list[_Sample]] = {}
    for trial in ended:
        for step, value in _curve(trial, deepest).items():
            if math.isfinite(value):
                reached.setdefault(step, []).append(_Sample(trial, as_loss(value, direction)))
    if not reached:
        return 0, []
    wanted = max(FEWEST_TRIALS, math.ceil(len(ended) / 2))
    enough = [step for step, samples in reached.items() if len(samples) >= wanted]
    step = max(enough) if enough else max(reached, key=lambda step: (len(reached[step]), step))
    return step, reached[step]


def _curve(trial: FrozenTrial, deepest: int) -> Mapping[int, float]:
    """Values by step; a trial that is worth its best checkpoint has that value in the end, wherever it ended itself."""
    is_worth_its_best = trial.state is OptunaState.COMPLETE and BEST_CHECKPOINT in trial.user_attrs
    return trial.intermediate_values | ({deepest: trial.values[0]} if is_worth_its_best else {})


def _repeated(
    samples: Sequence[_Sample], make: Callable[[int], _Evaluator], *, repeats: int, seed: int
) -> dict[str, Share]:
    """Mean and interval of the shares over resampled trials (with replacement), most important first."""
    generator = random.Random(seed)  # noqa: S311  # a bootstrap, not a secret
    drawn: dict[str, list[float]] = {}
    for repeat in range(repeats):
        chosen = generator.choices(samples, k=min(len(samples), _DRAWN))
        for name, share in _shares(chosen, make(seed + repeat)).items():
            drawn.setdefault(name, []).append(float(share))
    rows = {name: _share(values) for name, values in drawn.items()}
    return dict(sorted(rows.items(), key=lambda row: -row[1].mean))


def _shares(samples: Sequence[_Sample], evaluator: _Evaluator) -> Mapping[str, float]:
    """Shares of one sample; empty where the sample says nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = optuna.create_study()
        study.add_trials([_completed(sample) for sample in samples])
        if len({sample.loss for sample in samples}) == 1:
            return {}
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _completed(sample: _Sample) -> FrozenTrial:
    trial = sample.trial
    return create_trial(
        state=OptunaState.COMPLETE, params=trial.params, distributions=trial.distributions, value=sample.loss
    )


def _share(values: Sequence[float]) -> Share:
    ordered = sorted(values)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in _INTERVAL)
    return Share(mean=statistics.fmean(values), low=low, high=high)
