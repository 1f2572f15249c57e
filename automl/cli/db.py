"""`automl db`: create, upgrade, copy and look at the database."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, database_url
from automl.errors import ConfigError, Problem


def register(app: typer.Typer) -> None:
    """Add the group of commands."""
    group = typer.Typer(no_args_is_help=True, help="Create, upgrade, copy or look at the database.")
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
        from automl.storage.upgrade import upgrade_database

        done = upgrade_database(database_url(url))
        change = "nothing to do" if done.before == done.after else f"upgraded from {done.before.revision}"
        copy = f"; the old file is kept as {done.backup}" if done.backup else ""
        console.result(f"{done.after.url}: schema {done.after.revision}, {change}{copy}")

    @group.command(epilog="Example: automl db status --json")
    def status(url: DatabaseOption = None, as_json: JsonOption = False) -> None:
        """Show the schema version, the studies and who drives them. Changes nothing."""
        from dataclasses import asdict

        from automl.storage.sql import database_status, open_database

        state = database_status(database_url(url), thorough=True)
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

    @group.command(epilog="Example: automl db backup backups/ --keep 7")
    def backup(
        target: Annotated[
            Path, typer.Argument(help="A new file, or a folder for one named by the time.", metavar="FILE|FOLDER")
        ] = Path("."),
        url: DatabaseOption = None,
        keep: Annotated[
            int | None, typer.Option("--keep", min=1, help="Delete all but so many of the newest copies in the folder.")
        ] = None,
    ) -> None:
        """Copy the database, also while a search writes to it, and verify the copy."""
        from automl.storage.backup import back_up

        done = back_up(database_url(url), target, keep=keep)
        console.result(f"{done.path}: {done.studies} studies, {done.bytes:,} bytes, verified")
        console.results(f"deleted: {path}" for path in done.removed)

    @group.command(epilog="Example: automl db restore backups/automl-20260101T020000.000000Z.db")
    def restore(
        source: Annotated[Path, typer.Argument(help="A file written by `automl db backup`.", metavar="FILE")],
        url: DatabaseOption = None,
        overwrite: Annotated[
            bool, typer.Option("--overwrite", help="Replace what is there (a SQLite file is kept under another name).")
        ] = False,
    ) -> None:
        """Put a backup in the place of the database; refuses to replace one unless told to."""
        from automl.storage.backup import restore as put_back

        state = put_back(source, database_url(url), overwrite=overwrite)
        needed = "ready" if state.ready else f"restored from an older version; run: {state.advice}"
        console.result(f"{state.url}: schema {state.revision}, {state.studies} studies, {needed}")

    @group.command(epilog="Example: automl db roles --apply")
    def roles(
        url: DatabaseOption = None,
        apply: Annotated[
            bool, typer.Option("--apply", help="Run the SQL as the user of the URL, an administrator.")
        ] = False,
    ) -> None:
        """Print (or apply) the SQL for least privilege on PostgreSQL: automl_owner, automl_rw, automl_web, automl_ro.

        With --apply, passwords are taken from AUTOML_OWNER_PASSWORD, AUTOML_RW_PASSWORD, AUTOML_WEB_PASSWORD and
        AUTOML_RO_PASSWORD, or from the files that these names with _FILE at the end point to. A role without one
        keeps what it has.
        """
        from automl.storage.roles import ROLES, apply_roles, role_statements

        address = database_url(url)
        if not apply:
            console.results(f"{statement};" for statement in role_statements(address))
            return
        passwords = {role: secret for role in ROLES if (secret := _password(role))}
        with_password = apply_roles(address, passwords)
        console.results(f"{role}: {'password set' if role in with_password else 'no password given'}" for role in ROLES)


def _password(role: str) -> str | None:
    """The role's password from the environment, or from the file that the environment names."""
    name = f"{role.upper()}_PASSWORD"
    if secret := os.environ.get(name):
        return secret
    if path := os.environ.get(f"{name}_FILE"):
        try:
            return Path(path).read_text(encoding="utf-8").rstrip("\n")
        except OSError as error:
            raise ConfigError([Problem("", 0, 0, f"{name}_FILE", f"cannot read {path}: {error.strerror}")]) from error
    return None
