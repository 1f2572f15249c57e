"""What a squeeze has found of a trial's adapter, read back: its sizes, and the ranks of its modules at any of them."""

from __future__ import annotations

from automl.importance.cuts import global_ranks
from automl.storage.sql import Database
from automl.storage.squeezes import SqueezeRow, read_squeezes


def squeeze_of(database: Database, study: str, trial: int) -> SqueezeRow | None:
    """The newest squeeze of the trial's adapter; None if it was not squeezed."""
    return read_squeezes(database, study).get(trial)


def squeezed_ranks(squeeze: SqueezeRow, budget: int, *, least: int = 0) -> dict[str, int]:
    """Rank of every module if the adapter is cut to so many parameters; 0: it is left out of the targets.

    least: what every module keeps, of those that have any direction. Raises ValueError if that costs more.
    """
    strengths = [module.strengths for module in squeeze.modules]
    ranks = global_ranks(strengths, [module.cost for module in squeeze.modules], budget, least=least)
    return {module.module: rank for module, rank in zip(squeeze.modules, ranks, strict=True)}
