"""One sweep from space file to finished study: takes the lease, prepares, runs the executor, sums up.

Order matters for crashes: the lease is held before anything is written, adapters and attributes are written before a
trial is told, and the lease is released last. Everything can be killed at any point and started again.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from automl.errors import BudgetSpent, SearchError, SpaceChangedError
from automl.execution.base import Executor
from automl.execution.stop import StopRequest
from automl.provenance import provenance
from automl.report.write import renew_report
from automl.results.disk import DiskWatch
from automl.results.home import Home, open_home
from automl.results.recorded import GROUND
from automl.results.relatives import LEARN_FROM, relatives
from automl.results.summary import Summary, summarise, write_summary
from automl.setup.changing import advise, hindrance
from automl.setup.database_check import check_warm_start
from automl.setup.executors import Executors, lent
from automl.setup.room import room_for
from automl.setup.setup import Setup, layout_of, set_up
from automl.space.spec import SweepSpec
from automl.squeeze.winner import squeeze_winner
from automl.storage.artifacts import digest_folder
from automl.storage.base import ResultStore, RunEnd
from automl.storage.depot import Depot
from automl.storage.lease import StudyLease
from automl.storage.runs import RunLog
from automl.storage.sql import Database, open_database
from automl.study.room import MEMORY
from automl.study.study import Study, StudyEvent
from automl.sweep.drive import drive_search
from automl.sweep.ending import recorded_run
from automl.sweep.meter import check_budget, open_meter, tell_needs
from automl.sweep.replay import replay
from automl.sweep.upload import store_results
from automl.trial_folders import delete_adapter, delete_slot_files, delete_slot_files_but, point_to_best, slots_folder

logger = logging.getLogger(__name__)


class Observer:
    """What a front end may watch; called in the driver's thread. The default ignores everything.

    What happens to workers and trials is logged (INFO) by those who do it.
    """

    def stage(self, text: str) -> None:
        """A long step begins; `text` is one line for a person."""

    def started(self, study: Study) -> None:
        """Trials begin. The study may be read, not changed, in later calls."""

    def event(self, event: StudyEvent) -> None:
        """Something happened to a trial."""

    def tick(self) -> None:
        """A worker was heard of."""


def run_sweep(
    spec: SweepSpec,
    cache: Path,
    *,
    observer: Observer | None = None,
    stop: StopRequest | None = None,
    on_lost: Callable[[str], None] | None = None,
    executors: Executors | None = None,
    allow_space_change: bool = False,
) -> Summary:
    """Run the study until its budget is spent and return what it found; called again, it continues or just sums up.

    stop: through it another thread, or a signal handler, ends the search in good order. on_lost: as for `StudyLease`.
    executors: what trains, for a caller who will go on with it and closes it; None = it is closed in the end.

    Raises ConfigError, DataError and ModelError before any trial starts; StudyBusyError if another driver holds the
    study; LeaseLostError if one has taken it over; SpaceChangedError if the study was started with another space, model
    or data; InterruptedSearch if `stop` or the wall clock ended it (resumable); SearchError if it ended without a
    single complete trial.
    """
    with (
        opened_database([spec]) as database,
        opened_sweep(
            spec, database, observer=observer, on_lost=on_lost, allow_space_change=allow_space_change
        ) as sweep,
    ):
        return sweep.run(cache, stop or StopRequest(), executors)


@contextmanager
def opened_database(specs: Sequence[SweepSpec]) -> Iterator[Database]:
    """The database that the file of these studies names, made if it is not there.

    Artifacts can be written where the file says, and the studies may spend something yet; BudgetSpent if not.
    """
    spec = specs[0]
    if spec.artifacts is not None:
        Depot(spec.artifacts).check()
    with open_database(spec.storage_url, create=True, grace_seconds=spec.storage_grace_seconds) as database:
        check_budget(database, specs)
        yield database


@contextmanager
def opened_sweep(
    spec: SweepSpec,
    database: Database,
    *,
    observer: Observer | None,
    on_lost: Callable[[str], None] | None,
    allow_space_change: bool,
    label: str = "",
) -> Iterator[Sweep]:
    """A run of the study by the holder of its lease, in its folder; how it ends is recorded. label: as for `Sweep`."""
    origin = provenance(Path(spec.source).resolve().parent)
    with StudyLease(database, spec.study, on_lost=on_lost) as lease:
        check_warm_start(database, spec)
        run = _claim(lease, database, spec, origin, allow_space_change=allow_space_change)
        with (
            open_home(database, spec, lease.owner) as home,
            recorded_run(RunLog(database, spec.study, run, lease.verify), spec) as log,
        ):
            yield Sweep(
                home, lease, database, log, observer or Observer(), allow_change=allow_space_change, label=label
            )


def _claim(
    lease: StudyLease, database: Database, spec: SweepSpec, origin: Mapping[str, Any], *, allow_space_change: bool
) -> int:
    """The number of the run; what cannot go on at all is refused before anything is prepared."""
    try:
        run = lease.claim(spec.text, spec.sha256, origin, allow_space_change=allow_space_change)
    except SpaceChangedError as error:
        raise SpaceChangedError(f"{error}; {advise(database, spec)}") from None
    if reason := hindrance(database, spec):
        raise SpaceChangedError(reason)
    return run


class Sweep:
    """One run of one study: begun, driven by itself or beside others, and ended.

    spec: the study's, with its folder. recorded: what its first run has found out (`results.recorded.GROUND`). label:
    stands before what is said of its trials, if several studies are driven.
    """

    def __init__(
        self,
        home: Home,
        lease: StudyLease,
        database: Database,
        log: RunLog,
        observer: Observer,
        *,
        allow_change: bool,
        label: str = "",
    ) -> None:
        self.spec = home.spec
        self.folder = home.folder
        self.log = log
        self.observer = observer
        self.store = database.store(home.spec.study, guard=lease.verify)
        self.recorded = self.store.last_event(GROUND)
        self._home = home
        self._lease = lease
        self._database = database
        self._allow_change = allow_change
        self._label = label

    def run(self, cache: Path, stop: StopRequest, executors: Executors | None) -> Summary:
        """Everything between taking the lease and releasing it."""
        if self.spec.task.type == "table":
            return self._replay(stop)
        layout = layout_of(self.spec, self.recorded)
        with lent(executors) as executors:
            executor = executors.of(self.spec, layout)
            executor.start()  # its cluster, while data is prepared
            self.stage("preparing model and data")
            setup = set_up(self.spec, cache, self.recorded, layout=layout)
            study = self.begin(setup)
            if not study.finished:
                with self.told_when_spent(setup):
                    self._train(study, setup, executor, stop)
            study.close()  # not after an error: what is parked or interrupted then goes on in the next run
        return self.end(setup, stop)

    def begin(self, setup: Setup) -> Study:
        """Open the study, now that nothing is wrong with what is asked for. Raises as `checked` does."""
        for line in setup.inputs.advice:
            logger.warning("%s%s", self._label, line)
        now = self.checked(setup)
        study = self._open_study(setup)
        self._accept(self.log.run, self.store)
        if now != self.recorded:
            self.store.add_event(GROUND, now)
        if setup.spec.search.length is not None:
            self.log.settle(setup.spec.search.steps)
        return study

    def start(self, study: Study) -> None:
        """Trials begin, or go on."""
        self.log.has_trained = True
        self.observer.started(study)
        delete_slot_files_but(self.folder, study.in_progress)

    @contextmanager
    def told_when_spent(self, setup: Setup) -> Iterator[None]:
        """Leave a report of what was found when the search's budget ends it; the search can still go on."""
        try:
            yield
        except BudgetSpent:
            renew_report(self._database, setup.spec, guard=self._lease.verify)
            raise

    def end(self, setup: Setup, stop: StopRequest) -> Summary:
        """Record that the study is finished, and leave what is to be found of it. Raises SearchError if it has none."""
        self.finish()
        squeeze_winner(self._database, setup, guard=self._lease.verify, stop=stop, stage=self.stage)
        renew_report(self._database, setup.spec, guard=self._lease.verify)
        summary = self._sum_up(setup.spec)
        store_results(self.store, setup.spec)
        return summary

    def finish(self) -> None:
        """Record that nothing is left of the study."""
        self.store.add_event("finished", {"run": self.log.run})
        self.log.end(RunEnd.FINISHED)

    def _replay(self, stop: StopRequest) -> Summary:
        """A sweep over a table."""
        watch = self.observer

        def started(study: Study) -> None:
            self.log.has_trained = True
            watch.started(study)

        replay(
            self.spec,
            self._database,
            self._lease,
            self.log.run,
            stop,
            accept=partial(self._accept, self.log.run),
            started=started,
            event=watch.event,
            tick=watch.tick,
        )
        self.log.end(RunEnd.FINISHED)
        return self._sum_up(self.spec)

    def _accept(self, run: int, store: ResultStore) -> None:
        """Nothing has been found wrong with what is asked for: from here on the study is as this run's file says."""
        self._lease.accept(str(self.folder))
        self._home.settle(run, store)

    def stage(self, text: str) -> None:
        """Say that a long step begins."""
        logger.info("%s%s", self._label, text)
        self.observer.stage(text)

    def checked(self, setup: Setup) -> Mapping[str, Any]:
        """What is to be remembered of model, data and precision. Raises SpaceChangedError where others would be mixed.

        Nothing is recorded yet.
        """
        now, recorded = setup.record(), self.recorded
        fixed = ("model", "data") if self.spec.run.precision == "auto" else ("model", "data", "precision")
        changed = [name for name in fixed if recorded and recorded.get(name) != now[name]]
        if changed and not self._allow_change:
            raise SpaceChangedError(
                f"study {self.spec.study!r} was started with another {' and '.join(changed)}; its trials would not be"
                " comparable. Choose another study name, or add --allow-space-change"
            )
        return self._with_keep(now, recorded or {})

    def _with_keep(self, now: Mapping[str, Any], recorded: Mapping[str, Any]) -> Mapping[str, Any]:
        """What is to be remembered with what trials so far were measured on besides; refuses to mix it with other data.

        A study may begin or cease to be measured on more: trials without a value are without it.
        """
        before = recorded.get("keep")
        if before is not None and now.get("keep", before) != before and not self._allow_change:
            raise SpaceChangedError(
                f"study {self.spec.study!r} measures forgetting on other data, or by another metric, than keep: says"
                " now; its trials would not be comparable. Choose another study name, or add --allow-space-change"
            )
        if recorded and before is None and "keep" in now:
            self.stage("keep: trials that have ended were not measured on it, and have no forgetting")
        return now if before is None else {"keep": before, **now}

    def _open_study(self, setup: Setup) -> Study:
        return Study(
            name=self.spec.study,
            storage=self._database.driver_storage(self._lease.verify),
            store=self.store,
            space=setup.inputs.space,
            settings=replace(setup.spec.search, learn_from=self._learn_from(setup)),
            metric=self.spec.task.metric,
            run=self.log.run,
            derive=setup.inputs.derive,
            space_sha256=self.spec.sha256,
            digest=lambda folder: digest_folder(Path(folder)),
            retire=partial(delete_adapter, self.folder),
            discard=partial(delete_slot_files, self.folder),
            on_event=self.observer.event,
            label=self._label,
            room=room_for(
                setup,
                self.store.last_event(MEMORY),
                partial(self.store.add_event, MEMORY),
                is_over=self.store.last_event("finished") is not None,
            ),
        )

    def _learn_from(self, setup: Setup) -> tuple[str, ...]:
        """The studies to learn from, chosen when the study first asks; what of them is gone since is left out."""
        if setup.spec.search.learn_from is not None:
            return setup.spec.search.learn_from
        known = self.store.last_event(LEARN_FROM)
        if known is None:
            found = relatives(self._database, self.spec.study, task=self.spec.task.type, ground=setup.record())
            known = {"studies": found}
            self.store.add_event(LEARN_FROM, known)
            self.stage(f"learning from: {', '.join(found) or 'no study, as none is of such a model and task'}")
        return tuple(name for name in known["studies"] if name in self._database.study_names())

    def _train(self, study: Study, setup: Setup, executor: Executor, stop: StopRequest) -> None:
        """Carry on until the study has nothing left. Raises InterruptedSearch if it was stopped before."""
        budget, devices = setup.spec.search.budget, setup.layout.devices
        meter = open_meter(self._database, [(study, self.log)], budget, devices=devices)
        meter.check()
        tell_needs([setup])
        self.stage(starting(setup))
        self.start(study)
        if setup.spec.run.address is not None and setup.spec.artifacts is not None:
            self.stage(f"putting model and data where the nodes find them, {setup.spec.artifacts}")
        watch = DiskWatch(self.folder, workers=setup.layout.workers)

        def ticked() -> None:
            meter.tick()
            self.observer.tick()

        with meter.running():
            drive_search(
                study,
                executor,
                setup.host_factory(setup.worker_settings()),
                settings=setup.spec.search,
                database=self._database,
                store=self.store,
                stop=stop,
                shortage=lambda: watch.shortage(study.live),
                overspent=meter.overspent,
                tick=ticked,
            )

    def _sum_up(self, spec: SweepSpec) -> Summary:
        summary = self._database.retry.call(lambda: summarise(self._database, spec))
        shutil.rmtree(slots_folder(self.folder), ignore_errors=True)
        if summary.best is None:
            reasons = ", ".join(f"{count} {reason}" for reason, count in summary.reasons.items()) or "none was started"
            raise SearchError(
                f"study {self.spec.study!r} ended without a complete trial ({reasons});"
                f" see: automl trials {self.spec.study}"
            )
        if summary.best.adapter is not None:
            point_to_best(self.folder, Path(summary.best.adapter))
        write_summary(summary, self.folder)
        return summary


def starting(setup: Setup) -> str:
    """What is started, in words."""
    return (
        f"starting {setup.layout.workers} {setup.spec.run.executor} workers on {setup.layout.device}"
        f" ({setup.layout.threads} threads each, {setup.packing})"
    )
