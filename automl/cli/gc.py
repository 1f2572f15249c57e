"""`automl gc`: remove what nobody needs."""

from __future__ import annotations

from typing import Annotated

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, database_url


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl gc --dry-run")
    def gc(
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
        cache_days: Annotated[
            float, typer.Option("--cache-days", min=0, help="Give up cached models and data not used for so long.")
        ] = 30.0,
        url: DatabaseOption = None,
        as_json: JsonOption = False,
    ) -> None:
        """Remove slot files of finished studies, leftovers of dead writers, unused caches, nights beyond retention."""
        from automl.results.folders import cache_folder
        from automl.schedule.garbage import collect
        from automl.storage.sql import open_database

        removed = []
        with open_database(database_url(url), create=False) as database:
            for removal in collect(database, cache_folder(), cache_days=cache_days, dry_run=dry_run):
                removed.append(removal)
                if not as_json:
                    console.result(f"{'would remove' if dry_run else 'removed'} {removal}")
        total = sum(removal.bytes for removal in removed)
        if as_json:
            console.result_json({"dry_run": dry_run, "bytes": total, "removed": [each._asdict() for each in removed]})
        else:
            verb = "would be freed" if dry_run else "freed"
            console.result(f"{total / (1 << 20):.1f} MiB {verb}, {len(removed)} things")
