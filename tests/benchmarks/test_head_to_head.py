"""Searches against each other: the same ground for all, what counts of each, and results that are stored at once."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import head_to_head
from benchmarks.baselines.search import completed
from benchmarks.head_to_head import FRESH, Key, RunFile, rows_of
from benchmarks.head_to_head_arms import ARMS, Seen, incumbents
from benchmarks.head_to_head_world import edited, open_world
from benchmarks.squeeze_world import write_quick_set

Document = Callable[[Any, list[str]], dict[str, Any]]


def test_what_is_best_so_far_is_better_than_all_before() -> None:
    seen = [Seen(3.0, 0.5, {"rank": 3}), Seen(1.0, 0.4, {"rank": 1}), Seen(2.0, 0.4, {"rank": 2})]
    assert [each.drawn["rank"] for each in incumbents(seen)] == [1, 3]


def test_all_are_given_what_init_writes(tmp_path: Path) -> None:
    world = open_world(write_quick_set(tmp_path / "tiny"), tmp_path / "tiny", tmp_path / "work", epochs=2)
    document = world.document()
    assert {"rank", "alpha_ratio", "learning_rate", "target"} <= document["space"].keys()
    assert document["examples"] == 2 * 64
    assert set(document["targets"]) == set(document["space"]["target"]["choices"])
    text = edited(json.dumps(world.starter), world, 5)
    assert all(path in text for path in world.files.values())
    assert "seed: 5" in text
    assert str(tmp_path) not in json.dumps(world.plan)
    wanted = completed(
        document | {"at_alpha": 32.0}, {"rank": 2, "alpha_ratio": 4.0, "learning_rate": 1e-3, "target": "qv"}
    )
    assert wanted["alpha"] == 8.0
    assert wanted["learning_rate"] == pytest.approx(2e-3)
    assert wanted["steps"] == 16 == document["evaluations"] * wanted["evaluate_every"]


def run_of(key: Key, folder: Path, tests: Sequence[float], touched: int = 5) -> RunFile:
    """A search that found so many configurations, a minute apart, worth this on test rows."""
    found = [{"at": 60.0 * (place + 1), "value": place / 10, "drawn": {}} for place in range(len(tests))]
    made = RunFile(folder / key.file, {"plan": {}, "search": {"touched": touched, "incumbents": found}, "anew": {}})
    for place, seed in made.missing:
        made.add(place, seed, {"test": tests[place]})
    return made


def test_rows_compare_searches_of_the_same_seed(tmp_path: Path) -> None:
    tests = {
        Key("trec", "ours", 0): [0.90],
        Key("trec", "ours", 1): [0.80, 0.92],
        Key("trec", "random", 0): [0.50, 0.70, 0.86],
        Key("trec", "random", 1): [0.88],
        Key("trec", "random", 2): [],
    }
    found = {row["arm"]: row for row in rows_of("trec", {key: run_of(key, tmp_path, of) for key, of in tests.items()})}
    assert found["ours"]["test rows"] == "0.9100"
    assert found["ours"]["minutes to 95 %"] == "2.0"
    assert found["ours"]["reached it"] == 2
    assert found["random"]["test rows"] == f"{(0.86 + 0.88) / 3:.4f}"
    assert str(found["random"]["ours better by"]).startswith("+0.0400 [")
    assert found["random"]["minutes to 95 %"] == "never"
    assert found["random"]["reached it"] == 1


def test_a_search_that_lacks_trainings_anew_is_not_in_the_table(tmp_path: Path) -> None:
    key = Key("trec", "ours", 0)
    run = run_of(key, tmp_path, [0.5, 0.9])
    assert run.seconds_to(0.9) == 120.0
    assert run.seconds_to(0.91) == math.inf
    del run.document["anew"][f"1/{FRESH[2]}"]
    assert run.missing == [(1, FRESH[2])]
    assert list(rows_of("trec", {key: run})) == []


@pytest.mark.slow
def test_it_goes_on_where_it_stopped(tmp_path: Path, document: Document) -> None:
    given = ["--quick", "--arms", "trainer_median,syne_asha", "--workers", "1", "--work", str(tmp_path / "work")]
    found = document(head_to_head.main, given)
    ((name, run),) = found["searches"].items()
    assert name == "tiny-trainer_median-0.json"
    assert run["search"]["touched"] == 2
    assert len(run["anew"]) == len(FRESH) + len(run["search"]["incumbents"]) - 1
    assert all(0 <= each["test"] <= 1 for each in run["anew"].values())
    path = tmp_path / "work" / "recorded" / name
    last = f"{len(run['search']['incumbents']) - 1}/{FRESH[1]}"
    again = run["anew"].pop(last)
    path.write_text(json.dumps(run), encoding="utf-8")
    result = document(head_to_head.main, given)["searches"][name]
    assert result == run | {"anew": run["anew"] | {last: again}}
    assert document(head_to_head.main, [*given, "--only-table"])["searches"][name] == result


@pytest.mark.slow
@pytest.mark.full  # its parts are tested above, and what it starts by the tests of the executors
@pytest.mark.ray
@pytest.mark.skipif(" " in sys.prefix, reason="the arms with plain Ray cannot start from a path with blanks (ray 2.60)")
def test_all_arms_search(tmp_path: Path, document: Document) -> None:
    arms = "ours,random,ray_asha"
    found = document(head_to_head.main, ["--quick", "--arms", arms, "--work", str(tmp_path / "work")])
    assert {row["arm"] for row in found["results"]} == set(arms.split(","))
    assert all(run["search"]["touched"] == 2 for run in found["searches"].values())


def test_another_plan_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_of(Key("tiny", "random", 0), tmp_path / "recorded", [0.5])
    assert head_to_head.main(["--quick", "--arms", "random", "--work", str(tmp_path)]) == 2
    assert "tiny-random-0.json: was made with other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--sets", "trek"], "--sets: there is no 'trek'"),
        (["--arms", "hours"], f"--arms: there is no 'hours'; there are {', '.join(ARMS)}"),
        (["--minutes", "0"], "--minutes: 0 is no time"),
        (["--sets", "trec", "--data", "nowhere"], "no trec/train.jsonl"),
    ],
)
def test_what_cannot_be_measured_is_said(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert head_to_head.main(given) == 2
    assert said in capsys.readouterr().out


def test_what_is_no_search_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trec-ours-0.json").write_text("{}", encoding="utf-8")
    assert head_to_head.main(["--only-table", "--record", str(tmp_path)]) == 2
    assert "trec-ours-0.json: no search of benchmarks.head_to_head" in capsys.readouterr().out
