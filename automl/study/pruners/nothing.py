"""Every trial runs to its last step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from automl.space.entries import Pruner, Survival
from automl.space.options import Options
from automl.space.spec import SearchSettings

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


class NoOptions(Options):
    """Every trial runs to its last step."""


def _build(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    from optuna.pruners import NopPruner

    return NopPruner()


NONE = Pruner(options=NoOptions, build=_build, survival=lambda settings, options: Survival((settings.steps,), 1.0, 0))
