"""`automl doctor`: check that database and disk agree, and repair what can be repaired."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, StudyArgument, opened

_VIOLATED = 3


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl doctor bbc-topics --fix")
    def doctor(
        study: StudyArgument = None,
        url: DatabaseOption = None,
        fix: Annotated[
            bool, typer.Option("--fix", help="Repair what can be repaired, and say what was changed.")
        ] = False,
        as_json: JsonOption = False,
    ) -> None:
        """Check a study's invariants: nothing lost, nothing doubled, every artefact as recorded."""
        from automl.storage.invariants import check, repair

        with opened(study, url) as (database, name):
            database.check_pages()
            changes = repair(database, name) if fix else []
            violations = check(database, name, finished=False)
        if as_json:
            console.result_json(
                {"study": name, "changes": changes, "violations": [asdict(violation) for violation in violations]}
            )
        else:
            console.results(f"changed: {change}" for change in changes)
            console.results(f"{violation.id}: {violation.description}" for violation in violations)
            console.result(f"{name}: {len(violations)} problems" if violations else f"{name}: all invariants hold")
        if violations:
            raise typer.Exit(_VIOLATED)
