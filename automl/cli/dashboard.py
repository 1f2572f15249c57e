"""`automl dashboard`: the web pages and the API of a database."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, database_url


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl dashboard --token-file ~/.config/automl/token")
    def dashboard(
        url: DatabaseOption = None,
        host: Annotated[
            str, typer.Option("--host", help="Address to listen on; one that others can reach demands a token.")
        ] = "127.0.0.1",
        port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free port.")] = 8321,
        token_file: Annotated[
            Path | None,
            typer.Option(
                "--token-file",
                help="File with the token for submitting; made if there is none. Default: $AUTOML_DASHBOARD_TOKEN.",
                metavar="FILE",
            ),
        ] = None,
        names: Annotated[
            list[str] | None,
            typer.Option("--allow-host", help="Further host name to answer to, behind a proxy; repeatable."),
        ] = None,
    ) -> None:
        """Show studies, schedules and their progress in a browser, until stopped. Read-only without a token."""
        from automl.errors import MissingExtraError

        try:
            from dashboards.serve import Address, serve
        except ModuleNotFoundError as error:
            if error.name not in ("fastapi", "starlette", "uvicorn", "a2wsgi"):
                raise
            raise MissingExtraError("the dashboard needs a web server: pip install 'automl-lora[web]'") from error
        address = Address(host=host, port=port, names=tuple(names or ()))
        file = token_file.expanduser() if token_file else None
        serve(database_url(url), address, file, lambda where: console.note(f"dashboard: {where} (Ctrl-C ends it)"))
