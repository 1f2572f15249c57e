"""A schedule that this program cannot go by stops nobody else: not the scheduler, a page, a metric or a command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.core import Metric
from sqlalchemy import text, update

from automl.errors import ConfigError
from automl.schedule.daemon import Scheduler
from automl.schedule.due import fire_due
from automl.schedule.garbage import collect
from automl.schedule.job import Place
from automl.schedule.metrics import ServiceCollector
from automl.schedule.options import ScheduleOptions
from automl.schedule.run_once import run_due, run_now
from automl.storage.claims import Claimant
from automl.storage.schedules import list_firings
from automl.storage.sql import Database
from automl.storage.tables import schedules
from dashboards.views import Views
from tests.schedule.scheduling import SPACE, HandClock, add_schedule, states

MakePlace = Callable[[str], Place]

UNREADABLE: dict[str, tuple[dict[str, Any], str]] = {
    "zone": ({"timezone": "Europe/Kyiv2"}, "is not an IANA time zone"),
    "zone that is a folder": ({"timezone": "Europe"}, "is not an IANA time zone"),
    "cron": ({"cron": "0 2 * * MOON"}, "0 2 * * MOON"),
    "cron of six fields": ({"cron": "0 0 2 * * *"}, "has not five fields"),
    "option of another version": ({"options": {"verify": True, "colour": "blue"}}, "options.colour: is not known"),
    "option of another type": ({"options": {"keep_nights": "many"}}, "options.keep_nights: 'many'"),
    "no options": ({"options": ["verify"]}, "is no mapping"),
}


@pytest.fixture(params=UNREADABLE)
def problem(request: pytest.FixtureRequest, database: Database, clock: HandClock, tmp_path: Path) -> str:
    """What is said of the schedule `aaa`, which is asked for before `good` is."""
    changed, said = UNREADABLE[request.param]
    claimant = Claimant(database, clock=clock)
    for name in ("aaa", "good"):
        add_schedule(claimant, tmp_path, name, space_text=SPACE)
    write(database, changed)
    clock.forward(days=1)
    return said


def test_the_others_are_fired_and_shown_and_it_is_named_everywhere(
    problem: str,
    database: Database,
    clock: HandClock,
    place: MakePlace,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    claimant = Claimant(database, clock=clock)
    scheduler = Scheduler(claimant, place("raise SystemExit(2)"))
    for _ in range(2):
        scheduler.tick()
    assert states(database, "good") != []
    assert states(database, "aaa") == []
    told = [record.getMessage() for record in caplog.records if "aaa cannot be read" in record.getMessage()]
    assert len(told) == 1, "said once, not at every look"
    assert problem in told[0]
    scheduler.leave()
    lines = {line.name: line for line in Views(database).schedules()}
    assert (problem in lines["aaa"].problem, lines["aaa"].due, lines["good"].problem) == (True, None, "")
    assert Views(database).schedule("aaa").problem == lines["aaa"].problem
    assert unreadable_by_metrics(database) == {"aaa": 1.0, "good": 0.0}
    list(collect(database, tmp_path / "cache", cache_days=1.0, dry_run=True))
    for run in (run_due, run_now):
        with pytest.raises(ConfigError, match="schedule aaa"):
            run(claimant, "aaa", place("raise SystemExit(2)"), None)  # type: ignore[operator]
    # Mended, it makes up for what was due meanwhile.
    write(database, {"timezone": "Europe/Berlin", "cron": "0 2 * * *", "options": ScheduleOptions().as_dict()})
    fire_due(claimant, only="aaa")
    assert states(database, "aaa") == ["QUEUED"]


def test_a_night_that_waits_for_it_fails_alone(
    problem: str, database: Database, clock: HandClock, place: MakePlace
) -> None:
    with database.writing("leave a night") as connection:
        night = "INSERT INTO automl_firings (schedule, slot, cause, state, attempts, created_at, message)"
        now = "'2026-08-03 00:00:00.000000'"
        connection.execute(text(f"{night} VALUES ('aaa', {now}, 'cron', 'QUEUED', 0, {now}, '')"))
    scheduler = Scheduler(Claimant(database, clock=clock), place("raise SystemExit(2)"))
    scheduler.tick()
    assert states(database, "aaa") == ["FAILED"]
    assert problem in list_firings(database, "aaa")[0].message
    assert states(database, "good") in (["RUNNING"], ["FAILED"])
    scheduler.leave()


def write(database: Database, columns: dict[str, Any]) -> None:
    """Change the row of `aaa` past everything that would check it."""
    with database.writing("change a schedule") as connection:
        connection.execute(update(schedules).where(schedules.c.name == "aaa").values(columns))


def unreadable_by_metrics(database: Database) -> dict[str, float]:
    families: list[Metric] = list(ServiceCollector(database).collect())
    (family,) = [each for each in families if each.name == "automl_schedule_unreadable"]
    return {sample.labels["schedule"]: sample.value for sample in family.samples}
