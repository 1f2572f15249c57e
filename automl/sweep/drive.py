"""What a search, a replay and a verification have in common while they run: how they stop, and what they note."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from automl.execution.base import Executor, HostFactory
from automl.execution.dispatch import Dispatcher
from automl.execution.source import TrialSource
from automl.execution.stop import StopRequest
from automl.results.recorded import BASELINE, WORKERS
from automl.space.spec import SearchSettings
from automl.storage.base import ResultStore
from automl.storage.sql import Database
from automl.study.study import Study
from automl.trial import Metrics, TrialState


def drive(
    source: TrialSource,
    executor: Executor,
    build_host: HostFactory,
    *,
    database: Database,
    store: ResultStore,
    stop: StopRequest,
    keep_baseline: Callable[[Metrics], None],
    so_far: Callable[[], str],
    shortage: Callable[[], str | None] = lambda: None,
    tick: Callable[[], None] = lambda: None,
    max_seconds: float | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Run the trials of `source` until it has nothing left; raise InterruptedSearch if it was stopped before.

    stop: a signal ends it in good order, also while the database is away.
    keep_baseline: called with the metrics of the untrained model as soon as a worker has brought them.
    so_far: how much is done, in words, for whoever interrupts.
    shortage: asked after every exchange why no trial should go on; None = nothing is short.
    tick: called after every exchange.
    about: what the event on the workers' time says beside that.
    """
    has_baseline = False

    def exchanged() -> None:
        nonlocal has_baseline
        if not has_baseline and dispatcher.baseline is not None:
            keep_baseline(dispatcher.baseline)
            has_baseline = True
        if (reason := shortage()) is not None:
            dispatcher.stop(reason)
        tick()

    def halt(reason: str) -> None:
        dispatcher.stop(reason)
        database.retry.interrupt(reason)

    dispatcher = Dispatcher(source, max_seconds=max_seconds, on_exchange=exchanged)
    stop.then(halt)
    executor.run(dispatcher, build_host)
    store.add_event(WORKERS, {**(about or {}), "starts": [start._asdict() for start in dispatcher.occupation]})
    if interruption := dispatcher.interruption(so_far()):
        raise interruption


def drive_search(
    study: Study,
    executor: Executor,
    build_host: HostFactory,
    *,
    settings: SearchSettings,
    database: Database,
    store: ResultStore,
    stop: StopRequest,
    shortage: Callable[[], str | None] = lambda: None,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """`drive` with the trials of a study, whose baseline is an event of it."""
    drive(
        study,
        executor,
        build_host,
        database=database,
        store=store,
        stop=stop,
        keep_baseline=partial(_note_baseline, store),
        so_far=partial(_so_far, study, settings.trials),
        shortage=shortage,
        tick=tick,
        max_seconds=settings.max_seconds,
    )


def _note_baseline(store: ResultStore, metrics: Metrics) -> None:
    if store.last_event(BASELINE) is None:
        store.add_event(BASELINE, metrics)


def _so_far(study: Study, trials: int) -> str:
    counts = study.counts()
    ended = counts[TrialState.COMPLETE] + counts[TrialState.PRUNED]
    return f"{ended} of {trials} trials, {study.spent_steps:,} training steps"
