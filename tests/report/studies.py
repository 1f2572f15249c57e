"""Studies as a search leaves them in the database, written through the real Optuna and the real stores."""

from __future__ import annotations

import math
import random
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState as OptunaState
from optuna.trial import create_trial

from automl.space.load import parse_space
from automl.space.spec import SweepSpec
from automl.storage.base import AttemptState, RunEnd
from automl.storage.lease import StudyLease
from automl.storage.runs import RunLog
from automl.storage.sql import Database
from automl.storage.squeezes import CutRow, ModuleRow, SqueezeRow
from automl.storage.verification import VerificationStore
from automl.trial import Measurement, ModuleImportance

HOSTILE = """</script><script>alert("1")</script> 'q' `c` <img src=x onerror=alert(2)> & |pipe| [a](b)"""
STEPS, EVERY = 80, 10
_SPACE = """\
version: 1
study: topics
model: ./model
task: {type: classification, data: ./data.jsonl, metric: accuracy}
space:
  rank: {type: int, low: 2, high: 32, log: true}
  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-1, log: true}
  target: {type: categorical, choices: [qv, all-linear]}
  dropout: {type: categorical, choices: [0.0, 0.1]}
fixed: {batch_size: 8}
search: {trials: 24, steps: 80, evaluate_every: 10}
# kept verbatim: """
_DISTRIBUTIONS = {
    "rank": IntDistribution(2, 32, log=True),
    "learning_rate": FloatDistribution(1e-4, 1e-1, log=True),
    "target": CategoricalDistribution(("qv", "all-linear")),
    "dropout": CategoricalDistribution((0.0, 0.1)),
}
_OF_A_TRIAL = ("params", "values", "intermediate_values", "user_attributes")
_MODULES = tuple(
    f"bert.encoder.layer.{layer}.attention.self.{kind}" for layer in range(6) for kind in ("query", "key", "value")
)


def space_of(folder: Path, *, study: str = "topics", data: str | None = None, trials: int = 24) -> SweepSpec:
    """The space file of these studies. study, data: put in after parsing, so that they may be hostile."""
    spec = parse_space(_SPACE + "</script>\n", "space.yaml", folder)
    if data is not None:
        spec = replace(spec, task=replace(spec.task, data=replace(spec.task.data, files={"train": data})))
    return replace(spec, study=study, search=replace(spec.search, trials=trials))


def add_study(
    database: Database,
    spec: SweepSpec,
    *,
    trials: int = 24,
    failed: int = 0,
    running: int = 0,
    complete: bool = True,
    importances: bool = False,
    error: str = "ValueError: something",
    seed: int = 0,
) -> None:
    """A study of so many pruned and complete trials, then failed ones, then running ones.

    complete: whether good trials are trained to the end; otherwise all are pruned. Adapters are recorded as lost.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with StudyLease(database, spec.study) as lease:
        run = lease.take(spec.text, spec.sha256, {"automl": "0.1.0", "git": "0123abc", "folder": "."})
        log = RunLog(database, spec.study, run, lease.verify)
        log.begin(trials=spec.search.trials, steps=spec.search.steps, metric=spec.task.metric)
        store = database.store(spec.study)
        study = optuna.create_study(
            study_name=spec.study, storage=database.optuna_storage(), direction="maximize", load_if_exists=True
        )
        rows = {"train": 1330, "validation": 449, "test": 446}
        ground = {"model": "e" * 64, "data": "d" * 64, "precision": "fp32", "model_parameters": 22_713_216}
        store.add_event("ground", {**ground, "rows": rows})
        store.add_event("baseline", {"accuracy": 0.25, "loss": 1.6})
        generator = random.Random(seed)
        states = ["end"] * trials + ["fail"] * failed + ["run"] * running
        made = [_trial(generator, number, state, error=error, complete=complete) for number, state in enumerate(states)]
        study.add_trials([trial for trial, _ in made])
        _add_measurements(store, made, importances=importances)
        for trial in range(min(3, len(made))):
            store.start_attempt(trial, worker=0, run=1)
            store.end_attempt(trial, AttemptState.SUCCEEDED, "finished")
        log.end(RunEnd.STOPPED if running else RunEnd.FINISHED)


def _trial(
    generator: random.Random, number: int, state: str, *, error: str, complete: bool
) -> tuple[optuna.trial.FrozenTrial, list[Measurement]]:
    params: dict[str, Any] = {
        "rank": generator.choice((2, 3, 4, 6, 8, 12, 16, 24, 32)),
        "learning_rate": 10 ** generator.uniform(-4, -1),
        "target": generator.choice(("qv", "all-linear")),
        "dropout": generator.choice((0.0, 0.1)),
    }
    top = 0.95 - 0.25 * abs(math.log10(params["learning_rate"]) + 2.2) + generator.gauss(0, 0.01)
    curve = {step: top - (top - 0.25) * math.exp(-step / 15) for step in range(EVERY, STEPS + 1, EVERY)}
    ends = complete and (top > 0.8 or number == 0)
    if state != "end" or not ends:
        curve = {step: value for step, value in curve.items() if step <= (20 if state == "end" else 10)}
    per_rank = 9216 if params["target"] == "qv" else 41_472
    attributes: dict[str, Any] = {"trainable_params": 1925.0 + per_rank * params["rank"]}
    if state == "fail":
        attributes |= {"stop_reason": "error", "error": error}
    elif state == "end":
        attributes |= {"stop_reason": "finished" if ends else "pruned", "seconds": 0.25 * max(curve)}
    frozen = create_trial(
        state={"fail": OptunaState.FAIL, "run": OptunaState.RUNNING}.get(
            state, OptunaState.COMPLETE if ends else OptunaState.PRUNED
        ),
        params=params,
        distributions=_DISTRIBUTIONS,
        value=curve[STEPS] if state == "end" and ends else None,
        intermediate_values=curve,
        user_attrs=attributes,
    )
    return frozen, [
        Measurement(
            trial=number,
            step=step,
            metrics={"accuracy": value, "loss": 1 - value},
            seconds=0.25 * step,
            tokens=384 * step,
        )
        for step, value in curve.items()
    ]


def _add_measurements(
    store: Any, made: list[tuple[optuna.trial.FrozenTrial, list[Measurement]]], *, importances: bool
) -> None:
    everything = []
    for trial, measured in made:
        if importances and trial.state is OptunaState.COMPLETE:
            measured = [*measured[:-1], replace(measured[-1], importances=_importances(measured[-1].trial))]
        everything += measured
    store.add_measurements(everything)


def _importances(trial: int) -> tuple[ModuleImportance, ...]:
    generator = random.Random(trial)
    return tuple(
        ModuleImportance(
            module=module,
            rank=8,
            in_features=384,
            out_features=384,
            step=STEPS,
            fraction_done=1.0,
            samples=16,
            sensitivity=(size := (1 + index % 3 + index / 6) * generator.uniform(0.9, 1.1)),
            uncertainty=0.1,
            effective_rank=generator.uniform(2, 6),
            relative_update=0.02,
            components=(0.7 * size, 0.3 * size),
            held_out=generator.gauss(0, 0.01),
            held_out_error=0.01,
        )
        for index, module in enumerate(_MODULES)
    )


def repeat_trials(file: Path, times: int) -> None:
    """Copy all trials of a SQLite file's one study until there are `times` as many; quicker than writing each."""
    with closing(sqlite3.connect(file)) as connection, connection:
        count = connection.execute("SELECT COUNT(*) FROM trials").fetchone()[0]
        shifted = {
            "trials": {"trial_id", "number"},
            **{f"trial_{name}": {"trial_id"} for name in _OF_A_TRIAL},
            "automl_measurements": {"trial"},
            "automl_metric_values": {"trial"},
        }
        kept = {table: connection.execute(f"SELECT * FROM {table}").fetchall() for table in shifted}
        for table, moved in shifted.items():
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            own = {"trial_param_id", "param_id", "trial_value_id", "trial_intermediate_value_id"}
            own |= {"trial_user_attribute_id"}
            columns = [name for name in names if name not in own]
            marks = ", ".join("?" for _ in columns)
            for repeat in range(1, times):
                rows = [dict(zip(names, row, strict=True)) for row in kept[table]]
                values = [[row[c] + repeat * count if c in moved else row[c] for c in columns] for row in rows]
                connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", values)


def suggested_ranks() -> dict[str, int]:
    """A rank for each module of `_importances`."""
    return {module: 2 + index % 5 for index, module in enumerate(_MODULES)}


def squeeze_row(*, knee: int = 9000) -> SqueezeRow:
    """What a squeeze finds of trial 3, with recovery and modules of hostile names."""

    def cut(kind: str, parameters: int, value: float) -> CutRow:
        metrics = {"accuracy": value, "loss": 1.0 - value}
        better = {name: number + 0.01 for name, number in metrics.items()}
        return CutRow(
            kind=kind,  # type: ignore[arg-type]
            parameters=parameters,
            even_rank=parameters / 9000,
            kept=parameters / 72_000,
            value=value,
            metrics=metrics,
            recovered=None if kind == "whole" else better,
        )

    return SqueezeRow(
        trial=3,
        adapter_sha256="a" * 64,
        metric="accuracy",
        margin=0.01,
        rows=160,
        seen=64,
        knee=knee,
        recovery_steps=30,
        seconds=4.0,
        cuts=(
            cut("whole", 72_000, 0.9),
            cut("global", 36_000, 0.91),
            cut("even", 9000, 0.7),
            cut("global", 9000, 0.895),
            cut("global", 4500, 0.6),
        ),
        modules=tuple(
            ModuleRow(module=name, in_features=8, out_features=8, rank=2, knee_rank=1, strengths=(2.0, 1.0))
            for name in _MODULES
        ),
    )


def verification_result(*, beats: bool = True, title: str = "trial 3", suggestion: str = "no_gain") -> dict[str, Any]:
    """What `automl.verify.conclude` writes: every key of docs/verification.md."""
    seeds = (11, 12, 13, 14, 15)

    def arm(name: str, kind: str, mean: float, params: int, trial: int | None = None) -> dict[str, Any]:
        return {
            "name": name,
            "title": title if trial is not None else name,
            "kind": kind,
            "trial": trial,
            "params": {"rank": 8, "learning_rate": 0.005},
            "rank_pattern": suggested_ranks() if kind == "suggested" else {},
            "trainable_params": params,
            "learning_rates": [0.005],
            "learning_rate": 0.005,
            "scores": {str(seed): mean + 0.004 * index for index, seed in enumerate(seeds)},
            "mean": mean + 0.008,
            "sd": 0.006,
            "seconds": 12.0,
        }

    def compared(name: str, against: str, difference: float, half: float, verdict: str) -> dict[str, Any]:
        return {
            "arm": name,
            "against": against,
            "difference": difference,
            "low": difference - half,
            "high": difference + half,
            "level": 0.96 if name == "suggested" else 0.98,
            "seeds": 5,
            "wins": 5 if verdict == "better" else 3,
            "verdict": verdict,
            "detectable": 0.014,
        }

    return {
        "metric": {"name": "accuracy", "direction": "maximize"},
        "majority": 0.25,
        "beats_majority": beats,
        "headline": "Trial 3 against the default configuration: better."
        if beats
        else "No configuration beats the majority class: accuracy 0.2500 at best, 0.2500 without training.",
        "seeds": list(seeds),
        "planned_seeds": 8,
        "arms": [
            arm("trial-3", "finalist", 0.91, 333_701, 3),
            arm("default", "default", 0.55, 333_701),
            arm("smallest", "smallest", 0.905, 20_357, 7),
            arm("suggested", "suggested", 0.911, 330_000),
            arm("uniform", "uniform", 0.91, 333_701),
        ],
        "comparisons": [
            compared("trial-3", "default", 0.36, 0.03, "better"),
            compared("smallest", "trial-3", -0.005, 0.012, "no clear difference"),
            compared("suggested", "uniform", 0.001, 0.011, "no clear difference"),
        ],
        "selection_optimism": {"trial": 3, "validation": 0.93, "verified": 0.918, "optimism": 0.012},
        "recommendation": {"arm": "smallest", "text": "the smallest within noise of the best: 20,357 parameters"},
        "suggestion": {"status": suggestion},
        "methods": methods_result(),
    }


def methods_result() -> dict[str, Any]:
    """What `automl.verify.methods` writes; of one method the memory is not known."""

    def row(method: str, mean: float, params: int, peak: int | None, difference: float | None) -> dict[str, Any]:
        half = None if difference is None else 0.01
        return {
            "method": method,
            "arm": "trial-3",
            "trial": 3,
            "trainable_params": params,
            "peak_bytes": peak,
            "seconds": 12.5,
            "learning_rate": 0.005,
            "learning_rates": [0.0025, 0.005, 0.01],
            "mean": mean,
            "sd": 0.004,
            "seeds": 5,
            "difference": difference,
            "low": None if half is None or difference is None else difference - half,
            "high": None if half is None or difference is None else difference + half,
            "level": None if difference is None else 0.98,
            "verdict": None if difference is None else "worse",
        }

    rows = [row("lora", 0.918, 333_701, 210 * 2**20, None), row("full", 0.9, 22_000_000, 600 * 2**20, -0.018)]
    return {
        "reference": "lora",
        "text": "lora has the best mean.",
        "rows": [*rows, row("ia3", 0.8, 30_000, None, -0.1)],
    }


def add_verification(
    database: Database,
    study: str,
    result: Mapping[str, Any] | None,
    *,
    levels: Mapping[tuple[str, str], float] | None = None,
) -> None:
    """A finished verification, or (None) one that has begun. levels: those of the plan, by arm and against."""
    store = VerificationStore(database, study)
    comparisons = [{"arm": arm, "against": against, "level": level} for (arm, against), level in (levels or {}).items()]
    store.begin(1, {"seeds": [11, 12], "comparisons": comparisons})
    if result is not None:
        store.finish(1, result)
