"""A sweep over a table of recorded curves: no model, no data, no training; the search itself is the real one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from automl.errors import SpaceChangedError
from automl.execution.inline import InlineExecutor
from automl.execution.simulated import CurveTable, TableHost, read_table
from automl.execution.stop import StopRequest
from automl.results.recorded import TABLE
from automl.space.spec import SearchSpace, SweepSpec
from automl.storage.base import ResultStore
from automl.storage.lease import StudyLease
from automl.storage.sql import Database
from automl.study.study import Study, StudyEvent
from automl.sweep.drive import drive_search
from automl.trial import Scalar

logger = logging.getLogger(__name__)


def replay(
    spec: SweepSpec,
    database: Database,
    lease: StudyLease,
    run: int,
    stop: StopRequest,
    *,
    accept: Callable[[ResultStore], None],
    started: Callable[[Study], None],
    event: Callable[[StudyEvent], None],
    tick: Callable[[], None],
) -> ResultStore:
    """Run the study over its table, in this process, `run.slots` trials side by side; returns the store to sum up.

    accept: called once nothing has been found wrong with what is asked for. started, event, tick: what a front end may
    watch, see `automl.sweep.run.Observer`.

    Raises DataError if the file is no table, SpaceChangedError if it is not the one the study was started with,
    InterruptedSearch if a signal or the wall clock stopped it.
    """
    path = Path(spec.task.data.files["table"])
    table = read_table(path, arrays=spec.task.data.columns, log=spec.task.log)
    store = database.store(spec.study, guard=lease.verify)
    changed = _changed_table(store, spec.study, path, table)
    study = Study(
        name=spec.study,
        storage=database.driver_storage(lease.verify),
        store=store,
        space=SearchSpace(parameters=table.parameters(), columns=table.names),
        settings=spec.search,
        metric=spec.task.metric,
        run=run,
        derive=lambda hyper: {},
        space_sha256=spec.sha256,
        on_event=event,
    )
    accept(store)
    if changed:
        store.add_event(TABLE, changed)
    started(study)
    if not study.finished:
        _drive(spec, study, database, store, table, stop, tick)
    study.close()
    store.add_event("finished", {"run": run})
    return store


def _drive(
    spec: SweepSpec,
    study: Study,
    database: Database,
    store: ResultStore,
    table: CurveTable,
    stop: StopRequest,
    tick: Callable[[], None],
) -> None:
    logger.info("replaying %d recorded runs, %d at once", len(table.curves), spec.run.slots or 1)
    drive_search(
        study,
        InlineExecutor(),
        partial(TableHost, table, metric=spec.task.metric, capacity=spec.run.slots or 1, begun=_begun(study, store)),
        settings=spec.search,
        database=database,
        store=store,
        stop=stop,
        tick=tick,
    )


def _changed_table(store: ResultStore, study: str, path: Path, table: CurveTable) -> Mapping[str, Any] | None:
    """What is to be remembered of the table the study is about, None if it is; refuses to mix it with another."""
    now: dict[str, Any] = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "rows": len(table.curves),
        "evaluations": table.evaluations,
        "columns": list(table.names),
    }
    before = store.last_event(TABLE)
    if before is not None and before.get("sha256") != now["sha256"]:
        raise SpaceChangedError(f"study {study!r} was started with another table; choose another study name")
    return now if before is None else None


def _begun(study: Study, store: ResultStore) -> list[tuple[int, Mapping[str, Scalar]]]:
    """Number and parameters of the trials that were ever handed out, in the order they were first."""
    handed_out = {attempt.trial for attempt in store.attempts()}
    trials = study.optuna.get_trials(deepcopy=False)
    return [(trial.number, trial.params) for trial in trials if trial.number in handed_out]
