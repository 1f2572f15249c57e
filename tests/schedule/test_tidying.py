"""Retention and `automl gc` remove what nobody needs, say so, and touch nothing else."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import update

from automl.errors import StudyBusyError
from automl.schedule.garbage import collect
from automl.schedule.options import ScheduleOptions
from automl.schedule.retention import retain
from automl.storage.base import Artifact, RunEnd
from automl.storage.claims import Claimant
from automl.storage.jobs import FiringState
from automl.storage.lease import StudyLease
from automl.storage.process import process_identity
from automl.storage.removal import remove_study
from automl.storage.runs import RunLog
from automl.storage.schedules import find_schedule, list_firings
from automl.storage.sql import Database
from automl.storage.tables import Now, sweeps
from automl.trial import Measurement
from tests.schedule.scheduling import SPACE, HandClock, add_schedule


def make_study(database: Database, name: str, output: Path, *, finished: bool = True) -> Path:
    """A study with one kept adapter, one given up, slot files, and rows in every kind of table; its folder."""
    folder = output / name
    text = SPACE.replace("study: nightly", f"study: {name}").replace("inline}", f"inline, output: {output}}}")
    with StudyLease(database, name) as lease:
        log = RunLog(database, name, lease.take(text, "0" * 64, {"folder": str(output)}), lease.verify)
        log.begin(trials=4, steps=20, metric="accuracy")
        log.end(RunEnd.FINISHED if finished else RunEnd.STOPPED)
    database.optuna_storage().create_new_study([_MAXIMIZE], name)
    store = database.store(name)
    store.add_measurements([Measurement(trial=0, step=10, metrics={"accuracy": 0.5}, seconds=1.0, tokens=10)])
    for trial in (0, 1):
        path = folder / "adapters" / f"trial-{trial:05d}"
        path.mkdir(parents=True)
        (path / "adapter_model.safetensors").write_bytes(b"x" * 1000)
        store.add_artifact(Artifact(trial=trial, kind="adapter", path=str(path), sha256="0" * 64, bytes=1000))
    store.delete_artifact(1, "adapter")
    (folder / "slots" / "trial-00000").mkdir(parents=True)
    (folder / "slots" / "trial-00000" / "state.json").write_bytes(b"y" * 500)
    return folder


def _direction() -> object:
    from optuna.study import StudyDirection

    return StudyDirection.MAXIMIZE


_MAXIMIZE = _direction()


def test_gc_removes_what_a_finished_study_does_not_need(database: Database, tmp_path: Path) -> None:
    done = make_study(database, "done", tmp_path)
    open_one = make_study(database, "open", tmp_path, finished=False)
    old, new = open_one / "slots" / ".draft-a-1", open_one / "slots" / ".draft-b-2"
    for draft in (old, new):
        draft.mkdir()
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    arguments = {"cache_days": 30.0}
    said = list(collect(database, tmp_path / "cache", dry_run=True, **arguments))
    assert [removal.what for removal in said] == [
        str(done / "slots"),
        str(done / "adapters" / "trial-00001"),
        str(old),
    ]
    assert [removal.bytes for removal in said] == [500, 1000, 0]
    assert all(Path(removal.what).exists() for removal in said)
    assert list(collect(database, tmp_path / "cache", dry_run=False, **arguments)) == said
    assert not any(Path(removal.what).exists() for removal in said)
    assert (open_one / "slots" / "trial-00000").exists()  # it can be continued
    assert new.exists()
    assert (done / "adapters" / "trial-00000").exists()
    assert list(collect(database, tmp_path / "cache", dry_run=False, **arguments)) == []


def test_gc_leaves_a_driven_study_and_then_the_cache_alone(database: Database, tmp_path: Path) -> None:
    folder = make_study(database, "done", tmp_path)
    entry = tmp_path / "cache" / "data" / "abc"
    entry.mkdir(parents=True)
    (entry / "prepared.json").write_text("{}", encoding="utf-8")
    for path in (entry / "prepared.json", entry):
        os.utime(path, (time.time() - 40 * 86_400,) * 2)
    row = database.store("done").sweep()
    with StudyLease(database, "done") as lease:
        lease.take(row.space_text, row.space_sha256, row.provenance)
        assert list(collect(database, tmp_path / "cache", cache_days=30, dry_run=False)) == []
        with pytest.raises(StudyBusyError, match="study 'done' is being driven"):
            remove_study(database, "done")
    # A verification takes the lease too; the study is finished all the same.
    removed = [removal.what for removal in collect(database, tmp_path / "cache", cache_days=30, dry_run=False)]
    assert removed == [str(folder / "slots"), str(folder / "adapters" / "trial-00001"), str(entry)]


def test_a_driver_that_waits_for_the_database_keeps_its_files(
    database: Database, clock: HandClock, tmp_path: Path
) -> None:
    claimant = Claimant(database, clock=clock)
    store = add_schedule(claimant, tmp_path, options=ScheduleOptions(keep_artifacts=1, keep_nights=1))
    for number, value in enumerate((0.5, 0.9, 0.7)):
        night = store.take("nightly", store.fire_by_hand("nightly").slot)
        assert night is not None
        make_study(database, f"night-{number}", tmp_path)
        store.name_study(night, f"night-{number}")
        store.end(night, FiringState.SUCCEEDED, "", value=value)
        clock.time += timedelta(days=1)
    before = set(tmp_path.rglob("*"))
    silent = {"owner": "here:17:cafe0123", "owner_process": process_identity(), "lease_until": Now(-60)}
    with database.writing("drive") as connection:
        connection.execute(update(sweeps).values(silent))
    schedule = find_schedule(database, "nightly")
    for dry_run in (True, False):
        assert retain(database, schedule, dry_run=dry_run) == []
        assert list(collect(database, tmp_path / "cache", cache_days=0, dry_run=dry_run)) == []
    assert set(tmp_path.rglob("*")) == before
    with database.writing("end") as connection:
        connection.execute(update(sweeps).values(owner_process=""))
    assert [removal.what for removal in retain(database, schedule)] == [str(tmp_path / "night-0"), "study night-0"]


def test_old_nights_go_except_the_best_and_the_last_successful_one(
    database: Database, clock: HandClock, tmp_path: Path
) -> None:
    claimant = Claimant(database, clock=clock)
    store = add_schedule(claimant, tmp_path, options=ScheduleOptions(keep_artifacts=2, keep_nights=3))
    ends = [
        (FiringState.SUCCEEDED, 0.9),  # the best
        (FiringState.SUCCEEDED, 0.7),  # older than all that is kept
        (FiringState.NO_IMPROVEMENT, 0.8),  # the last successful one
        (FiringState.REGRESSION, 0.5),
        (FiringState.FAILED, None),
        (FiringState.REGRESSION, 0.5),
        (FiringState.REGRESSION, 0.5),
    ]
    for number, (state, value) in enumerate(ends):
        night = store.take("nightly", store.fire_by_hand("nightly").slot)
        assert night is not None
        study = f"night-{number}"
        make_study(database, study, tmp_path)
        store.name_study(night, study)
        store.end(night, state, "", value=value)
        clock.time += timedelta(days=1)
    schedule = find_schedule(database, "nightly")
    planned = retain(database, schedule, dry_run=True)
    assert {row.study for row in database.studies()} == {f"night-{number}" for number in range(7)}
    assert retain(database, schedule) == planned
    assert {row.study for row in database.studies()} == {"night-0", "night-2", "night-4", "night-5", "night-6"}
    files = {path.name for path in tmp_path.iterdir() if path.name.startswith("night-")}
    assert files == {"night-0", "night-2", "night-5", "night-6"}
    assert database.store("night-4").artifacts() == []  # its rows know that the files are gone
    assert len(list_firings(database, "nightly")) == 7  # the history stays
    assert retain(database, schedule) == []


def test_a_removed_study_leaves_no_row(database: Database, tmp_path: Path) -> None:
    from sqlalchemy import text

    from automl.storage.tables import metadata

    make_study(database, "gone", tmp_path)
    assert remove_study(database, "gone")
    assert not remove_study(database, "gone")
    with database.reading("count") as connection:
        for table in metadata.tables.values():
            if "study_name" in table.c:
                count = connection.execute(text(f"SELECT COUNT(*) FROM {table.name}")).scalar_one()
                assert count == 0, table.name
        assert connection.execute(text("SELECT COUNT(*) FROM studies")).scalar_one() == 0
