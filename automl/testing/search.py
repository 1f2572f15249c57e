"""The contracts of a sampler and of a pruner: what they may propose and decide, and that a new run can go on."""

from __future__ import annotations

import math
import subprocess
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import optuna
import pytest
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState

from automl.errors import ConfigError
from automl.lora import Hyperparameters
from automl.metric import Direction, as_loss
from automl.space.assemble import is_active
from automl.space.constraints import parse_constraint
from automl.space.points import contains
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, SearchSettings, SearchSpace, When
from automl.study.distributions import suggest
from automl.study.feasibility import Feasibility
from automl.study.pruning import make_pruner
from automl.study.sampling import make_sampler
from automl.trial import Scalar

SPACE = SearchSpace(
    parameters=(
        CategoricalParameter(name="target", choices=("qv", "mlp", "all-linear")),
        IntParameter(name="rank", low=1, high=64, log=True),
        FloatParameter(name="dropout", low=0.0, high=0.3, step=0.1, when=When(parameter="target", values=("mlp",))),
        FloatParameter(name="learning_rate", low=1e-4, high=1e-2, log=True),
    )
)
CONSTRAINED = replace(SPACE, constraints=(parse_constraint("rank <= 8 or target != 'all-linear'"),))
TRIALS = 14


def _loss(params: Mapping[str, Scalar]) -> float:
    return abs(math.log10(float(params["learning_rate"]) / 2e-3)) + 0.01 * float(params["rank"])


def _light(registry: str, name: str) -> None:
    """Assert that an entry is read without Optuna and what trains."""
    script = (
        f"import sys\nfrom automl.space.entries import {registry}\n{registry}[{name!r}]\n"
        "print([name for name in ('optuna', 'torch', 'peft', 'transformers', 'ray') if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


class SamplerContract:
    """sampler: its name. options: those it is tried with. spaces: those it can search."""

    sampler: ClassVar[str]
    options: ClassVar[Mapping[str, Scalar]] = {}
    spaces: ClassVar[tuple[SearchSpace, ...]] = (SPACE, CONSTRAINED)

    @pytest.fixture
    def name(self) -> str:
        """The sampler that is tested."""
        return self.sampler

    def test_it_proposes_what_the_space_holds(self, name: str) -> None:
        for space in self.spaces:
            feasibility = Feasibility(space, _nothing)
            for params in self._proposed(name, space, TRIALS):
                active = {item.name: item for item in space.parameters if is_active(item, params)}
                assert params.keys() == active.keys()
                assert all(contains(active[key], value) for key, value in params.items())
                assert feasibility.violated(params) is None

    def test_the_same_seed_proposes_the_same(self, name: str) -> None:
        space = self.spaces[0]
        first = self._proposed(name, space, TRIALS)
        assert self._proposed(name, space, TRIALS) == first

    def test_a_new_run_goes_on(self, name: str) -> None:
        """A sampler that is made again, for the second run of a study, proposes what is not tried yet."""
        space = self.spaces[0]
        study = optuna.create_study()
        found = [*self._ask(study, name, space, 5, run=1), *self._ask(study, name, space, 5, run=2)]
        assert len({tuple(sorted(params.items())) for params in found[:5]}) > 1
        assert found[5:] != found[:5]

    def test_an_option_it_does_not_have_is_refused(self, name: str) -> None:
        settings = SearchSettings(sampler=name, sampler_options={"no_such_option": 1})
        with pytest.raises(ConfigError, match="unknown 'no_such_option'"):
            make_sampler(settings, SPACE, Feasibility(SPACE, _nothing), run=1)

    def test_its_file_is_cheap_to_import(self, name: str) -> None:
        _light("SAMPLERS", name)

    def _proposed(self, name: str, space: SearchSpace, trials: int) -> list[dict[str, Scalar]]:
        return self._ask(optuna.create_study(), name, space, trials, run=1)

    def _ask(
        self, study: optuna.Study, name: str, space: SearchSpace, trials: int, *, run: int
    ) -> list[dict[str, Scalar]]:
        settings = SearchSettings(sampler=name, sampler_options=self.options, pruner="none", trials=trials, seed=3)
        study.sampler = make_sampler(settings, space, Feasibility(space, _nothing), run=run)
        found = []
        for _ in range(trials):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                trial = study.ask()
                params = suggest(trial, space)
            study.tell(trial, _loss(params))
            found.append(params)
        return found


class PrunerContract:
    """pruner: its name. options: those it is tried with."""

    pruner: ClassVar[str]
    options: ClassVar[Mapping[str, Scalar]] = {}

    @pytest.fixture
    def name(self) -> str:
        """The pruner that is tested."""
        return self.pruner

    @pytest.mark.parametrize("every", [1, 7, 20], ids="every {}".format)
    @pytest.mark.parametrize("direction", ["minimize", "maximize"])
    def test_it_decides_on_any_grid(self, name: str, every: int, direction: Direction) -> None:
        """The trials with the best curve are trained to the end, whatever becomes of the others."""
        settings = SearchSettings(pruner=name, pruner_options=self.options, steps=60, evaluate_every=every, trials=12)
        study = optuna.create_study(pruner=make_pruner(settings), direction=direction)
        for number in range(12):
            trial = study.ask()
            loss, is_pruned = 0.0, False
            for step in range(every, 61, every):
                loss = (1 + number % 4) * math.exp(-step / 30) + 0.1 * (number % 4)
                trial.report(as_loss(loss, direction), step)
                if is_pruned := trial.should_prune():
                    break
            study.tell(
                trial, None if is_pruned else as_loss(loss, direction), state=TrialState.PRUNED if is_pruned else None
            )
        assert study.trials[0].state is TrialState.COMPLETE, "nobody is better than the first one"

    def test_an_option_it_does_not_have_is_refused(self, name: str) -> None:
        with pytest.raises(ConfigError, match="unknown 'no_such_option'"):
            make_pruner(SearchSettings(pruner=name, pruner_options={"no_such_option": 1}))

    def test_its_file_is_cheap_to_import(self, name: str) -> None:
        _light("PRUNERS", name)


def _nothing(hyper: Hyperparameters) -> dict[str, float]:
    return {}
