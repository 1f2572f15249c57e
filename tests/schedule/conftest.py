"""A clock moved by hand, a fresh database, and a place whose sweeps are small programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from automl.schedule.job import Place
from automl.storage.sql import Database, open_database
from tests.databases import fresh_postgres, fresh_sqlite
from tests.schedule.scheduling import HandClock, program


@pytest.fixture
def clock() -> HandClock:
    return HandClock(datetime(2026, 8, 3, 12, tzinfo=UTC))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database with tables, of each kind."""
    return fresh_sqlite(tmp_path) if request.param == "sqlite" else fresh_postgres()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return fresh_sqlite(tmp_path)


@pytest.fixture
def database(sqlite_url: str) -> Iterator[Database]:
    with open_database(sqlite_url, create=False) as opened:
        yield opened


@pytest.fixture
def place(sqlite_url: str, tmp_path: Path) -> Callable[[str], Place]:
    """Where works run, with a program in place of `automl`."""

    def make(text: str) -> Place:
        return Place(url=sqlite_url, folder=tmp_path, program=program(tmp_path, text))

    return make
