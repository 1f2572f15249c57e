"""A sampler that takes the best trial so far and changes each of its parameters with a probability that falls."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from automl.space.entries import Sampler
from automl.space.options import Options

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from automl.study.sampling import SamplerContext


class TemperingOptions(Options):
    """Changes parameters of the best trial with a probability that falls from trial to trial."""

    cooling: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """Factor of the probability after each trial."""


def _build(context: SamplerContext, options: Mapping[str, Any]) -> BaseSampler:
    from optuna.samplers import BaseSampler, RandomSampler
    from optuna.trial import TrialState

    class TemperingSampler(BaseSampler):
        def __init__(self) -> None:
            self._free = RandomSampler(seed=context.seed)
            self._draw = random.Random(context.seed)

        def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
            return {}

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
            return {}

        def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
            told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            heat = options["cooling"] ** len(told)
            if told and self._draw.random() > heat and param_name in study.best_trial.params:
                return study.best_trial.params[param_name]
            return self._free.sample_independent(study, trial, param_name, param_distribution)

    return TemperingSampler()


TEMPERING = Sampler(options=TemperingOptions, build=_build)
