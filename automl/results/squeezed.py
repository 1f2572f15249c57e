"""What a squeeze has found of a trial's adapter, read back: its sizes, and the ranks of its modules at any of them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

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


def squeeze_headline(squeeze: SqueezeRow) -> str:
    """What may be believed of the adapter's sizes, in a sentence."""
    whole, knee, name = squeeze.whole, squeeze.at_knee, squeeze.metric
    if knee.parameters == whole.parameters:
        return f"no smaller size is as good: {whole.parameters:,} parameters, {name} {whole.value:.4f}"
    return (
        f"knee: {knee.parameters:,} of {whole.parameters:,} parameters ({knee.parameters / whole.parameters:.1%}),"
        f" {name} {knee.value:.4f} against {whole.value:.4f} of the whole adapter; not worse by more than"
        f" {squeeze.margin:.3g} on {squeeze.rows:,} validation rows"
    )


def squeeze_document(squeeze: SqueezeRow) -> dict[str, Any]:
    """Plain JSON values: the curve, the knee, and the ranks of the knee's modules."""
    names = ("trial", "metric", "margin", "rows", "seen", "knee", "recovery_steps", "seconds")
    return {
        **{name: getattr(squeeze, name) for name in names},
        "parameters": squeeze.whole.parameters,
        "headline": squeeze_headline(squeeze),
        "curve": [asdict(cut) for cut in squeeze.cuts],
        "ranks": {module.module: module.knee_rank for module in squeeze.modules},
    }
