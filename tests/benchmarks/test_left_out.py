"""What is said of tasks that a policy was not chosen on: who is chosen without a task, against whom, and how surely."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import left_out
from benchmarks.left_out import AT_ALPHA, chosen, read

Document = Callable[[Any, list[str]], dict[str, Any]]

REGRETS = {
    "taskset": {"halving": (0.2, 0.3, 0.4), "halving:first_rung=1": (0.1, 0.4, 0.5), "tpe+sha3": (0.5, 0.5, 0.5)},
    "lora": {"halving": (0.3, 0.3), "halving:first_rung=1": (0.2, 0.4), "tpe+sha3": (0.6, 0.4)},
}
"""By kind and arm, of each task; `random+none` and the top-k rule are the same everywhere."""


def rows(path: Path, regrets: Mapping[str, Mapping[str, tuple[float, ...]]], seeds: int = 4) -> Path:
    """Searches whose regret is as given at all budgets, on average over seeds that differ as much for all arms."""
    lines = [
        {
            "arm": arm,
            "kind": kind,
            "task": f"{kind.removesuffix('-at-alpha')}-{number}",
            "workers": workers,
            "seed": 100 + seed,
            "regret": dict.fromkeys(("2", "5", "10", "20"), value + 0.01 * (seed - (seeds - 1) / 2)),
        }
        for kind, arms in regrets.items()
        for arm, values in {**arms, "random+none": (0.9, 0.9, 0.9), "top-k(3)": (0.8, 0.8, 0.8)}.items()
        for number, value in enumerate(values[: len(next(iter(arms.values())))])
        for workers in (1, 8)
        for seed in range(seeds)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_task_does_not_choose_its_own_policy(tmp_path: Path) -> None:
    searches = read(rows(tmp_path / "rows.jsonl", {"taskset": REGRETS["taskset"]}))
    policies = ["halving", "halving:first_rung=1"]
    # On all three tasks together the first is the better one, and each task alone might say otherwise.
    assert chosen(searches, policies, ("taskset", "taskset-0")) == "halving"
    assert chosen(searches, policies, ("taskset", "taskset-2")) == "halving"
    uneven = {"halving": (0.3, 0.3), "halving:first_rung=1": (0.0, 0.4), "tpe+sha3": (0.5, 0.5)}
    searches = read(rows(tmp_path / "rows.jsonl", {"taskset": uneven}))
    assert [chosen(searches, policies, ("taskset", f"taskset-{number}")) for number in (0, 1)] == [
        "halving",
        "halving:first_rung=1",
    ]


def test_kinds_of_tables_count_alike(tmp_path: Path) -> None:
    many = {"halving": (0.2, 0.2, 0.2), "halving:first_rung=1": (0.21, 0.21, 0.21), "tpe+sha3": (0.5, 0.5, 0.5)}
    few = {"halving": (0.4,), "halving:first_rung=1": (0.3,), "tpe+sha3": (0.5,)}
    searches = read(rows(tmp_path / "rows.jsonl", {"taskset": many, "lora": few}))
    assert chosen(searches, ["halving", "halving:first_rung=1"], ("taskset", "taskset-0")) == "halving:first_rung=1"


def test_rivals_are_the_best_in_hindsight(tmp_path: Path, document: Document) -> None:
    path = rows(tmp_path / "rows.jsonl", REGRETS)
    found = document(left_out.main, ["--rows", str(path)])
    results = {(row["tables"], row["at once"], row["found"]["rival"]): row["found"] for row in found["results"]}
    assert results.keys() == {
        (kind, workers, rival) for kind in REGRETS for workers in (1, 8) for rival in ("tpe+sha3", "top-k(3)")
    }
    against = results["taskset", 8, "tpe+sha3"]
    assert against["regret"] == pytest.approx([0.3] * 4)
    assert against["difference"][:3] == pytest.approx([-0.2] * 3)
    assert against["better"] == 3


def test_another_coordinate_is_a_policy_that_differs_on_lora_alone(tmp_path: Path) -> None:
    moved = {"halving": (0.1, 0.1), "halving:first_rung=1": (0.3, 0.3), "tpe+sha3": (0.1, 0.1)}
    searches = read(rows(tmp_path / "rows.jsonl", {**REGRETS, "lora-at-alpha": moved}))
    policies = [arm for arm in searches.by_arm if not left_out.is_rival(arm)]
    assert chosen(searches, policies, ("taskset", "taskset-1")) == "halving" + AT_ALPHA
    place = next(place for place in searches.places if place.kind == "taskset")
    assert searches.at("halving" + AT_ALPHA, place) == searches.at("halving", place)
    assert all(row["found"].rival in {"tpe+sha3", "top-k(3)"} for row in left_out.judged(searches, policies))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "rows.jsonl:1: no row of benchmarks.replay"),
        ('{"arm": "halving"}', "rows.jsonl:1: no row of benchmarks.replay"),
        ("", "no rows of 'ours'"),
    ],
)
def test_what_are_no_rows_is_said(line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line, encoding="utf-8")
    assert left_out.main(["--rows", str(path)]) == 2
    assert said in capsys.readouterr().out


def test_an_arm_that_lacks_a_task_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = rows(tmp_path / "rows.jsonl", REGRETS)
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not ('"tpe+sha3"' in line and '"lora-1"' in line)]
    path.write_text("\n".join(kept), encoding="utf-8")
    assert left_out.main(["--rows", str(path)]) == 2
    assert "tpe+sha3 has not searched all tasks with seeds 100 to 103" in capsys.readouterr().out
    assert left_out.main(["--rows", str(path), "--policies", "peer"]) == 2
    assert "no rows of 'peer'" in capsys.readouterr().out


def test_numbers_of_trials_at_once_may_be_left_aside(tmp_path: Path, document: Document) -> None:
    path = rows(tmp_path / "rows.jsonl", REGRETS)
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not ('"halving"' in line and '"workers": 8' in line)]
    path.write_text("\n".join(kept), encoding="utf-8")
    assert left_out.main(["--rows", str(path)]) == 2
    found = document(left_out.main, ["--rows", str(path), "--workers", "1"])
    assert {row["at once"] for row in found["results"]} == {1}
