"""Everything a report is made from, read in one place and held as plain values. No plotly, no text, no judgement."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from automl.metric import METRICS
from automl.space.spec import Parameter, SearchSpace, SweepSpec
from automl.storage.base import ResultStore
from automl.storage.sql import Database
from automl.storage.verification import latest
from automl.study.parameter_importance import ParameterImportance, parameter_importance
from automl.study.queries import TrialRow, list_trials
from automl.trial import Measurement, ModuleImportance, Scalar, TrialState


class Point(NamedTuple):
    """One measurement of the objective."""

    step: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFrame:
    """One trial. value: objective at its last measurement, whatever its state; None if it was never measured.

    curve: the objective by step. attempts: how often it was handed to a worker.
    """

    number: int
    state: TrialState
    value: float | None
    params: Mapping[str, Scalar]
    steps: int
    seconds: float
    tokens: int
    trainable_params: int | None
    stop_reason: str | None
    error: str
    adapter: str | None
    attempts: int
    curve: tuple[Point, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One configuration of a verification, with its score in each seed on the test rows."""

    name: str
    title: str
    kind: str
    trial: int | None
    params: Mapping[str, Any]
    rank_pattern: Mapping[str, int]
    trainable_params: int | None
    learning_rate: float | None
    scores: tuple[float, ...]
    mean: float | None
    sd: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A paired difference between two arms, `arm` minus `against`, with its 95 % interval."""

    arm: str
    against: str
    difference: float
    low: float
    high: float
    seeds: int
    wins: int | None
    verdict: str
    detectable: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationFrame:
    """The latest verification. done is False while it runs; then only `number` and `started_at` say something."""

    number: int
    done: bool
    started_at: datetime
    metric: str = ""
    majority: float | None = None
    beats_majority: bool | None = None
    headline: str = ""
    seeds: int = 0
    planned_seeds: int = 0
    arms: tuple[Arm, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    selection_optimism: float | None = None
    recommendation: str = ""

    def arm(self, name: str) -> Arm | None:
        """The arm of this name."""
        return next((arm for arm in self.arms if arm.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleShare:
    """One adapted module. share: of the importance of all modules, mean over trials; low, high: over the trials."""

    module: str
    layer: int | None
    kind: str
    share: float
    low: float
    high: float
    held_out: float | None
    effective_rank: float
    trials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSuggestion:
    """A suggested rank per module (0: leave it out) and what it rests on. Never more than a hypothesis by itself."""

    ranks: Mapping[str, int]
    uniform_rank: int | None
    used_params: int | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFrame:
    """A study as it is in the database now.

    baseline: objective without training. ground: fingerprints and sizes of model and data, as the search noted them.
    """

    study: str
    metric: str
    direction: str
    model: str
    task: str
    data: str
    planned_trials: int
    planned_steps: int
    sampler: str
    pruner: str
    seed: int
    parameters: tuple[Parameter, ...]
    trials: tuple[TrialFrame, ...]
    baseline: float | None
    ground: Mapping[str, Any]
    provenance: Mapping[str, Any]
    space_text: str
    database: str
    runs: int
    started_at: datetime | None
    ended_at: datetime | None
    parameter_importance: ParameterImportance
    module_importance: tuple[ModuleShare, ...] = ()
    verification: VerificationFrame | None = None
    suggestion: RankSuggestion | None = None

    @property
    def maximize(self) -> bool:
        """Whether larger values of the metric are better."""
        return self.direction == "maximize"

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by state, every state named."""
        counted = Counter(str(trial.state) for trial in self.trials)
        return {str(state): counted[str(state)] for state in TrialState}

    @property
    def complete(self) -> list[TrialFrame]:
        """Complete trials with a value, best first, the earlier one of equals."""
        valued = [trial for trial in self.trials if trial.state == TrialState.COMPLETE and trial.value is not None]
        return sorted(valued, key=lambda trial: (self.cost(trial), trial.number))

    @property
    def best(self) -> TrialFrame | None:
        """The best complete trial."""
        return next(iter(self.complete), None)

    def cost(self, trial: TrialFrame) -> float:
        """The value turned so that smaller is better; infinite without one."""
        if trial.value is None:
            return float("inf")
        return -trial.value if self.maximize else trial.value


def read_frame(
    database: Database, spec: SweepSpec, space: SearchSpace, *, suggestion: RankSuggestion | None = None
) -> StudyFrame:
    """Read a study, in whatever state it is. space: with automatic ranges filled in. Raises StudyNotFoundError."""
    store = database.store(spec.study)
    sweep = store.sweep()
    events = store.events()
    ground = _last(events, "ground")
    baseline = _last(events, "baseline").get(spec.task.metric)
    storage = database.optuna_storage()
    attempts = store.attempts()
    return StudyFrame(
        study=spec.study,
        metric=spec.task.metric,
        direction=METRICS[spec.task.metric].direction,
        model=_location(spec.model.location, spec.model.path),
        task=spec.task.type,
        data=_location(spec.task.data.location, spec.task.data.path) or ", ".join(spec.task.data.files.values()),
        planned_trials=spec.search.trials,
        planned_steps=spec.search.steps,
        sampler=spec.search.sampler,
        pruner=spec.search.pruner,
        seed=spec.search.seed,
        parameters=space.parameters,
        trials=_trials(list_trials(storage, spec.study, store), store, spec.task.metric),
        baseline=None if baseline is None else float(baseline),
        ground=ground,
        provenance=sweep.provenance,
        space_text=sweep.space_text,
        database=database.url,
        runs=sweep.runs,
        started_at=min((each.started_at for each in attempts if each.started_at), default=None),
        ended_at=max((each.ended_at for each in attempts if each.ended_at), default=None),
        parameter_importance=parameter_importance(storage, spec.study),
        module_importance=shares_of_modules(database.importances(spec.study)),
        verification=_verification(database, spec.study),
        suggestion=suggestion,
    )


def shares_of_modules(trials: Mapping[int, Sequence[ModuleImportance]]) -> tuple[ModuleShare, ...]:
    """Each module's share of the importance within a trial, averaged over the trials that adapted the same modules.

    Only the set of modules that most trials share is used (the larger one of equals), and only trials at least half
    done: shares over different sets, or of a trial that has learnt nothing yet, do not compare.
    """
    done = {number: group for number, group in trials.items() if group[0].fraction_done >= 0.5} or trials
    sets = Counter(frozenset(row.module for row in group) for group in done.values())
    if not sets:
        return ()
    common = max(sets, key=lambda names: (sets[names], len(names)))
    found: dict[str, list[tuple[float, ModuleImportance]]] = defaultdict(list)
    for group in done.values():
        total = sum(row.sensitivity for row in group)
        if {row.module for row in group} == common and total > 0:
            for row in group:
                found[row.module].append((row.sensitivity / total, row))
    return tuple(_module(name, seen) for name, seen in found.items())


def place_of(module: str) -> tuple[int | None, str]:
    """Layer number and kind of a module: `encoder.layer.3.attention.self.query` is (3, "attention.self.query")."""
    parts = module.split(".")
    numbers = [index for index, part in enumerate(parts) if part.isdigit()]
    if not numbers:
        return None, module
    return int(parts[numbers[0]]), ".".join(parts[numbers[0] + 1 :]) or parts[numbers[0] - 1]


def _module(name: str, seen: Sequence[tuple[float, ModuleImportance]]) -> ModuleShare:
    layer, kind = place_of(name)
    shares = [share for share, _ in seen]
    held_out = [row.held_out for _, row in seen if row.held_out is not None]
    return ModuleShare(
        module=name,
        layer=layer,
        kind=kind,
        share=sum(shares) / len(shares),
        low=min(shares),
        high=max(shares),
        held_out=sum(held_out) / len(held_out) if held_out else None,
        effective_rank=sum(row.effective_rank for _, row in seen) / len(seen),
        trials=len(seen),
    )


def _trials(rows: Iterable[TrialRow], store: ResultStore, metric: str) -> tuple[TrialFrame, ...]:
    measured: dict[int, list[Measurement]] = defaultdict(list)
    for measurement in store.measurements():
        measured[measurement.trial].append(measurement)
    handed = Counter(attempt.trial for attempt in store.attempts())
    return tuple(_trial(row, measured[row.number], handed[row.number], metric) for row in rows)


def _trial(row: TrialRow, measured: Sequence[Measurement], attempts: int, metric: str) -> TrialFrame:
    curve = tuple(Point(each.step, each.metrics[metric]) for each in measured if metric in each.metrics)
    return TrialFrame(
        number=row.number,
        state=row.state,
        value=row.value if row.value is not None else curve[-1].value if curve else None,
        params=row.params,
        steps=row.steps,
        seconds=row.seconds,
        tokens=measured[-1].tokens if measured else 0,
        trainable_params=row.trainable_params,
        stop_reason=row.stop_reason,
        error=row.error,
        adapter=row.adapter,
        attempts=attempts,
        curve=curve,
    )


def _verification(database: Database, study: str) -> VerificationFrame | None:
    """The last one that is done, else the last one."""
    row = latest(database, study, done=True) or latest(database, study)
    if row is None:
        return None
    if row.result is None:
        return VerificationFrame(number=row.number, done=False, started_at=row.started_at)
    result = row.result
    return VerificationFrame(
        number=row.number,
        done=True,
        started_at=row.started_at,
        metric=str(result.get("metric", "")),
        majority=result.get("majority"),
        beats_majority=result.get("beats_majority"),
        headline=str(result.get("headline") or ""),
        seeds=_count(result.get("seeds")),
        planned_seeds=_count(result.get("planned_seeds")),
        arms=tuple(_arm(arm) for arm in result.get("arms") or ()),
        comparisons=tuple(_comparison(each) for each in result.get("comparisons") or ()),
        selection_optimism=result.get("selection_optimism"),
        recommendation=_recommended(result.get("recommendation")),
    )


def _arm(arm: Mapping[str, Any]) -> Arm:
    return Arm(
        name=str(arm["name"]),
        title=str(arm.get("title") or arm["name"]),
        kind=str(arm.get("kind") or ""),
        trial=arm.get("trial"),
        params=arm.get("params") or {},
        rank_pattern=arm.get("rank_pattern") or {},
        trainable_params=arm.get("trainable_params"),
        learning_rate=arm.get("learning_rate"),
        scores=tuple(arm.get("scores") or ()),
        mean=arm.get("mean"),
        sd=arm.get("sd"),
    )


def _comparison(each: Mapping[str, Any]) -> Comparison:
    return Comparison(
        arm=str(each["arm"]),
        against=str(each["against"]),
        difference=float(each["difference"]),
        low=float(each["low"]),
        high=float(each["high"]),
        seeds=_count(each.get("seeds")),
        wins=each.get("wins"),
        verdict=str(each.get("verdict") or ""),
        detectable=each.get("detectable"),
    )


def _count(given: Any) -> int:
    """A number of seeds, given as a number or as the seeds themselves."""
    return len(given) if isinstance(given, (list, tuple)) else int(given or 0)


def _recommended(given: Any) -> str:
    """Name of the recommended arm, given as such or as a record with a name."""
    return str((given.get("arm") or given.get("name") or "") if isinstance(given, Mapping) else given or "")


def _last(events: Sequence[tuple[datetime, str, Mapping[str, Any]]], kind: str) -> Mapping[str, Any]:
    return next((detail for _, event, detail in reversed(events) if event == kind), {})


def _location(location: str, path: str) -> str:
    return f"{location}/{path}" if location and path else location or path
