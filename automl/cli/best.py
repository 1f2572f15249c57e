"""`automl best`: the winning configuration of a study."""

from __future__ import annotations

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, JsonOption, StudyArgument, opened, recorded_spec
from automl.errors import SearchError


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl best bbc-topics --json")
    def best(study: StudyArgument = None, url: DatabaseOption = None, as_json: JsonOption = False) -> None:
        """Show the best complete trial: value, configuration, adapter; with two objectives also the Pareto front."""
        from automl.results.rank_gate import rank_gate
        from automl.results.squeezed import squeeze_headline
        from automl.results.summary import configuration_text, headline, size_text, summarise

        with opened(study, url) as (database, name):
            spec = recorded_spec(database, name)
            summary, gate = summarise(database, spec), rank_gate(database, spec)
        if summary.best is None or summary.configuration is None:
            raise SearchError(f"study {name!r} has no complete trial yet")
        if as_json:
            console.result_json({**summary.as_dict(), "rank_gate": gate.as_dict() if gate else None})
            return
        console.result(headline(summary))
        console.table(
            "",
            ("hyperparameter", ">value"),
            ((name, value) for name, value in summary.configuration.items() if value != ()),
        )
        console.result(f"adapter: {summary.best.adapter}")
        if (methods := (summary.verification or {}).get("methods")) is not None:
            console.result(f"which method: {methods['text']}")
        if summary.squeeze is not None:
            console.result(f"smaller adapter: {squeeze_headline(summary.squeeze)}")
        if gate is not None and gate.says_something:
            console.result(f"{gate.headline} ({gate.evidence})")
        if summary.also_minimize is not None:
            objective = summary.also_minimize
            console.table(
                f"Pareto front; any of these: automl export {name} --trial N --output my-adapter",
                (">trial", f">{objective}", f">{summary.metric}", "configuration"),
                (
                    (
                        row.number,
                        size_text(objective, row.size),
                        f"{row.value:.4f}",
                        configuration_text(row.params, row.trained_rate),
                    )
                    for row in summary.front
                ),
            )
        console.result(f"next: automl export {name} --output my-adapter")
