"""A night: one slot of a schedule, run as a fresh study and held against the last successful one."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from pathlib import Path
from zoneinfo import ZoneInfo

from automl.errors import ConfigError, StudyNotFoundError
from automl.results.folders import study_folder
from automl.schedule.comparison import Night, NightComparison, compare_nights, read_night
from automl.schedule.job import (
    DONE,
    INTERRUPTED,
    LOG_FILE,
    REGRESSION,
    SPACE_FILE,
    Job,
    Outcome,
    Place,
    Step,
    write_space,
)
from automl.schedule.options import read_options
from automl.space.derive import derived_text
from automl.space.load import parse_space
from automl.storage.claims import Claimant
from automl.storage.jobs import Cause, Firing, FiringState, Schedule
from automl.storage.schedules import ScheduleStore, last_successful
from automl.storage.sql import Database, open_database


class NightJob(Job):
    """One slot of a schedule: a fresh study, started from the last successful night's best, and compared with it."""

    def __init__(self, claimant: Claimant, schedule: Schedule, firing: Firing, place: Place) -> None:
        self.schedule = schedule
        self.firing = firing
        self.options = read_options(schedule.options)
        self.name = f"night {firing.slot.astimezone(ZoneInfo(schedule.timezone)):%Y-%m-%d %H:%M} of {schedule.name}"
        self.study = firing.study
        self.database = claimant.database
        self._store = ScheduleStore(claimant)
        self._place = place
        self.comparison: NightComparison | None = None
        self.value: float | None = None

    @property
    def attempts(self) -> int:
        return self.firing.attempts

    def address(self) -> str | None:
        return run_address(self.schedule)

    def begin(self) -> list[Step]:
        with open_database(self._place.url, create=False) as database:
            text = self._text(database)
        spec = parse_space(text, f"space of schedule {self.schedule.name}", Path(self.schedule.folder))
        folder = study_folder(spec)
        write_space(folder, text)
        return [Step([*self._place.program, "search", str(folder / SPACE_FILE)], folder / LOG_FILE)]

    def renew(self) -> bool:
        return self._store.renew(self.firing)

    def seconds_left(self, now: datetime) -> float | None:
        limit, started = self.schedule.deadline_seconds, self.firing.started_at
        return None if limit is None or started is None else limit - (now - started).total_seconds()

    def give_back(self, message: str, *, wait_seconds: float, counts: bool) -> bool:
        return self._store.requeue(self.firing, message, wait_seconds=wait_seconds, counts=counts)

    def finish(self, exit_code: int, message: str) -> Outcome | None:
        if exit_code not in (DONE, INTERRUPTED):
            return self.fail(exit_code, message)
        with open_database(self._place.url, create=False) as database:
            self._judge(database)
        if self.value is None:
            return self.fail(exit_code, message or "no trial was completed")
        state, found = self._verdict()
        told = found if exit_code == DONE else f"{found}; {message}"
        code = REGRESSION if state is FiringState.REGRESSION else DONE
        return self._end(state, told, code)

    def time_out(self) -> Outcome | None:
        with open_database(self._place.url, create=False) as database:
            self._judge(database)
        text = f"stopped at its deadline of {(self.schedule.deadline_seconds or 0) / 3600:.4g} h"
        if self.value is not None:
            text += f"; best so far {self.value:.4f}"
        return self._end(FiringState.TIMED_OUT, text, INTERRUPTED)

    def fail(self, exit_code: int | None, message: str) -> Outcome | None:
        return self._end(FiringState.FAILED, message, exit_code)

    def _text(self, database: Database) -> str:
        """The night's space file: the recorded one if its study has begun, else made from the schedule's."""
        if self.study is not None:
            try:
                return database.store(self.study).sweep().space_text
            except StudyNotFoundError:
                pass  # named, but never begun
        source = f"space of schedule {self.schedule.name}"
        spec = parse_space(self.schedule.space_text, source, Path(self.schedule.folder))
        taken = set(database.study_names())
        if self.study is None:
            self.study = _free(study_name(self.schedule, self.firing.slot, self.firing.cause), taken)
            self._store.name_study(self.firing, self.study)
        before = last_successful(database, self.schedule.name, before=self.firing.slot)
        earlier = before.study if before is not None and self.options.warm_start else None
        if earlier is not None and earlier not in taken:
            earlier = None  # somebody has removed it
        heading = f"The {self.name}; made by automl from the schedule's space file."
        return derived_text(
            spec,
            study=self.study,
            heading=heading,
            folder=Path(self.schedule.folder),
            warm_start=earlier,
            verify=self.options.verify,
        )

    def _judge(self, database: Database) -> None:
        """Read what was found, and compare it with the last successful night's."""
        spec = parse_space(self.schedule.space_text, self.schedule.name, Path(self.schedule.folder))
        tonight = _night(database, self.study, spec.task.metric)
        self.value = tonight.value if tonight else None
        before = last_successful(database, self.schedule.name, before=self.firing.slot)
        earlier = _night(database, before.study, spec.task.metric) if before else None
        if tonight and earlier:
            self.comparison = compare_nights(spec, tonight, earlier, self.options.noise)

    def _verdict(self) -> tuple[FiringState, str]:
        if self.comparison is None:
            return FiringState.SUCCEEDED, f"best {self.value:.4f}; no earlier night to compare with"
        states = {"better": FiringState.SUCCEEDED, "worse": FiringState.REGRESSION}
        return states.get(self.comparison.verdict, FiringState.NO_IMPROVEMENT), self.comparison.in_words()

    def _end(self, state: FiringState, message: str, exit_code: int | None) -> Outcome | None:
        comparison = self.comparison.as_dict() if self.comparison else None
        details = {"exit_code": exit_code, "value": self.value, "comparison": comparison}
        if not self._store.end(self.firing, state, message, **details):  # type: ignore[arg-type]  # a mixed mapping
            return None
        is_good = state in (FiringState.SUCCEEDED, FiringState.NO_IMPROVEMENT)
        return Outcome(self.name, state.value, message, not is_good)


def run_address(schedule: Schedule) -> str | None:
    """The Ray cluster that a schedule's nights join; None if they join none, or the space file cannot be read."""
    return _address_in(schedule.space_text)


@lru_cache(maxsize=256)
def _address_in(space_text: str) -> str | None:
    try:
        return parse_space(space_text, "schedule", Path("/")).run.address
    except ConfigError:
        return None


def study_name(schedule: Schedule, slot: datetime, cause: Cause) -> str:
    """`nightly-20260803-0200`, by the schedule's own clock; to the second for a night started by hand."""
    local = slot.astimezone(ZoneInfo(schedule.timezone))
    moment = f"{local:%Y%m%d-%H%M%S}" if cause == "hand" else f"{local:%Y%m%d-%H%M}"
    return f"{schedule.name}-{moment}"


def _free(name: str, taken: set[str]) -> str:
    """The name, or the name with a letter: when clocks go back, and where a person was here before."""
    candidates = (name, *(f"{name}-{letter}" for letter in "bcdefghijklmnopqrstuvwxyz"))
    return next((candidate for candidate in candidates if candidate not in taken), name)


def _night(database: Database, study: str | None, metric: str) -> Night | None:
    """What a study found; None if there is no such study (any more)."""
    if study is None:
        return None
    try:
        return read_night(database, study, metric)
    except StudyNotFoundError:
        return None
