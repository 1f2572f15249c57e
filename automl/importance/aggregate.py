"""What the importances of many trials say together, how well they agree, and whether that is enough.

Agreement is no validity: scores that repeat from trial to trial need not be those of the modules that want more rank.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from automl.trial import ModuleImportance

LEAST_FRACTION = 0.5
"""Share of its steps that a trial must have made to count."""

LEAST_STABILITY = 0.6
"""Mean rank correlation between trials below which they do not agree."""

LEAST_TRIALS = 2.0
"""Effective number of trials below which they say little."""

LARGEST_WEIGHT = 0.5
RESAMPLES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEvidence:
    """One trial: its loss (lower is better, whatever the metric) and the importances of its modules."""

    trial: int
    loss: float
    importances: Sequence[ModuleImportance]

    @property
    def modules(self) -> frozenset[str]:
        """Paths of the modules it has adapted."""
        return frozenset(module.module for module in self.importances)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleAggregate:
    """One module over all trials.

    share: its part of the whole, over all modules 1. low, high: its 90 % interval over trials. top_half: how often it
    is among the upper half of the modules when trials are drawn anew. held_out, held_out_error: as in
    `ModuleImportance`, mean over the trials that have it; None if no trial has.
    """

    module: str
    share: float
    low: float
    high: float
    top_half: float
    held_out: float | None
    held_out_error: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregate:
    """All modules in the order asked for. weights: one for each trial. n_eff: 1 / sum of squared weights.

    stability: mean rank correlation over pairs of trials, least_stability: the smallest; None with fewer than two.
    """

    modules: tuple[ModuleAggregate, ...]
    weights: Mapping[int, float]
    n_eff: float
    stability: float | None
    least_stability: float | None

    @property
    def shortage(self) -> str:
        """Why this is too little evidence to be relied on, in a few words; empty if it is not."""
        if self.n_eff < LEAST_TRIALS:
            return f"{self.n_eff:.1f} effective trials of at least {LEAST_TRIALS:g}"
        if self.stability is None or self.stability < LEAST_STABILITY:
            agreement = "unknown" if self.stability is None else f"{self.stability:.2f}"
            return f"mean rank correlation between trials is {agreement}, at least {LEAST_STABILITY:g} is needed"
        return ""


def is_eligible(importances: Sequence[ModuleImportance], loss: float, baseline: float | None) -> bool:
    """Whether a trial may speak: at least half done, samples taken, and not worse than no training at all."""
    return (
        bool(importances)
        and math.isfinite(loss)
        and importances[0].fraction_done >= LEAST_FRACTION
        and any(module.sensitivity > 0 for module in importances)
        and (baseline is None or loss <= baseline)
    )


def aggregate(evidence: Sequence[TrialEvidence], modules: Sequence[str]) -> Aggregate | None:
    """Everything trials know about `modules`; None if no trial has adapted all of them.

    Trials with fewer of them inform only their own. Scores are compared on what all trials have in common; if that is
    nothing, only trials that have all modules count. Better trials weigh more (`trial_weights`).
    """
    whole = [each for each in evidence if each.modules.issuperset(modules)]
    if not whole:
        return None
    partial = [each for each in evidence if each.modules.intersection(modules)]
    common = frozenset(modules).intersection(*(each.modules for each in partial))
    used = partial if len(common) > 1 else whole
    common = common if len(common) > 1 else frozenset(modules)
    weights = trial_weights([each.loss for each in used])
    logs = np.array([_relative_logs(each, modules, common) for each in used])  # (trials, modules), nan = not adapted
    shares = _shares(logs, weights)
    draws = _resampled(logs, weights)
    correlations = _correlations(logs)
    return Aggregate(
        modules=tuple(
            ModuleAggregate(
                module=name,
                share=float(shares[index]),
                low=float(np.quantile(draws[:, index], 0.05)),
                high=float(np.quantile(draws[:, index], 0.95)),
                top_half=float(np.mean(_in_top_half(draws)[:, index])),
                **_held_out(name, used),
            )
            for index, name in enumerate(modules)
        ),
        weights={each.trial: float(weight) for each, weight in zip(used, weights, strict=True)},
        n_eff=float(1.0 / np.sum(weights**2)),
        stability=float(np.mean(correlations)) if correlations else None,
        least_stability=min(correlations, default=None),
    )


def trial_weights(losses: Sequence[float]) -> np.ndarray:
    """softmax(-(loss - best) / τ) with τ the median absolute deviation; none above LARGEST_WEIGHT if that is possible.

    Equal weights if half of the losses are the same.
    """
    values = np.array(losses, dtype=np.float64)
    scale = float(np.median(np.abs(values - np.median(values))))
    raw = np.exp(-(values - values.min()) / scale) if scale > 0 else np.ones(len(values))
    weights: np.ndarray = raw / raw.sum()
    top = int(weights.argmax())
    if len(values) > 2 and weights[top] > LARGEST_WEIGHT:
        distance = values - np.delete(values, top).min()
        rest = np.exp(-distance / scale)  # weighed among themselves: beside the best they may vanish
        rest[top] = 0.0
        weights = (1.0 - LARGEST_WEIGHT) * rest / rest.sum()
        weights[top] = LARGEST_WEIGHT
    return weights


def module_scores(importances: Sequence[ModuleImportance]) -> dict[str, float]:
    """One score for each module: the sum over its components, which are in units of the sensitivity."""
    return {module.module: math.fsum(module.components) for module in importances}


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation; 0 if one side is constant. Equal values share their mean rank."""
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    if any(np.ptp(values) == 0 for values in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _relative_logs(evidence: TrialEvidence, modules: Sequence[str], common: frozenset[str]) -> list[float]:
    """Logarithm of each module's score over the geometric mean of the common ones."""
    scores = module_scores(evidence.importances)
    least = 1e-9 * max(scores.values())
    logs = {name: math.log(max(scores[name], least)) for name in modules if name in scores}
    centre = statistics.fmean(logs[name] for name in sorted(common))
    return [logs[name] - centre if name in logs else math.nan for name in modules]


def _shares(logs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """exp of the weighted means over the trials that know a module, as parts of 1, (modules,)."""
    known = ~np.isnan(logs)
    weight = weights[:, None] * known
    means = np.sum(weight * np.where(known, logs, 0.0), axis=0) / np.maximum(weight.sum(axis=0), 1e-300)
    shares: np.ndarray = np.exp(means - means.max())
    shares /= shares.sum()
    return shares


def _resampled(logs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Shares for draws of as many trials with replacement, (draws, modules); the same draws every time.

    A draw in which a module is unknown is left out; one that knows all is always there.
    """
    draw = random.Random(0)  # noqa: S311  # resampling, not a secret
    results = []
    for _ in range(RESAMPLES):
        chosen = [draw.randrange(len(logs)) for _ in logs]
        if not np.isnan(logs[chosen]).all(axis=0).any():
            results.append(_shares(logs[chosen], weights[chosen]))
    return np.array(results or [_shares(logs, weights)])


def _in_top_half(draws: np.ndarray) -> np.ndarray:
    order = np.argsort(np.argsort(-draws, axis=1, kind="stable"), axis=1, kind="stable")
    return np.asarray(order < draws.shape[1] / 2)


def _correlations(logs: np.ndarray) -> list[float]:
    """Rank correlations between every two trials, over the modules that both know, if these are at least three."""
    found = []
    for first, second in combinations(logs, 2):
        both = ~np.isnan(first) & ~np.isnan(second)
        if both.sum() >= 3:
            found.append(spearman(first[both].tolist(), second[both].tolist()))
    return found


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: np.ndarray = last - (counts - 1) / 2
    return mean[inverse]


def _held_out(name: str, evidence: Sequence[TrialEvidence]) -> dict[str, float | None]:
    """Mean over the trials that looked, and its error: the larger of the trials' own and of that between trials."""
    found = [
        (module.held_out, module.held_out_error or 0.0)
        for each in evidence
        for module in each.importances
        if module.module == name and module.held_out is not None
    ]
    if not found:
        return {"held_out": None, "held_out_error": None}
    number = len(found)
    within = math.sqrt(math.fsum(error**2 for _, error in found)) / number
    between = statistics.stdev(value for value, _ in found) / math.sqrt(number) if number > 1 else 0.0
    return {"held_out": statistics.fmean(value for value, _ in found), "held_out_error": max(within, between)}
