"""What studies have spent over all their runs: time of devices, tokens, examples, money. Sums made in SQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, String, bindparam, text

from automl.storage.sql import Database

SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What was spent so far. device_seconds: for which devices were held, all together; None: not recorded.

    tokens, examples: trained on by all trials, whatever became of them. cost: in `currency`; None: no price was said.
    """

    device_seconds: float | None = None
    tokens: int = 0
    examples: int = 0
    cost: float | None = None
    currency: str | None = None

    @property
    def device_hours(self) -> float:
        """Hours of devices that were recorded."""
        return (self.device_seconds or 0.0) / SECONDS_PER_HOUR

    def cost_at(self, price: float) -> float:
        """Money for the hours of devices: as it was recorded, or at this price if none was said."""
        return self.device_hours * price if self.cost is None else self.cost


def together(several: Iterable[Spent], price: float) -> Spent:
    """The sum of what studies have spent; hours of devices without a price are paid at this one."""
    listed = list(several)
    return Spent(
        device_seconds=sum(each.device_seconds or 0.0 for each in listed),
        tokens=sum(each.tokens for each in listed),
        examples=sum(each.examples for each in listed),
        cost=sum(each.cost_at(price) for each in listed),
    )


# Both grow with the step. A trial that failed was trained on beyond its last measurement: its attributes tell.
_WORK = text("""
SELECT w.study_name, SUM(w.tokens) AS tokens, SUM(w.examples) AS examples FROM (
  SELECT k.study_name, k.trial, MAX(k.tokens) AS tokens, MAX(k.examples) AS examples FROM (
    SELECT m.study_name, m.trial, m.tokens, m.examples FROM automl_measurements m WHERE m.study_name IN :studies
    UNION ALL
    SELECT s.study_name, t.number,
      CASE WHEN a.key = 'tokens' THEN CAST(a.value_json AS BIGINT) END,
      CASE WHEN a.key = 'examples' THEN CAST(a.value_json AS BIGINT) END
    FROM trial_user_attributes a JOIN trials t ON t.trial_id = a.trial_id JOIN studies s ON s.study_id = t.study_id
    WHERE s.study_name IN :studies AND a.key IN ('tokens', 'examples')
  ) k GROUP BY k.study_name, k.trial
) w GROUP BY w.study_name
""").bindparams(bindparam("studies", expanding=True, type_=String))

_COSTS = text("SELECT * FROM automl_costs WHERE study_name IN :studies").bindparams(
    bindparam("studies", expanding=True, type_=String)
)


NOTHING = Spent()


def spent_by(database: Database, studies: Sequence[str]) -> dict[str, Spent]:
    """What each of these studies has spent; one that has spent nothing, or that there is none of, has."""
    with database.reading("read what was spent") as connection:
        return spent_in(connection, studies)


def spent_in(connection: Connection, studies: Sequence[str]) -> dict[str, Spent]:
    """Read what `spent_by` does, in a transaction that is open."""
    work: dict[str, Any] = {row.study_name: row for row in connection.execute(_WORK, {"studies": studies})}
    costs: dict[str, Any] = {row.study_name: row for row in connection.execute(_COSTS, {"studies": studies})}
    return {study: _spent(work.get(study), costs.get(study)) for study in studies}


def _spent(work: Any, costs: Any) -> Spent:
    return Spent(
        device_seconds=costs.device_seconds if costs is not None else None,
        tokens=int(work.tokens or 0) if work is not None else 0,
        examples=int(work.examples or 0) if work is not None else 0,
        cost=costs.cost if costs is not None else None,
        currency=costs.currency if costs is not None else None,
    )
