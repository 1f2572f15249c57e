"""A fresh database for each test, copied from one that was created once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from automl.storage.sql import Database, open_database


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "empty.db"
    open_database(f"sqlite:///{path}", create=True).close()
    return path


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "study.db"
    shutil.copy(empty_database, path)
    with open_database(f"sqlite:///{path}", create=False) as opened:
        yield opened
