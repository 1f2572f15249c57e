"""`automl scheduler`: the process that runs nights and submitted sweeps."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from typing import Annotated

import typer

from automl.cli import console
from automl.cli.study_argument import DatabaseOption, database_url


def register(app: typer.Typer) -> None:
    """Add the command."""

    @app.command(epilog="Example: automl scheduler --metrics-port 9464")
    def scheduler(
        url: DatabaseOption = None,
        at_once: Annotated[int, typer.Option("--at-once", min=1, max=64, help="Sweeps that run at the same time.")] = 1,
        poll: Annotated[
            float, typer.Option("--poll", min=0.1, max=600, help="Seconds between two looks at the database.")
        ] = 5.0,
        submissions: Annotated[
            bool, typer.Option("--submissions/--no-submissions", help="Also run sweeps submitted through the API.")
        ] = True,
        address: Annotated[
            str | None,
            typer.Option(
                "--address",
                help="Ray cluster that submitted sweeps join, as in run.address. Default: each starts a private one.",
                metavar="HOST:PORT",
            ),
        ] = None,
        metrics_port: Annotated[
            int | None,
            typer.Option(
                "--metrics-port", min=0, max=65535, help="Serve Prometheus metrics on 127.0.0.1; 0: any port."
            ),
        ] = None,
    ) -> None:
        """Run what is due until stopped. Several may run: each slot fires exactly once."""
        from automl.cli.signals import signals_as_interruption
        from automl.schedule.daemon import Scheduler, Settings
        from automl.schedule.job import Place
        from automl.schedule.metrics import HOST, serving
        from automl.storage.claims import Claimant
        from automl.storage.sql import open_database
        from automl.storage.url import absolute_url

        given = database_url(url)
        stop = threading.Event()
        with ExitStack() as stack:
            database = stack.enter_context(open_database(given, create=True))
            request = stack.enter_context(signals_as_interruption("the scheduler was ready"))
            if metrics_port is not None:
                port = stack.enter_context(serving(database, metrics_port))
                console.note(f"metrics: http://{HOST}:{port}/metrics")
            settings = Settings(capacity=at_once, poll_seconds=poll, takes_submissions=submissions)
            one = Scheduler(Claimant(database), Place(url=absolute_url(given), address=address), settings)
            request.then(lambda _reason: stop.set())
            one.run(stop)
