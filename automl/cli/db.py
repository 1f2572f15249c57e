"""`automl db`: create, upgrade and look at the database."""

from __future__ import annotations

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, database_url


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(no_args_is_help=True, help="Create, upgrade or look at the database.")
    app.add_typer(group, name="db")

    @group.command(epilog="Example: automl db init --db sqlite:///automl.db")
    def init(url: DatabaseOption = None) -> None:
        """Create the tables and views; harmless if they are there already."""
        from automl.storage.sql import mask_url, open_database

        with open_database(database_url(url), create=True) as database:
            console.result(f"{mask_url(database_url(url))}: schema {database.status().revision}, ready")

    @group.command(epilog="Example: automl db upgrade --db sqlite:///automl.db")
    def upgrade(url: DatabaseOption = None) -> None:
        """Bring the schema of an existing database up to this version."""
        from automl.storage.sql import mask_url, upgrade_database

        before, after = upgrade_database(database_url(url))
        change = "nothing to do" if before == after else f"upgraded from {before}"
        console.result(f"{mask_url(database_url(url))}: schema {after}, {change}")

    @group.command(epilog="Example: automl db status --json")
    def status(url: DatabaseOption = None, as_json: JsonOption = False) -> None:
        """Show the schema version, the studies and who drives them."""
        from dataclasses import asdict

        from automl.storage.sql import mask_url, open_database

        with open_database(database_url(url), create=False) as database:
            state, studies = database.status(), database.studies()
        if as_json:
            console.result_json({"database": mask_url(database_url(url)), **asdict(state), "studies": [_row(s) for s in studies]})
            return
        console.result(f"{mask_url(database_url(url))}: schema {state.revision} (newest {state.head})")
        console.table("", ("study", ">runs", "driven by"), ((s.study, s.runs, s.owner or "nobody") for s in studies))


def _row(sweep: object) -> dict[str, object]:
    return {name: getattr(sweep, name) for name in ("study", "space_sha256", "runs", "owner", "lease_until")}
