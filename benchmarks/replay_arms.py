"""The searches that `benchmarks.replay` compares: the product's own path, Optuna by itself, and the top-k rule."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from automl.execution.dispatch import Dispatcher
from automl.execution.inline import InlineExecutor
from automl.execution.simulated import TableHost
from automl.space.spec import SearchSettings, SearchSpace
from automl.storage.sql import open_database
from automl.study.study import Study
from automl.trial import Measurement, Metrics, TrialFailure, TrialSpec
from benchmarks.replay_world import BUDGETS, Recorded, Score, top_k
from tests.fakes import MemoryStore

SAMPLERS: Mapping[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
    "qmc": lambda seed: QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False),
    "cmaes": lambda seed: CmaEsSampler(seed=seed, warn_independent_sampling=False),
    "nsga2": lambda seed: NSGAIISampler(seed=seed),
    "gp": lambda seed: GPSampler(seed=seed, warn_independent_sampling=False),
}
PRUNERS: Mapping[str, Callable[[int], BasePruner]] = {
    "none": lambda evaluations: NopPruner(),
    "median": lambda evaluations: MedianPruner(n_startup_trials=5, n_warmup_steps=3),
    "percentile": lambda evaluations: PercentilePruner(33.0, n_startup_trials=5, n_warmup_steps=3),
    "patient": lambda evaluations: PatientPruner(MedianPruner(n_startup_trials=5, n_warmup_steps=3), patience=2),
    "hyperband": lambda evaluations: HyperbandPruner(min_resource=1, max_resource=evaluations, reduction_factor=3),
    "sha1": lambda evaluations: SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
    "sha3": lambda evaluations: SuccessiveHalvingPruner(min_resource=3, reduction_factor=3),
}
"""Optuna's own, with the options of the reference rows; sha3 and sha1 differ in their first rung."""


class Outcome(NamedTuple):
    """regret, test_regret: by budget. started: configurations touched. top: those of them in the best percent of the
    table.

    killed, unfinished, finished: what became of those in `top` (killed: stopped for good; unfinished: parked, running).
    """

    regret: Mapping[int, float]
    test_regret: Mapping[int, float]
    started: int
    top: int
    killed: int
    unfinished: int
    finished: int


def outcome(score: Score, fates: Mapping[int, str]) -> Outcome:
    """fates: row -> killed, unfinished or finished."""
    top = [fate for row, fate in fates.items() if row in score.world.top]
    return Outcome(
        regret=score.regret,
        test_regret=score.test_regret,
        started=len(fates),
        top=len(top),
        killed=top.count("killed"),
        unfinished=top.count("unfinished"),
        finished=top.count("finished"),
    )


class Watched:
    """A table host whose evaluations are scored on their way."""

    def __init__(self, host: TableHost, score: Score) -> None:
        self._host = host
        self._score = score
        self.capacity = host.capacity
        self.busy_seconds = 0.0

    def open(self, spec: TrialSpec) -> Sequence[Measurement]:
        """Passed on."""
        return self._host.open(spec)

    def advance(self) -> Sequence[Measurement | TrialFailure]:
        """Passed on; what comes after the budget is spent is not looked at."""
        news = self._host.advance()
        for item in news:
            if not self._score.is_done:
                self._score.saw(self._host.rows[item.trial], item.step)
        return news

    def park(self, trial: int) -> None:
        """Passed on."""
        self._host.park(trial)

    def close(self, trial: int) -> None:
        """Passed on."""
        self._host.close(trial)

    def baseline(self) -> Metrics:
        """Passed on."""
        return self._host.baseline()

    def shutdown(self) -> None:
        """Passed on."""
        self._host.shutdown()


def product(
    world: Recorded,
    seed: int,
    workers: int,
    *,
    pruner: str = "halving",
    options: Mapping[str, Any] | None = None,
    sampler: str = "tpe",
    sampler_options: Mapping[str, Any] | None = None,
    is_sql: bool = True,
    budgets: Sequence[int] = BUDGETS,
) -> Outcome:
    """A search by `Study`, `Dispatcher` and `InlineExecutor` with a table for a trainer, one step per evaluation.

    is_sql: results in a new SQLite file, as in any search; otherwise in memory, which decides the same.
    """
    length = world.table.evaluations
    score = Score(world=world, budgets=budgets)
    host = TableHost(world.table, metric="value", capacity=workers)
    with ExitStack() as stack:
        if is_sql:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="automl-replay-"))
            database = stack.enter_context(open_database(f"sqlite:///{Path(folder) / 'replay.db'}", create=True))
            storage: Any = database.optuna_storage()
            store: Any = database.store("replay")
        else:
            storage, store = optuna.storages.InMemoryStorage(), MemoryStore("replay")
        study = Study(
            name="replay",
            storage=storage,
            store=store,
            space=SearchSpace(parameters=world.table.parameters(), columns=world.table.names),
            settings=SearchSettings(
                sampler=sampler,
                sampler_options=sampler_options or {},
                pruner=pruner,
                pruner_options=options or {},
                trials=len(world.table.curves),
                steps=length,
                evaluate_every=1,
                seed=seed,
            ),
            metric="value",
            run=1,
            derive=lambda hyper: {},
            direction="minimize",
            bounds=(-math.inf, math.inf),
        )

        def stop_in_time() -> None:
            if score.is_done:
                dispatcher.stop("budget")

        dispatcher = Dispatcher(study, on_exchange=stop_in_time)
        InlineExecutor().run(dispatcher, lambda: Watched(host, score))
        score.close()
        fates = {host.rows[trial.number]: _fate(trial) for trial in study.optuna.get_trials(deepcopy=False)}
    return outcome(score, fates)


def _fate(trial: optuna.trial.FrozenTrial) -> str:
    if trial.state is TrialState.COMPLETE:
        return "finished"
    return "killed" if trial.state.is_finished() else "unfinished"


def by_optuna(
    world: Recorded, seed: int, workers: int, *, sampler: str, pruner: str, budgets: Sequence[int] = BUDGETS
) -> Outcome:
    """Plain ask, report, should_prune and tell; with several workers all report before any is judged."""
    length, cube = world.table.evaluations, world.table.scaled()
    names = [f"x{column}" for column in range(cube.shape[1])]
    space: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in names}
    score = Score(world=world, budgets=budgets)
    fates: dict[int, str] = {}
    running: list[tuple[optuna.Trial, int]] = []
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    at: dict[int, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(sampler=SAMPLERS[sampler](seed), pruner=PRUNERS[pruner](length))
        while not score.is_done:
            while len(running) < workers and len(fates) < len(cube):
                trial = study.ask(space)
                distances = ((cube - np.array([trial.params[name] for name in names])) ** 2).sum(axis=1)
                distances[list(fates)] = np.inf
                row = int(distances.argmin())
                fates[row], at[row] = "unfinished", 0
                running.append((trial, row))
            if not running:
                score.close()
                break
            for trial, row in running:
                if not score.is_done:
                    at[row] += 1
                    value = score.saw(row, at[row])
                    if math.isfinite(value):
                        trial.report(value, at[row])
            ends = [_end(world, trial, row, at[row]) for trial, row in running]
            for (trial, row), state in zip(running, ends, strict=True):
                if state is not None:
                    final = float(world.table.curves[row, -1]) if state is TrialState.COMPLETE else None
                    study.tell(trial, final, state=state)
                    fates[row] = "finished" if state is TrialState.COMPLETE else "killed"
            running = [item for item, state in zip(running, ends, strict=True) if state is None]
    return outcome(score, fates)


def _end(world: Recorded, trial: optuna.Trial, row: int, evaluation: int) -> TrialState | None:
    """How a trial ends after this evaluation, None if it goes on."""
    if not math.isfinite(world.table.curves[row, evaluation - 1]):
        return TrialState.FAIL
    if evaluation == world.table.evaluations:
        return TrialState.COMPLETE
    return TrialState.PRUNED if trial.should_prune() else None


def by_top_k(
    world: Recorded, seed: int, workers: int, *, evaluations: int, budgets: Sequence[int] = BUDGETS
) -> Outcome:
    """The top-k rule at every budget."""
    regret: dict[int, float] = {}
    test: dict[int, float] = {}
    for score in top_k(world, seed, evaluations, workers, budgets):
        regret |= score.regret
        test |= score.test_regret
    return Outcome(regret, test, 0, 0, 0, 0, 0)
