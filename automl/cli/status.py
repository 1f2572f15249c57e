"""`automl status`: how far a study is, without disturbing it."""

from __future__ import annotations

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, StudyArgument, opened, recorded_spec


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl status bbc-topics")
    def status(study: StudyArgument = None, url: DatabaseOption = None, as_json: JsonOption = False) -> None:
        """Show who drives a study, how many trials ended how, and the best value so far."""
        from automl.sweep.summary import headline, summarise

        with opened(study, url) as (database, name):
            row = database.store(name).sweep()
            spec = recorded_spec(database, name)
            summary = summarise(database, spec)
        driver = row.owner or "nobody"
        if as_json:
            console.result_json({**summary.as_dict(), "driven_by": row.owner, "runs": row.runs})
            return
        counts = summary.counts
        console.result(f"{name}: {counts['COMPLETE'] + counts['PRUNED']} of {spec.search.trials} trials ended")
        console.table("", ("state", ">trials"), counts.items())
        console.result(f"driven by {driver}; {row.runs} runs, {summary.spent_steps:,} training steps so far")
        console.result(headline(summary))
