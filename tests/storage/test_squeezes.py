"""A squeeze is stored as a whole, takes the place of the one before, and comes back as it was, on both databases."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import Connection, text

from automl.errors import LeaseLostError, StorageError
from automl.results.squeezed import squeeze_of, squeezed_ranks
from automl.storage.removal import remove_study
from automl.storage.sql import Database
from automl.storage.squeezes import CutRow, ModuleRow, SqueezeRow, read_squeezes, store_squeeze


def module(name: str, *strengths: float, knee: int = 1, size: int = 16) -> ModuleRow:
    return ModuleRow(
        module=name, in_features=size, out_features=16, rank=len(strengths), knee_rank=knee, strengths=strengths
    )


def cut(kind: str, parameters: int, value: float, recovered: float | None = None) -> CutRow:
    return CutRow(
        kind=kind,  # type: ignore[arg-type]
        parameters=parameters,
        even_rank=parameters / 80,
        kept=parameters / 160,
        value=value,
        metrics={"accuracy": value, "loss": 1 / 3},
        recovered=None if recovered is None else {"accuracy": recovered, "loss": 0.25},
    )


SQUEEZE = SqueezeRow(
    trial=3,
    adapter_sha256="a" * 64,
    metric="accuracy",
    margin=0.01,
    rows=256,
    seen=128,
    knee=80,
    recovery_steps=0,
    seconds=1.5,
    cuts=(cut("whole", 160, 0.9), cut("even", 80, 0.8), cut("global", 80, 0.895, 0.91), cut("global", 32, 0.5)),
    modules=(module("layer.2.query", 9.0, 0.1, knee=2), module("layer.10.query", 5.0, 1 / 3, size=32)),
)


def free(_: Connection) -> None:
    """Nobody else holds the study."""


def test_it_comes_back_as_it_was_stored(database: Database) -> None:
    store_squeeze(database, "s", SQUEEZE, guard=free)
    found = squeeze_of(database, "s", 3)
    assert found is not None
    assert found.at is not None
    assert replace(found, at=None) == SQUEEZE
    assert found.whole.value == 0.9
    assert (found.at_knee.kind, found.at_knee.value) == ("global", 0.895)
    assert squeeze_of(database, "s", 4) is None
    assert read_squeezes(database, "other") == {}


def test_a_later_one_takes_its_place(database: Database) -> None:
    store_squeeze(database, "s", SQUEEZE, guard=free)
    other = replace(SQUEEZE, trial=4)
    store_squeeze(database, "s", other, guard=free)
    later = replace(SQUEEZE, knee=160, cuts=SQUEEZE.cuts[:1], modules=SQUEEZE.modules[1:])
    store_squeeze(database, "s", later, guard=free)
    assert {trial: replace(row, at=None) for trial, row in read_squeezes(database, "s").items()} == {3: later, 4: other}


def test_nothing_is_stored_for_who_has_lost_the_study(database: Database) -> None:
    def lost(_: Connection) -> None:
        raise LeaseLostError("taken over")

    store_squeeze(database, "s", SQUEEZE, guard=free)
    with pytest.raises(LeaseLostError):
        store_squeeze(database, "s", replace(SQUEEZE, cuts=SQUEEZE.cuts[:1]), guard=lost)
    assert len(read_squeezes(database, "s")[3].cuts) == 4


def test_a_value_that_is_no_number_is_refused_by_the_database(database: Database) -> None:
    wrong = replace(SQUEEZE, cuts=(*SQUEEZE.cuts, cut("global", 16, float("inf"))))
    with pytest.raises(StorageError, match="store the squeeze of trial 3"):
        store_squeeze(database, "s", wrong, guard=free)
    assert read_squeezes(database, "s") == {}


def test_it_goes_with_its_study(database: Database) -> None:
    store_squeeze(database, "s", SQUEEZE, guard=free)
    store_squeeze(database, "kept", SQUEEZE, guard=free)
    assert remove_study(database, "s")
    with database.reading("count") as connection:
        for table in ("automl_squeezes", "automl_squeeze_cuts", "automl_squeezed_modules"):
            names = set(connection.execute(text(f"SELECT study_name FROM {table}")).scalars())
            assert names == {"kept"}


def test_ranks_at_a_size_follow_from_the_strengths() -> None:
    # 9 / 32 comes before 5 / 48, that before 0.33 / 48 and 0.1 / 32.
    assert squeezed_ranks(SQUEEZE, 80) == {"layer.2.query": 1, "layer.10.query": 1}
    assert squeezed_ranks(SQUEEZE, 47) == {"layer.2.query": 1, "layer.10.query": 0}
    assert squeezed_ranks(SQUEEZE, 128) == {"layer.2.query": 1, "layer.10.query": 2}
    assert squeezed_ranks(SQUEEZE, 112, least=1) == {"layer.2.query": 2, "layer.10.query": 1}
    with pytest.raises(ValueError, match="rank 1 in every module"):
        squeezed_ranks(SQUEEZE, 79, least=1)
