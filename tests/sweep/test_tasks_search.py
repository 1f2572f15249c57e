"""One file, two customers: their studies are searched side by side, and each is as if it were searched alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from automl.errors import AutomlError, BudgetSpent, DataError, InterruptedSearch
from automl.execution.stop import StopRequest
from automl.results.summary import Summary
from automl.space.load import load_spaces
from automl.space.spec import BudgetSettings, SweepSpec
from automl.storage.overview import study_totals
from automl.storage.sql import open_database
from automl.study.study import Study
from automl.sweep.run import Observer, run_sweep
from automl.sweep.together import run_sweeps
from tests.sweep.tiny_world import make_world


def make_customers(folder: Path, *, slots: int | None = None, trials: int = 3, steps: int = 10) -> Path:
    """The tiny world with a second task, whose rows and number of classes are others."""
    space = make_world(folder, trials=trials, steps=steps, slots=slots)
    lines = [json.loads(line) for line in (folder / "data.jsonl").read_text(encoding="utf-8").splitlines()]
    own = [{"text": row["text"], "label": "bad" if row["label"] == "negative" else "good"} for row in lines[::-2]]
    (folder / "halves.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own), encoding="utf-8")
    text = space.read_text(encoding="utf-8")
    begin, end = text.index("task:"), text.index("space:")
    tasks = """\
tasks:
  - {name: moods, type: classification, data: ./data.jsonl, metric: accuracy, seed: 3}
  - {name: halves, type: classification, data: ./halves.jsonl, metric: loss, fixed: {batch_size: 4}}
"""
    space.write_text(text[:begin] + tasks + text[end:], encoding="utf-8")
    return space


def specs_of(space: Path) -> list[SweepSpec]:
    """The studies, with all they leave behind beside the file."""
    return [
        replace(
            spec,
            run=replace(spec.run, output=space.parent / "out"),
            storage_url=f"sqlite:///{space.parent / 'automl.db'}",
        )
        for spec in load_spaces(space)
    ]


Curve = list[tuple[int, Mapping[str, float]]]


def assert_alike(one: Curve, other: Curve) -> None:
    """To the rounding of sums in another order."""
    for (step, found), (due, wanted) in zip(one, other, strict=True):
        assert step == due
        assert found == pytest.approx(wanted, rel=1e-5, abs=1e-6)


def curves(spec: SweepSpec) -> Mapping[int, Curve]:
    with open_database(spec.storage_url, create=False) as database:
        store = database.store(spec.study)
        return {
            number: [(item.step, item.metrics) for item in store.measurements(number)]
            for number in range(spec.search.trials)
        }


def searched(specs: list[SweepSpec], cache: Path) -> list[Summary]:
    return run_sweeps(specs, cache, observers=[Observer() for _ in specs])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Path, list[Summary]]:
    space = make_customers(tmp_path_factory.mktemp("customers"))
    return space, searched(specs_of(space), shared_cache)


def test_each_study_has_its_trials_its_best_and_its_adapter(world: tuple[Path, list[Summary]]) -> None:
    space, summaries = world
    assert [summary.study for summary in summaries] == ["tiny-moods", "tiny-halves"]
    for summary in summaries:
        assert summary.counts["COMPLETE"] == 3
        assert summary.best is not None
        assert summary.best.adapter is not None
        assert Path(summary.best.adapter).is_relative_to(space.parent / "out" / summary.study)
        labels = json.loads((Path(summary.best.adapter) / "config.json").read_text(encoding="utf-8"))["id2label"]
        assert len(labels) == (3 if summary.study == "tiny-moods" else 2)


def test_the_curves_of_a_task_are_those_of_a_search_of_it_alone(
    world: tuple[Path, list[Summary]], tmp_path: Path, shared_cache: Path
) -> None:
    space = make_customers(tmp_path)
    for together, alone in zip(specs_of(world[0]), specs_of(space), strict=True):
        run_sweep(alone, shared_cache)
        found, wanted = curves(together), curves(alone)
        assert [[step for step, _ in found[number]] for number in found] == [[5, 10]] * 3
        for number, points in wanted.items():
            assert_alike(found[number], points)


def test_the_same_command_again_changes_nothing(world: tuple[Path, list[Summary]], shared_cache: Path) -> None:
    space, summaries = world
    before = [curves(spec) for spec in specs_of(space)]
    again = searched(specs_of(space), shared_cache)
    assert [summary.best for summary in again] == [summary.best for summary in summaries]
    assert [curves(spec) for spec in specs_of(space)] == before


def test_bad_data_of_one_task_ends_all_before_any_trial(tmp_path: Path, shared_cache: Path) -> None:
    space = make_customers(tmp_path)
    (tmp_path / "halves.jsonl").write_text('{"text": "w1", "label": "a"}\n{"text": 3}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"tiny-halves: .*halves\.jsonl, row 2"):
        searched(specs_of(space), shared_cache)
    with open_database(specs_of(space)[0].storage_url, create=False) as database:
        assert database.study_names() == []


class Impatient(Observer):
    """Stops the search when both studies have trials with values."""

    def __init__(self, stop: StopRequest) -> None:
        self._stop = stop
        self._studies: list[Study] = []

    def started(self, study: Study) -> None:
        self._studies.append(study)

    def tick(self) -> None:
        if all(study.latest for study in self._studies):
            self._stop.request("enough")


def test_an_interrupted_search_continues_every_study(
    world: tuple[Path, list[Summary]], tmp_path: Path, shared_cache: Path
) -> None:
    space, stop = make_customers(tmp_path), StopRequest()
    watching = Impatient(stop)
    with pytest.raises(InterruptedSearch, match="the same command continues"):
        run_sweeps(specs_of(space), shared_cache, observers=[watching, watching], stop=stop)
    begun = [curves(spec) for spec in specs_of(space)]
    assert all(any(points for points in each.values()) for each in begun)
    assert not all(len(points) == 2 for each in begun for points in each.values())
    summaries = searched(specs_of(space), shared_cache)
    assert [summary.counts["COMPLETE"] for summary in summaries] == [3, 3]
    for before, found, calm in zip(begun, specs_of(space), specs_of(world[0]), strict=True):
        for number in (number for number, points in before.items() if points):  # others are drawn anew by the next run
            assert_alike(curves(found)[number], curves(calm)[number])


def within(specs: list[SweepSpec], examples: int) -> list[SweepSpec]:
    budget = BudgetSettings(examples=examples)
    return [replace(spec, search=replace(spec.search, budget=budget)) for spec in specs]


def test_tasks_share_a_budget_and_one_that_had_ended_by_then_is_finished(tmp_path: Path, shared_cache: Path) -> None:
    """One at a time: three trials of 10 steps of 8 rows, then half a trial of 10 steps of 4 rows."""
    specs = specs_of(make_customers(tmp_path, slots=1))
    with pytest.raises(BudgetSpent, match=r"search.budget.examples: 260 of 260 examples are spent"):
        searched(within(specs, 260), shared_cache)
    with open_database(specs[0].storage_url, create=False) as database:
        moods, halves = study_totals(database, [spec.study for spec in specs])
        assert (moods.state, moods.spent.examples) == ("finished", 240)
        assert (halves.state, halves.spent.examples) == ("stopped", 20)
        assert halves.last_run is not None
        assert halves.last_run.ended == "budget"
        held = [each.spent.device_seconds or 0.0 for each in (moods, halves)]
        assert all(seconds > 0 for seconds in held)
    with pytest.raises(BudgetSpent, match="nothing was trained"):
        searched(within(specs, 260), shared_cache)
    summaries = searched(within(specs, 360), shared_cache)
    assert [summary.counts["COMPLETE"] for summary in summaries] == [3, 3]
    assert [summary.spending.spent.examples for summary in summaries] == [240, 120]


def test_trained_one_at_a_time_they_share_the_backbone_too(
    world: tuple[Path, list[Summary]], tmp_path: Path, shared_cache: Path
) -> None:
    space = make_customers(tmp_path, slots=1)
    searched(specs_of(space), shared_cache)
    for solo, packed in zip(specs_of(space), specs_of(world[0]), strict=True):
        for number, points in curves(solo).items():
            assert_alike(points, curves(packed)[number])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "{name: halves, type: classification, data: ./halves.jsonl, metric: loss,",
            "{name: halves, type: completion, data: ./halves.jsonl, metric: loss,",
            "type: needs a causal-lm model and the first task a classification one",
        ),
        (
            "classification, data: ./halves.jsonl, metric: loss,",
            "regression, data: ./numbers.jsonl, metric: mse,",
            "type: needs a regression model and the first task a classification one",
        ),
        ("fixed: {batch_size: 4}", "fixed: {batch_size: 4, target: none}", "tiny-halves: "),
    ],
)
def test_what_does_not_fit_is_refused_for_all(
    tmp_path: Path, shared_cache: Path, before: str, after: str, message: str
) -> None:
    space = make_customers(tmp_path)
    numbers = "".join(f'{{"text": "w{3 + row}", "label": {row}}}\n' for row in range(40))
    (tmp_path / "numbers.jsonl").write_text(numbers, encoding="utf-8")
    text = space.read_text(encoding="utf-8")
    assert before in text
    space.write_text(text.replace(before, after) + "targets: {none: [zzz]}\n", encoding="utf-8")
    with pytest.raises(AutomlError, match=message) as refused:
        searched(specs_of(space), shared_cache)
    assert "\n" not in str(refused.value)
    with open_database(f"sqlite:///{tmp_path / 'automl.db'}", create=True) as database:
        assert database.study_names() == []
