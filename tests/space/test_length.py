"""How long a trial is in epochs, examples or tokens, and how steps of trials with other batch sizes compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from automl.errors import ConfigError
from automl.space.length import (
    Seen,
    grid_of,
    grid_steps,
    own_evaluations,
    own_step,
    record_of,
    settle_length,
    with_recorded_length,
)
from automl.space.load import parse_space
from automl.space.spec import CategoricalParameter, Length, SearchSettings, SearchSpace, SweepSpec

FILE = """\
version: 1
study: s
model: some/model
task: {{type: classification, data: ./d.jsonl}}
search: {{{search}}}
"""


def spec_of(search: str) -> SweepSpec:
    return parse_space(FILE.format(search=search), "space.yaml", Path("/"))


def settled(search: SearchSettings, *, rows: int = 1_000, smallest: int = 8, tokens: float = 20.0) -> SearchSettings:
    return settle_length(search, Seen(rows, 4, 64, lambda: tokens), smallest=smallest, source="space.yaml")


@pytest.mark.parametrize(
    ("said", "steps"),
    [
        ("epochs: 3", 375),
        ("epochs: 0.5", 63),
        ("epochs: auto", 376),  # three passes, in whole batches of the size that suits so many rows
        ("examples: 1000", 125),
        ("examples: 3", 1),
        ("tokens: 4000", 25),
    ],
)
def test_steps_follow_from_the_rows(said: str, steps: int) -> None:
    found = settled(spec_of(said).search)
    assert (found.steps, found.step_rows, found.evaluate_every) == (steps, 8, steps // 12 or 1)
    assert settled(found, rows=9) is found


def test_steps_are_as_they_were() -> None:
    spec = spec_of("steps: 90")
    assert settled(spec.search) is spec.search
    assert (spec.search.length, spec.search.step_rows, record_of(spec.search)) == (None, None, {})
    assert own_step(spec.search, 90, 64) == 90
    assert grid_steps(spec.search, 10, 64) == (10,)


@pytest.mark.parametrize(
    ("said", "place", "message"),
    [
        ("epochs: 3, steps: 120", "5:20", "search.epochs: says again how long a trial is, as steps does"),
        ("epochs: 3, tokens: 5", "5:20", "search.tokens: says again how long a trial is, as epochs does"),
        ("epochs: 0", "5:18", "search.epochs: 0 must be auto or a number above 0 and at most 10,000"),
        ("epochs: .nan", "5:18", "search.epochs"),
        ("epochs: many", "5:18", "search.epochs: 'many'"),
        ("examples: 1.5", "5:20", "search.examples: 1.5"),
        ("tokens: -1", "5:18", "search.tokens: -1"),
        ("epochs: true", "5:18", "search.epochs"),
    ],
)
def test_bad_lengths_are_refused_at_their_place(said: str, place: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        spec_of(said)
    (problem,) = refused.value.problems
    assert message in str(problem)
    assert problem.line == int(place.split(":")[0])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "epochs: 3, evaluate_every: 400",
            "search.evaluate_every: 400 is above the steps of a trial; 3 epochs are 375",
        ),
        ("epochs: 3, max_steps: 300", "search.max_steps: 300 is less than one trial takes"),
        ("epochs: 3, pruner: {name: hyperband, min_resource: 380}", "search.pruner.min_resource"),
        ("examples: 9_000_000_000", "1,125,000,000 steps of 8 rows; 10,000,000 are the most"),
    ],
)
def test_what_does_not_fit_the_data_is_refused_when_it_is_known(said: str, message: str) -> None:
    with pytest.raises(ConfigError, match=r"^space.yaml") as refused:
        settled(spec_of(said.replace("_", "") if "examples" in said else said).search)
    assert message in str(refused.value)


def test_a_length_gives_a_study_its_meaning_and_steps_keep_theirs() -> None:
    names = ("steps: 120", "epochs: 3", "epochs: auto", "examples: 3", "tokens: 3", "epochs: 4")
    assert len({spec_of(said).sha256 for said in names}) == len(names)
    assert spec_of("steps: 120").sha256 == spec_of("trials: 24").sha256


SPACE = SearchSpace(parameters=(CategoricalParameter(name="batch_size", choices=(4, 16, 64)),))
GRID = SearchSettings(steps=120, step_rows=4, evaluations=((10, 32), (20, 32), (40, 64), (80, 64), (120, 100)))


def test_trials_are_judged_after_as_many_rows_whatever_their_batches() -> None:
    for batch_size, steps in ((4, 120), (16, 30), (64, 8)):
        due = own_evaluations(GRID, batch_size)
        assert due[-1] == (steps, 100) == (own_step(GRID, 120, batch_size), 100)
        for step, _ in due:
            places = grid_steps(GRID, step, batch_size)
            assert all(abs(step * batch_size - place * 4) <= batch_size / 2 or step == 1 for place in places)


def test_one_step_speaks_of_all_places_that_are_nearest_to_it() -> None:
    assert own_evaluations(GRID, 64) == ((1, 32), (3, 64), (5, 64), (8, 100))
    assert [grid_steps(GRID, step, 64) for step in (1, 3, 5, 8)] == [(10, 20), (40,), (80,), (120,)]
    tiny = replace(GRID, steps=3, evaluations=((1, 32), (2, 32), (3, 100)))
    assert own_evaluations(tiny, 64) == ((1, 100),)
    assert grid_steps(tiny, 1, 64) == (1, 2, 3)


def test_batches_smaller_than_those_of_the_grid_make_more_steps() -> None:
    assert [own_step(GRID, step, 2) for step in (0, 10, 120)] == [0, 20, 240]
    assert grid_steps(GRID, 20, 2) == (10,)


def test_a_grid_is_only_said_where_trials_differ() -> None:
    assert grid_of(GRID, SPACE) == {"step_rows": "4"}
    assert grid_of(replace(GRID, step_rows=None), SPACE) == {}
    assert grid_of(replace(GRID, step_rows=8), SearchSpace(parameters=())) == {}


def test_a_study_keeps_the_steps_it_began_with() -> None:
    written = spec_of("epochs: 3").search
    first = replace(settled(written), evaluations=((31, 32), (375, 100)))
    ground = {**record_of(first), "evaluate_every": 31, "evaluations": [[31, 32], [375, 100]]}
    assert with_recorded_length(written, ground) == first
    assert with_recorded_length(spec_of("epochs: 4").search, ground).step_rows is None
    assert with_recorded_length(spec_of("steps: 9").search, ground).steps == 9
    assert with_recorded_length(written, {}) is written


def test_lengths_are_said_in_words() -> None:
    assert [str(Length("epochs", amount)) for amount in (3, 0.5, None)] == [
        "3 epochs",
        "0.5 epochs",
        "as many epochs as the data wants",
    ]
    assert str(Length("tokens", 2_000_000)) == "2,000,000 tokens"
