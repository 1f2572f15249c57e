"""Where a sweep keeps its files. Imports nothing heavy."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from automl.space.spec import SweepSpec


def cache_folder() -> Path:
    """Folder for converted models and tokenised data: $AUTOML_CACHE, else automl/ in the user's cache folder."""
    if chosen := os.environ.get("AUTOML_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "automl"


def output_problem(folder: Path, output: Path) -> str:
    """Why nothing could be written to `run.output` of a space file in this folder, in one line; empty if it could."""
    place = (folder / output.expanduser()).absolute()
    there = next(each for each in (place, *place.parents) if each.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return ""
    begins = "" if output.is_absolute() else "; a relative one begins beside the space file. Write an absolute one"
    return f"{place} cannot be made, {there} is not writable{begins}"


def within(spec: SweepSpec, folder: Path) -> SweepSpec:
    """The spec with `folder`, which bears the study's name, as its `study_folder`."""
    return replace(spec, run=replace(spec.run, output=folder.parent))


def study_folder(spec: SweepSpec) -> Path:
    """Where the study's adapters, slot files and summary lie: below `run.output`, unless it has begun elsewhere.

    For a study that has begun, `spec` is that of `recorded_spec` or of an open home, which know where.
    """
    return spec.run.output.expanduser().resolve() / spec.study


def proofs_folder(cache: Path) -> Path:
    """Where is remembered which models can be packed."""
    return cache / "packing"
