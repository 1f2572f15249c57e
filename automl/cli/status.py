"""`automl status`: how far a study is, without disturbing it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, StudyArgument, opened, recorded_spec

if TYPE_CHECKING:
    from automl.results.standing import Outlook
    from automl.storage.overview import StudyTotals

_STATES = ("COMPLETE", "PRUNED", "FAIL", "RUNNING", "PARKED")


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl status bbc-topics")
    def status(study: StudyArgument = None, url: DatabaseOption = None, as_json: JsonOption = False) -> None:
        """Show who drives a study, how many trials ended how, and the best value so far."""
        from automl.results.standing import outlook_of
        from automl.results.summary import headline, summarise
        from automl.storage.overview import study_totals

        with opened(study, url) as (database, name):
            (totals,) = study_totals(database, [name])
            outlook = outlook_of(database, totals)
            summary = summarise(database, recorded_spec(database, name))
        if as_json:
            about = {"driven_by": totals.driver, "runs": totals.runs, "planned": totals.planned}
            about["parked"] = totals.counts.get("PARKED", 0)
            about["steps_left"] = outlook.left if outlook else None
            ended = totals.last_run.ended if totals.last_run else None
            console.result_json({**summary.as_dict(), **about, "state": totals.state, "ended": ended})
            return
        planned = f" of {totals.planned}" if totals.planned else ""
        console.result(f"{name}: {_in_words(totals)}; {totals.ended}{planned} trials ended")
        console.table("", ("state", ">trials"), ((state, totals.counts.get(state, 0)) for state in _STATES))
        driver = totals.driver or "nobody"
        console.result(f"driven by {driver}; {totals.runs} runs, {_steps_in_words(totals, outlook)}")
        console.result(f"spent: {summary.spending}")
        console.result(headline(summary))


def _steps_in_words(totals: StudyTotals, outlook: Outlook | None) -> str:
    if outlook is None or not outlook.left:
        return f"{totals.steps:,} training steps"
    return f"{outlook.steps:,} of about {outlook.expected:,} training steps ({100 * outlook.share:.0f} %)"


def _in_words(totals: StudyTotals) -> str:
    return "stopped, `automl search` continues it" if totals.state == "stopped" else totals.state
