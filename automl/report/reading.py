"""Reads a study from the database into a frame: the one place where a report meets SQL."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from automl import ranking
from automl.metric import METRICS
from automl.report.frames import (
    Arm,
    MethodRow,
    ModuleShare,
    PairedDifference,
    RankSuggestion,
    StudyFrame,
    VerificationFrame,
    place_of,
)
from automl.results.curves import with_curves
from automl.results.parameter_importance import parameter_importance
from automl.results.rank_gate import rank_gate
from automl.results.recorded import GROUND, recorded_baseline, recorded_search
from automl.results.spending import Spending
from automl.results.squeezed import squeeze_of
from automl.space.constraints import upper_limit
from automl.space.length import batch_size_of, own_step
from automl.space.spec import SearchSpace, SweepSpec
from automl.storage.runs import last_run
from automl.storage.spending import spent_by
from automl.storage.sql import Database
from automl.storage.trials import list_trials, with_metrics
from automl.storage.verification import latest
from automl.trial import FORGETTING, ModuleImportance


def read_frame(
    database: Database, spec: SweepSpec, space: SearchSpace, *, suggestion: RankSuggestion | None = None
) -> StudyFrame:
    """Read a study, in whatever state it is. space: with automatic ranges filled in. Raises StudyNotFoundError."""
    store = database.store(spec.study)
    sweep = store.sweep()
    ground = store.last_event(GROUND) or {}
    storage = database.optuna_storage()
    attempts = store.attempts()
    run = last_run(database, spec.study)
    direction = METRICS[spec.task.metric].direction
    trials = with_metrics(database, spec.study, list_trials(database, spec.study), spec.task.measured[1:])
    winner = ranking.best(trials, direction)
    search = recorded_search(store, spec)
    own = {row.number: own_step(search, search.steps, batch_size_of(space, row.params)) for row in trials}
    return StudyFrame(
        study=spec.study,
        metric=spec.task.metric,
        metrics=spec.task.measured[1:],
        direction=direction,
        model=_location(spec.model.location, spec.model.path),
        task=spec.task.type,
        data=spec.task.data.shown,
        planned_trials=run.trials if run is not None and run.trials else spec.search.trials,
        planned_steps=search.steps,
        own_steps=own,
        step_rows=search.step_rows if len({*own.values()} - {search.steps}) else None,
        sampler=spec.search.sampler,
        pruner=spec.search.pruner,
        seed=spec.search.seed,
        parameters=space.parameters,
        trials=with_curves(trials, store.measurements(), spec.task.metric, search=search, space=space),
        baseline=recorded_baseline(store, spec.task.metric),
        ground=ground,
        provenance=sweep.provenance,
        space_text=sweep.space_text,
        database=database.url,
        runs=sweep.runs,
        started_at=min((each.started_at for each in attempts if each.started_at), default=None),
        ended_at=max((each.ended_at for each in attempts if each.ended_at), default=None),
        parameter_importance=parameter_importance(storage, spec.study),
        module_importance=shares_of_modules(database.importances(spec.study)),
        verification=read_verification(database, spec.study),
        suggestion=suggestion,
        squeeze=squeeze_of(database, spec.study, winner.number) if winner else None,
        gate=rank_gate(database, spec),
        also_minimize=spec.search.also_minimize or "",
        keep=spec.keep.metric if spec.keep is not None else "",
        forgetting_limit=_limit(space),
        spending=Spending(spent=spent_by(database, [spec.study])[spec.study], budget=spec.search.budget),
    )


def _limit(space: SearchSpace) -> float | None:
    """The smallest forgetting that a constraint says must not be exceeded; None if none says just that."""
    found = [upper_limit(constraint, FORGETTING) for constraint in space.measured]
    return min((limit for limit in found if limit is not None), default=None)


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


def read_verification(database: Database, study: str) -> VerificationFrame | None:
    """The latest verification that is done, else the latest, None if there is none."""
    row = latest(database, study, done=True) or latest(database, study)
    if row is None:
        return None
    if row.result is None:
        return VerificationFrame(number=row.number, done=False, started_at=row.started_at)
    result = row.result
    optimism = result["selection_optimism"] or {}
    methods = result.get("methods") or {}
    return VerificationFrame(
        number=row.number,
        done=True,
        started_at=row.started_at,
        metric=result["metric"]["name"],
        majority=result["majority"],
        beats_majority=result["beats_majority"],
        headline=result["headline"],
        seeds=len(result["seeds"]),
        planned_seeds=result["planned_seeds"],
        arms=tuple(_arm(arm) for arm in result["arms"]),
        comparisons=tuple(_comparison(each, row.plan) for each in result["comparisons"]),
        optimism=optimism.get("optimism"),
        optimism_low=optimism.get("low"),
        optimism_high=optimism.get("high"),
        optimism_step=optimism.get("step"),
        recommendation=result["recommendation"]["arm"] or "",
        advice=result["recommendation"]["text"],
        deploy=(result.get("deploy") or {}).get("text", ""),
        suggestion_status=result["suggestion"]["status"],
        methods=tuple(_method(row) for row in methods.get("rows", ())),
        reference=methods.get("reference", ""),
        methods_text=methods.get("text", ""),
    )


def _arm(arm: Mapping[str, Any]) -> Arm:
    known = {name: arm[name] for name in Arm.__slots__ if name not in ("scores", "forgetting")}
    found = arm.get("forgetting")
    forgotten = None if found is None else (found["mean"], found["low"], found["high"])
    return Arm(**known, scores=tuple(arm["scores"].values()), forgetting=forgotten)


def _method(row: Mapping[str, Any]) -> MethodRow:
    return MethodRow(**{name: row[name] for name in MethodRow.__slots__})


def _comparison(found: Mapping[str, Any], plan: Mapping[str, Any]) -> PairedDifference:
    """The comparison of a result; where that has no confidence level, its plan has it."""
    if "level" in found:
        return PairedDifference(**{name: found[name] for name in PairedDifference.__slots__})
    pair = found["arm"], found["against"]
    level = next(each["level"] for each in plan["comparisons"] if (each["arm"], each["against"]) == pair)
    return PairedDifference(**found, level=level)


def _location(location: str, path: str) -> str:
    return f"{location}/{path}" if location and path else location or path
