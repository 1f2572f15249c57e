"""The replay of recorded curves on a small table: budgets, ranking, and that SQL changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl.execution.simulated import CurveTable
from benchmarks import replay
from benchmarks.replay_arms import by_optuna, by_top_k, product
from benchmarks.replay_world import Recorded, Score, scaled


@pytest.fixture(scope="module")
def world() -> Recorded:
    """60 configurations of 8 evaluations; most stay at chance, the best learning rate is 1e-3, some diverge."""
    draws = np.random.default_rng(0)
    rates = 10 ** draws.uniform(-6, 0, size=60)
    far = np.abs(np.log10(rates) + 3)
    floor = np.where(far < 1, 0.2 + 0.3 * far, 0.69)[:, None]
    curves = floor + (0.7 - floor) * np.exp(-np.arange(8) / 2.0) + draws.normal(0, 0.002, size=(60, 8))
    curves[rates > 0.3, 3:] = np.nan
    table = CurveTable(names=("lr",), configurations=rates[:, None], curves=curves, log=frozenset({"lr"}))
    return scaled(table)


def test_the_scale_of_the_regret(world: Recorded) -> None:
    score = Score(world=world, budgets=(1,))
    best = int(np.nanmin(world.table.curves, axis=1).argmin())
    for evaluation in range(1, 9):
        score.saw(best, evaluation)
    assert score.is_done
    assert score.regret == {1: pytest.approx(0.0)}
    assert world.chance == pytest.approx(0.7, abs=0.02)


@pytest.mark.parametrize("workers", [1, 3])
def test_sql_and_memory_decide_alike(world: Recorded, workers: int) -> None:
    sql = product(world, 3, workers, is_sql=True, budgets=(1, 2))
    memory = product(world, 3, workers, is_sql=False, budgets=(1, 2))
    assert sql == memory
    assert sql.killed == 0
    assert set(sql.regret) == {1, 2}


@pytest.mark.parametrize("pruner", ["none", "sha1", "median"])
def test_optuna_by_itself_spends_the_same_budget(world: Recorded, pruner: str) -> None:
    result = by_optuna(world, 0, 2, sampler="random", pruner=pruner, budgets=(1, 3))
    assert set(result.regret) == {1, 3}
    assert result.regret[3] <= result.regret[1]


@pytest.mark.parametrize("workers", [1, 4])
def test_the_top_k_rule_finishes_what_looks_best(world: Recorded, workers: int) -> None:
    result = by_top_k(world, 0, workers, evaluations=3, budgets=(2, 6))
    assert result.regret[6] < 0.5


def test_the_command_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main(["--data", str(tmp_path)]) == 2
    assert "no curves under" in capsys.readouterr().out


def test_the_command_on_a_small_copy_of_the_data(
    world: Recorded, tmp_path: Path, document: Callable[[Any, list[str]], dict[str, Any]]
) -> None:
    folder = tmp_path / "hpo_taskset_nlp"
    folder.mkdir()
    arrays = {"toy__hp": world.table.configurations, "toy__valid_loss": world.table.curves}
    np.savez(folder / "taskset_nlp.npz", hp_names=np.array(["lr"]), toy__test_loss=world.table.curves, **arrays)
    rows = tmp_path / "rows.jsonl"
    arguments = ["--data", str(tmp_path), "--arms", "random+none,top-k(2)", "--workers", "1", "--seeds", "1"]
    found = document(replay.main, [*arguments, "--jobs", "1", "--rows", str(rows)])
    assert [result["arm"] for result in found["results"]] == ["random+none", "top-k(2)"]
    assert len(rows.read_text().splitlines()) == 2
    assert len(found["searches"]) == 2
