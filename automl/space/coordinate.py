"""Learning rates that are searched at one alpha, so that the best one does not move with rank and alpha.

For updates B A of rank r that are scaled by s (s = alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA), with A
drawn and B zero, the best rate of Adam goes with (s r)^-1/2: with alpha a multiple of the rank it falls as r^-1/2, at a
fixed alpha it does not depend on the rank, and with a fixed alpha of rank-stabilised LoRA it falls as r^-1/4 (arXiv
2602.06204). So the searched rate times sqrt(at_alpha / (s r)) is the one to train with; s r is alpha itself without
rank-stabilised LoRA.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from automl.lora import Hyperparameters
from automl.space.limits import RATE, plain
from automl.space.spec import FloatParameter, SearchSpace
from automl.trial import Scalar


def coordinates(space: SearchSpace) -> Iterator[FloatParameter]:
    """The learning rates of the space that are searched at an alpha."""
    return (each for each in space.parameters if isinstance(each, FloatParameter) and each.at_alpha is not None)


def as_trained(space: SearchSpace, searched: Iterable[str], hyper: Hyperparameters) -> Hyperparameters:
    """The configuration with the learning rate that it is trained with. searched: names that were sampled."""
    names = set(searched)
    at = next((each.at_alpha for each in coordinates(space) if each.name in names), None)
    return hyper if at is None else replace(hyper, learning_rate=hyper.learning_rate * _factor(at, hyper))


def rate_shift(tried: Hyperparameters, wanted: Hyperparameters) -> float:
    """By how much the best rate of another rank and alpha is above that of the tried ones, by the law above."""
    return math.sqrt((tried.scaling * tried.rank) / (wanted.scaling * wanted.rank))


def searched_rate(params: Mapping[str, Scalar]) -> float | None:
    """The learning rate as it was searched; None if it was not."""
    return next((float(value) for name, value in params.items() if plain(name) == RATE), None)


def in_words(space: SearchSpace) -> str:
    """The alphas at which rates are searched, as a study is told them: `learning_rate 32`; empty if at none."""
    return ", ".join(f"{each.name} {each.at_alpha:g}" for each in coordinates(space))


def _factor(at_alpha: float, hyper: Hyperparameters) -> float:
    return math.sqrt(at_alpha / (hyper.scaling * hyper.rank))
