"""A real study over a real database for hosts that train by formula: what an executor is tried with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from automl.lora import Hyperparameters
from automl.space.assemble import assemble
from automl.space.spec import FloatParameter, IntParameter, SearchSettings, SearchSpace
from automl.storage.base import ResultStore
from automl.storage.invariants import check
from automl.storage.lease import StudyLease
from automl.storage.sql import Database, open_database
from automl.study.seeding import data_seed, trial_seed
from automl.study.study import Study, StudyEvent
from automl.testing.formula import curve
from automl.trial import Scalar, TrialSpec

NAME = "formula"

SPACE = SearchSpace(
    parameters=(
        FloatParameter(name="learning_rate", low=1e-5, high=1e-1, log=True),
        IntParameter(name="rank", low=2, high=16, log=True),
    )
)


@dataclass(frozen=True)
class Search:
    """An open study and what is around it."""

    study: Study
    store: ResultStore
    database: Database
    run: int


@contextmanager
def open_search(
    url: str,
    settings: SearchSettings,
    *,
    space: SearchSpace = SPACE,
    on_event: Callable[[StudyEvent], None] = lambda event: None,
    ttl_seconds: float = 6.0,
    grace_seconds: float = 0.0,
    before_commit: Callable[[], None] = lambda: None,
) -> Iterator[Search]:
    """The study in the database at `url`, held by a lease; opened again, it is continued."""
    with (
        open_database(url, create=True, grace_seconds=grace_seconds) as database,
        StudyLease(database, NAME, ttl_seconds=ttl_seconds) as lease,
    ):
        run = lease.take("a formula", "0" * 64, {})

        def guard(connection: Any) -> None:
            lease.verify(connection)
            before_commit()

        store = database.store(NAME, guard=guard)
        study = Study(
            name=NAME,
            storage=database.driver_storage(guard),
            store=store,
            space=space,
            settings=settings,
            metric="loss",
            run=run,
            derive=derive,
            on_event=on_event,
        )
        yield Search(study, store, database, run)


def derive(hyper: Hyperparameters) -> dict[str, float]:
    return {"trainable_params": 1000.0 * hyper.rank}


def undisturbed(settings: SearchSettings, number: int, params: Mapping[str, Scalar]) -> list[tuple[int, float]]:
    """The curve the trial would have if nothing ever happened to it."""
    spec = TrialSpec(
        number=number,
        params=params,
        hyper=assemble(SPACE, params),
        seed=trial_seed(settings.seed, number),
        data_seed=data_seed(settings.seed),
        steps=settings.steps,
        evaluate_every=settings.evaluate_every,
    )
    return curve(spec)


def violations(url: str, settings: SearchSettings, *, finished: bool) -> list[str]:
    """Invariants that do not hold, one line each."""
    with open_database(url, create=False) as database:
        found = check(database, NAME, finished=finished, max_trials=settings.trials)
    return [f"{item.id} {item.description}: {item.rows}" for item in found]
