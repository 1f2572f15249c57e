"""Importances of modules are stored with the measurement that carries them, and only the newest stay."""

from __future__ import annotations

from dataclasses import replace

from automl.storage.sql import Database
from automl.trial import Measurement, ModuleImportance

MODULE = ModuleImportance(
    module="encoder.layer.2.query",
    rank=4,
    in_features=32,
    out_features=48,
    step=10,
    fraction_done=0.25,
    samples=2,
    sensitivity=0.1 + 0.2,
    uncertainty=1e-3,
    effective_rank=2.5,
    relative_update=0.04,
    components=(0.2, 0.1, 1 / 3, 0.0),
)


def measured(step: int, *modules: ModuleImportance, trial: int = 0) -> Measurement:
    carried = tuple(replace(module, step=step) for module in modules)
    return Measurement(trial=trial, step=step, metrics={"loss": 0.5}, importances=carried)


def test_they_come_back_as_they_were_stored(database: Database) -> None:
    held_out = replace(MODULE, module="encoder.layer.2.value", held_out=-0.25, held_out_error=0.125)
    database.store("topics").add_measurements([measured(10, MODULE, held_out), measured(10, trial=1)])
    assert database.importances("topics") == {0: (MODULE, held_out)}
    assert database.importances("other") == {}


def test_modules_come_in_natural_order(database: Database) -> None:
    names = [f"encoder.layer.{number}.query" for number in (0, 2, 10, 11)]
    modules = [replace(MODULE, module=name) for name in reversed(names)]
    database.store("topics").add_measurements([measured(10, *modules)])
    assert [module.module for module in database.importances("topics")[0]] == names


def test_a_later_measurement_takes_their_place_with_all_its_modules(database: Database) -> None:
    store = database.store("topics")
    other = replace(MODULE, module="encoder.layer.3.query")
    store.add_measurements([measured(10, MODULE, other), measured(10, MODULE, trial=1)])
    later = replace(MODULE, sensitivity=7.0, step=20)
    store.add_measurements([measured(20, later)])
    assert database.importances("topics") == {0: (later,), 1: (MODULE,)}


# A worker that reopens a trial sends its old measurements again; those of them that are missing may be older.
def test_an_earlier_measurement_changes_nothing(database: Database) -> None:
    store = database.store("topics")
    newest = replace(MODULE, step=20)
    store.add_measurements([measured(20, newest)])
    store.add_measurements([measured(10, replace(MODULE, sensitivity=9.0))])
    assert database.importances("topics") == {0: (newest,)}


def test_a_replay_changes_nothing(database: Database) -> None:
    store = database.store("topics")
    for _ in range(2):
        store.add_measurements([measured(10, MODULE), measured(20, MODULE)])
    assert database.importances("topics") == {0: (replace(MODULE, step=20),)}


def test_measurements_without_importances_leave_them(database: Database) -> None:
    store = database.store("topics")
    store.add_measurements([measured(10, MODULE)])
    store.add_measurements([measured(20)])
    assert database.importances("topics") == {0: (MODULE,)}
