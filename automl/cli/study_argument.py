"""What the commands about a finished or running study share: which database, which study."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from automl.errors import ConfigError, Problem, StudyNotFoundError

if TYPE_CHECKING:
    from automl.space.spec import SweepSpec
    from automl.storage.sql import Database

DEFAULT_URL = "sqlite:///automl.db"

StudyArgument = Annotated[
    str | None,
    typer.Argument(help="Name of a study, or its space file. May be left out if there is only one.", metavar="STUDY"),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--db",
        help=f"Database URL, without a password. Default: the space file's, $AUTOML_DB_URL, or {DEFAULT_URL}.",
        metavar="URL",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@contextmanager
def opened(study: str | None, url: str | None) -> Iterator[tuple[Database, str]]:
    """The database (which must exist) and the study's name. Raises StudyNotFoundError naming the studies there are."""
    from automl.storage.sql import open_database

    name, written_url = _from_file(study)
    with open_database(database_url(url or written_url), create=False) as database:
        yield database, _pick(name, database.study_names())


def database_url(url: str | None) -> str:
    """The URL to use: the given one, else $AUTOML_DB_URL, else SQLite here. A password in an argument is refused."""
    if url is None:
        return os.environ.get("AUTOML_DB_URL") or DEFAULT_URL
    from automl.space.checks import holds_password

    if holds_password(url):
        message = "a password in an argument is visible to every user of the machine; put the URL in AUTOML_DB_URL"
        raise ConfigError([Problem("", 0, 0, "--db", message)])
    return url


def recorded_spec(database: Database, study: str) -> SweepSpec:
    """The study's space file as it was stored, with relative paths resolved where it lay."""
    from automl.results import recorded

    return recorded.recorded_spec(database, study)


def spec_to_measure(database: Database, name: str, study: str | None) -> SweepSpec:
    """The study's recorded spec, for a command that measures models.

    study: the argument. Programs and functions that judge answers are those of the space file, if it names one: none is
    taken out of the database.
    """
    spec = recorded_spec(database, name)
    if study is None or not _is_file(study):
        return spec
    from automl.space.load import load_space

    return replace(spec, task=replace(spec.task, own_metrics=load_space(Path(study)).task.own_metrics))


def _is_file(study: str) -> bool:
    return study.endswith((".yaml", ".yml"))


def _from_file(study: str | None) -> tuple[str | None, str | None]:
    if study is None or not _is_file(study):
        return study, None
    from automl.space.load import load_space

    spec = load_space(Path(study))
    return spec.study, spec.storage_url


def _pick(name: str | None, known: list[str]) -> str:
    listed = ", ".join(repr(study) for study in sorted(known)) or "none"
    if name is None:
        if len(known) == 1:
            return known[0]
        raise StudyNotFoundError(f"which study? The database holds: {listed}")
    if name not in known:
        raise StudyNotFoundError(f"no study {name!r} in the database; it holds: {listed}")
    return name
