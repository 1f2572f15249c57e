"""Where a sweep keeps its files. Imports nothing heavy."""

from __future__ import annotations

import os
from pathlib import Path

from automl.space.spec import SweepSpec


def cache_folder() -> Path:
    """Folder for converted models and tokenised data: $AUTOML_CACHE, else automl/ in the user's cache folder."""
    if chosen := os.environ.get("AUTOML_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "automl"


def study_folder(spec: SweepSpec) -> Path:
    """Where the study's adapters, slot files and summary lie."""
    return spec.run.output.expanduser().resolve() / spec.study
