"""The folder of a study belongs to one study of one database, is found again from anywhere, and is driven by one."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest

from automl.errors import AutomlError, ConfigError, InterruptedSearch, ResourceError, SpaceChangedError, StudyBusyError
from automl.execution.stop import StopRequest
from automl.results.home import OWNER, open_home
from automl.results.recorded import recorded_spec
from automl.results.summary import Summary
from automl.space.load import parse_space
from automl.storage.base import Artifact
from automl.storage.sql import open_database
from automl.study.study import Study
from automl.sweep.run import Observer, run_sweep
from tests.databases import fresh_postgres

SPACE = """version: 1
study: recorded
task: {{type: table, file: {folder}/curves.npz, log: [lr]}}
search: {{sampler: random, pruner: none, trials: 8, steps: 4, evaluate_every: 1, seed: {seed}}}
run: {{slots: 2, output: {output}}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rates = np.logspace(-5, -1, 40)
    curves = np.abs(np.log10(rates) + 3)[:, None] + np.exp(-np.arange(4) / 2)
    np.savez(tmp_path / "curves.npz", names=np.array(["lr"]), configurations=rates[:, None], curves=curves)
    return tmp_path


class _Stops(Observer):
    """Has the search stopped once so many exchanges with the workers have been made."""

    def __init__(self, exchanges: int, stop: StopRequest) -> None:
        self._left = exchanges
        self._stop = stop

    def started(self, study: Study) -> None:
        pass

    def tick(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._stop.request("Ctrl-C")


def run(
    here: Path, database: str = "a.db", *, output: str = "out", seed: int = 3, stop_after: int | None = None
) -> Summary:
    text = SPACE.format(folder=here, output=output, seed=seed)
    url = database if "://" in database else f"sqlite:///{here}/{database}"
    spec = replace(parse_space(text, "space.yaml", here), storage_url=url)
    stop = StopRequest()
    observer = None if stop_after is None else _Stops(stop_after, stop)
    return run_sweep(spec, here / "cache", observer=observer, stop=stop)


def interrupted(here: Path, database: str = "a.db", *, output: str = "out", seed: int = 3) -> None:
    with pytest.raises(InterruptedSearch):
        run(here, database, output=output, seed=seed, stop_after=5)


def curves_of(here: Path, database: str = "a.db") -> Mapping[tuple[int, int], float]:
    with open_database(f"sqlite:///{here}/{database}", create=False) as opened:
        return {(each.trial, each.step): each.metrics["loss"] for each in opened.store("recorded").measurements()}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def set_down(folder: Path) -> None:
    """What a study with adapters and slot files would have in its folder."""
    for name in ("adapters/trial-00000", "slots/trial-00001"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "weights").write_bytes(b"precious")


def test_the_study_of_another_database_is_refused_by_name(here: Path) -> None:
    interrupted(here)
    set_down(here / "out/recorded")
    before = files(here / "out/recorded")
    with pytest.raises(ConfigError, match=rf"out/recorded holds study 'recorded' of sqlite:///{here}/a.db; choose an"):
        run(here, "b.db")
    assert files(here / "out/recorded") == {**before, ".lock": (here / "out/recorded/.lock").read_bytes()}
    with open_database(f"sqlite:///{here}/b.db", create=False) as database:
        assert database.studies() == []
    assert run(here).counts["COMPLETE"] == 8


def test_a_folder_that_is_driven_is_refused_whoever_asks(here: Path) -> None:
    interrupted(here)
    shutil.copy(here / "a.db", here / "b.db")
    with open_database(f"sqlite:///{here}/a.db", create=False) as database:
        spec = recorded_spec(database, "recorded")
        with open_home(database, spec, f"host:{os.getpid()}:00000000"):
            (here / "out/recorded" / OWNER).unlink()  # as if nobody had claimed it yet
            said = rf"driven by process {os.getpid()} on host \(study 'recorded' of sqlite"
            with pytest.raises(StudyBusyError, match=said):
                run(here, "b.db")
    assert run(here).counts["COMPLETE"] == 8


def test_a_copy_of_the_database_gets_a_folder_of_its_own(here: Path) -> None:
    interrupted(here)
    shutil.copy(here / "a.db", here / "b.db")
    with pytest.raises(ConfigError, match=rf"is driven from sqlite:///{here}/a.db, of which this database is a copy"):
        run(here, "b.db")
    assert run(here, "b.db", output="other").folder == str(here / "other/recorded")
    assert run(here).folder == str(here / "out/recorded")
    assert run(here, "b.db").folder == str(here / "other/recorded")  # where it is recorded to be now


def test_a_database_that_was_moved_or_linked_keeps_its_folder(here: Path) -> None:
    interrupted(here)
    (here / "a.db").rename(here / "moved.db")
    interrupted(here, "moved.db")
    (here / "link.db").symlink_to(here / "moved.db")
    assert run(here, "link.db").folder == str(here / "out/recorded")


def test_a_restored_older_database_does_not_take_later_slot_files(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(here)
    shutil.copy(here / "a.db", here / "backup")
    interrupted(here)
    set_down(here / "out/recorded")
    (here / "a.db").unlink()
    shutil.copy(here / "backup", here / "a.db")
    interrupted(here)
    assert not (here / "out/recorded/slots").exists()
    assert (here / "out/recorded/adapters/trial-00000/weights").exists()
    assert "last written by a run that this database does not know" in caplog.text
    set_down(here / "out/recorded")
    interrupted(here)
    assert (here / "out/recorded/slots").exists()  # those are its own now


def test_the_recorded_folder_is_followed_from_anywhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(here)
    set_down(here / "out/recorded")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    interrupted(here)
    interrupted(here, output="renamed")
    assert list((here / "elsewhere").iterdir()) == []
    assert (here / "out/recorded/slots").exists()
    with open_database(f"sqlite:///{here}/a.db", create=False) as database:
        assert recorded_spec(database, "recorded").run.output == here / "out"
    assert run(here).folder == str(here / "out/recorded")
    assert (here / "out/recorded/summary.json").exists()


def test_a_moved_folder_is_found_by_run_output(here: Path) -> None:
    interrupted(here)
    set_down(here / "out/recorded")
    adapter = here / "out/recorded/adapters/trial-00000"
    with open_database(f"sqlite:///{here}/a.db", create=False) as database:
        row = Artifact(trial=0, kind="adapter", path=str(adapter), sha256="0" * 64, bytes=8)
        database.store("recorded").add_artifact(row)
    (here / "out").rename(here / "moved")
    interrupted(here, output="moved")
    assert not (here / "out").exists()
    assert (here / "moved/recorded/slots").exists()
    with open_database(f"sqlite:///{here}/a.db", create=False) as database:
        (artifact,) = database.store("recorded").artifacts()
        assert artifact.path == str(here / "moved/recorded/adapters/trial-00000")


def test_starting_again_keeps_the_earlier_adapters_aside(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(here)
    set_down(here / "out/recorded")
    identity = json.loads((here / "out/recorded" / OWNER).read_text())["identity"]
    (here / "a.db").rename(here / "out/kept.db")
    interrupted(here)
    assert not (here / "out/recorded/slots").exists()
    kept = here / f"out/recorded/adapters-{identity[:8]}"
    assert (kept / "trial-00000/weights").read_bytes() == b"precious"
    assert f"adapters of an earlier study 'recorded' are kept as {kept}" in caplog.text
    (here / "out/kept.db").replace(here / "a.db")  # a change of mind
    for log in here.glob("a.db-*"):
        log.unlink()
    interrupted(here)
    assert (here / "out/recorded/adapters/trial-00000/weights").exists()


def test_a_study_of_an_older_version_keeps_its_files(here: Path) -> None:
    interrupted(here)
    set_down(here / "out/recorded")
    (here / "out/recorded" / OWNER).unlink()
    with closing(sqlite3.connect(here / "a.db")) as connection:
        connection.execute("UPDATE automl_sweeps SET identity = NULL, folder = NULL")
        connection.commit()
    interrupted(here)
    assert (here / "out/recorded/slots").exists()
    with open_database(f"sqlite:///{here}/a.db", create=False) as database:
        row = database.store("recorded").sweep()
    assert row.folder == str(here / "out/recorded")
    assert row.identity == json.loads((here / "out/recorded" / OWNER).read_text())["identity"]


def test_an_unreadable_owner_is_named(here: Path) -> None:
    interrupted(here)
    (here / "out/recorded" / OWNER).write_text("{")
    with pytest.raises(ResourceError, match=r"owner.json: does not say whose the folder is"):
        run(here)


# A search that was killed has left its rows; another study, or seed, must not be given them.
def test_a_replay_depends_on_nothing_that_lies_in_the_folder(here: Path) -> None:
    interrupted(here, seed=5)
    (here / "a.db").unlink()
    for log in here.glob("a.db-*"):
        log.unlink()
    run(here, seed=3)
    run(here, "fresh.db", output="fresh", seed=3)
    assert curves_of(here) == curves_of(here, "fresh.db")


def test_a_replay_that_was_interrupted_finds_the_same_curves(here: Path) -> None:
    run(here, "whole.db", output="whole")
    for _ in range(3):
        interrupted(here)
    run(here)
    known = curves_of(here)
    whole = curves_of(here, "whole.db")
    begun = {trial for trial, _ in known} & {0, 1}  # proposals after an interruption have another seed
    assert begun == {0, 1}
    assert {key: value for key, value in known.items() if key[0] in begun} == {
        key: value for key, value in whole.items() if key[0] in begun
    }


def test_a_study_that_automl_has_not_made_is_refused(here: Path) -> None:
    url = f"sqlite:///{here}/a.db"
    with open_database(url, create=True) as database:
        foreign = optuna.create_study(study_name="recorded", storage=database.optuna_storage(), direction="minimize")
        for value in (0.1, 0.2, 0.3):
            trial = foreign.ask()
            foreign.tell(trial, value)
    with pytest.raises(SpaceChangedError, match=r"holds trials that automl has not made \(trial 0\); choose another"):
        run(here)
    with open_database(url, create=False) as database:
        loaded = optuna.load_study(study_name="recorded", storage=database.optuna_storage())
        assert [trial.value for trial in loaded.trials] == [0.1, 0.2, 0.3]
        assert loaded.user_attrs == {}
        assert database.studies() == []


def test_trials_that_others_add_to_a_study_of_ours_are_refused(here: Path) -> None:
    interrupted(here)
    with open_database(f"sqlite:///{here}/a.db", create=False) as database:
        ours = optuna.load_study(study_name="recorded", storage=database.optuna_storage())
        ours.tell(ours.ask(), 0.0)
    with pytest.raises(SpaceChangedError, match="holds trials that automl has not made"):
        run(here)


@pytest.mark.postgres
def test_a_server_database_is_the_same_by_every_spelling(here: Path) -> None:
    address = fresh_postgres()
    interrupted(here, address)
    set_down(here / "out/recorded")
    interrupted(here, f"{address}&application_name=other")
    assert (here / "out/recorded/slots").exists()
    with pytest.raises(AutomlError, match="holds study 'recorded' of postgresql"):
        run(here, fresh_postgres())


def test_what_cannot_be_written_is_named(here: Path) -> None:
    (here / "file").write_text("")
    with pytest.raises(ResourceError, match=r"run.output: .*file/recorded cannot be written"):
        run(here, output="file")


def test_the_written_folder_need_not_be_writable(here: Path) -> None:
    interrupted(here)
    assert run(here, output="/proc/nowhere").folder == str(here / "out/recorded")
