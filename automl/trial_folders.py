"""Where a trial's files lie below its study's folder. No other place spells these names."""

from __future__ import annotations

from pathlib import Path


def adapters_folder(study: Path) -> Path:
    """Parent of all `adapter_folder`s of the study whose folder this is."""
    return study / "adapters"


def adapter_folder(study: Path, trial: int) -> Path:
    """Where the finished adapter of a trial lies."""
    return adapters_folder(study) / f"trial-{trial:05d}"


def slots_folder(study: Path) -> Path:
    """Parent of all `slot_folder`s of the study whose folder this is."""
    return study / "slots"


def slot_folder(study: Path, trial: int) -> Path:
    """Where the slot files of a trial lie, from which it goes on."""
    return slots_folder(study) / f"trial-{trial:05d}"
