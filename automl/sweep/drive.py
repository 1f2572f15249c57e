"""What a search, a replay and a verification have in common while they run: how they stop, and what they note."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from automl.errors import BudgetSpent
from automl.execution.base import Executor, HostFactory
from automl.execution.dispatch import Dispatcher
from automl.execution.side_by_side import SideBySide
from automl.execution.source import TrialSource
from automl.execution.stop import Halt, StopRequest
from automl.lanes import parted
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
    stores: Sequence[ResultStore],
    stop: StopRequest,
    keep_baseline: Callable[[Metrics], None],
    so_far: Callable[[], str],
    shortage: Callable[[], str | None] = lambda: None,
    overspent: Callable[[], str | None] = lambda: None,
    tick: Callable[[], None] = lambda: None,
    max_seconds: float | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Run the trials of `source` until it has nothing left; raise InterruptedSearch if it was stopped before.

    stores: of the studies that the workers are noted with.
    stop: a signal ends it in good order, also while the database is away.
    keep_baseline: called with the metrics of the untrained model as soon as a worker has brought them.
    so_far: how much is done, in words, for whoever interrupts.
    shortage: asked at every exchange why no trial should go on; None = nothing is short. overspent: likewise, of what
    the search may spend; it ends with BudgetSpent then.
    tick: called after every exchange.
    about: what the event on the workers' time says beside that.
    """
    has_baseline = False

    def exchanged() -> None:
        nonlocal has_baseline
        if not has_baseline and dispatcher.baseline is not None:
            keep_baseline(dispatcher.baseline)
            has_baseline = True
        tick()

    def halted() -> Halt | None:
        if (reason := shortage()) is not None:
            return Halt(reason)
        return None if (reason := overspent()) is None else Halt(reason, BudgetSpent)

    def stop_all(reason: str) -> None:
        dispatcher.stop(reason)
        database.retry.interrupt(reason)

    dispatcher = Dispatcher(source, max_seconds=max_seconds, halted=halted, on_exchange=exchanged)
    stop.then(stop_all)
    executor.run(dispatcher, build_host)
    for store in stores:
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
    overspent: Callable[[], str | None] = lambda: None,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """`drive` with the trials of a study, whose baseline is an event of it."""
    drive(
        study,
        executor,
        build_host,
        database=database,
        stores=[store],
        stop=stop,
        keep_baseline=partial(_note_baselines, [store]),
        so_far=lambda: _so_far([study], settings.trials),
        shortage=shortage,
        overspent=overspent,
        tick=tick,
        max_seconds=settings.max_seconds,
    )


def drive_together(
    source: SideBySide,
    studies: Sequence[Study],
    executor: Executor,
    build_host: HostFactory,
    *,
    settings: Sequence[SearchSettings],
    database: Database,
    stores: Sequence[ResultStore],
    stop: StopRequest,
    shortage: Callable[[], str | None],
    overspent: Callable[[], str | None],
    tick: Callable[[], None],
) -> None:
    """`drive_search` with the trials of several studies side by side, which `source` hands out.

    The clock of the first study's settings is that of all.
    """
    drive(
        source,
        executor,
        build_host,
        database=database,
        stores=stores,
        stop=stop,
        keep_baseline=partial(_note_baselines, stores),
        so_far=lambda: _so_far(studies, sum(each.trials for each in settings)),
        shortage=shortage,
        overspent=overspent,
        tick=tick,
        max_seconds=settings[0].max_seconds,
        about={"studies": [study.name for study in studies]},
    )


def _note_baselines(stores: Sequence[ResultStore], metrics: Metrics) -> None:
    """Keep what the untrained model is worth with every study that does not know it yet."""
    for store, own in zip(stores, parted(metrics, len(stores)), strict=True):
        if own and store.last_event(BASELINE) is None:
            store.add_event(BASELINE, own)


def _so_far(studies: Sequence[Study], trials: int) -> str:
    counts = [study.counts() for study in studies]
    ended = sum(each[TrialState.COMPLETE] + each[TrialState.PRUNED] for each in counts)
    steps = sum(study.spent_steps for study in studies)
    return f"{ended} of {trials} trials, {steps:,} training steps"
