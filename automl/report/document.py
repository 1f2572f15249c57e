"""The report as one JSON document for other programs. Its keys only grow; `schema` says which promise holds."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import automl
from automl.report.answers import Group, failures, forgetting_front, pareto, rates_by_rank, sizes_by_target, spending
from automl.report.findings import Findings
from automl.report.frames import StudyFrame
from automl.report.recipe import recipe
from automl.results.squeezed import squeeze_document
from automl.storage.trials import TrialRow

SCHEMA = "automl-report/1"


def document(frame: StudyFrame, found: Findings) -> dict[str, Any]:
    """Plain JSON values; every number is finite. Trials are named by number; times are ISO 8601, UTC."""
    best = frame.best
    made = recipe(best.adapter) if best else None
    full: dict[str, Any] = {
        "schema": SCHEMA,
        "automl": automl.__version__,
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "study": frame.study,
        "evidence": found.evidence.value,
        "findings": list(found.sentences),
        "warnings": list(found.warnings),
        "next_command": found.next_command,
        "search": _search(frame),
        "best": best.number if best else None,
        "baseline": frame.baseline,
        "counts": frame.counts,
        "stop_reasons": dict(Counter(trial.stop_reason for trial in frame.trials if trial.stop_reason)),
        "trials": [_trial(trial) for trial in frame.trials],
        "verification": asdict(frame.verification) if frame.verification else None,
        "parameter_importance": asdict(frame.parameter_importance),
        "rates_by_rank": [_group(group) for group in rates_by_rank(frame)],
        "targets_by_size": [
            {"low": size.low, "high": size.high, "targets": {name: _group(g) for name, g in size.targets.items()}}
            for size in sizes_by_target(frame)
        ],
        "pareto": [trial.number for trial in pareto(frame)],
        "forgetting": _forgetting(frame),
        "squeeze": squeeze_document(frame.squeeze) if frame.squeeze else None,
        "rank_gate": frame.gate.as_dict() if frame.gate else None,
        "modules": [asdict(module) for module in frame.module_importance],
        "suggestion": asdict(frame.suggestion) if frame.suggestion else None,
        "spending": asdict(spending(frame)),
        "spent": frame.spending.as_dict(),
        "failures": {reason: [trial.number for trial in trials] for reason, trials in failures(frame).items()},
        "recipe": asdict(made) if made else None,
        "ground": dict(frame.ground),
        "provenance": dict(frame.provenance),
        "space": frame.space_text,
        "database": frame.database,
    }
    plain: dict[str, Any] = _plain(full)
    return plain


def _search(frame: StudyFrame) -> dict[str, Any]:
    return {
        "metric": frame.metric,
        "metrics": list(frame.metrics),
        "direction": frame.direction,
        "also_minimize": frame.also_minimize or None,
        "model": frame.model,
        "task": frame.task,
        "data": frame.data,
        "trials": frame.planned_trials,
        "steps": frame.planned_steps,
        "sampler": frame.sampler,
        "pruner": frame.pruner,
        "seed": frame.seed,
        "parameters": [asdict(parameter) for parameter in frame.parameters],
        "runs": frame.runs,
        "started_at": frame.started_at,
        "ended_at": frame.ended_at,
    }


def _forgetting(frame: StudyFrame) -> dict[str, Any] | None:
    if not frame.keep:
        return None
    front = [trial.number for trial in forgetting_front(frame)]
    return {"metric": frame.keep, "limit": frame.forgetting_limit, "front": front}


def _trial(trial: TrialRow) -> dict[str, Any]:
    values = {name: value for name, value in trial.as_dict().items() if name not in ("size", "is_parked")}
    return {**values, "curve": [list(point) for point in trial.curve]}


def _group(group: Group) -> dict[str, Any]:
    return {
        "label": group.label,
        "trials": [trial.number for trial in group.trials],
        "complete": group.complete,
        "best": group.best.number if group.best else None,
        "early": group.early.number if group.early else None,
    }


def _plain(value: Any) -> Any:
    """The value without tuples, times, enumerations and numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds")
    return str(value) if isinstance(value, str) else value
