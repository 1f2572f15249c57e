"""docs/reference/database.md describes the database as it is, and its queries run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from automl.storage.invariants import _INVARIANTS
from automl.storage.sql import Database
from automl.storage.tables import metadata
from automl.storage.views import VIEWS
from automl.trial import StopReason
from tests.storage.sweeps import finished_sweep

PAGE = (Path(__file__).parents[2] / "docs/reference/database.md").read_text(encoding="utf-8")
QUERIES = re.findall(r"```sql\n(.*?)```", PAGE, flags=re.DOTALL)


def documented() -> dict[str, list[str]]:
    """Table or view -> its documented columns, in order."""
    sections = re.findall(r"^### (automl_\w+)\n(.*?)(?=^##|\Z)", PAGE, flags=re.DOTALL | re.MULTILINE)
    return {name: _columns(body) for name, body in sections}


def _columns(body: str) -> list[str]:
    cells = [line.split("|")[1] for line in body.splitlines() if line.startswith("| `")]
    return [column for cell in cells for column in re.findall(r"`(\w+)`", cell)]


def test_every_table_and_column_is_described() -> None:
    tables = {name: table.columns.keys() for name, table in metadata.tables.items()}
    assert {name: columns for name, columns in documented().items() if name in tables} == tables


def test_every_view_and_column_is_described(database: Database) -> None:
    with database.reading("read the views' columns") as connection:
        views = {name: [column["name"] for column in inspect(connection).get_columns(name)] for name in VIEWS}
    assert {name: columns for name, columns in documented().items() if name in views} == views


def test_every_query_answers_something(database: Database, tmp_path: Path) -> None:
    finished_sweep(database, tmp_path / "adapters")
    database.store("topics").start_attempt(0, worker=1, run=1)
    assert len(QUERIES) == 9
    with database.reading("run the documented queries") as connection:
        for query in QUERIES:
            assert connection.execute(text(query)).all(), query


@pytest.mark.parametrize("word", [*(reason.value for reason in StopReason), *(each.id for each in _INVARIANTS), "I15"])
def test_closed_sets_are_complete(word: str) -> None:
    assert re.search(rf"\b{word}\b", PAGE)
