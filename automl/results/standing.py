"""How far a study is, asked from outside of its driver: by pages, metrics and `automl status`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from automl.errors import ConfigError
from automl.results.recorded import GROUND
from automl.results.spending import NO_BUDGET, Spending
from automl.space.length import with_recorded_length
from automl.space.load import parse_space
from automl.space.spec import SearchSettings
from automl.storage.overview import StudyTotals
from automl.storage.sql import Database
from automl.storage.trial_pages import Standing, standing
from automl.study.outcome import EXHAUSTED, STALLED
from automl.study.outlook import Outlook, outlook

__all__ = ["Outlook", "outlook_of", "spending_of"]

_STARTED = ("RUNNING", "PARKED", "COMPLETE", "PRUNED", "FAIL")
_UNFINISHED = ("RUNNING", "PARKED")


def outlook_of(database: Database, totals: StudyTotals) -> Outlook | None:
    """What the study has spent and may take yet, nothing once it is finished; None if its space cannot be read."""
    if totals.state == "finished":
        return Outlook(steps=totals.steps, left=0)
    store = database.store(totals.study)
    settings = _settings(store.sweep().space_text)
    if settings is None:
        return None
    settings = with_recorded_length(settings, store.last_event(GROUND) or {})
    planned = totals.planned or settings.trials
    left = planned - totals.ended - sum(totals.counts.get(state, 0) for state in _UNFINISHED)
    has_enough = _starts_no_more(database, totals, settings)
    known = standing(database, totals.study)
    return outlook(
        replace(settings, trials=planned),
        reached=_by_step(known, _STARTED),
        unfinished=_by_step(known, _UNFINISHED),
        to_come=0 if has_enough else max(0, left),
    )


def spending_of(database: Database, totals: StudyTotals) -> Spending:
    """What the study has spent, beside the budget of the file that it was driven with last."""
    settings = _settings(database.store(totals.study).sweep().space_text)
    return Spending(spent=totals.spent, budget=NO_BUDGET if settings is None else settings.budget)


def _starts_no_more(database: Database, totals: StudyTotals, settings: SearchSettings) -> bool:
    """Whether the search only goes on with what it has: patience is at its end, or a finite space is tried out."""
    said = [(kind, detail) for _, kind, detail in database.store(totals.study).events()]
    is_stalled = any(kind == STALLED and detail.get("patience") == settings.patience for kind, detail in said)
    return is_stalled or any(kind == EXHAUSTED and detail.get("run") == totals.runs for kind, detail in said)


def _by_step(known: Iterable[Standing], states: tuple[str, ...]) -> Counter[int]:
    found: Counter[int] = Counter()
    for each in known:
        if each.state in states:
            found[each.step] += each.trials
    return found


@lru_cache(maxsize=64)
def _settings(space_text: str) -> SearchSettings | None:
    try:
        return parse_space(space_text, "the recorded space", Path("/")).search
    except ConfigError:
        return None
