from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState

from automl.errors import ConfigError, MissingExtraError, SpaceChangedError
from automl.space.assemble import assemble
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, SearchSpace, When
from automl.study.constrained import ConstrainedSampler
from automl.study.distributions import check_compatible, distribution, suggest
from automl.study.feasibility import Feasibility
from automl.study.grid import GridSampler
from automl.study.samplers import SAMPLERS, make_sampler, require
from automl.trial import Scalar
from tests.study.driving import CONDITIONAL, SPACE, constrained, derive, settings

optuna.logging.set_verbosity(optuna.logging.WARNING)


def sample(space: SearchSpace, count: int, *, run: int = 1, **changes: Any) -> list[Mapping[str, Scalar]]:
    """Parameters of `count` trials, each told COMPLETE with a value that depends on them."""
    feasibility = Feasibility(space, derive)
    sampler = make_sampler(settings(**changes), space, feasibility, run=run)
    study = optuna.create_study(sampler=sampler)
    drawn = []
    for _ in range(count):
        trial = study.ask()
        drawn.append(suggest(trial, space))
        study.tell(trial, float(assemble(space, drawn[-1]).learning_rate))
    return drawn


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        (FloatParameter(name="x", low=1e-4, high=1e-2, log=True), FloatDistribution(1e-4, 1e-2, log=True)),
        (FloatParameter(name="x", low=0.0, high=0.3, step=0.1), FloatDistribution(0.0, 0.3, step=0.1)),
        # Optuna would warn about an end that is not on the grid.
        (FloatParameter(name="x", low=0.0, high=0.35, step=0.1), FloatDistribution(0.0, 0.3, step=0.1)),
        (IntParameter(name="x", low=2, high=64, log=True), IntDistribution(2, 64, log=True)),
        (IntParameter(name="x", low=1, high=10, step=4), IntDistribution(1, 9, step=4)),
        (CategoricalParameter(name="x", choices=("qv", "mlp")), CategoricalDistribution(("qv", "mlp"))),
    ],
    ids=["log", "step", "uneven step", "int log", "int step", "choices"],
)
def test_a_parameter_becomes_a_distribution(parameter: Any, expected: object) -> None:
    assert distribution(parameter) == expected


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "grid"])
@pytest.mark.parametrize("space", [SPACE, CONDITIONAL], ids=["flat", "conditional"])
def test_every_sampler_stays_inside_the_space(sampler: str, space: SearchSpace) -> None:
    declared = {parameter.name: parameter for parameter in space.parameters}
    options = {"n_startup_trials": 3} if "n_startup_trials" in SAMPLERS[sampler].defaults else {}
    for params in sample(space, 5, sampler=sampler, sampler_options=options):
        for name, value in params.items():
            dist = distribution(declared[name])
            assert dist._contains(dist.to_internal_repr(value))
        if space is CONDITIONAL:
            assert ("dropout" in params) == (params["target"] != "qv")


@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_constraints_are_never_violated(sampler: str) -> None:
    space = constrained(CONDITIONAL, "trainable_params <= 20_000", "rank >= 2 or target == 'qv'")
    if sampler == "grid":
        space = replace(space, parameters=(*space.parameters[:3], _choices("learning_rate", 1e-3, 1e-2)))
    feasibility = Feasibility(space, derive)
    options = {"n_startup_trials": 3} if "n_startup_trials" in SAMPLERS[sampler].defaults else {}
    drawn = sample(space, 6, sampler=sampler, sampler_options=options)
    assert [feasibility.violated(params) for params in drawn] == [None] * 6


def test_constraints_hold_beside_enqueued_values() -> None:
    space = constrained(SPACE, "trainable_params <= 20_000")
    feasibility = Feasibility(space, derive)
    study = optuna.create_study(sampler=make_sampler(settings(), space, feasibility, run=1))
    for _ in range(20):
        study.enqueue_trial({"rank": 20})
        params = suggest(study.ask(), space)
        assert params["rank"] == 20
        assert params["target"] == "qv"


def test_without_constraints_it_is_the_sampler_of_optuna() -> None:
    plain = make_sampler(settings(sampler="tpe"), SPACE, Feasibility(SPACE, derive), run=1)
    assert type(plain) is optuna.samplers.TPESampler
    space = constrained(SPACE, "rank <= 8")
    assert isinstance(make_sampler(settings(), space, Feasibility(space, derive), run=1), ConstrainedSampler)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "random", "nsga2"])
def test_another_run_draws_other_numbers_and_the_same_run_the_same(sampler: str) -> None:
    first, same, other = (sample(SPACE, 4, sampler=sampler, run=run) for run in (1, 1, 2))
    assert first == same
    assert not {str(params) for params in first} & {str(params) for params in other}


def test_the_quasi_random_sequence_goes_on_in_the_next_run() -> None:
    study = optuna.create_study()
    ranks = []
    for run in (1, 1, 1, 2, 2, 2):
        study.sampler = make_sampler(settings(sampler="qmc"), SPACE, Feasibility(SPACE, derive), run=run)
        trial = study.ask()
        ranks.append(suggest(trial, SPACE)["learning_rate"])
        study.tell(trial, 0.0)
    assert len(set(ranks)) == 6


def _choices(name: str, *values: Scalar) -> CategoricalParameter:
    return CategoricalParameter(name=name, choices=values)


GRID = SearchSpace(
    parameters=(
        _choices("target", "qv", "mlp"),
        IntParameter(name="rank", low=2, high=16, log=True),
        FloatParameter(name="dropout", low=0.0, high=0.1, step=0.05, when=When(parameter="target", values=("mlp",))),
    )
)


def test_the_grid_visits_every_active_configuration_once() -> None:
    drawn = sample(GRID, 4 + 4 * 3, sampler="grid")
    expected = [{"target": "qv", "rank": rank} for rank in (2, 4, 8, 16)]
    expected += [
        {"target": "mlp", "rank": rank, "dropout": dropout}
        for rank, dropout in itertools.product((2, 4, 8, 16), (0.0, 0.05, 0.1))
    ]
    assert sorted(map(str, drawn)) == sorted(map(str, expected))


def test_the_grid_goes_on_where_another_run_stopped() -> None:
    study = optuna.create_study()
    seen = []
    for run in range(1, 17):
        study.sampler = sampler = make_sampler(settings(sampler="grid"), GRID, Feasibility(GRID, derive), run=run)
        assert isinstance(sampler, GridSampler)
        assert not sampler.is_exhausted(study)
        trial = study.ask()
        seen.append(str(suggest(trial, GRID)))
        study.tell(trial, state=TrialState.FAIL)
    assert len(set(seen)) == 16
    assert sampler.is_exhausted(study)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (SPACE, "learning_rate is continuous; give it a step, or choices"),
        (constrained(GRID, "rank > 16"), "no configuration satisfies the constraints"),
        (
            SearchSpace(
                parameters=tuple(IntParameter(name=name, low=1, high=100) for name in ("rank", "alpha", "batch_size"))
            ),
            "more than 100,000 configurations",
        ),
    ],
    ids=["continuous", "infeasible", "large"],
)
def test_an_impossible_grid_is_refused(space: SearchSpace, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_sampler(settings(sampler="grid"), space, Feasibility(space, derive), run=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sampler": "tpee"}, r"search.sampler: unknown 'tpee'; known: tpe, .* \(did you mean 'tpe'\?\)"),
        ({"sampler": "tpe", "sampler_options": {"startup": 3}}, "search.sampler_options: unknown 'startup'; known"),
        ({"sampler": "random", "sampler_options": {"seed": 3}}, "unknown 'seed'; this sampler takes no options"),
        ({"sampler": "qmc", "sampler_options": {"qmc_type": "latin"}}, "qmc_type='latin'"),
    ],
    ids=["name", "option", "no options", "value"],
)
def test_unusable_settings_are_refused_with_what_is_known(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_sampler(settings(**changes), SPACE, Feasibility(SPACE, derive), run=1)


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(
        MissingExtraError, match=r"'cmaes' needs the package no_such_package; .*automl-lora\[samplers\]"
    ):
        require("cmaes", ("math", "no_such_package"))


def test_a_parameter_may_widen_but_not_change_its_kind() -> None:
    stored = {parameter.name: distribution(parameter) for parameter in SPACE.parameters}
    wider = replace(SPACE, parameters=(IntParameter(name="rank", low=2, high=64, log=True),))
    check_compatible(wider, stored)
    with pytest.raises(SpaceChangedError, match=r"'target' cannot change from .*choose another study name"):
        check_compatible(replace(SPACE, parameters=(_choices("target", "qv", "mlp"),)), stored)
