"""Optuna's own storage suite, over storages opened by us."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.storages import BaseStorage
from optuna.testing.pytest_storages import StorageTestCase

from automl.storage.sql import open_database
from tests.databases import fresh_postgres, fresh_sqlite


class TestOptunaContractOnSqlite(StorageTestCase):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Iterator[BaseStorage]:
        with open_database(fresh_sqlite(tmp_path), create=False) as database:
            yield database.optuna_storage()


@pytest.mark.slow
@pytest.mark.postgres
class TestOptunaContractOnPostgres(StorageTestCase):
    @pytest.fixture
    def storage(self) -> Iterator[BaseStorage]:
        with open_database(fresh_postgres(), create=False) as database:
            yield database.optuna_storage()

    # Ours is not pickled (tests/storage/test_database_open.py says why).
    test_pickle_storage = None
