"""Importances of modules in SQL: one row per trial and adapted module, those of the trial's newest measurement.

They are written in the transaction that stores the measurement, so before the trial is told, and a replay after a crash
changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, insert, or_, select

from automl.storage.tables import importances
from automl.trial import Measurement, ModuleImportance

_FIELDS = tuple(ModuleImportance.__dataclass_fields__)


def replace_importances(connection: Connection, study: str, measurements: Iterable[Measurement]) -> None:
    """Put the importances of each trial's newest measurement in the place of what is stored for it.

    Modules that the newest measurement does not name are removed: they have no update any more (AdaLoRA).
    """
    newest: dict[int, Measurement] = {}
    for measurement in measurements:
        if measurement.importances and measurement.step >= _step(newest.get(measurement.trial)):
            newest[measurement.trial] = measurement
    if not newest:
        return
    of_trial = importances.c.trial
    older = [and_(of_trial == trial, importances.c.step <= item.step) for trial, item in newest.items()]
    connection.execute(delete(importances).where(importances.c.study_name == study, or_(*older)))
    query = select(of_trial).distinct().where(importances.c.study_name == study, of_trial.in_(newest))
    later = set(connection.execute(query).scalars())
    rows = [
        {"study_name": study, "trial": trial, **_columns(module)}
        for trial, item in newest.items()
        if trial not in later
        for module in item.importances
    ]
    if rows:
        connection.execute(insert(importances), rows)


def read_importances(
    connection: Connection, study: str, *, latest: int | None = None
) -> dict[int, tuple[ModuleImportance, ...]]:
    """Importances by trial; modules in natural order (layer 2 before layer 10). latest: only of so many trials."""
    of_trial, mine = importances.c.trial, importances.c.study_name == study
    query = select(importances).where(mine).order_by(of_trial)
    if latest is not None:
        query = query.where(
            of_trial.in_(select(of_trial).where(mine).distinct().order_by(of_trial.desc()).limit(latest))
        )
    rows = connection.execute(query).all()
    return {
        trial: tuple(_module(row) for row in sorted(group, key=lambda row: natural_key(row.module)))
        for trial, group in groupby(rows, key=lambda row: int(row.trial))
    }


def natural_key(module: str) -> tuple[tuple[bool, int, str], ...]:
    """Sorts dotted paths with the numbers in them as numbers."""
    parts = re.split(r"(\d+)", module)
    return tuple((part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts)


def _step(measurement: Measurement | None) -> int:
    return -1 if measurement is None else measurement.step


def _columns(module: ModuleImportance) -> dict[str, Any]:
    return {**asdict(module), "components": list(module.components)}


def _module(row: Row[Any]) -> ModuleImportance:
    values = {name: getattr(row, name) for name in _FIELDS}
    return ModuleImportance(**{**values, "components": tuple(row.components)})
