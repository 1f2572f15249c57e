"""Where a trial's files lie below its study's folder. No other place spells these names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Set
from pathlib import Path


def adapters_folder(study: Path) -> Path:
    """Parent of all `adapter_folder`s of the study whose folder this is."""
    return study / "adapters"


def adapter_folder(study: Path, trial: int) -> Path:
    """Where the finished adapter of a trial lies."""
    return adapters_folder(study) / f"trial-{trial:05d}"


def squeezed_folder(study: Path) -> Path:
    """Where the winner's adapter lies, cut to the smallest size that is not worse; there is none if no size is."""
    return study / "squeezed"


def slots_folder(study: Path) -> Path:
    """Parent of all `slot_folder`s of the study whose folder this is."""
    return study / "slots"


def slot_folder(study: Path, trial: int) -> Path:
    """Where the slot files of a trial lie, from which it goes on."""
    return slots_folder(study) / f"trial-{trial:05d}"


def delete_adapter(study: Path, trial: int) -> None:
    """Delete the finished adapter of a trial, if it is there."""
    shutil.rmtree(adapter_folder(study, trial), ignore_errors=True)


def delete_slot_files(study: Path, trial: int) -> None:
    """Delete the slot files of a trial, if there are any."""
    shutil.rmtree(slot_folder(study, trial), ignore_errors=True)


def delete_slot_files_but(study: Path, in_progress: Set[int]) -> None:
    """Finish what a driver that died between ending a trial and deleting its slot files had begun."""
    kept = {slot_folder(study, trial) for trial in in_progress}
    for found in slots_folder(study).glob("trial-*"):
        if found not in kept:
            shutil.rmtree(found, ignore_errors=True)


def point_to_best(study: Path, adapter: Path) -> None:
    """Make `best` a relative link to the best adapter's folder, replacing an older one atomically."""
    fresh = study / ".best"
    fresh.unlink(missing_ok=True)
    here = adapters_folder(study) / adapter.name
    fresh.symlink_to(os.path.relpath(here if here.is_dir() else adapter, study))
    fresh.replace(study / "best")
