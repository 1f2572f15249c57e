"""What every ResultStore must do, run over SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from automl.errors import StudyNotFoundError
from automl.storage.base import ResultStore
from automl.storage.sql import Database, open_database
from automl.testing import StoreContract
from automl.trial import Measurement
from tests.databases import fresh_postgres, fresh_sqlite


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = fresh_sqlite(tmp_path) if request.param == "sqlite" else fresh_postgres()
    with open_database(url, create=False) as database:
        yield database


@pytest.fixture
def store(database: Database) -> ResultStore:
    return database.store("topics")


@pytest.fixture
def other(database: Database) -> ResultStore:
    return database.store("other")


class TestSqlStore(StoreContract):
    """The store of every search."""


def test_a_study_without_a_sweep_is_not_found(store: ResultStore) -> None:
    with pytest.raises(StudyNotFoundError, match=r"no study 'topics'; there is: none"):
        store.sweep()


# A store is all a crashed driver leaves: a second one, on new connections, must see every write of the first.
def test_writes_are_durable_before_the_call_returns(database: Database, store: ResultStore) -> None:
    store.add_measurements([Measurement(trial=0, step=10, metrics={"loss": 1 / 3}, seconds=1.0, tokens=70)])
    store.start_attempt(0, worker=0, run=1)
    with open_database(database.address.render_as_string(hide_password=False), create=False) as other:
        assert other.store("topics").measurements() == store.measurements()
        assert other.store("topics").attempts() == store.attempts()
