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
        from automl.storage.sql import open_database

        with open_database(database_url(url), create=True) as database:
            console.result(f"{database.url}: schema {database.status().revision}, ready")

    @group.command(epilog="Example: automl db upgrade --db sqlite:///automl.db")
    def upgrade(url: DatabaseOption = None) -> None:
        """Bring the schema of an existing database up to this version; a SQLite file is copied first."""
        from automl.storage.sql import upgrade_database

        done = upgrade_database(database_url(url))
        change = "nothing to do" if done.before == done.after else f"upgraded from {done.before.revision}"
        copy = f"; the old file is kept as {done.backup}" if done.backup else ""
        console.result(f"{done.after.url}: schema {done.after.revision}, {change}{copy}")

    @group.command(epilog="Example: automl db status --json")
    def status(url: DatabaseOption = None, as_json: JsonOption = False) -> None:
        """Show the schema version, the studies and who drives them. Changes nothing."""
        from dataclasses import asdict

        from automl.storage.sql import database_status, open_database

        state = database_status(database_url(url))
        studies = []
        if state.ready:
            with open_database(database_url(url), create=False, read_only=True) as database:
                studies = [asdict(row) for row in database.studies()]
        if as_json:
            shown = ("study", "space_sha256", "runs", "owner", "lease_until")
            named = [{name: row[name] for name in shown} for row in studies]
            console.result_json({**asdict(state), "ready": state.ready, "studies": named})
            return
        needed = "ready" if state.ready else f"not ready; run: {state.advice}"
        console.result(f"{state.url}: schema {state.revision or 'none'} of {state.head}, {needed}")
        if studies:
            rows = ((row["study"], row["runs"], row["owner"] or "nobody") for row in studies)
            console.table("", ("study", ">runs", "driven by"), rows)
