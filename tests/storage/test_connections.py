"""However long a process lives and whatever it is asked, it holds a few connections to the database, not one more."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from automl.report.write import study_frame
from automl.results.summary import summarise
from automl.storage.lease import StudyLease
from automl.storage.removal import remove_study
from automl.storage.sql import Database, open_database
from tests.report.studies import add_study, space_of

TIMES = 50


def connections(url: str) -> int:
    """To this database, of this process: open files of SQLite, sessions of the PostgreSQL server."""
    if url.startswith("sqlite"):
        held = (os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
        return sum(path == url.removeprefix("sqlite:///") for path in held)
    import psycopg

    with psycopg.connect(url) as connection:
        query = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s"
        (found,) = connection.execute(query, ["automl"]).fetchone() or (0,)
    return int(found)


@pytest.mark.parametrize("read_only", [True, False])
def test_reports_share_a_connection(url: str, tmp_path: Path, *, read_only: bool) -> None:
    spec = space_of(tmp_path, trials=4)
    with open_database(url, create=False) as writer:
        add_study(writer, spec, trials=4)
    with open_database(url, create=False, read_only=read_only) as database:
        held = []
        for _ in range(TIMES):
            study_frame(database, spec)
            summarise(database, spec)
            held.append(connections(url))
    assert max(held) == held[0]
    assert connections(url) == 0


def test_removals_leave_no_connection(database: Database, url: str) -> None:
    for number in range(TIMES):
        with StudyLease(database, f"night-{number}") as lease:
            lease.take("text", "a" * 64, {})
        database.optuna_storage().create_new_study([], f"night-{number}")
    before = connections(url)
    for number in range(TIMES):
        assert remove_study(database, f"night-{number}")
    assert connections(url) <= before
    assert database.studies() == []
