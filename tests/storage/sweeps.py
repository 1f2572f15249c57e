"""A small sweep as a driver leaves it in the database, written through the real store and the real Optuna."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.trial import TrialState as OptunaState

from automl.storage.artifacts import digest_folder
from automl.storage.base import Artifact, AttemptState
from automl.storage.lease import StudyLease
from automl.storage.sql import Database
from automl.trial import Measurement, StopReason

STUDY = "topics"
METRIC = "accuracy"
CURVES = {0: (0.3, 0.6, 0.7), 1: (0.2,), 2: (0.4, 0.75, 0.8), 3: (), 4: ()}
STATES = {
    0: (OptunaState.COMPLETE, StopReason.FINISHED),
    1: (OptunaState.PRUNED, StopReason.PRUNED),
    2: (OptunaState.COMPLETE, StopReason.FINISHED),
    3: (OptunaState.PRUNED, StopReason.DIVERGED),
    4: (OptunaState.FAIL, StopReason.ERROR),
}
TARGETS = ("qv", "all-linear")


def finished_sweep(database: Database, folder: Path) -> None:
    """Trials 0 and 2 complete (2 is the best and has an adapter), 1 pruned, 3 diverged, 4 failed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with StudyLease(database, STUDY) as lease:
        run = lease.take("version: 1\nstudy: topics\n", "a" * 64, {"git": "0123abc"})
        study = optuna.create_study(study_name=STUDY, storage=database.optuna_storage(), direction="maximize")
        study.set_user_attr("objective", METRIC)
        for number in CURVES:
            _trial(database, study, number, run, folder)
        database.store(STUDY).add_event("finished", {"run": run})


def _trial(database: Database, study: optuna.Study, number: int, run: int, folder: Path) -> None:
    store = database.store(STUDY)
    chosen = {"rank": 4 + number, "learning_rate": 0.001, "target": TARGETS[number % 2], "use_rslora": number == 2}
    study.enqueue_trial(chosen)
    trial = study.ask()
    trial.suggest_int("rank", 2, 32)
    trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    trial.suggest_categorical("target", TARGETS)
    trial.suggest_categorical("use_rslora", (False, True))
    store.start_attempt(number, worker=0, run=run)
    for index, value in enumerate(CURVES[number], start=1):
        metrics = {METRIC: value, "loss": 1 - value}
        spent = {"tokens": 1000 * index, "examples": 80 * index}
        measured = Measurement(trial=number, step=10 * index, metrics=metrics, seconds=2.5 * index, **spent)
        store.add_measurements([measured])
        trial.report(value, 10 * index)
    state, reason = STATES[number]
    trial.set_user_attr("stop_reason", reason.value)
    if number == 2:
        store.add_artifact(_adapter(folder / f"trial-{number:05d}", number, CURVES[number][-1]))
    store.end_attempt(number, AttemptState.FAILED if state is OptunaState.FAIL else AttemptState.SUCCEEDED, reason)
    study.tell(trial, CURVES[number][-1] if state is OptunaState.COMPLETE else None, state=state)


def _adapter(folder: Path, trial: int, metric: float) -> Artifact:
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "adapter_config.json").write_text("{}")
    digest = digest_folder(folder)
    return Artifact(
        trial=trial, kind="adapter", path=str(folder), sha256=digest.sha256, bytes=digest.bytes, metric=metric
    )
