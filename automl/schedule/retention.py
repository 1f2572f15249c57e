"""What is kept of past nights: everything for the last few, the studies for more, a row in the history for all.

Two nights are never touched: the best one and the last successful one, from which the next night starts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from automl import durable
from automl.errors import AutomlError, ConfigError, StudyNotFoundError
from automl.metric import METRICS
from automl.results import recorded
from automl.results.folders import study_folder
from automl.schedule.options import read_options
from automl.space.load import parse_space
from automl.storage.jobs import Firing, Schedule
from automl.storage.lease import held, refuse_driven
from automl.storage.removal import remove_study
from automl.storage.schedules import SUCCESSFUL, UNFINISHED, last_successful, list_firings
from automl.storage.sql import Database

logger = logging.getLogger(__name__)


class Removal(NamedTuple):
    """Something that is given up: a path or a study, the bytes it frees (0 if unknown), and why nobody needs it."""

    what: str
    bytes: int
    why: str

    def __str__(self) -> str:
        size = f" ({self.bytes / (1 << 20):.1f} MiB)" if self.bytes else ""
        return f"{self.what}{size}: {self.why}"


def retain(database: Database, schedule: Schedule, *, dry_run: bool = False) -> list[Removal]:
    """Remove files and studies of nights beyond what the schedule keeps; what was, or would be, removed.

    A night that cannot be removed now (driven again, disk error) is left for the next time, with a warning.
    """
    options = read_options(schedule.options)
    nights = [night for night in list_firings(database, schedule.name) if night.study is not None]
    ended = [night for night in nights if night.state not in UNFINISHED]
    kept = _protected(database, schedule, ended)
    done: list[Removal] = []
    for place, night in enumerate(ended):
        if night.study in kept or place < min(options.keep_artifacts, options.keep_nights):
            continue
        study = str(night.study)
        try:
            done += _remove_files(database, study, f"beyond the last {options.keep_artifacts} nights", dry_run)
            if place >= options.keep_nights:
                done += _remove_rows(database, study, f"beyond the last {options.keep_nights} nights", dry_run)
        except (AutomlError, OSError) as error:
            logger.warning("night %s of schedule %s was not removed: %s", night.study, schedule.name, error)
    return done


def recorded_folder(database: Database, study: str) -> Path | None:
    """The folder a study's files are in, as recorded or by its space file; None if that is not to be found out."""
    if (folder := recorded.recorded_folder(database.store(study))) is not None:
        return folder
    try:
        return study_folder(recorded.recorded_spec(database, study))
    except ConfigError:
        return None


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return sum(file.stat().st_size for file in files)


def _protected(database: Database, schedule: Schedule, nights: Sequence[Firing]) -> set[str | None]:
    last = last_successful(database, schedule.name)
    valued = [night for night in nights if night.state in SUCCESSFUL and night.value is not None]
    kept = {last.study} if last else set()
    if valued:
        spec = parse_space(schedule.space_text, schedule.name, Path(schedule.folder))
        loss = METRICS[spec.task.metric].loss
        kept.add(min(valued, key=lambda night: loss(night.value or 0.0)).study)
    return kept


def _remove_files(database: Database, study: str, why: str, dry_run: bool) -> Iterator[Removal]:
    try:
        folder = recorded_folder(database, study)
    except StudyNotFoundError:
        return
    if folder is None or folder.name != study or not folder.is_dir():
        return
    if dry_run:
        with database.reading("see who drives it") as connection:
            refuse_driven(connection, study)
        yield Removal(str(folder), size_of(folder), why)
        return
    with held(database, study) as guard:
        yield Removal(str(folder), size_of(folder), why)
        store = database.store(study, guard)
        for artifact in store.artifacts():
            store.delete_artifact(artifact.trial, artifact.kind)
        durable.remove_folder(folder)


def _remove_rows(database: Database, study: str, why: str, dry_run: bool) -> Iterator[Removal]:
    if study not in database.study_names():
        return
    yield Removal(f"study {study}", 0, why)
    if not dry_run:
        remove_study(database, study)
