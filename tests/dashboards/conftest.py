"""A database with a study that has everything, one whose texts are hostile, and a schedule; served once for all."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from automl.schedule.due import fire_due
from automl.storage.claims import Claimant
from automl.storage.jobs import FiringState
from automl.storage.sql import open_database
from tests.dashboards.serving import Site, site
from tests.databases import fresh_sqlite
from tests.report.studies import HOSTILE, add_study, add_verification, space_of, verification_result
from tests.schedule.scheduling import HandClock, add_schedule

NIGHTS = ((0.80, FiringState.SUCCEEDED), (0.85, FiringState.SUCCEEDED), (0.70, FiringState.REGRESSION))


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of the database."""
    folder = tmp_path_factory.mktemp("dashboard")
    url = fresh_sqlite(folder)
    with open_database(url, create=False) as database:
        add_study(database, space_of(folder, trials=30), trials=24, failed=2, running=2, importances=True)
        add_verification(database, "topics", verification_result(title=HOSTILE))
        hostile = space_of(folder, study=HOSTILE, data=HOSTILE)
        add_study(database, hostile, trials=6, failed=1, running=1, error=HOSTILE)
        add_verification(database, HOSTILE, {**verification_result(), "headline": HOSTILE})
        clock = HandClock(datetime(2026, 8, 3, 12, tzinfo=UTC))
        claimant = Claimant(database, clock=clock)
        store = add_schedule(claimant, folder)
        for value, state in NIGHTS:
            clock.forward(days=1)
            fire_due(claimant)
            night = store.take()
            assert night is not None
            compared = {"previous_value": 0.85, "gain": value - 0.85, "noise": 0.01, "basis": "validation"}
            store.end(night, state, HOSTILE, exit_code=0, value=value, comparison=compared)
    return url


@pytest.fixture(scope="session")
def served(filled: str) -> Iterator[Site]:
    """The database served with a token, to this machine."""
    with site(filled) as running:
        yield running
