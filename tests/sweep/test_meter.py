"""What a search spends is counted once, written down, and ends the search at each kind of budget."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from sqlalchemy import text

from automl.errors import BudgetSpent
from automl.execution.inline import InlineExecutor
from automl.execution.stop import StopRequest
from automl.results.spending import overspent
from automl.space.load import parse_space
from automl.space.spec import BudgetSettings, CostSettings, SearchSettings, SweepSpec
from automl.storage.base import RunEnd
from automl.storage.runs import Price, RunLog
from automl.storage.spending import Spent, spent_by
from automl.storage.sql import open_database
from automl.sweep.drive import drive_search
from automl.sweep.meter import Meter, check_budget, open_meter
from automl.testing.formula import Fault, FormulaHost
from automl.testing.formula_study import NAME, Search, open_search

SETTINGS = SearchSettings(sampler="random", pruner="none", trials=6, steps=12, evaluate_every=3, seed=5)
TOKENS, EXAMPLES = 10 * 12, 8 * 12
"""Of a whole trial: 10 tokens a step by the formula, batches of 8."""


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Run(NamedTuple):
    """A search that is driven."""

    search: Search
    log: RunLog


@contextmanager
def begun(url: str, price: Price | None = None) -> Iterator[Run]:
    with open_search(url, SETTINGS) as search:
        log = RunLog(search.database, NAME, search.run, lambda connection: None)
        log.begin(trials=6, steps=12, metric="loss", price=price)
        yield Run(search, log)


def meter_of(run: Run, budget: BudgetSettings, *, devices: int = 1, clock: Clock | None = None) -> Meter:
    driven = [(run.search.study, run.log)]
    return open_meter(run.search.database, driven, budget, devices=devices, clock=clock or time.monotonic)


def driven(run: Run, meter: Meter, folder: Path, *, clock: Clock | None = None, **options: object) -> None:
    """Train to the end or until the meter stops it; every exchange is followed by a minute of the clock."""

    def ticked() -> None:
        if clock is not None:
            clock.now += 60
        meter.tick()

    host = functools.partial(FormulaHost, str(folder / "slots"), **options)  # type: ignore[arg-type]
    search = run.search
    with meter.running():
        drive_search(
            search.study,
            InlineExecutor(),
            host,
            settings=SETTINGS,
            database=search.database,
            store=search.store,
            stop=StopRequest(),
            overspent=meter.overspent,
            tick=ticked,
        )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'search.db'}"


def states(run: Run) -> list[str]:
    return [trial.state.name for trial in run.search.study.optuna.get_trials()]


@pytest.mark.parametrize(("key", "whole"), [("tokens", TOKENS), ("examples", EXAMPLES)], ids=["tokens", "examples"])
@pytest.mark.parametrize("evaluations", [1, 6, 9])
def test_a_search_ends_at_its_budget_to_one_evaluation_and_goes_on_with_more(
    key: str, whole: int, evaluations: int, url: str, tmp_path: Path
) -> None:
    each = whole // 4
    few, more = BudgetSettings(**{key: evaluations * each - 1}), BudgetSettings(**{key: 10 * each})
    with begun(url) as run:
        with pytest.raises(
            BudgetSpent, match=f"search.budget.{key}: {evaluations * each} of {evaluations * each - 1} "
        ):
            driven(run, meter_of(run, few), tmp_path)
        assert len(run.search.store.measurements()) == evaluations
        assert getattr(spent_by(run.search.database, [NAME])[NAME], key) == evaluations * each
    with begun(url) as run:
        meter = meter_of(run, few)
        with pytest.raises(BudgetSpent, match="nothing was trained"):
            meter.check()
    with begun(url) as run:
        assert getattr(run.search.study.work, key) == evaluations * each, "what was spent is not forgotten"
        begun_before = {attempt.trial for attempt in run.search.store.attempts()}
        with pytest.raises(BudgetSpent):
            driven(run, meter_of(run, more), tmp_path)
        assert len(run.search.store.measurements()) == 10
        assert {item.trial for item in run.search.store.measurements()} == {0, 1, 2}
        assert begun_before <= {0, 1, 2}


def test_trials_that_fail_are_paid_for_as_well(url: str, tmp_path: Path) -> None:
    with begun(url) as run:
        driven(run, meter_of(run, BudgetSettings()), tmp_path, faults={0: Fault("diverge", 10), 2: Fault("raise", 4)})
        spent = spent_by(run.search.database, [NAME])[NAME]
        assert run.search.study.work == (spent.tokens, spent.examples)
        assert spent.tokens == 5 * TOKENS + 100 + 40, "up to the step at which each failed"
        assert spent.examples == 5 * EXAMPLES + 80 + 32
    with begun(url) as run:
        assert run.search.study.work == (spent.tokens, spent.examples)


def test_hours_of_devices_end_it_and_count_once_however_many_trials_share_one(url: str, tmp_path: Path) -> None:
    clock = Clock()
    with begun(url) as run:
        meter = meter_of(run, BudgetSettings(gpu_hours=6 / 60 * 2), devices=2, clock=clock)
        with pytest.raises(BudgetSpent, match=r"search.budget.gpu_hours: 0.2 of 0.2 device hours"):
            driven(run, meter, tmp_path, clock=clock, capacity=3)
        assert spent_by(run.search.database, [NAME])[NAME].device_seconds == pytest.approx(7 * 60 * 2)
    with begun(url) as run:  # its driver was killed: what it wrote last is kept
        meter = meter_of(run, BudgetSettings(gpu_hours=1), devices=2, clock=clock)
        clock.now += 30
        meter.tick()
        assert meter.spent.device_seconds == pytest.approx(7 * 60 * 2 + 60)
        clock.now += 30
    with begun(url) as run:
        assert meter_of(run, BudgetSettings()).spent.device_seconds == pytest.approx(7 * 60 * 2 + 60)
        driven(run, meter_of(run, BudgetSettings()), tmp_path)
        assert states(run) == ["COMPLETE"] * 6


def test_money_is_paid_at_the_price_of_its_run(url: str, tmp_path: Path) -> None:
    clock = Clock()
    cheap, dear = (
        CostSettings(per_gpu_hour=6, limit=0.49, currency="EUR"),
        CostSettings(per_gpu_hour=60, limit=5.5, currency="EUR"),
    )
    with begun(url) as run:  # no price yet
        meter = meter_of(run, BudgetSettings(gpu_hours=0.05), clock=clock)
        with pytest.raises(BudgetSpent):
            driven(run, meter, tmp_path, clock=clock)
        assert spent_by(run.search.database, [NAME])[NAME].cost is None
    with begun(url, Price(6, "EUR")) as run:  # four minutes until now, and two more
        meter = meter_of(run, BudgetSettings(cost=cheap), clock=clock)
        with pytest.raises(BudgetSpent, match=r"search.budget.cost: 0.5 of 0.49 EUR"):
            driven(run, meter, tmp_path, clock=clock)
        found = spent_by(run.search.database, [NAME])[NAME]
        assert (found.cost, found.currency) == (pytest.approx(0.6), "EUR")
    with begun(url, Price(60, "EUR")) as run:  # the first four minutes take the newest price: nobody said another
        meter = meter_of(run, BudgetSettings(cost=dear), clock=clock)
        assert meter.spent.cost == pytest.approx(4 + 0.2)
        with pytest.raises(BudgetSpent, match=r"6.20 of 5.50 EUR"):
            driven(run, meter, tmp_path, clock=clock)
    assert spent_of_trials(url) == pytest.approx(7.2)


def spent_of_trials(url: str) -> float:
    """Money of all trials by the leaderboard, which shares out what was paid."""
    with open_database(url, create=False) as database, database.reading("sum up") as connection:
        return float(connection.execute(text("SELECT SUM(cost) FROM automl_leaderboard")).scalar_one())


def test_how_a_run_ended_is_kept_until_the_next(url: str, tmp_path: Path) -> None:
    with begun(url) as run:
        run.log.spend(90.0)
        run.log.end(RunEnd.BUDGET)
        assert spent_by(run.search.database, [NAME, "another"]) == {
            NAME: Spent(device_seconds=90.0),
            "another": Spent(),
        }


def test_a_study_that_its_budget_ended_is_refused_unless_it_wants_no_more(url: str, tmp_path: Path) -> None:
    text = "version: 1\nstudy: formula\nmodel: a/b\ntask: {type: classification, data: a.csv}\nsearch: "
    few = BudgetSettings(tokens=6 * TOKENS // 4)

    def spec_of(search: str) -> list[SweepSpec]:
        return [parse_space(text + search, "space.yaml", tmp_path)]

    with begun(url) as run:
        database = run.search.database
        with pytest.raises(BudgetSpent):
            driven(run, meter_of(run, few), tmp_path)
        check_budget(database, spec_of("{trials: 6, budget: {tokens: 10}}"))  # the run has not ended
        run.log.end(RunEnd.BUDGET)
        with pytest.raises(
            BudgetSpent, match=r"nothing was trained \(search.budget.tokens: 180 of 180 tokens are spent"
        ):
            check_budget(database, spec_of("{trials: 6, budget: {tokens: 180}}"))
        check_budget(database, spec_of("{trials: 6, budget: {tokens: 181}}"))
        check_budget(database, spec_of("{trials: 6}"))
        check_budget(database, spec_of("{trials: 1, budget: {tokens: 180}}"))


@pytest.mark.parametrize(
    ("budget", "spent", "said"),
    [
        (BudgetSettings(), Spent(device_seconds=1e9, tokens=10**12), None),
        (BudgetSettings(gpu_hours=2), Spent(device_seconds=7199.9), None),
        (
            BudgetSettings(gpu_hours=2),
            Spent(device_seconds=7200),
            "search.budget.gpu_hours: 2.00 of 2 device hours are spent",
        ),
        (
            BudgetSettings(tokens=10**6),
            Spent(tokens=1234567),
            "search.budget.tokens: 1,234,567 of 1,000,000 tokens are spent",
        ),
        (
            BudgetSettings(cost=CostSettings(per_gpu_hour=2.5, limit=40, currency="EUR")),
            Spent(device_seconds=58_000),
            "search.budget.cost: 40.28 of 40 EUR are spent",
        ),
    ],
)
def test_which_budget_is_spent_is_said(budget: BudgetSettings, spent: Spent, said: str | None) -> None:
    assert overspent(budget, spent) == said
