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
from automl.space.entries import SAMPLERS
from automl.space.points import values
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, SearchSpace, When
from automl.study.constrained import ConstrainedSampler
from automl.study.distributions import check_compatible, distribution, suggest
from automl.study.feasibility import Feasibility
from automl.study.grid import GridSampler
from automl.study.sampling import configurations_of, make_sampler, require
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
    options = {"n_startup_trials": 3} if "n_startup_trials" in SAMPLERS[sampler].options.defaults() else {}
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
    options = {"n_startup_trials": 3} if "n_startup_trials" in SAMPLERS[sampler].options.defaults() else {}
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


@pytest.mark.parametrize(
    "dropout",
    [
        FloatParameter(name="dropout", low=0.0, high=0.3, step=0.1),
        FloatParameter(name="dropout", low=0.05, high=0.15, step=0.05),
        FloatParameter(name="dropout", low=0.1, high=0.75, step=0.2),
        FloatParameter(name="dropout", low=0.0, high=0.7, step=0.1),
    ],
    ids=str,
)
def test_a_grid_of_decimals_visits_each_once_and_is_then_exhausted(dropout: FloatParameter) -> None:
    space = SearchSpace(parameters=(dropout, _choices("target", "qv", "mlp")))
    sampler = make_sampler(settings(sampler="grid"), space, Feasibility(space, derive), run=1)
    study = optuna.create_study(sampler=sampler)
    drawn = []
    while not configurations_of(sampler).are_exhausted(study):  # type: ignore[union-attr]
        trial = study.ask()
        drawn.append(tuple(suggest(trial, space).values()))
        study.tell(trial, 0.0)
        assert len(set(drawn)) == len(drawn) <= 16
    assert len(drawn) == 2 * len(values(dropout))


def test_a_grid_knows_what_another_sampler_has_tried_in_binary_arithmetic() -> None:
    space = SearchSpace(parameters=(FloatParameter(name="dropout", low=0.0, high=0.3, step=0.1),))
    study = optuna.create_study()
    study.enqueue_trial({"dropout": 0.1 + 0.1})
    study.sampler = make_sampler(settings(sampler="grid"), space, Feasibility(space, derive), run=1)
    drawn = []
    for _ in range(4):
        trial = study.ask()
        drawn.append(round(float(suggest(trial, space)["dropout"]), 6))
        study.tell(trial, 0.0)
    assert sorted(drawn) == [0.0, 0.1, 0.2, 0.3]


def test_an_enqueued_value_is_completed_to_a_configuration_that_was_not_tried() -> None:
    space = SearchSpace(parameters=(_choices("target", "qv", "mlp"), _choices("rank", 2, 4, 8)))
    study = optuna.create_study(
        sampler=make_sampler(settings(sampler="grid"), space, Feasibility(space, derive), run=1)
    )
    for _ in range(3):
        study.enqueue_trial({"target": "mlp"})
    drawn = [tuple(suggest(study.ask(), space).values()) for _ in range(6)]
    assert len(set(drawn)) == 6


FINITE = SearchSpace(
    parameters=(_choices("target", "qv", "mlp"), FloatParameter(name="dropout", low=0.0, high=0.3, step=0.1))
)


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("expressions", [(), ("dropout in [0, 0.1, 0.3]",)], ids=["free", "constrained"])
def test_no_sampler_tries_a_configuration_of_a_finite_space_twice(sampler: str, expressions: tuple[str, ...]) -> None:
    space = constrained(FINITE, *expressions)
    made = make_sampler(settings(sampler=sampler), space, Feasibility(space, derive), run=1)
    study = optuna.create_study(sampler=made)
    drawn = []
    while not configurations_of(made).are_exhausted(study):  # type: ignore[union-attr]
        trial = study.ask()
        params = suggest(trial, space)
        drawn.append((params["target"], round(float(params["dropout"]), 6)))
        study.tell(trial, 0.0)
        assert len(set(drawn)) == len(drawn) <= 8
    assert len(drawn) == (6 if expressions else 8)


def test_a_configuration_that_the_budget_cut_off_before_it_was_trained_is_tried_later() -> None:
    space = SearchSpace(parameters=(_choices("target", "qv"),))
    sampler = make_sampler(settings(sampler="grid"), space, Feasibility(space, derive), run=1)
    study = optuna.create_study(sampler=sampler)
    for reason, is_exhausted in (("budget", False), ("error", True)):
        trial = study.ask()
        suggest(trial, space)
        trial.set_user_attr("stop_reason", reason)
        study.tell(trial, state=TrialState.FAIL)
        assert configurations_of(sampler).are_exhausted(study) is is_exhausted  # type: ignore[union-attr]


def test_the_grid_goes_on_where_another_run_stopped() -> None:
    study = optuna.create_study()
    seen = []
    for run in range(1, 17):
        study.sampler = sampler = make_sampler(settings(sampler="grid"), GRID, Feasibility(GRID, derive), run=run)
        assert isinstance(sampler, GridSampler)
        assert not sampler.configurations.are_exhausted(study)
        trial = study.ask()
        seen.append(str(suggest(trial, GRID)))
        study.tell(trial, state=TrialState.FAIL)
    assert len(set(seen)) == 16
    assert sampler.configurations.are_exhausted(study)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (SPACE, "learning_rate is continuous; give it a step, or choices"),
        (constrained(GRID, "rank > 16"), "no configuration satisfies the constraints"),
        (
            SearchSpace(
                parameters=tuple(IntParameter(name=name, low=1, high=100) for name in ("rank", "alpha", "batch_size"))
            ),
            "1,000,000 configurations, more than 100,000",
        ),
        (
            constrained(
                SearchSpace(
                    parameters=(
                        IntParameter(name="rank", low=1, high=256),
                        IntParameter(name="batch_size", low=1, high=1024),
                    )
                ),
                "rank * batch_size <= 4096",
            ),
            "262,144 configurations, more than 100,000",
        ),
    ],
    ids=["continuous", "infeasible", "large", "large before constraints"],
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
        require("cmaes", replace(SAMPLERS["cmaes"], packages=("math", "no_such_package")))


def test_a_parameter_may_widen_but_not_change_its_kind() -> None:
    stored = {parameter.name: distribution(parameter) for parameter in SPACE.parameters}
    wider = replace(SPACE, parameters=(IntParameter(name="rank", low=2, high=64, log=True),))
    check_compatible(wider, stored)
    with pytest.raises(SpaceChangedError, match=r"'target' cannot change from .*choose another study name"):
        check_compatible(replace(SPACE, parameters=(_choices("target", "qv", "mlp"),)), stored)
