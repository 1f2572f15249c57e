"""`automl presets`: the ready space files that come with the program."""

from __future__ import annotations

from typing import Annotated

import typer

from automl.cli import console


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog='Example: automl search "$(automl presets bbc-topics)"')
    def presets(
        name: Annotated[str | None, typer.Argument(help="Print the path of this one.", metavar="NAME")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    ) -> None:
        """List the ready space files, or print where one lies."""
        from automl.space import presets as ready

        if name is not None:
            console.result(str(ready.preset(name).path))
        elif as_json:
            console.result_json([preset._asdict() for preset in ready.presets()])
        else:
            console.table("", ("preset", "about"), ((preset.name, preset.about) for preset in ready.presets()))
