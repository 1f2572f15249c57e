"""What is known of the smaller sizes of trials' adapters, in SQL: the newest squeeze of each trial, as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Row, Select, delete, insert, select

from automl.storage.connect import Guard
from automl.storage.importance import natural_key
from automl.storage.sql import Database
from automl.storage.tables import Now, squeeze_cuts, squeezed_modules, squeezes

CutKind = Literal["whole", "global", "even", "asked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRow:
    """One size. even_rank: the rank in every module that costs as much. kept: share of the strength of all directions.

    value: of the objective; metrics: all of them; recovered: all of them after some training of the cut, None without.
    """

    kind: CutKind
    parameters: int
    even_rank: float
    kept: float
    value: float
    metrics: Mapping[str, float]
    recovered: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleRow:
    """One module. rank, knee_rank: directions of the whole adapter and of the knee's. strengths: largest first."""

    module: str
    in_features: int
    out_features: int
    rank: int
    knee_rank: int
    strengths: tuple[float, ...]

    @property
    def cost(self) -> int:
        """Parameters of one direction."""
        return self.in_features + self.out_features


@dataclass(frozen=True, slots=True, kw_only=True)
class SqueezeRow:
    """The squeeze of one trial's adapter. Columns of `automl_squeezes`; cuts largest first, modules in natural order.

    at: None before it is stored.
    """

    trial: int
    adapter_sha256: str
    metric: str
    margin: float
    rows: int
    seen: int
    knee: int
    recovery_steps: int
    seconds: float
    cuts: tuple[CutRow, ...]
    modules: tuple[ModuleRow, ...]
    at: datetime | None = None

    @property
    def whole(self) -> CutRow:
        """The adapter as it was trained."""
        return next(cut for cut in self.cuts if cut.kind == "whole")

    @property
    def at_knee(self) -> CutRow:
        """The smallest cut that is not worse than the whole; the whole if none is."""
        return next(cut for cut in self.cuts if cut.parameters == self.knee and cut.kind != "even")


def store_squeeze(database: Database, study: str, squeeze: SqueezeRow, *, guard: Guard) -> None:
    """Put the squeeze in the place of what is known of that trial's adapter, in one transaction.

    guard: of whoever holds the study's lease, called before the commit.
    """
    key = {"study_name": study, "trial": squeeze.trial}
    names = ("adapter_sha256", "metric", "margin", "rows", "seen", "knee", "recovery_steps", "seconds")
    head = {**key, **{name: getattr(squeeze, name) for name in names}, "at": Now()}

    def write() -> None:
        with database.writing(f"store the squeeze of trial {squeeze.trial} of study {study!r}") as connection:
            for table in (squeeze_cuts, squeezed_modules, squeezes):
                connection.execute(delete(table).where(table.c.study_name == study, table.c.trial == squeeze.trial))
            connection.execute(insert(squeezes).values(head))
            connection.execute(insert(squeeze_cuts), [{**key, **_cut_columns(cut)} for cut in squeeze.cuts])
            connection.execute(insert(squeezed_modules), [{**key, **_module_columns(row)} for row in squeeze.modules])
            guard(connection)

    database.retry.call(write)


def read_squeezes(database: Database, study: str) -> dict[int, SqueezeRow]:
    """The squeezes of a study by trial; empty if nothing was squeezed."""

    def read() -> dict[int, SqueezeRow]:
        with database.reading(f"read the squeezes of study {study!r}") as connection:
            heads = connection.execute(_of(squeezes, study)).all()
            cuts = connection.execute(_of(squeeze_cuts, study)).all()
            modules = connection.execute(_of(squeezed_modules, study)).all()
        return {head.trial: _squeeze(head, _rows_of(head, cuts), _rows_of(head, modules)) for head in heads}

    return database.retry.call(read)


def _of(table: Any, study: str) -> Select[Any]:
    return select(table).where(table.c.study_name == study).order_by(table.c.trial)


def _rows_of(head: Row[Any], rows: Sequence[Row[Any]]) -> list[Row[Any]]:
    return [row for row in rows if row.trial == head.trial]


def _cut_columns(cut: CutRow) -> dict[str, Any]:
    recovered = None if cut.recovered is None else dict(cut.recovered)
    plain = {name: getattr(cut, name) for name in ("kind", "parameters", "even_rank", "kept", "value")}
    return {**plain, "metrics": dict(cut.metrics), "recovered": recovered}


def _module_columns(row: ModuleRow) -> dict[str, Any]:
    names = ("module", "in_features", "out_features", "rank", "knee_rank")
    return {**{name: getattr(row, name) for name in names}, "strengths": list(row.strengths)}


def _squeeze(head: Row[Any], cuts: Sequence[Row[Any]], modules: Sequence[Row[Any]]) -> SqueezeRow:
    return SqueezeRow(
        **{name: getattr(head, name) for name in SqueezeRow.__slots__ if name not in ("cuts", "modules")},
        cuts=tuple(sorted(map(_cut, cuts), key=lambda cut: (-cut.parameters, cut.kind))),
        modules=tuple(sorted(map(_module, modules), key=lambda row: natural_key(row.module))),
    )


def _cut(row: Row[Any]) -> CutRow:
    return CutRow(**{name: getattr(row, name) for name in CutRow.__slots__})


def _module(row: Row[Any]) -> ModuleRow:
    values = {name: getattr(row, name) for name in ModuleRow.__slots__ if name != "strengths"}
    return ModuleRow(**values, strengths=tuple(row.strengths))
