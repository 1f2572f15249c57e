"""One verification from a finished study to its result: plans, trains what is missing, stores every score at once.

Killed at any point it goes on from the scores in the database: the plan is worked out again and is the same. It holds
the study's lease, and it alone in the whole program is given the test rows.
"""

from __future__ import annotations

import itertools
import logging
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from automl import durable, progress, ranking
from automl.errors import ConfigError, DataError, Problem, SpaceChangedError
from automl.execution.stop import StopRequest
from automl.metric import METRICS, margin_mistake, practical_margin
from automl.report.write import renew_report
from automl.results.disk import DiskWatch, check_disk
from automl.results.folders import study_folder
from automl.results.home import open_home
from automl.results.recorded import BASELINE, GROUND, recorded_space
from automl.results.squeezed import squeeze_of
from automl.results.summary import summarise, write_summary
from automl.setup.executors import Executors, lent
from automl.setup.prepare import Inputs
from automl.setup.setup import layout_of, set_up
from automl.space.entries import TASKS
from automl.space.spec import GROWTH, SweepSpec
from automl.storage.base import ResultStore
from automl.storage.lease import StudyLease
from automl.storage.sql import Database
from automl.storage.trials import list_trials
from automl.storage.verification import RowOutcomes, Score, ScoredSplit, Verification, VerificationStore
from automl.study.seeding import data_seed, derive_seed, trial_seed
from automl.sweep.drive import drive
from automl.sweep.upload import store_results
from automl.tasks import make_task
from automl.tasks.classification import majority_scores
from automl.training.checkpoint import latest_attempt
from automl.training.runtime import HostSettings
from automl.trial import Examined, Metrics
from automl.trial_folders import adapter_folder
from automl.verify.arms import Candidates, choose_arms, choose_comparisons
from automl.verify.conclude import conclude
from automl.verify.plan import (
    LEAST_PATTERN_SEEDS,
    LOOK,
    TUNING_SEEDS,
    Plan,
    Training,
    fingerprint,
    fresh_seeds,
)
from automl.verify.protocol import UNTRAINED, Scores, baseline, next_trainings
from automl.verify.rows import truth_of
from automl.verify.trainings import Trainings

logger = logging.getLogger(__name__)

Suggest = Callable[[Database, str], Mapping[str, int] | None]
"""Ranks by module that the study's importances suggest for its winner, None if they suggest nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """What the user may choose.

    seeds: trainings of each arm, at least 3.
    finalists: best trials of the search that are verified.
    margin: see `Plan.margin`; None: `practical_margin`.
    budget_seconds: training time for which seeds are added until all is decided; None: none are added.
    suggest: asked for a rank pattern to verify too; None asks for none.
    squeeze: smaller adapters that are held against the winner's, as `VerifySettings.squeeze`.
    methods: whether the best of each method is verified, where several were searched.
    """

    seeds: int = 8
    finalists: int = 2
    margin: float | None = None
    budget_seconds: float | None = None
    suggest: Suggest | None = None
    squeeze: Literal["auto", "all", "cuts", "off"] = "off"
    methods: bool = True


def verify_study(
    database: Database,
    spec: SweepSpec,
    cache: Path,
    options: VerifyOptions,
    *,
    stop: StopRequest | None = None,
    on_lost: Callable[[str], None] | None = None,
    executors: Executors | None = None,
) -> Verification:
    """Verify the study's best configurations, or go on with it, or return what was found by the same plan before.

    spec: as the study was recorded, or its file. stop, on_lost, executors: as for `run_sweep`.

    Raises ConfigError if the margin is no difference of the metric, DataError if there are no test rows, SearchError if
    no trial is complete or a training fails, SpaceChangedError if model or data are not those of the search,
    StudyBusyError if another driver holds the study, LeaseLostError if one has taken it over, ResourceError if memory
    is short; resumable: InterruptedSearch if it was stopped, StorageError if the database was away for longer than its
    grace.
    """
    if options.margin is not None and (mistake := margin_mistake(options.margin, spec.task.metric)):
        raise ConfigError([Problem("", 0, 0, "margin", mistake)])
    with StudyLease(database, spec.study, on_lost=on_lost) as lease:
        if hindrance := obstacle(database, spec):
            raise DataError(f"study {spec.study!r} cannot be verified: {hindrance}")
        row = database.store(spec.study).sweep()
        lease.claim(row.space_text, row.space_sha256, row.provenance)
        with open_home(database, spec, lease.owner) as home, lent(executors) as ready:
            return _verified(
                database, home.spec, cache, options, lease=lease, stop=stop or StopRequest(), executors=ready
            )


def _verified(
    database: Database,
    spec: SweepSpec,
    cache: Path,
    options: VerifyOptions,
    *,
    lease: StudyLease,
    stop: StopRequest,
    executors: Executors,
) -> Verification:
    store = VerificationStore(database, spec.study, guard=lease.verify)
    before = store.latest()
    results = database.store(spec.study, guard=lease.verify)
    work = _Work(database, spec, results, store, executors)
    with progress.telling("preparing the verification".format):
        if before is None or not before.is_done:  # else the same may be wanted again, which takes no workers
            work.executor.start()
        work.prepare(cache)
    number, plan, known = database.retry.call(lambda: work.plan(before, options))
    if known is not None and known.is_done:
        return known
    if known is None:
        store.begin(number, plan.as_dict())
    scores = work.train(plan, number, stop)
    store.finish(number, conclude(plan, scores))
    renew_report(database, spec, guard=lease.verify)
    summary = database.retry.call(lambda: summarise(database, spec))
    write_summary(summary, Path(summary.folder))
    store_results(results, spec)
    found = store.latest()
    assert found is not None
    return found


def obstacle(database: Database, spec: SweepSpec) -> str:
    """Why the study cannot be verified, in a few words; empty if it can."""
    if not TASKS[spec.task.type].implementation:
        return f"there is nothing to train in a task of type {spec.task.type}"
    recorded = database.store(spec.study).last_event(GROUND) or {}
    if not recorded.get("rows", {}).get("test"):
        return "the data has no test rows; give it a test file, or task.split a larger test share"
    return ""


class _Work:
    """One run of a verification: the setup it stands on, and the training of what is missing.

    executor: the search's, or one like it. results: the study's, under its lease; scores: those of its
    verifications.
    """

    def __init__(
        self,
        database: Database,
        spec: SweepSpec,
        results: ResultStore,
        scores: VerificationStore,
        executors: Executors,
    ) -> None:
        self._database = database
        self._spec = spec
        self._results = results
        self._scores = scores
        self._recorded = results.last_event(GROUND)
        self._layout = layout_of(spec, self._recorded)
        self.executor = executors.of(spec, self._layout)

    def prepare(self, cache: Path) -> None:
        """Find model and data, and see that they are those of the search."""
        check_disk(study_folder(self._spec))
        self._setup = set_up(self._spec, cache, self._recorded, layout=self._layout)
        _check_same(self._spec.study, self._recorded or {}, self._setup.inputs)

    def plan(self, before: Verification | None, options: VerifyOptions) -> tuple[int, Plan, Verification | None]:
        """Number and plan of the verification to be made, and its record if there is one: the latest, if it is that."""
        suggested, knee = self._suggested(options), self._knee(options)
        if before is not None:
            # What was begun is finished as it was begun, though its adapter was squeezed again since, or an older
            # version knew of no smaller adapters, did not compare methods, or gave lower ranks another alpha or rate.
            then = knee if before.is_done else _recorded_knee(before.plan)
            kinds = {options.squeeze, options.squeeze if before.is_done else "off"}
            for kind, methods in itertools.product(kinds, {True, before.is_done}):
                chosen = replace(options, squeeze=kind, methods=methods)
                same = self._plan(before.number, chosen, suggested, then)
                same = same if before.is_done else same.as_begun(before.plan)
                if same.as_dict() == before.plan:
                    return before.number, same, before
        number = before.number + 1 if before is not None else 1
        return number, self._plan(number, options, suggested, knee), None

    def train(self, plan: Plan, number: int, stop: StopRequest) -> Scores:
        """Train all that the rules ask for, one split after the other; every score is stored as soon as it is known."""
        scores = Scores(self._scores.scores(number), self._scores.outcomes(number), self._truth())
        while (split := _next_split(plan, scores)) is not None:
            self._train(plan, number, split, scores, stop)
        shutil.rmtree(study_folder(self._spec) / "verification", ignore_errors=True)
        return scores

    def _truth(self) -> list[float]:
        """Classes or numbers of the test rows in the order of outcomes; empty if they are neither."""
        task, prepared = make_task(self._setup.spec.task), self._setup.inputs.prepared
        is_one_each = task.head(prepared).kind in ("classification", "regression")
        return truth_of(task.rows(prepared, "test")) if is_one_each else []

    def _plan(self, number: int, options: VerifyOptions, suggested: Mapping[str, int] | None, knee: int | None) -> Plan:
        spec, inputs = self._setup.spec, self._setup.inputs
        rows = list_trials(self._database, spec.study)
        candidates = Candidates(
            rows,
            recorded_space(self._results, spec),
            inputs.derive,
            metric=spec.task.metric,
            rows=min(spec.task.evaluate_rows or sys.maxsize, inputs.prepared.rows["validation"]),
            final_ranks={
                trial: {module.module: module.rank for module in modules}
                for trial, modules in self._database.importances(spec.study).items()
            },
        )
        used = {trial_seed(spec.search.seed, row.number) for row in rows} | {data_seed(spec.search.seed)}
        looks = () if options.budget_seconds is None else tuple(options.seeds * times for times in GROWTH)
        count = looks[-1] if looks else options.seeds
        seeds = fresh_seeds(spec.search.seed, number, count + TUNING_SEEDS, used)
        arms = choose_arms(
            candidates,
            finalists=options.finalists,
            squeeze=options.squeeze,
            knee=knee,
            suggested=suggested,
            seed=derive_seed("random-ranks", spec.search.seed, number),
            methods=options.methods,
        )
        task = make_task(spec.task)
        test = task.rows(inputs.prepared, "test")
        majority: Metrics = {}
        if task.head(inputs.prepared).kind == "classification":
            labels = [row["labels"] for row in test]
            majority = majority_scores(labels, objective=spec.task.metric, also=spec.task.metrics)
        return Plan(
            study=spec.study,
            metric=spec.task.metric,
            steps=spec.search.steps,
            step_rows=spec.search.step_rows,
            seeds=seeds[:count],
            tuning_seeds=seeds[count:],
            margin=options.margin or practical_margin(spec.task.metric, candidates.best_value),
            arms=tuple(arms),
            comparisons=tuple(choose_comparisons(arms, claims=max(1, len(looks)))),
            winner_value=candidates.best_value,
            model=inputs.backbone.fingerprint,
            data=inputs.prepared.fingerprint,
            test=fingerprint(test),
            test_rows=len(test),
            precision=spec.run.precision,
            majority=majority,
            looks=looks,
            budget_seconds=options.budget_seconds,
        )

    def _suggested(self, options: VerifyOptions) -> Mapping[str, int] | None:
        if options.suggest is None:
            return None
        if options.seeds < LEAST_PATTERN_SEEDS:
            logger.info("suggested ranks are not verified: that takes %d seeds (--seeds)", LEAST_PATTERN_SEEDS)
            return None
        return options.suggest(self._database, self._spec.study)

    def _knee(self, options: VerifyOptions) -> int | None:
        """Parameters of the smallest size of the winner's adapter that a squeeze found not to be worse than the whole.

        None if there is no smaller one, if the adapter was not squeezed, or if nobody wants to know.
        """
        metric = METRICS[self._setup.spec.task.metric]
        best = ranking.best(list_trials(self._database, self._setup.spec.study), metric.direction)
        if best is None or options.squeeze == "off" or self._setup.spec.run.shards > 1:
            return None
        squeeze = squeeze_of(self._database, self._setup.spec.study, best.number)
        return squeeze.knee if squeeze is not None and squeeze.knee < squeeze.whole.parameters else None

    def _train(self, plan: Plan, number: int, split: ScoredSplit, scores: Scores, stop: StopRequest) -> None:
        """Train what is scored on one split, and measure the untrained model on it if that is needed."""
        keep = partial(self._keep, number, scores)
        settings = self._settings(plan, number, split, known=baseline(plan, scores))
        output, watch = Path(settings.output), DiskWatch(Path(settings.output), workers=self._layout.workers)
        trainings = Trainings(
            plan,
            scores,
            split,
            number=number,
            keep=keep,
            workers=self._layout.workers,
            slots=settings.capacity,
            earlier=partial(latest_attempt, output),
            discard=lambda trial: durable.remove_folder(adapter_folder(output, trial)),
        )

        def keep_baseline(metrics: Metrics) -> None:
            if split == "test" and not baseline(plan, scores):
                keep(_UNTRAINED, metrics)

        with progress.telling(lambda: f"verification {number}: {trainings.so_far()}"):
            drive(
                trainings,
                self.executor,
                self._setup.host_factory(settings),
                database=self._database,
                stores=[self._results],
                stop=stop,
                keep_baseline=keep_baseline,
                so_far=trainings.so_far,
                shortage=lambda: watch.shortage(trainings.live),
                about={"verification": number},
            )

    def _settings(self, plan: Plan, number: int, split: ScoredSplit, *, known: Metrics) -> HostSettings:
        """Settings as for the search's workers, but with the test rows, and without what only a search wants to know.

        known: metrics of the untrained model, which no worker need measure then.
        """
        trials = len(plan.trained) * min(LOOK, len(plan.seeds))
        settings = self._setup.for_trainings(trials).worker_settings()
        if split == "test":
            prepared = replace(self._setup.inputs.prepared, baseline=known)
        else:
            prepared = replace(settings.prepared, baseline=self._results.last_event(BASELINE) or {})
        folder = study_folder(self._spec) / "verification" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        return replace(
            settings,
            prepared=prepared,
            judged_on=split,
            output=str(folder),
            largest=max(plan.arms, key=lambda arm: arm.trainable_params).hyper,
            importance=False,
            keep=settings.keep if split == "test" else None,
        )

    def _keep(
        self, number: int, scores: Scores, training: Training, metrics: Metrics, examined: Sequence[Examined] = ()
    ) -> None:
        """Store and note a training with what was examined of it, all of it or nothing."""
        found = _by_key(training, metrics, examined)
        self._scores.add_scores(
            number,
            [
                Score(**_key(each), metric=name, value=value)
                for each, (values, _) in found.items()
                for name, value in values.items()
            ],
            [RowOutcomes(**_key(each), outcomes=told) for each, (_, told) in found.items() if told],
        )
        for each, (values, told) in found.items():
            scores.add(each, values, told)


def _by_key(training: Training, metrics: Metrics, examined: Sequence[Examined]) -> dict[Training, tuple[Metrics, str]]:
    """Metrics and outcomes of a training, of its cuts, and of the training on other rows."""
    own = next((each.outcomes for each in examined if (each.name, each.split) == ("", training.split)), "")
    found = {training: (metrics, own)}
    for each in examined:
        split: ScoredSplit = "validation" if each.split == "validation" else "test"
        key = replace(training, arm=each.name or training.arm, split=split)
        known, told = found.get(key, ({}, ""))
        found[key] = {**each.metrics, **known}, told or each.outcomes
    return found


def _key(training: Training) -> dict[str, Any]:
    return {name: getattr(training, name) for name in ("arm", "seed", "learning_rate", "split")}


def _recorded_knee(plan: Mapping[str, Any]) -> int | None:
    """Parameters that the cuts of a recorded plan have; None if it has none."""
    return next((int(arm["cut"][1]) for arm in plan["arms"] if arm.get("cut")), None)


_UNTRAINED = Training(arm=UNTRAINED, seed=0, learning_rate=0.0, split="test")


def _next_split(plan: Plan, scores: Scores) -> ScoredSplit | None:
    """The rows that something is to be scored on next, None if the verification is complete."""
    if trainings := next_trainings(plan, scores):
        return trainings[0].split
    return None if baseline(plan, scores) else "test"


def _check_same(study: str, recorded: Mapping[str, Any], inputs: Inputs) -> None:
    """Raise SpaceChangedError unless model and data, the test rows included, are those the search was started with."""
    now = inputs.fingerprints
    changed = [name for name in ("model", "data") if name in recorded and recorded[name] != now[name]]
    if changed:
        raise SpaceChangedError(
            f"the {' and '.join(changed)} of study {study!r} changed since its search; a verification would be of"
            " something else"
        )
