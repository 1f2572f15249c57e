"""Several studies of one space file, searched side by side: one backbone, one pack, one search process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from automl.errors import InterruptedSearch, SearchError
from automl.execution.base import Executor
from automl.execution.side_by_side import SideBySide
from automl.execution.stop import StopRequest
from automl.results.disk import DiskWatch
from automl.results.summary import Summary
from automl.setup.executors import Executors, lent
from automl.setup.setup import Setup
from automl.setup.together import layout_together, set_up_together, worker_settings
from automl.space.spec import SweepSpec
from automl.storage.base import RunEnd
from automl.storage.sql import Database
from automl.study.study import Study
from automl.sweep.drive import drive_together
from automl.sweep.meter import open_meter, tell_needs
from automl.sweep.run import Observer, Sweep, opened_database, opened_sweep, run_sweep, starting

logger = logging.getLogger(__name__)


def run_sweeps(
    specs: Sequence[SweepSpec],
    cache: Path,
    *,
    observers: Sequence[Observer],
    stop: StopRequest | None = None,
    on_lost: Callable[[str], None] | None = None,
    executors: Executors | None = None,
    allow_space_change: bool = False,
) -> list[Summary]:
    """Run the studies side by side until the budget of each is spent, and return what they found.

    Called again, it continues those that are not finished. specs: of one file, so that they share model, database and
    workers. observers: one for each study. The rest is as for `run_sweep`, which says what is raised; nothing is
    trained if anything is wrong with one of them. A SearchError is raised when all others are finished.
    """
    stop = stop or StopRequest()
    if len(specs) == 1:
        return [
            run_sweep(
                specs[0],
                cache,
                observer=observers[0],
                stop=stop,
                on_lost=on_lost,
                executors=executors,
                allow_space_change=allow_space_change,
            )
        ]
    with opened_database(specs) as database, ExitStack() as stack:
        sweeps = [
            stack.enter_context(
                opened_sweep(
                    spec,
                    database,
                    observer=observer,
                    on_lost=on_lost,
                    allow_space_change=allow_space_change,
                    label=f"{spec.study}: ",
                )
            )
            for spec, observer in zip(specs, observers, strict=True)
        ]
        summaries, errors = _Together(sweeps, database).run(cache, stop, executors)
    if errors:
        raise SearchError("; ".join(errors))
    return summaries


class _Together:
    """The runs of the studies, by the holder of their leases."""

    def __init__(self, sweeps: Sequence[Sweep], database: Database) -> None:
        self._sweeps = sweeps
        self._database = database

    def run(self, cache: Path, stop: StopRequest, executors: Executors | None) -> tuple[list[Summary], list[str]]:
        """What the studies found, and what those ended with that found nothing."""
        specs, recorded = [sweep.spec for sweep in self._sweeps], [sweep.recorded for sweep in self._sweeps]
        layout = layout_together(specs, recorded)
        with lent(executors) as executors:
            executor = executors.of(specs[0], layout)
            executor.start()  # its cluster, while data is prepared
            self._stage("preparing model and data")
            setups = set_up_together(specs, cache, recorded, layout=layout)
            for sweep, setup in zip(self._sweeps, setups, strict=True):
                sweep.checked(setup)  # of all, before anything is recorded of any
            studies = [sweep.begin(setup) for sweep, setup in zip(self._sweeps, setups, strict=True)]
            source = SideBySide(studies)
            if not source.finished:
                with ExitStack() as told, self._closing_finished(source, studies):
                    for sweep, setup in zip(self._sweeps, setups, strict=True):
                        told.enter_context(sweep.told_when_spent(setup))
                    self._train(source, studies, setups, executor, stop)
            for lane, study in enumerate(studies):
                if lane not in source.errors:
                    study.close()
        return self._end(setups, stop, source.errors)

    def _train(
        self,
        source: SideBySide,
        studies: Sequence[Study],
        setups: Sequence[Setup],
        executor: Executor,
        stop: StopRequest,
    ) -> None:
        driven = [(study, sweep.log) for study, sweep in zip(studies, self._sweeps, strict=True)]
        meter = open_meter(self._database, driven, setups[0].spec.search.budget, devices=setups[0].layout.devices)
        meter.check()
        tell_needs(setups)
        self._stage(starting(setups[0]))
        for sweep, study in zip(self._sweeps, studies, strict=True):
            sweep.start(study)
        workers = setups[0].layout.workers
        watches = [DiskWatch(sweep.folder, workers=workers) for sweep in self._sweeps]

        def shortage() -> str | None:
            found = (watch.shortage(study.live) for watch, study in zip(watches, studies, strict=True))
            return next(filter(None, found), None)

        def ticked() -> None:
            meter.tick()
            self._tick()

        with meter.running():
            drive_together(
                source,
                studies,
                executor,
                setups[0].host_factory(worker_settings(setups)),
                settings=[setup.spec.search for setup in setups],
                database=self._database,
                stores=[sweep.store for sweep in self._sweeps],
                stop=stop,
                shortage=shortage,
                overspent=meter.overspent,
                tick=ticked,
            )

    @contextmanager
    def _closing_finished(self, source: SideBySide, studies: Sequence[Study]) -> Iterator[None]:
        """Where the block is interrupted, studies that had come to their end by then are finished all the same."""
        try:
            yield
        except InterruptedSearch:
            for lane, (sweep, study) in enumerate(zip(self._sweeps, studies, strict=True)):
                if source.has_finished(lane):
                    study.close()
                    sweep.finish()
            raise

    def _end(
        self, setups: Sequence[Setup], stop: StopRequest, errors: Mapping[int, SearchError]
    ) -> tuple[list[Summary], list[str]]:
        summaries, problems = [], []
        for lane, (sweep, setup) in enumerate(zip(self._sweeps, setups, strict=True)):
            try:
                if lane in errors:
                    raise errors[lane]
                summaries.append(sweep.end(setup, stop))
            except SearchError as error:
                sweep.log.end(RunEnd.FAILED)
                problems.append(f"{sweep.spec.study}: {error}")
        return summaries, problems

    def _stage(self, text: str) -> None:
        for sweep in self._sweeps:
            sweep.observer.stage(text)
        logger.info(text)

    def _tick(self) -> None:
        for sweep in self._sweeps:
            sweep.observer.tick()
