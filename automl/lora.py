"""What a LoRA trial is made of: its hyperparameters, the named target sets, and the arithmetic that follows from them.

Values and formulas only; which modules of a real model a target set means is resolved in `automl.models.inventory`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NamedTuple

from automl.errors import TargetError

ScheduleName = Literal["constant", "linear", "cosine"]

_LATER = {"neftune_alpha": 0.0}
"""Hyperparameters that were added when studies had been recorded, with their defaults."""

TARGET_SETS: dict[str, str] = {
    "qv": "query and value projections of every attention layer",
    "attention": "query, key, value and output projections of every attention layer",
    "mlp": "the linear layers of every feed-forward block",
    "all-linear": "every linear layer of the backbone; pooler, classifier and lm_head excluded",
}
"""Named target sets, of which an architecture has all or some: name -> meaning. `targets:` in space.yaml adds more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameters:
    """One complete configuration of a trial, defaults included.

    rank, batch_size: >= 1.
    alpha: > 0, absolute (a ratio in space.yaml is already multiplied by the rank).
    dropout: in [0, 1).
    warmup: share of all steps, in [0, 1].
    clip: largest gradient norm, 0 = no clipping.
    target: name of a target set.
    rank_pattern: (module path, rank) of the layers whose rank is not `rank`; made by `with_ranks`.
    neftune_alpha: >= 0, size of the noise on embeddings while training; 0 = none.
    own: (name, value) of the method's own settings that are not at their defaults, by name; read by `Setting.of`.

    The defaults are the usual ones of PEFT users, kept as the reference configuration that every search should beat
    (`DEFAULT` in reports).
    """

    method: str = "lora"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target: str = "all-linear"
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    batch_size: int = 8
    warmup: float = 0.06
    schedule: ScheduleName = "linear"
    clip: float = 1.0
    use_rslora: bool = False
    rank_pattern: tuple[tuple[str, int], ...] = ()
    neftune_alpha: float = 0.0
    own: tuple[tuple[str, bool | int | float | str], ...] = ()

    @property
    def settings(self) -> dict[str, bool | int | float | str]:
        """The method's own settings that are not at their defaults, as a mapping."""
        return dict(self.own)

    def as_dict(self) -> dict[str, Any]:
        """All names with their values, as they are recorded: one that came later is there unless at its default.

        So what was recorded before it existed reads the same.
        """
        plain = asdict(self)
        del plain["own"]
        usual = {name for name, default in _LATER.items() if plain[name] == default}
        return {name: value for name, value in plain.items() if name not in usual} | self.settings

    @classmethod
    def of(cls, recorded: Mapping[str, Any]) -> Hyperparameters:
        """The configuration that `as_dict` has spelt out, read from JSON; names that are no field's are settings."""
        names = {field.name for field in fields(cls)}
        general = {name: value for name, value in recorded.items() if name in names}
        general["rank_pattern"] = tuple((path, rank) for path, rank in recorded.get("rank_pattern", ()))
        own = tuple(sorted((name, value) for name, value in recorded.items() if name not in names))
        return cls(**general, own=own)

    @property
    def scaling(self) -> float:
        """Factor of the low-rank update: alpha / rank, or alpha / sqrt(rank) with rank-stabilised LoRA.

        The same in every layer: where the pattern changes the rank, alpha follows. Source: Hu et al. 2021, section 4.1;
        Kalajdzievski 2023 (rsLoRA), eq. 3.
        """
        return self.alpha / (math.sqrt(self.rank) if self.use_rslora else self.rank)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank pattern as a mapping from module path to rank."""
        return dict(self.rank_pattern)

    def rank_of(self, path: str) -> int:
        """Rank of the layer at this path."""
        return self.ranks.get(path, self.rank)

    def alpha_of(self, path: str) -> float:
        """Alpha of the layer at this path: what keeps the scaling."""
        rank = self.rank_of(path)
        return self.scaling * (math.sqrt(rank) if self.use_rslora else rank)

    def with_ranks(self, ranks: Mapping[str, int]) -> Hyperparameters:
        """A copy with these ranks by module path; every other layer keeps `rank`, and every layer its scaling.

        Raises ValueError for a rank below 1: a layer without an adapter is left out of the target set instead.
        """
        for path, rank in ranks.items():
            if rank < 1:
                raise ValueError(f"rank pattern: {path} has rank {rank}; 1 is the least")
        return replace(
            self, rank_pattern=tuple(sorted((path, rank) for path, rank in ranks.items() if rank != self.rank))
        )


def peft_patterns(hyper: Hyperparameters) -> tuple[dict[str, int], dict[str, float]]:
    """`rank_pattern` and `alpha_pattern` of PEFT's LoraConfig: the layers whose rank is not `r`, both for each of them.

    PEFT takes keys as regular expressions for the end of a path, the first that fits (peft 0.21, utils/other.py,
    get_pattern_key); anchored and escaped, each fits one layer.
    """
    keys = {path: f"^{re.escape(path)}$" for path, _ in hyper.rank_pattern}
    return (
        {keys[path]: rank for path, rank in hyper.rank_pattern},
        {keys[path]: hyper.alpha_of(path) for path, _ in hyper.rank_pattern},
    )


def check_pattern(hyper: Hyperparameters, paths: Iterable[str]) -> None:
    """Raise TargetError if the rank pattern names a layer that is not among the adapted ones: PEFT would ignore it."""
    strange = sorted(hyper.ranks.keys() - set(paths))
    if strange:
        raise TargetError(f"rank pattern: '{strange[0]}' is not a layer of target set '{hyper.target}'")


class LinearShape(NamedTuple):
    """A linear layer of the backbone: dotted module path and its (in, out) features, whatever its storage order."""

    path: str
    in_features: int
    out_features: int


def lora_parameters(layers: Iterable[LinearShape], rank: int | Callable[[str], int]) -> int:
    """Trainable parameters that LoRA adds to these layers: sum of rank * (in + out).

    rank: one for every layer, or a function of its path (`Hyperparameters.rank_of`).
    """
    rank_of = rank if callable(rank) else lambda path: rank
    return sum(rank_of(layer.path) * (layer.in_features + layer.out_features) for layer in layers)
