"""The study of `automl.testing.formula_study` in a folder: what the fault tests drive."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from automl.space.spec import SearchSettings
from automl.storage.sql import open_database
from automl.testing import formula_study
from automl.testing.formula_study import NAME, Search, undisturbed

__all__ = ["NAME", "open_database", "open_search", "undisturbed", "url", "violations"]


def open_search(folder: Path, settings: SearchSettings, **options: Any) -> AbstractContextManager[Search]:
    return formula_study.open_search(url(folder), settings, **options)


def url(folder: Path) -> str:
    """The database's URL as `folder`/url has it, else a SQLite file in the folder."""
    told = folder / "url"
    return told.read_text(encoding="utf-8") if told.exists() else f"sqlite:///{folder / 'search.db'}"


def violations(folder: Path, settings: SearchSettings, *, finished: bool) -> list[str]:
    return formula_study.violations(url(folder), settings, finished=finished)
