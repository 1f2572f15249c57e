"""Earlier studies of the same database that say where a search may begin: on models and for tasks of the same types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from automl.errors import ConfigError
from automl.results.recorded import GROUND
from automl.space.load import parse_space
from automl.storage.overview import list_studies, study_totals
from automl.storage.sql import Database

LEARN_FROM = "learn_from"
"""Event: the studies that lend their best configuration to this one, chosen once."""

MOST = 3
"""Studies that are learnt from: so many trials are spent on them, whatever came of those studies."""

_LOOKED_AT = 50
"""Studies that are read, the newest: a night's schedule may have left thousands."""


def relatives(database: Database, study: str, *, task: str, ground: Mapping[str, Any]) -> list[str]:
    """Names of at most MOST other studies with a complete trial, the newest first.

    task: type of the study's task. ground: what it remembers of its model.
    """
    found = (name for name in _newest_first(database, but=study) if _is_relative(database, name, task, ground))
    return [name for _, name in zip(range(MOST), found, strict=False)]


def _newest_first(database: Database, *, but: str) -> Iterator[str]:
    """Studies with a complete trial; the one whose last value is the newest comes first."""
    totals = study_totals(database, list_studies(database, limit=_LOOKED_AT))
    done = [each for each in totals if each.counts.get("COMPLETE") and each.study != but]
    done.sort(key=lambda each: (each.last_at or each.created_at, each.study), reverse=True)
    return (each.study for each in done)


def _is_relative(database: Database, name: str, task: str, ground: Mapping[str, Any]) -> bool:
    """Whether a study is of such a task, on the same model or one of its family, which older ones do not tell."""
    store = database.store(name)
    theirs = store.last_event(GROUND) or {}
    is_alike = any(theirs.get(key) == ground[key] for key in ("model", "family"))
    return is_alike and _task_of(store.sweep().space_text) == task


def _task_of(space_text: str) -> str:
    """Type of the task of a recorded space file; empty if this version cannot read it."""
    try:
        return parse_space(space_text, "the recorded space", Path("/")).task.type
    except ConfigError:
        return ""
