"""A clock moved by hand, schedules, and small programs in place of `automl`."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from automl.schedule.options import ScheduleOptions
from automl.storage.claims import Claimant
from automl.storage.schedules import Definition, ScheduleStore, list_firings
from automl.storage.sql import Database

SPACE = """\
version: 1
study: nightly
model: ./model
task: {type: classification, data: ./data.jsonl, metric: accuracy, evaluate_rows: 0}
space: {rank: {type: int, low: 1, high: 8}, learning_rate: {type: float, low: 1.0e-3, high: 1.0e-1, log: true}}
search: {trials: 4, steps: 20, evaluate_every: 10}
run: {executor: inline}
"""


class HandClock:
    """Time that stands still until it is moved."""

    def __init__(self, now: datetime) -> None:
        self.time = now

    def __call__(self) -> datetime:
        return self.time

    def forward(self, **duration: float) -> None:
        self.time += timedelta(**duration)


def definition(folder: Path, *, options: ScheduleOptions | None = None, **changed: object) -> Definition:
    """Every night at two in Berlin, unless it is changed."""
    settings: dict[str, object] = {
        "cron": "0 2 * * *",
        "timezone": "Europe/Berlin",
        "space_text": SPACE,
        "folder": str(folder),
        "overlap": "skip",
        "catch_up_seconds": 43_200.0,
        "deadline_seconds": None,
        "options": (options or ScheduleOptions()).as_dict(),
        **changed,
    }
    return Definition(**settings)  # type: ignore[arg-type]


def add_schedule(claimant: Claimant, folder: Path, name: str = "nightly", **changed: object) -> ScheduleStore:
    """Create the schedule; its first slot is the next one by the claimant's clock."""
    store = ScheduleStore(claimant)
    store.add(name, definition(folder, **changed))  # type: ignore[arg-type]
    return store


def program(tmp_path: Path, text: str) -> list[str]:
    """A command that stands for `automl`: a Python program given `search FILE`."""
    path = tmp_path / "program.py"
    path.write_text(text, encoding="utf-8")
    return [sys.executable, str(path)]


def tick_until(tick: Callable[[], object], done: Callable[[], bool], *, most: int = 10_000) -> None:
    """Tick until something is so; it must become so."""
    pause = threading.Event()
    for _ in range(most):
        tick()
        if done():
            return
        pause.wait(0.05)
    raise AssertionError("it did not come about")


def states(database: Database, name: str = "nightly") -> list[str]:
    """Of all nights, the oldest first."""
    return [str(night.state) for night in reversed(list_firings(database, name))]


# Stands for `automl search FILE`: a study of one complete trial whose value is the next line of the file `values`.
ONE_TRIAL = """\
import json, os, sys
from pathlib import Path

import optuna

from automl.storage.base import RunEnd
from automl.storage.lease import StudyLease
from automl.storage.runs import RunLog
from automl.storage.sql import open_database

space = Path(sys.argv[2])
text = space.read_text()
document = json.loads(text.split("\\n", 1)[1])
values = Path(__file__).with_name("values")
value, *rest = values.read_text().split()
values.write_text("\\n".join(rest))
optuna.logging.set_verbosity(optuna.logging.ERROR)
with open_database(os.environ["AUTOML_DB_URL"], create=False) as database:
    with StudyLease(database, document["study"]) as lease:
        run = lease.take(text, "0" * 64, {"folder": str(space.parent)})
        log = RunLog(database, document["study"], run, lease.verify)
        log.begin(trials=4, steps=20, metric="accuracy")
        log.end(RunEnd.FINISHED)
    study = optuna.create_study(
        study_name=document["study"], storage=database.optuna_storage(), direction="maximize"
    )
    first = {"rank": 4, "learning_rate": 0.01}
    space = {
        "rank": optuna.distributions.IntDistribution(1, 8),
        "learning_rate": optuna.distributions.FloatDistribution(1e-3, 1e-1, log=True),
    }
    study.add_trial(optuna.trial.create_trial(params=first, distributions=space, value=float(value)))
    rows = {"train": 800, "validation": 10000, "test": 100}
    database.store(document["study"]).add_event("ground", {"data": "d", "model": "m", "rows": rows})
print("done")
"""


# Stands for an `automl search FILE` that ends with exit code 4, for the reason that is put in, after some trials.
CUT_SHORT = """\
import json, os, sys
from pathlib import Path

import optuna

from automl.storage.base import RunEnd
from automl.storage.lease import StudyLease
from automl.storage.runs import RunLog
from automl.storage.sql import open_database

text = Path(sys.argv[2]).read_text()
document = json.loads(text.split("\\n", 1)[1])
optuna.logging.set_verbosity(optuna.logging.ERROR)
with open_database(os.environ["AUTOML_DB_URL"], create=False) as database:
    with StudyLease(database, document["study"]) as lease:
        log = RunLog(database, document["study"], lease.take(text, "0" * 64, {"folder": "."}), lease.verify)
        log.begin(trials=6, steps=20, metric="accuracy")
        study = optuna.create_study(
            study_name=document["study"],
            storage=database.optuna_storage(),
            direction="maximize",
            load_if_exists=True,
        )
        for value in VALUES:
            study.add_trial(optuna.trial.create_trial(value=value))
        log.end(RunEnd("REASON"))
print("stopped (Ray ended unexpectedly) after 2 of 6 trials")
sys.exit(4)
"""


def cut_short(reason: str, *values: float) -> str:
    """The program that stands for it."""
    return CUT_SHORT.replace("REASON", reason).replace("VALUES", repr(list(values)))


def plan_values(tmp_path: Path, *values: float) -> None:
    """What the coming nights of ONE_TRIAL find."""
    (tmp_path / "values").write_text("\n".join(str(value) for value in values), encoding="utf-8")


def space_of(folder: Path) -> dict[str, object]:
    """The space file a night was run with."""
    document: dict[str, object] = json.loads((folder / "space.yaml").read_text(encoding="utf-8").split("\n", 1)[1])
    return document
