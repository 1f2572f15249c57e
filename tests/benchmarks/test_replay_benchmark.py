"""The replay of recorded curves on a small table: budgets, ranking, and that SQL changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl.execution.simulated import CurveTable
from benchmarks import replay
from benchmarks.curve_file import WHOLE, Curve, CurveFile, Key
from benchmarks.replay_arms import by_optuna, by_top_k, product
from benchmarks.replay_world import AT_ALPHA, Recorded, Score, of_trainings, recorded, scaled, tasks


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


@pytest.mark.parametrize("arm", ["halving", "none", "tpe+sha1", "random+none", "top-k(1)"])
def test_a_search_ends_where_a_small_table_is_used_up(world: Recorded, arm: str) -> None:
    table = world.table
    few = scaled(
        CurveTable(names=table.names, configurations=table.configurations[:6], curves=table.curves[:6], log=table.log)
    )
    if arm.startswith("top-k"):
        result = by_top_k(few, 0, 2, evaluations=1, budgets=(1, 20))
    elif "+" in arm:
        sampler, pruner = arm.split("+")
        result = by_optuna(few, 0, 2, sampler=sampler, pruner=pruner, budgets=(1, 20))
    else:
        result = product(few, 0, 2, pruner=arm, is_sql=False, budgets=(1, 20))
    assert result.regret[20] <= result.regret[1]
    assert result.started in (0, 6)  # the top-k rule does not tell


@pytest.fixture
def trainings(tmp_path: Path) -> CurveFile:
    """A whole table of trainings, the better the nearer rate x sqrt(alpha) is to 1e-2; one with a second seed."""
    file = CurveFile(path=tmp_path / "toy.npz", plan={}, metrics=["accuracy", "loss"])
    draws = np.random.default_rng(1)
    for number in range(WHOLE):
        rank, ratio, rate = int(draws.integers(1, 65)), float(draws.choice([0.5, 4.0])), 10 ** draws.uniform(-4, -1)
        alpha = rank * ratio
        accuracy = 0.9 - 0.2 * abs(np.log10(rate * alpha**0.5 / 1e-2)) * np.array([0.5, 1.0, 1.0])
        values = np.stack([accuracy, 1 - accuracy], axis=1)
        given = {"rank": rank, "alpha_ratio": ratio, "learning_rate": rate, "alpha": alpha}
        file.curves[Key(number, 0)] = Curve(
            configuration=given,
            validation=values,
            test=values - 0.1,
            seconds=np.ones(3),
            tokens=np.ones(3),
            losses=1 - accuracy,
        )
    first = file.curves[Key(0, 0)]
    file.add(Key(0, 1), first)
    return file


def test_trainings_are_a_table_of_losses(trainings: CurveFile) -> None:
    plain = recorded(trainings.path.parent, "lora", "toy")
    assert plain.table.curves.shape == (WHOLE, 3)
    assert plain.table.curves[5, 1] == pytest.approx(1 - trainings.curves[Key(5, 0)].validation[1, 0])
    assert plain.test is not None
    assert plain.test - plain.table.curves == pytest.approx(np.full((WHOLE, 3), 0.1))
    assert set(plain.table.names) == {"rank", "alpha_ratio", "learning_rate"}


def test_the_other_coordinate_takes_alpha_out_of_the_best_rate(trainings: CurveFile) -> None:
    moved = of_trainings(trainings, at_alpha=True).table
    rates = moved.configurations[:, moved.names.index("learning_rate")]
    best = rates[np.argsort(moved.curves[:, -1])[:5]]
    assert np.log10(best) == pytest.approx(np.full(5, np.log10(1e-2 / AT_ALPHA**0.5)), abs=0.2)


def test_tables_of_trainings_are_searched_when_they_are_whole(
    trainings: CurveFile, document: Callable[[Any, list[str]], dict[str, Any]]
) -> None:
    folder = trainings.path.parent
    arms = "random/halving:first_rung=1;explore=0.4,tpe+sha3"
    given = ["--tables", "lora", "--trainings", str(folder), "--workers", "2", "--seeds", "1", "--jobs", "1"]
    found = document(replay.main, [*given, "--arms", arms])
    assert [row["task"] for row in found["searches"]] == ["toy", "toy"]
    assert set(found["results"][0]["test_mean"]) == {"2", "5", "10", "20"}
    del trainings.curves[Key(7, 0)]
    trainings.add(Key(0, 1), trainings.curves[Key(0, 0)])
    assert tasks(folder, "lora") == []
    assert replay.main(given) == 2


def test_unknown_tables_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        replay.main(["--tables", "lora2"])
    assert "there are no tables 'lora2'; there are taskset" in capsys.readouterr().err
