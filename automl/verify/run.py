"""One verification from a finished study to its result: plans, trains what is missing, stores every score at once.

Killed at any point it goes on from the scores in the database: the plan is worked out again and is the same. It holds
the study's lease, and it alone in the whole program is given the test rows.
"""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from automl import progress
from automl.errors import DataError, InterruptedSearch, ResourceError, SearchError, SpaceChangedError
from automl.report.write import renew_report
from automl.results.disk import check_disk
from automl.results.folders import study_folder
from automl.results.home import open_home
from automl.results.recorded import GROUND, last_event, recorded_space
from automl.results.summary import summarise, write_summary
from automl.setup.machine import choose_layout
from automl.setup.packing import choose_packing, host_settings, prove
from automl.setup.precision import settle_precision
from automl.setup.prepare import Inputs, prepare
from automl.space.spec import SweepSpec
from automl.storage.lease import StudyLease
from automl.storage.sql import Database
from automl.storage.trials import list_trials
from automl.storage.verification import Score, ScoredSplit, Verification, VerificationStore
from automl.study.seeding import data_seed, derive_seed, trial_seed
from automl.sweep.signals import StopRequest, signals_as_interruption
from automl.sweep.upload import store_results
from automl.tasks import TASKS, make_task
from automl.tasks.classification import majority_scores
from automl.training.runtime import HostSettings
from automl.trial import Measurement, StopReason, TrialFailure
from automl.verify.arms import Candidates, choose_arms, choose_comparisons
from automl.verify.conclude import conclude
from automl.verify.crew import Crew, InlineCrew, WorkerCrew
from automl.verify.plan import (
    LEAST_PATTERN_SEEDS,
    TUNING_SEEDS,
    Plan,
    Training,
    all_trainings,
    fingerprint,
    fresh_seeds,
    practical_margin,
    trial_spec,
)
from automl.verify.protocol import DIVERGED, SECONDS, UNTRAINED, Scores, baseline, next_trainings

logger = logging.getLogger(__name__)

Suggest = Callable[[Database, str], Mapping[str, int] | None]
"""Ranks by module that the study's importances suggest for its winner, None if they suggest nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user may choose.

    seeds: trainings of each arm, at least 3. finalists: best trials of the search that are verified. suggest: asked for
    a rank pattern to verify too; None asks for none.
    """

    seeds: int = 8
    finalists: int = 2
    suggest: Suggest | None = None


def verify_study(database: Database, spec: SweepSpec, cache: Path, options: Options) -> Verification:
    """Verify the study's best configurations, or go on with it, or return what was found by the same plan before.

    spec: as the study was recorded, or its file. Raises DataError if there are no test rows, SearchError if no trial is
    complete or a training fails, SpaceChangedError if model or data are not those of the search, StudyBusyError if
    another driver holds the study, ResourceError if memory is short; resumable: InterruptedSearch if a signal stopped
    it, StorageError if the database was away for longer than its grace.
    """
    with signals_as_interruption("anything was verified") as stop, StudyLease(database, spec.study) as lease:
        if hindrance := obstacle(database, spec):
            raise DataError(f"study {spec.study!r} cannot be verified: {hindrance}")
        row = database.store(spec.study).sweep()
        lease.claim(row.space_text, row.space_sha256, row.provenance)
        with open_home(database, spec, lease.owner) as home:
            return _verified(database, home.spec, cache, options, lease, stop)


def _verified(
    database: Database, spec: SweepSpec, cache: Path, options: Options, lease: StudyLease, stop: StopRequest
) -> Verification:
    store = VerificationStore(database, spec.study, guard=lease.verify)
    with progress.telling("preparing the verification".format):
        work = _Work(database, spec, cache)
    number, plan, known = database.retry.call(lambda: work.plan(store.latest(), options))
    if known is not None and known.is_done:
        return known
    if known is None:
        store.begin(number, plan.as_dict())
    stop.then(work.halt)
    scores = work.train(plan, number, store)
    store.finish(number, conclude(plan, scores))
    renew_report(database, spec, guard=lease.verify)
    summary = database.retry.call(lambda: summarise(database, spec))
    write_summary(summary, Path(summary.folder))
    store_results(database.store(spec.study, guard=lease.verify), spec)
    found = store.latest()
    assert found is not None
    return found


def obstacle(database: Database, spec: SweepSpec) -> str:
    """Why the study cannot be verified, in a few words; empty if it can."""
    if spec.task.type not in TASKS:
        return f"there is nothing to train in a task of type {spec.task.type}"
    if spec.run.shards > 1:
        return "trials that several processes hold together (run.shards) cannot be trained again by it yet"
    recorded = last_event(database.store(spec.study), GROUND) or {}
    if not recorded.get("rows", {}).get("test"):
        return "the data has no test rows; give it a test file, or task.split a larger test share"
    return ""


class _Work:
    """One run of a verification: the ground it stands on, and the training of what is missing."""

    def __init__(self, database: Database, spec: SweepSpec, cache: Path) -> None:
        """Prepare model and data, and see that they are those of the search."""
        self._database = database
        self._store = database.store(spec.study)
        recorded = last_event(self._store, GROUND)
        check_disk(study_folder(spec))
        inputs = prepare(spec, cache, has_trials=recorded is not None)
        _check_same(spec.study, recorded or {}, inputs)
        self._layout = choose_layout(spec.run, trials=spec.search.trials, recorded=(recorded or {}).get("layout"))
        self._inputs = prove(spec, inputs, self._layout, recorded)
        self._spec = settle_precision(spec, self._inputs, self._layout, recorded)
        self._folder = study_folder(spec) / "verification"
        self._stopped: str | None = None
        self._wanted = 0  # trainings of the crew at work

    def halt(self, reason: str) -> None:
        """Stop as soon as may be, also while the database is away; called from a signal handler."""
        self._stopped = reason
        self._database.retry.interrupt(reason)

    def plan(self, before: Verification | None, options: Options) -> tuple[int, Plan, Verification | None]:
        """Number and plan of the verification to be made, and its record if there is one: the latest, if it is that."""
        suggested = self._suggested(options)
        if before is not None:
            same = self._plan(before.number, options, suggested)
            if same.as_dict() == before.plan:
                return before.number, same, before
        number = before.number + 1 if before is not None else 1
        return number, self._plan(number, options, suggested), None

    def train(self, plan: Plan, number: int, store: VerificationStore) -> Scores:
        """Train all that the rules ask for; every score is stored before the next one is waited for."""
        scores = Scores(store.scores(number))
        while trainings := next_trainings(plan, scores):
            split = trainings[0].split
            self._wanted = 0
            with (
                progress.telling(f"verification {number}: starting workers".format),
                self._crew(plan, number, split, len(trainings)) as crew,
                progress.telling(partial(self._so_far, crew, plan, number)),
            ):
                if split == "test" and not baseline(plan, scores):
                    self._keep(number, _UNTRAINED, crew.untrained(), scores, store)
                while trainings and trainings[0].split == split:
                    self._train(crew, plan, number, trainings, scores, store)
                    trainings = next_trainings(plan, scores)
        shutil.rmtree(self._folder, ignore_errors=True)
        return scores

    def _plan(self, number: int, options: Options, suggested: Mapping[str, int] | None) -> Plan:
        spec, inputs = self._spec, self._inputs
        rows = list_trials(self._database, spec.study)
        candidates = Candidates(
            rows,
            recorded_space(self._store, spec),
            inputs.derive,
            metric=spec.task.metric,
            rows=min(spec.task.evaluate_rows or sys.maxsize, inputs.prepared.rows["validation"]),
            final_ranks={
                trial: {module.module: module.rank for module in modules}
                for trial, modules in self._database.importances(spec.study).items()
            },
        )
        used = {trial_seed(spec.search.seed, row.number) for row in rows} | {data_seed(spec.search.seed)}
        seeds = fresh_seeds(spec.search.seed, number, options.seeds + TUNING_SEEDS, used)
        arms = choose_arms(
            candidates,
            finalists=options.finalists,
            suggested=suggested,
            seed=derive_seed("random-ranks", spec.search.seed, number),
        )
        task = make_task(spec.task)
        test = task.rows(inputs.prepared, "test")
        return Plan(
            study=spec.study,
            metric=spec.task.metric,
            steps=spec.search.steps,
            seeds=seeds[: options.seeds],
            tuning_seeds=seeds[options.seeds :],
            margin=practical_margin(spec.task.metric, candidates.best_value),
            arms=tuple(arms),
            comparisons=tuple(choose_comparisons(arms)),
            winner_value=candidates.best_value,
            model=inputs.backbone.fingerprint,
            data=inputs.prepared.fingerprint,
            test=fingerprint(test),
            test_rows=len(test),
            precision=spec.run.precision,
            majority=majority_scores([row["labels"] for row in test]) if inputs.prepared.labels else {},
        )

    def _suggested(self, options: Options) -> Mapping[str, int] | None:
        if options.suggest is None:
            return None
        if options.seeds < LEAST_PATTERN_SEEDS:
            logger.info("suggested ranks are not verified: that takes %d seeds (--seeds)", LEAST_PATTERN_SEEDS)
            return None
        return options.suggest(self._database, self._spec.study)

    def _crew(self, plan: Plan, number: int, split: ScoredSplit, trainings: int) -> Crew:
        settings = self._settings(plan, number, split)
        if self._spec.run.executor == "inline":
            return InlineCrew(settings, check=self._check)
        return WorkerCrew(settings, workers=min(self._layout.workers, trainings), check=self._check)

    def _train(
        self,
        crew: Crew,
        plan: Plan,
        number: int,
        trainings: Sequence[Training],
        scores: Scores,
        store: VerificationStore,
    ) -> None:
        """Trainings that are all scored on the same rows."""
        total, split = len(trainings), trainings[0].split
        self._wanted += total
        logger.info("verification %d: %d trainings of %d steps, scored on %s rows", number, total, plan.steps, split)
        places = {training: place for place, training in enumerate(all_trainings(plan))}
        by_place = {place: training for training, place in places.items()}
        specs = [trial_spec(plan, training, places[training]) for training in trainings]
        for done, outcome in enumerate(crew.train(specs), start=1):
            training = by_place[outcome.trial]
            metrics = _metrics(training, outcome)
            self._keep(number, training, metrics, scores, store)
            logger.info("%d of %d: %s", done, total, _in_words(training, plan.metric, metrics))

    def _so_far(self, crew: Crew, plan: Plan, number: int) -> str:
        total = self._wanted * plan.steps
        if not total:
            return f"verification {number}: measuring the model without training"
        return f"verification {number}: {min(crew.steps, total):,} of {total:,} training steps"

    def _settings(self, plan: Plan, number: int, split: ScoredSplit) -> HostSettings:
        """As for the workers of the search, but with the test rows, and without what only a search wants to know."""
        packing = choose_packing(self._spec, self._inputs, self._layout)
        settings = host_settings(self._spec, self._inputs, self._layout, packing)
        return replace(
            settings,
            prepared=self._inputs.prepared if split == "test" else settings.prepared,
            judged_on=split,
            output=str(self._folder / str(number)),
            largest=max(plan.arms, key=lambda arm: arm.trainable_params).hyper,
            importance=False,
        )

    def _check(self) -> None:
        if self._stopped is not None:
            raise InterruptedSearch(
                f"verification stopped ({self._stopped}); every score so far is stored, the same command continues"
            )

    def _keep(
        self, number: int, training: Training, metrics: Mapping[str, float], scores: Scores, store: VerificationStore
    ) -> None:
        store.add_scores(
            number,
            [
                Score(
                    arm=training.arm,
                    seed=training.seed,
                    learning_rate=training.learning_rate,
                    split=training.split,
                    metric=name,
                    value=value,
                )
                for name, value in metrics.items()
            ],
        )
        scores.add(training, metrics)


_UNTRAINED = Training(arm=UNTRAINED, seed=0, learning_rate=0.0, split="test")


def _check_same(study: str, recorded: Mapping[str, Any], inputs: Inputs) -> None:
    """Raise SpaceChangedError unless model and data, the test rows included, are those the search was started with."""
    now = inputs.fingerprints
    changed = [name for name in ("model", "data") if name in recorded and recorded[name] != now[name]]
    if changed:
        raise SpaceChangedError(
            f"the {' and '.join(changed)} of study {study!r} changed since its search; a verification would be of"
            " something else"
        )


def _metrics(training: Training, outcome: Measurement | TrialFailure) -> dict[str, float]:
    """What is stored of a training. Raises if it failed in a way that is not a property of the configuration."""
    if isinstance(outcome, Measurement):
        return {**outcome.metrics, SECONDS: outcome.seconds}
    if outcome.reason is StopReason.DIVERGED:
        return {DIVERGED: 1.0}
    what = f"the training of {training.arm} with seed {training.seed} failed ({outcome.reason})"
    if outcome.reason is StopReason.OOM:
        raise ResourceError(f"{what}: {outcome.message}; fewer run.slots need less memory")
    raise SearchError(f"{what}: {outcome.message.strip().splitlines()[-1]}")


def _in_words(training: Training, metric: str, metrics: Mapping[str, float]) -> str:
    value = "diverged" if metric not in metrics else f"{metric} {metrics[metric]:.4f} on {training.split} rows"
    return f"{training.arm}, seed {training.seed}, learning rate {training.learning_rate:.3g}: {value}"
