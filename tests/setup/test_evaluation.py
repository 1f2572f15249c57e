"""Measuring costs little where the file leaves it open; it is chosen once, and kept for the study."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from automl.lora import Hyperparameters
from automl.results.recorded import GROUND
from automl.setup.evaluation import LEAST_ROWS, evaluations, in_words, measured_rows, settle_evaluation
from automl.setup.prepare import Inputs, prepare
from automl.space.load import load_space, parse_space
from automl.space.spec import SweepSpec
from automl.storage.sql import open_database
from automl.study.curves import rungs
from automl.sweep.run import run_sweep
from automl.trial import TrialSpec
from tests.sweep.tiny_world import make_world

STEP_PASSES = 2.25
"""Rows evaluated in the time of one row's training step (benchmarks.packed_step)."""


@pytest.fixture(scope="module")
def open_spec(tmp_path_factory: pytest.TempPathFactory) -> SweepSpec:
    """A study whose file leaves open when trials are measured."""
    folder = tmp_path_factory.mktemp("evaluation")
    path = make_world(folder, pruner="halving", steps=30)
    path.write_text(_without_key(path.read_text(encoding="utf-8")), encoding="utf-8")
    spec = load_space(path)
    run = replace(spec.run, output=folder / "output")
    return replace(spec, storage_url=f"sqlite:///{folder}/search.db", run=run)


def _without_key(text: str) -> str:
    assert ", evaluate_every: 5" in text
    return text.replace(", evaluate_every: 5", "")


@pytest.fixture(scope="module")
def inputs(open_spec: SweepSpec, shared_cache: Path) -> Inputs:
    return prepare(open_spec, shared_cache)


@pytest.mark.parametrize("batch_size", [8, 16, 64])
@pytest.mark.parametrize("steps", [80, 120, 420, 5000])
@pytest.mark.parametrize("rows", [160, 256, 2000])
def test_measuring_takes_a_fifth_of_the_time_at_most(batch_size: int, steps: int, rows: int) -> None:
    chosen = evaluations(steps, every=steps // 12, first_rung=2, batch_size=batch_size, rows=rows)
    spent = 0
    for step, used in chosen[:-1]:
        spent += used
        cost = spent / (STEP_PASSES * batch_size)
        assert cost / (cost + step) <= 0.2 or all(each == LEAST_ROWS for _, each in chosen if _ <= step)
    assert chosen[-1] == (steps, rows)


def test_trials_are_measured_where_halving_judges_them() -> None:
    for first_rung in (1, 2, 3, 5):
        chosen = [step for step, _ in evaluations(120, every=10, first_rung=first_rung, batch_size=8, rows=256)]
        assert set(rungs(10, 120, first_rung)) <= set(chosen)
        assert chosen == sorted(set(chosen))


@pytest.mark.parametrize("rows", [160, 2000])
@pytest.mark.parametrize("steps", [12, 30, 120, 420])
def test_best_checkpoints_are_chosen_among_values_that_compare(steps: int, rows: int) -> None:
    chosen = evaluations(steps, every=steps // 12, first_rung=2, batch_size=8, rows=rows, has_best=True)
    due = [step for step, _ in chosen]
    assert set(rungs(steps // 12, steps, 2)) <= set(due)
    assert due == sorted(set(due))
    assert chosen[-1] == (steps, rows)
    assert len({used for step, used in chosen[:-1] if step > due[1]}) == 1, "the same rows after the first rung"
    assert all(after - before <= steps / 4 for before, after in pairwise(due))


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_trials_are_measured_at_their_end(steps: int) -> None:
    chosen = evaluations(steps, every=1, first_rung=2, batch_size=8, rows=99, has_best=True)
    assert chosen[-1] == (steps, 99)
    assert [step for step, _ in chosen] == list(range(1, steps + 1))


def test_a_study_of_before_is_measured_as_it_was(open_spec: SweepSpec, inputs: Inputs) -> None:
    recorded = {"model": "m", "precision": "fp32"}  # what older versions wrote down
    settled = settle_evaluation(open_spec, inputs, recorded).search
    assert (settled.evaluate_every, settled.evaluations) == (10, ())


def test_what_the_first_run_recorded_holds(open_spec: SweepSpec, inputs: Inputs) -> None:
    steps = open_spec.search.steps
    recorded = {"evaluate_every": 3, "evaluations": [[3, 32], [steps, 40]]}
    settled = settle_evaluation(open_spec, inputs, recorded).search
    assert (settled.evaluate_every, settled.evaluations) == (3, ((3, 32), (steps, 40)))


def test_a_change_of_steps_that_the_user_wants_is_followed(open_spec: SweepSpec, inputs: Inputs) -> None:
    recorded = {"evaluate_every": 3, "evaluations": [[3, 32], [open_spec.search.steps + 5, 40]]}
    settled = settle_evaluation(open_spec, inputs, recorded).search
    assert settled.evaluations is not None
    assert settled.evaluations[-1][0] == open_spec.search.steps


def test_what_the_file_says_stays(open_spec: SweepSpec, inputs: Inputs) -> None:
    said = replace(open_spec, search=replace(open_spec.search, evaluate_every=2, evaluations=()))
    assert settle_evaluation(said, inputs) == said
    assert in_words(said.search) == "every 2"
    assert measured_rows(said, 20) == 20 * -(-said.search.steps // 2)


def test_the_fingerprint_of_a_file_without_the_key_is_what_it_was(tmp_path: Path) -> None:
    text = make_world(tmp_path).read_text(encoding="utf-8")
    said = text.replace("evaluate_every: 5", "evaluate_every: 10")
    left_out = parse_space(_without_key(text), "space", tmp_path)
    assert left_out.sha256 == parse_space(said, "space", tmp_path).sha256


def test_a_search_measures_so_and_records_it(open_spec: SweepSpec, shared_cache: Path) -> None:
    run_sweep(open_spec, shared_cache)
    with open_database(open_spec.storage_url, create=False) as database:
        store = database.store(open_spec.study)
        recorded = store.last_event(GROUND)
        assert recorded is not None
        due = [step for step, _ in recorded["evaluations"]]
        measured = {item.step for item in store.measurements()}
        assert due[-1] == open_spec.search.steps
        assert measured == set(due)


def test_rows_of_a_measurement() -> None:
    due = ((4, 32), (9, 50))
    spec = TrialSpec(
        number=0, params={}, hyper=Hyperparameters(), seed=0, data_seed=0, steps=9, evaluate_every=2, evaluations=due
    )
    assert [step for step in range(1, 10) if spec.is_due(step)] == [4, 9]
    assert (spec.rows_at(4), spec.rows_at(9)) == (32, 50)
    assert replace(spec, evaluations=()).rows_at(4) is None
