"""`automl trials`: every trial of a study."""

from __future__ import annotations

from typing import Annotated

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, StudyArgument, opened, recorded_spec


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl trials bbc-topics --limit 10")
    def trials(
        study: StudyArgument = None,
        url: DatabaseOption = None,
        limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Show at most this many.")] = 1000,
        as_json: JsonOption = False,
    ) -> None:
        """List the trials of a study, best first, with their parameters and why they ended."""
        from automl.metric import METRICS
        from automl.results.summary import configuration_text, metric_texts, size_text
        from automl.storage.trials import best_trials, with_metrics
        from automl.trial import FORGETTING

        with opened(study, url) as (database, name):
            spec = recorded_spec(database, name)
            beside = spec.task.measured[1:]
            best = best_trials(database, name, METRICS[spec.task.metric].direction, limit)
            rows = with_metrics(database, name, best, beside)
        if as_json:
            console.result_json([row.as_dict() for row in rows])
            return
        is_kept = any(row.forgetting is not None for row in rows) and spec.search.also_minimize != FORGETTING
        second = [spec.search.also_minimize] if spec.search.also_minimize else []
        console.table(
            "",
            (
                ">trial",
                "state",
                f">{spec.task.metric}",
                *(f">{name}" for name in beside),
                *(f">{name}" for name in second),
                *([f">{FORGETTING}"] if is_kept else []),
                ">steps",
                "reason",
                "configuration",
            ),
            (
                (
                    row.number,
                    row.shown_state,
                    "" if row.value is None else f"{row.value:.4f}",
                    *metric_texts(row, beside),
                    *(size_text(name, row.size) for name in second),
                    *([size_text(FORGETTING, row.forgetting)] if is_kept else []),
                    row.steps,
                    row.shown_reason,
                    configuration_text(row.params, row.trained_rate),
                )
                for row in rows
            ),
        )
