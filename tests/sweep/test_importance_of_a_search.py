"""Importances of a whole search: rows in SQL for every trial, whichever method and trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from automl.results.suggestion import suggested_ranks
from automl.space.load import load_space
from automl.storage.sql import open_database
from automl.sweep.run import run_sweep
from automl.trial import ModuleImportance
from tests.sweep.tiny_world import make_world

Importances = dict[int, tuple[ModuleImportance, ...]]


@pytest.fixture
def searched(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[dict[str, str]], tuple[str, Importances]]:
    """Runs a search whose space file is changed here and there; returns the database's URL and its importances."""

    def run(changes: dict[str, str]) -> tuple[str, Importances]:
        path = make_world(tmp_path, steps=30)
        monkeypatch.chdir(tmp_path)  # the database lies where the command runs
        text = path.read_text(encoding="utf-8")
        for old, new in changes.items():
            assert old in text
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")
        spec = load_space(path)
        run_sweep(spec, shared_cache)
        with open_database(spec.storage_url, create=False) as database:
            return spec.storage_url, database.importances("tiny")

    return run


def test_a_packed_search_leaves_importances(
    searched: Callable[[dict[str, str]], tuple[str, Importances]],
) -> None:
    url, found = searched(
        {"low: 1, high: 8": "low: 4, high: 8", "target: qv, batch_size: 8": "target: all-linear, batch_size: 16"}
    )
    assert set(found) == {0, 1, 2, 3}
    for modules in found.values():
        assert len(modules) == 12
        assert all(module.samples == 5 and module.step == 30 and module.fraction_done == 1.0 for module in modules)
        assert all(module.sensitivity > 0 and len(module.components) == module.rank for module in modules)
        assert all(module.held_out is not None for module in modules)  # four finished trials are among the best five
    with open_database(url, create=False) as database:  # four trials with rates a hundredfold apart may well disagree
        ranks = suggested_ranks(database, "tiny")
    assert ranks is None or set(ranks) == {module.module for module in found[0]}


def test_adalora_is_a_method_of_a_search(searched: Callable[[dict[str, str]], tuple[str, Importances]]) -> None:
    _, found = searched({"target: qv": "target: qv, method: adalora", "low: 1, high: 8": "low: 2, high: 3"})
    assert set(found) == {0, 1, 2, 3}
    assert {sum(module.rank for module in modules) for modules in found.values()} <= {8, 12}  # rank x 4 modules


def test_importance_can_be_turned_off(searched: Callable[[dict[str, str]], tuple[str, Importances]]) -> None:
    assert searched({"keep: 2": "keep: 2, importance: false"})[1] == {}
