"""What `search:` means: a file that loads can be searched, and what is rarely meant is said beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.errors import ConfigError
from automl.space.advice import search_advice
from automl.space.budget import coverage_advice
from automl.space.load import parse_space
from automl.space.spec import SearchSpace, SweepSpec
from automl.study.budget import Budget
from automl.study.feasibility import Feasibility
from automl.study.pruning import make_pruner
from automl.study.sampling import make_sampler

HEAD = "version: 1\nstudy: s\nmodel: org/name\ntask: {type: classification, data: a.csv}\n"
GRID = (
    "space:\n  rank: {type: categorical, choices: [2, 4, 8, 16, 32, 64]}\n"
    "  dropout: {type: float, low: 0, high: 0.3, step: 0.1}\n"
    "  target: {type: categorical, choices: [qv, mlp, attention, all-linear]}\n"
)
LARGE = "space: {rank: {type: int, low: 1, high: 400}, batch_size: {type: int, low: 1, high: 400}}\n"


def spec_of(text: str) -> SweepSpec:
    return parse_space(HEAD + text, "space.yaml", Path())


def advice_of(text: str) -> list[str]:
    spec = spec_of(text)
    return search_advice(spec.space, spec.search)


COUNT = st.one_of(st.none(), st.integers(0, 12), st.integers(100, 300))
PRUNERS = st.one_of(
    st.fixed_dictionaries({"name": st.just("halving"), "first_rung": COUNT, "reduction_factor": COUNT}),
    st.fixed_dictionaries({"name": st.just("peer"), "first_rung": COUNT, "min_peers": COUNT}),
    st.fixed_dictionaries({"name": st.just("median"), "n_warmup_steps": COUNT, "interval_steps": COUNT}),
    st.fixed_dictionaries({"name": st.just("percentile"), "percentile": COUNT, "n_min_trials": COUNT}),
    st.fixed_dictionaries(
        {
            "name": st.sampled_from(["successive-halving", "hyperband"]),
            "min_resource": COUNT,
            "reduction_factor": COUNT,
            "bootstrap_count": COUNT,
        }
    ),
    st.fixed_dictionaries(
        {"name": st.just("hyperband"), "min_resource": COUNT, "max_resource": COUNT | st.just("auto")}
    ),
    st.fixed_dictionaries(
        {"name": st.just("patient"), "patience": COUNT, "wrapped": st.sampled_from(["none", "peer", "hyperband"])}
    ),
    st.fixed_dictionaries({"name": st.just("threshold"), "lower": COUNT, "upper": COUNT}),
)


@settings(max_examples=150, deadline=None)
@given(
    pruner=PRUNERS,
    sampler=st.sampled_from(["tpe", "cmaes", "nsga2", "qmc", "random", "grid"]),
    steps=st.integers(1, 200),
    every=st.one_of(st.none(), st.integers(1, 60)),
    max_steps=COUNT,
    space=st.sampled_from(
        [GRID, "space: {rank: {type: int, low: 1, high: 400}, batch_size: {type: int, low: 1, high: 400}}\n"]
    ),
)
def test_what_loads_is_never_refused_by_the_search(
    pruner: dict[str, Any], sampler: str, steps: int, every: int | None, max_steps: int | None, space: str
) -> None:
    given = {name: value for name, value in pruner.items() if value is not None}
    search = {"sampler": sampler, "pruner": given, "steps": steps, "evaluate_every": every, "max_steps": max_steps}
    text = ", ".join(f"{key}: {value}" for key, value in search.items() if value is not None).replace("'", "")
    try:
        spec = spec_of(space + f"search: {{{text}}}")
    except ConfigError:
        return
    make_pruner(spec.search)
    make_sampler(spec.search, spec.space, Feasibility(spec.space, lambda hyper: {}), run=1)
    Budget(spec.search)


def test_a_grid_is_searched_whole_unless_the_file_says_otherwise() -> None:
    assert spec_of(GRID + "search: {sampler: grid}").search.trials == 96
    assert spec_of("space: {rank: auto, target: auto}\nsearch: {sampler: grid}").search.trials == 6 * 4
    assert spec_of(GRID + "search: {sampler: grid, trials: 24}").search.trials == 24
    assert spec_of(GRID + "search: {sampler: tpe}").search.trials == 24
    entries = ", ".join("{rank: 2}" for _ in range(30))
    assert len(spec_of(GRID + f"search: {{sampler: grid}}\nenqueue: [{entries}]").space.enqueue) == 30


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GRID + "search: {sampler: grid, pruner: none}", []),
        (GRID, []),
        (GRID + "search: {sampler: grid}", ["pruner: halving trains few points of the grid to the last step"]),
        (GRID + "search: {sampler: grid, pruner: none, trials: 24}", ["sampler: grid tries 24 of 96 configurations"]),
        (GRID + "search: {trials: 100}", ["space: it has 96 configurations, fewer than trials 100"]),
        ("space: {}\nfixed: {rank: 4}", ["space: nothing is searched; all 24 trials train one configuration"]),
        (
            GRID + "search: {pruner: {name: peer, first_rung: 12}, evaluate_every: 10}",
            ["pruner: peer does not act before step 120, and a trial has 120"],
        ),
        (GRID + "search: {pruner: {name: median, n_warmup_steps: 500}}", ["pruner: median does not act before"]),
        (GRID + "search: {pruner: {name: successive-halving, min_resource: 500}}", ["pruner: successive-"]),
    ],
)
def test_what_is_rarely_meant_is_said(text: str, said: list[str]) -> None:
    found = advice_of(text)
    assert len(found) == len(said)
    assert all(line.startswith(start) for line, start in zip(found, said, strict=True))


def test_a_space_without_parameters_is_not_finite() -> None:
    assert search_advice(SearchSpace(parameters=()), spec_of("").search)[0].startswith("space: nothing is searched")


def test_a_trial_that_sees_too_little_of_the_data_is_said_with_what_would_do() -> None:
    (line,) = coverage_advice(4510, 150, steps=120, batch_size=8)
    assert line == (
        "a trial of 120 steps of 8 rows sees 960 of 4,510 training rows (0.2 epochs), about 6.4 of each of 150"
        " classes; 3 epochs and 20 of each class take 1,692 steps (or 423 of 32)"
    )
    (line,) = coverage_advice(300, 150, steps=60, batch_size=32)
    assert line.endswith("3 epochs and 20 of each class take 94 steps"), "few of each class, though six epochs"
    (line,) = coverage_advice(10_000, 0, steps=120, batch_size=16)
    assert line.endswith("(0.2 epochs); 3 epochs take 1,875 steps (or 938 of 32)")


def test_a_trial_that_sees_enough_is_left_in_peace() -> None:
    assert coverage_advice(4510, 150, steps=423, batch_size=32) == []
    assert coverage_advice(900, 0, steps=120, batch_size=8) == []
