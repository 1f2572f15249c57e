"""A scheduler as a process of its own, as `automl scheduler` is, but for its clock: it shows what FOLDER/now says.

    AUTOML_DB_URL=… python -m tests.schedule.drive_scheduler FOLDER

Moments are in ISO 8601, with their zone. SIGTERM ends it in order; then its exit code is 0.
"""

from __future__ import annotations

import os
import sys
import threading
from datetime import datetime
from pathlib import Path

from automl.cli.signals import signals_as_interruption
from automl.schedule.daemon import Scheduler, Settings
from automl.schedule.job import Place
from automl.space.load import DATABASE_VARIABLE
from automl.storage.claims import Claimant
from automl.storage.sql import open_database


def set_clock(folder: Path, moment: datetime) -> None:
    """From now on it is this time for the scheduler."""
    draft = folder / ".now"
    draft.write_text(moment.isoformat(), encoding="utf-8")
    draft.replace(folder / "now")


def main() -> None:
    """Be the scheduler."""
    clock, url = Path(sys.argv[1]) / "now", os.environ[DATABASE_VARIABLE]
    stop = threading.Event()
    with open_database(url, create=False) as database, signals_as_interruption() as request:
        claimant = Claimant(database, clock=lambda: datetime.fromisoformat(clock.read_text(encoding="utf-8")))
        scheduler = Scheduler(claimant, Place(url=url), Settings(poll_seconds=0.1))
        request.then(lambda _reason: stop.set())
        scheduler.run(stop)


if __name__ == "__main__":
    main()
