"""Negative control: the same checker over stock components must find violations, or it proves nothing."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import optuna

from automl.storage.invariants import check
from automl.storage.sql import open_database
from tests.databases import fresh_sqlite
from tests.faults.scenario import Findings, SkipScenario, Trial

_STUDY = "stock"
_WORKERS = 8
_POPS = 5
_KILLS = 3


def stock_is_caught(trial: Trial) -> Findings:
    """Optuna's ask and tell with a kill, enqueue_trial with 8 workers, OptunaSearch with NaN: all must be caught."""
    findings = Findings()
    with trial.workspace() as folder:
        _killed_ask_and_tell(folder, findings)
    with trial.workspace() as folder:
        _doubled_pops(folder, findings)
    with trial.workspace() as folder:
        _nan_in_optuna_search(folder, findings)
    return findings


def _killed_ask_and_tell(folder: Path, findings: Findings) -> None:
    url = fresh_sqlite(folder)
    context = multiprocessing.get_context("forkserver")
    for _ in range(_KILLS):
        process = context.Process(target=_ask_and_die, args=(url,), daemon=True)
        process.start()
        process.join(60)
        findings.count += 1
    _must_find(url, "I5", findings, "a stock worker killed in a trial")


def _ask_and_die(url: str) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=_STUDY, storage=url, load_if_exists=True)
    finished = study.ask()
    study.tell(finished, finished.suggest_float("x", 0, 1))
    study.ask().suggest_float("x", 0, 1)
    os.kill(os.getpid(), signal.SIGKILL)


def _doubled_pops(folder: Path, findings: Findings) -> None:
    """8 processes pop what was enqueued; more hand-outs than entries means that some ran twice."""
    url = fresh_sqlite(folder)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(study_name=_STUDY, storage=url)
    for number in range(_WORKERS * _POPS):
        study.enqueue_trial({"x": number / 100})
    context = multiprocessing.get_context("forkserver")
    popped, barrier = context.SimpleQueue(), context.Barrier(_WORKERS)
    workers = [context.Process(target=_pop, args=(url, barrier, popped), daemon=True) for _ in range(_WORKERS)]
    for worker in workers:
        worker.start()
    numbers = [popped.get() for _ in range(_WORKERS * _POPS)]
    for worker in workers:
        worker.join(60)
    twice = sorted({number for number in numbers if numbers.count(number) > 1})
    findings.details["stock_entries_handed_out_twice"] = len(twice)
    findings.count += len(numbers)


def _pop(url: str, barrier: Any, popped: Any) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name=_STUDY, storage=url)
    barrier.wait(60)
    for _ in range(_POPS):
        try:
            popped.put(study.ask().number)
        except Exception:  # noqa: BLE001 - a stock error counts as a hand-out of nothing
            popped.put(-1)


def _nan_in_optuna_search(folder: Path, findings: Findings) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from ray.tune.search.optuna import OptunaSearch
    except ImportError as error:
        raise SkipScenario(f"OptunaSearch cannot be imported: {error}") from error

    def void(value: float) -> None:
        """OptunaSearch wants a function that returns nothing."""

    url = fresh_sqlite(folder)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search = OptunaSearch(
                lambda trial: void(trial.suggest_float("x", 0, 1)),
                metric="loss",
                mode="min",
                study_name=_STUDY,
                storage=optuna.storages.RDBStorage(url),
            )
            for number, value in enumerate((0.5, float("nan"), float("-inf"))):
                search.suggest(f"trial-{number}")
                try:
                    search.on_trial_complete(f"trial-{number}", {"loss": value})
                except ValueError:
                    continue
    finally:
        logging.disable(logging.NOTSET)
    _must_find(url, "I4", findings, "an infinite best value of stock OptunaSearch")
    findings.count += 3


def _must_find(url: str, wanted: str, findings: Findings, what: str) -> None:
    with open_database(url, create=False) as database:
        found = [violation.id for violation in check(database, _STUDY, finished=True)]
    findings.details[what] = ", ".join(found)
    findings.expect(wanted in found, f"the checker did not find {wanted} in {what}; it found {found}")
