"""Whether a night found something better or worse than the one before, beyond noise.

Where both nights were verified, their winners are compared on test rows, paired by seed if they share seeds and rows.
Otherwise the best validation values are compared, with a threshold that is stated and deliberately wide.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from automl import ranking
from automl.metric import METRICS, practical_margin
from automl.results.recorded import GROUND
from automl.space.spec import SweepSpec
from automl.storage.sql import Database
from automl.storage.trials import TrialRow, list_trials
from automl.storage.verification import Verification, latest
from automl.trial import Scalar, TrialState
from automl.verify.plan import row_step
from automl.verify.statistics import LEVEL, Verdict, in_percent, paired, spread, t_quantile

Basis = Literal["verification", "validation"]

_SIGMAS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """What a study found: its trials, the best of them, its newest finished verification and what it stood on."""

    study: str
    rows: tuple[TrialRow, ...]
    best: TrialRow | None
    verification: Verification | None
    ground: Mapping[str, Any]

    @property
    def value(self) -> float | None:
        """Objective of the best trial on validation rows."""
        return self.best.value if self.best else None


@dataclass(frozen=True, slots=True, kw_only=True)
class NightComparison:
    """Two nights. gain: positive is better, whatever the metric's direction; noise: a gain up to it says nothing.

    re_evaluated: what the winner of the night before was worth when it was trained again, on this night's data.
    same_data, same_model: None if it is not known.
    """

    metric: str
    basis: Basis
    value: float
    previous_study: str
    previous_value: float
    gain: float
    noise: float
    noise_rule: str
    verdict: Verdict
    re_evaluated: float | None
    same_data: bool | None
    same_model: bool | None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, as `automl_firings.comparison` keeps them."""
        return asdict(self)

    def in_words(self) -> str:
        """One line: `worse: accuracy 0.81 against 0.87 of nightly-20260803-0200 (noise ±0.03, validation rows)`."""
        rows = "test rows" if self.basis == "verification" else "validation rows"
        text = (
            f"{self.verdict}: {self.metric} {self.value:.4f} against {self.previous_value:.4f} of"
            f" {self.previous_study} (noise ±{self.noise:.4f}, {rows})"
        )
        if self.re_evaluated is not None:
            text += f"; its winner trained again: {self.re_evaluated:.4f}"
        changed = [name for name, same in (("data", self.same_data), ("model", self.same_model)) if same is False]
        return text + (f"; the {' and '.join(changed)} changed" if changed else "")


class _Difference(NamedTuple):
    value: float
    previous: float
    noise: float
    rule: str


def read_night(database: Database, study: str, metric: str) -> Night:
    """Read what a study found. Raises StudyNotFoundError."""
    store = database.store(study)
    rows = tuple(list_trials(database, study))
    return Night(
        study=study,
        rows=rows,
        best=ranking.best(rows, METRICS[metric].direction),
        verification=latest(database, study, done=True),
        ground=store.last_event(GROUND) or {},
    )


def compare_nights(
    spec: SweepSpec, tonight: Night, before: Night, noise: float | None = None
) -> NightComparison | None:
    """Compare a night with an earlier one; None if one of them has no complete trial.

    spec: tonight's. noise: least gain that counts, instead of the rule for validation rows; for test rows, a floor.
    """
    if tonight.best is None or before.best is None:
        return None
    metric = spec.task.metric
    verified = _verified(metric, tonight, before, noise)
    found = verified or _validated(spec, tonight, before, noise)
    gain = METRICS[metric].gain(found.value, over=found.previous)
    return NightComparison(
        metric=metric,
        basis="verification" if verified else "validation",
        value=found.value,
        previous_study=before.study,
        previous_value=found.previous,
        gain=gain,
        noise=found.noise,
        noise_rule=found.rule,
        verdict="no clear difference" if abs(gain) <= found.noise else "better" if gain > 0 else "worse",
        re_evaluated=_re_evaluated(tonight.rows, before.best.params),
        same_data=_same(tonight, before, "data"),
        same_model=_same(tonight, before, "model"),
    )


def _validated(spec: SweepSpec, tonight: Night, before: Night, noise: float | None) -> _Difference:
    assert tonight.value is not None
    assert before.value is not None
    if noise is not None:
        return _Difference(tonight.value, before.value, noise, "as the schedule says")
    metric = spec.task.metric
    margin = practical_margin(metric, before.value)
    if not METRICS[metric].is_bounded:
        return _Difference(tonight.value, before.value, margin, "2 % of the value")
    sampling = _SIGMAS * math.hypot(*(_row_error(metric, night, spec) for night in (tonight, before)))
    rule = "2 standard errors of the difference of two samples of rows, at least 1 % of the range"
    return _Difference(tonight.value, before.value, max(margin, sampling), rule)


def _row_error(metric: str, night: Night, spec: SweepSpec) -> float:
    """Largest standard error of a mean over the night's validation rows, each in the metric's range.

    A variable in [low, high] with mean m has variance at most (high - m) (m - low). Source: Bhatia and Davis 2000. For
    metrics that are no mean over rows (F1, MCC) it is an approximation.
    """
    assert night.value is not None
    rows = (night.ground.get("rows") or {}).get("validation") or sys.maxsize
    used = min(int(rows), spec.task.evaluate_rows or sys.maxsize)
    return math.sqrt(max(0.0, _widest_variance(metric, night.value)) / used)


def _widest_variance(metric: str, value: float) -> float:
    return (METRICS[metric].high - value) * (value - METRICS[metric].low)


def _verified(metric: str, tonight: Night, before: Night, noise: float | None) -> _Difference | None:
    """The winners' scores on test rows, if both nights have a finished verification of this metric."""
    ours, theirs = (_scores(night.verification, metric) for night in (tonight, before))
    if len(ours) < 2 or len(theirs) < 2:
        return None
    value, previous = (math.fsum(found.values()) / len(found) for found in (ours, theirs))
    shared = sorted(ours.keys() & theirs.keys())
    same_rows = _test_rows(tonight) == _test_rows(before)
    if len(shared) >= 2 and same_rows:
        estimate = paired([ours[seed] - theirs[seed] for seed in shared], grain=_grain(metric, tonight))
        value = math.fsum(ours[seed] for seed in shared) / len(shared)
        previous = math.fsum(theirs[seed] for seed in shared) / len(shared)
        half = estimate.high - estimate.mean
        rule = f"{in_percent(LEVEL)} interval of {len(shared)} differences paired by seed"
    else:
        pairs = ((ours, _grain(metric, tonight)), (theirs, _grain(metric, before)))
        error = math.hypot(
            *(max(spread(list(found.values())), grain) / math.sqrt(len(found)) for found, grain in pairs)
        )
        half = t_quantile((1.0 + LEVEL) / 2.0, min(len(ours), len(theirs)) - 1) * error
        rule = f"{in_percent(LEVEL)} interval of a difference of two means over seeds"
        if not same_rows and METRICS[metric].is_bounded:
            counts = [night.verification.plan["test_rows"] for night in (tonight, before) if night.verification]
            errors = (
                math.sqrt(max(0.0, _widest_variance(metric, mean)) / max(1, int(rows)))
                for mean, rows in zip((value, previous), counts, strict=True)
            )
            half, rule = math.hypot(half, _SIGMAS * math.hypot(*errors)), f"{rule}, and of two samples of rows"
    return _Difference(value, previous, max(half, noise or 0.0), rule)


def _scores(verification: Verification | None, metric: str) -> dict[str, float]:
    """Test score of the search's winner by seed; empty if there is none, or of another metric."""
    result = verification.result if verification else None
    if result is None or (result.get("metric") or {}).get("name") != metric or not result.get("arms"):
        return {}
    return {str(seed): float(value) for seed, value in result["arms"][0]["scores"].items()}


def _grain(metric: str, night: Night) -> float:
    """Step in which the night's scores come: one test row's share of the range, 0 where that is not known."""
    rows = night.verification.plan.get("test_rows") if night.verification else None
    return row_step(metric, int(rows)) if rows else 0.0


def _test_rows(night: Night) -> object:
    return night.verification.plan.get("test") if night.verification else None


def _re_evaluated(rows: tuple[TrialRow, ...], params: Mapping[str, Scalar]) -> float | None:
    """Value of the complete trial with exactly these parameters, the first of several."""
    same = (row for row in rows if row.state is TrialState.COMPLETE and dict(row.params) == dict(params))
    return next((row.value for row in same), None)


def _same(tonight: Night, before: Night, name: str) -> bool | None:
    ours, theirs = tonight.ground.get(name), before.ground.get(name)
    return None if ours is None or theirs is None else ours == theirs
