"""`automl schema`: the JSON Schema of space.yaml."""

from __future__ import annotations

import typer

from automl.cli import console


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl schema > space.schema.json")
    def schema() -> None:
        """Print the JSON Schema of space.yaml, for editors that complete and check it."""
        from automl.space.load import json_schema

        console.result_json(json_schema())
