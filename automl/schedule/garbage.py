"""Files nobody needs any more: slot files of finished studies, drafts of dead writers, adapters without a row, caches.

Nothing of a study that is being driven is touched, and of one that can be continued nothing that it continues from.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from automl import durable
from automl.errors import AutomlError, ConfigError, StudyBusyError
from automl.schedule.retention import Removal, recorded_folder, retain, size_of
from automl.storage.lease import drivers, held
from automl.storage.runs import last_run, study_state
from automl.storage.schedules import list_schedules
from automl.storage.sql import Database
from automl.trial_folders import adapters_folder, slots_folder

logger = logging.getLogger(__name__)

_DRAFT_SECONDS = 3600.0
_DAY = 86_400.0
_CACHES = ("data", "models", "digests")


def collect(database: Database, cache: Path, *, cache_days: float, dry_run: bool) -> Iterator[Removal]:
    """Remove what nobody needs and yield what was, or with `dry_run` would be, removed.

    cache_days: entries of the cache not used for longer are given up; they are made again when needed. The cache is
    left alone while any study of the database is being driven.
    """
    driven = _driven(database)
    for study in [name for name in database.study_names() if name not in driven]:
        yield from _of_study(database, study, dry_run)
    for schedule in list_schedules(database):
        try:
            yield from retain(database, schedule, dry_run=dry_run)
        except ConfigError as error:
            logger.warning("schedule %s: its nights are left alone: %s", schedule.name, error)
    if not _driven(database):
        yield from _of_cache(cache, cache_days, dry_run)


def _driven(database: Database) -> set[str]:
    with database.reading("see what is driven") as connection:
        return {driver.study for driver in drivers(connection)}


def _of_study(database: Database, study: str, dry_run: bool) -> list[Removal]:
    try:
        if dry_run or not _unneeded(database, study):
            return [_remove(*found, dry_run=True) for found in _unneeded(database, study)]
        with held(database, study):
            return [_remove(*found, dry_run=False) for found in _unneeded(database, study)]
    except StudyBusyError:  # somebody has begun to drive it
        return []


def _unneeded(database: Database, study: str) -> list[tuple[Path, str]]:
    """Files and folders of a study that nobody needs, and why."""
    try:
        folder = recorded_folder(database, study)
    except AutomlError as error:
        logger.warning("study %s: its folder is not known: %s", study, error)
        return []
    if folder is None or not folder.is_dir():
        return []
    found = [(draft, "left by a writer that died") for draft in _drafts(folder)]
    if study_state(None, last_run(database, study)) != "finished":
        return found
    if slots_folder(folder).is_dir():
        found.append((slots_folder(folder), f"study {study} is finished; nothing continues from these"))
    kept = {Path(artifact.path).name for artifact in database.store(study).artifacts()}  # the folder may have moved
    adapters = sorted(adapters_folder(folder).glob("trial-*"))
    why = f"study {study} keeps no adapter of this trial"
    return found + [(adapter, why) for adapter in adapters if adapter.name not in kept]


def _drafts(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob(f"{durable.DRAFT}*") if _age(path) > _DRAFT_SECONDS]
    return [path for path in found if not any(parent in found for parent in path.parents)]


def _of_cache(cache: Path, days: float, dry_run: bool) -> Iterator[Removal]:
    for name in _CACHES:
        for entry in sorted((cache / name).glob("*") if (cache / name).is_dir() else ()):
            is_half_built = entry.name.startswith(".") and entry.is_dir()
            unused = _age(entry) / _DAY
            if is_half_built and unused > 1:
                yield _remove(entry, "left by a writer that died", dry_run)
            elif unused > days:
                yield _remove(entry, f"not used for {unused:.0f} days", dry_run)


def _age(path: Path) -> float:
    """Seconds since anything in it was read or written."""
    try:
        files = [path, *(path.rglob("*") if path.is_dir() and not path.is_symlink() else ())]
        newest = max(_last_use(file) for file in files)
    except OSError:  # it is being written or removed at this moment
        return 0.0
    return time.time() - newest


def _last_use(path: Path) -> float:
    state = path.lstat()
    return max(state.st_mtime, state.st_atime) if path.is_file() else state.st_mtime


def _remove(path: Path, why: str, dry_run: bool) -> Removal:
    removal = Removal(str(path), size_of(path), why)
    if not dry_run:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return removal
