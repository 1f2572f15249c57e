"""What a squeeze has found of a trial's adapter, read back: its sizes, and the ranks of its modules at any of them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from automl import durable
from automl.importance.cuts import global_ranks
from automl.metric import METRICS
from automl.storage.sql import Database
from automl.storage.squeezes import CutRow, SqueezeRow, read_squeezes
from automl.trial_folders import squeezed_folder


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
    value, steps = recovered_value(squeeze, knee)
    return (
        f"knee: {knee.parameters:,} of {whole.parameters:,} parameters ({knee.parameters / whole.parameters:.1%}),"
        f" {name} {value:.4f}{f' after {steps} steps of recovery' if steps else ''} against {whole.value:.4f} of the"
        f" whole adapter; not worse by more than {squeeze.margin:.3g} on {squeeze.rows:,} validation rows"
    )


def recovered_value(squeeze: SqueezeRow, cut: CutRow) -> tuple[float, int]:
    """The objective after recovery and its steps where that has made it better, else the plain one and 0."""
    after = None if cut.recovered is None else cut.recovered[squeeze.metric]
    if after is None or METRICS[squeeze.metric].gain(after, over=cut.value) <= 0:
        return cut.value, 0
    return after, squeeze.recovery_steps


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


def squeezed_adapter(study_folder: Path, squeeze: SqueezeRow) -> Path | None:
    """The folder of the adapter cut to this knee, None if what lies there is another, or nothing does."""
    folder = squeezed_folder(study_folder)
    try:
        about = json.loads((folder / durable.MANIFEST).read_bytes())["about"]
        is_this = (about["trial"], about["squeezed"]["parameters"]) == (squeeze.trial, squeeze.knee)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if is_this else None
