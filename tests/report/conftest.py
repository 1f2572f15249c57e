"""Databases and whole frames for the report's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from automl.report.frames import RankSuggestion, StudyFrame
from automl.report.reading import read_verification
from automl.report.write import study_frame
from automl.storage.sql import Database, open_database
from tests.databases import fresh_sqlite
from tests.report.studies import (
    HOSTILE,
    add_study,
    add_verification,
    space_of,
    squeeze_row,
    suggested_ranks,
    verification_result,
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(fresh_sqlite(tmp_path), create=False) as database:
        yield database


@pytest.fixture
def frame_of(database: Database, tmp_path: Path) -> Callable[..., StudyFrame]:
    """The frame of a fresh study; keywords as of `add_study`. verification: a result, None if it runs, or left out."""

    def make(**wanted: Any) -> StudyFrame:
        spec = space_of(tmp_path)
        add_study(database, spec, **wanted)
        return study_frame(database, spec)

    return make


@pytest.fixture(scope="session")
def plain_frame(tmp_path_factory: pytest.TempPathFactory) -> StudyFrame:
    """A finished study of 24 trials that was not verified."""
    folder = tmp_path_factory.mktemp("plain")
    with open_database(fresh_sqlite(folder), create=False) as database:
        spec = space_of(folder)
        add_study(database, spec)
        return study_frame(database, spec)


@pytest.fixture
def verified_frame(plain_frame: StudyFrame, database: Database) -> Callable[[Any], StudyFrame]:
    """The same with a verification of this result, which is in SQL and read from there."""

    def make(result: Any) -> StudyFrame:
        add_verification(database, plain_frame.study, result)
        return replace(plain_frame, verification=read_verification(database, plain_frame.study))

    return make


@pytest.fixture(scope="session")
def hostile_frame(tmp_path_factory: pytest.TempPathFactory) -> StudyFrame:
    """A study with everything in it, whose every text from outside is hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    spec = space_of(folder, study=HOSTILE, data=HOSTILE, trials=40)
    with open_database(fresh_sqlite(folder), create=False) as database:
        add_study(database, spec, trials=40, failed=3, running=1, importances=True, error=HOSTILE)
        add_verification(database, spec.study, verification_result(title=HOSTILE))
        suggestion = RankSuggestion(
            ranks=suggested_ranks(),
            energies=dict.fromkeys(suggested_ranks(), 0.1),
            uniform_rank=4,
            used_params=330_000,
            status="no_gain",
            note=HOSTILE,
        )
        frame = study_frame(database, spec)
        trials = tuple(replace(trial, forgetting=trial.number / 100) for trial in frame.trials)
        return replace(
            frame, trials=trials, keep="loss", forgetting_limit=0.2, suggestion=suggestion, squeeze=squeeze_row()
        )
