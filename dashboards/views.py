"""What the pages and the API show, gathered from the database as plain values. Every answer may be a second old."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from automl.errors import StudyNotFoundError
from automl.report.frames import ModuleShare
from automl.report.reading import shares_of_modules
from automl.report.render import render
from automl.report.write import study_frame
from automl.results.recorded import recorded_spec
from automl.results.spending import Spending
from automl.results.standing import Outlook, outlook_of, spending_of
from automl.schedule.cron import next_slots
from automl.schedule.options import schedule_problem
from automl.storage.invariants import Violation, check
from automl.storage.jobs import Firing, FiringState, Schedule, SchedulerRow, Submission
from automl.storage.overview import StudyTotals, count_studies, list_studies, study_totals
from automl.storage.schedules import list_firings, list_schedules, schedules_with_nights
from automl.storage.sql import Database
from automl.storage.submissions import find_submission, list_schedulers, list_submissions
from automl.storage.trial_pages import (
    Pace,
    TrialLine,
    TrialValue,
    improvements,
    list_page,
    pace,
    sampled_trials,
    stop_reasons,
    trial_curves,
)
from automl.storage.trials import CurvePoint
from dashboards.recent import Recent

FRESH = 1.0
"""Seconds for which an answer is shared."""
_REPORT_FRESH, _DOCTOR_FRESH = 10.0, 60.0
_SHOWN_BEST, _SHOWN_CURVES, _SHOWN_RUNNING = 10, 5, 64
_NIGHTS, _SUBMISSIONS = 120, 20
_MAP_TRIALS = 50
_SILENT = 60.0
_ENDED = (FiringState.SUCCEEDED, FiringState.NO_IMPROVEMENT, FiringState.REGRESSION)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyLine:
    """A study as one line. outlook: how far it is, in steps; None where that was not read."""

    totals: StudyTotals
    outlook: Outlook | None = None

    @property
    def study(self) -> str:
        """Its name."""
        return self.totals.study

    @property
    def metric(self) -> str:
        """The objective."""
        return self.totals.metric

    @property
    def state(self) -> str:
        """running, finished or stopped: not finished, and nobody drives it."""
        return self.totals.state

    @property
    def planned(self) -> int:
        """Trials that its latest run was asked for, 0 if that is not known."""
        return self.totals.planned

    @property
    def planned_steps(self) -> int:
        """Steps of a trial, 0 if that is not known."""
        return self.totals.last_run.steps if self.totals.last_run else 0

    @property
    def verified(self) -> str:
        """How far the winner can be believed, in a word."""
        found = self.totals.verification
        if found is None:
            return "no"
        return "running" if not found.is_done else "yes" if found.beats_majority else "no gain"


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyView:
    """A study in full. eta: when it would end at the present pace, None if it is not driven or unknown."""

    line: StudyLine
    running: Sequence[TrialLine]
    best: Sequence[TrialLine]
    reasons: Mapping[str, int]
    history: Sequence[TrialValue]
    improvements: Sequence[TrialValue]
    curves: Mapping[int, Sequence[CurvePoint]]
    pace: Pace | None
    eta: datetime | None
    spending: Spending


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleLine:
    """A schedule with its latest nights, the latest first. due: its next slot, None while it is paused or removed.

    problem: why this program cannot go by it, empty if it can.
    """

    name: str
    schedule: Schedule | None
    nights: Sequence[Firing]
    due: datetime | None
    problem: str = ""

    @property
    def last(self) -> Firing | None:
        """The latest night."""
        return next(iter(self.nights), None)

    @property
    def ended(self) -> list[Firing]:
        """Nights that found something, the latest first."""
        return [night for night in self.nights if night.state in _ENDED and night.value is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """Schedulers and the latest submissions. alive: heard of in the last minute."""

    alive: Sequence[SchedulerRow]
    silent: Sequence[SchedulerRow]
    submissions: Sequence[Submission]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """What the doctor found, when."""

    violations: Sequence[Violation]
    at: datetime
    seconds: float


class Views:
    """The questions of the pages to one database, which is only read."""

    def __init__(self, database: Database, recent: Recent | None = None) -> None:
        self._database = database
        self._recent = recent or Recent()

    def names(self) -> list[str]:
        """The studies that were driven last, at most 200."""
        return self._recent.get("names", FRESH, lambda: list_studies(self._database))

    def count(self) -> int:
        """How many studies there are."""
        return self._recent.get("count", FRESH, lambda: count_studies(self._database))

    def studies(self, *, limit: int, offset: int = 0) -> list[StudyLine]:
        """A page of the studies: those being driven, then the one that was driven last first."""
        return self._recent.get(("studies", limit, offset), FRESH, lambda: self._read_studies(limit, offset))

    def line(self, name: str) -> StudyLine:
        """One study in a line. Raises StudyNotFoundError."""
        return self._recent.get(("line", name), FRESH, lambda: self._read_line(name))

    def study(self, name: str) -> StudyView:
        """One study in full. Raises StudyNotFoundError."""
        return self._recent.get(("study", name), FRESH, lambda: self._read_study(name))

    def trials(
        self, name: str, *, order: str, states: Sequence[str], limit: int, offset: int
    ) -> tuple[StudyLine, list[TrialLine]]:
        """A page of the trials of a study. Raises StudyNotFoundError."""
        line = self.line(name)
        asked = {"order": order, "states": tuple(states), "limit": limit, "offset": offset}
        key = ("trials", name, *asked.values())
        read = lambda: list_page(self._database, name, **asked)  # type: ignore[arg-type]  # noqa: E731
        return line, self._recent.get(key, FRESH, read)

    def layers(self, name: str) -> list[ModuleShare]:
        """Importance of each module, from the latest trials that measured it; empty if none did."""
        self.line(name)
        read = lambda: list(shares_of_modules(self._database.importances(name, latest=_MAP_TRIALS)))  # noqa: E731
        return self._recent.get(("layers", name), FRESH, read)

    def report(self, name: str) -> str:
        """The report of a study as a page. Raises StudyNotFoundError; it may take seconds."""
        self.line(name)
        return self._recent.get("report " + name, _REPORT_FRESH, lambda: self._read_report(name))

    def progress(self, name: str) -> list[TrialValue]:
        """The improvements of a study. Raises StudyNotFoundError."""
        self.line(name)
        return self._recent.get(("progress", name), FRESH, lambda: improvements(self._database, name))

    def schedules(self) -> list[ScheduleLine]:
        """All schedules, and those removed of which there are nights, by name, each with its latest night."""
        return self._recent.get("schedules", FRESH, self._read_schedules)

    def schedule(self, name: str) -> ScheduleLine:
        """One schedule with its latest nights. Raises StudyNotFoundError."""
        return self._recent.get(("schedule", name), FRESH, lambda: self._read_schedule(name))

    def service(self) -> Service:
        """Schedulers and the latest submissions."""
        return self._recent.get("service", FRESH, self._read_service)

    def checkup(self) -> Checkup:
        """The invariants of the whole database, without files on disk; at most a minute old, it may take seconds."""
        return self._recent.get("doctor", _DOCTOR_FRESH, self._check)

    def submissions(self, limit: int) -> list[Submission]:
        """The latest submissions, as they are now."""
        return list_submissions(self._database, limit=limit)

    def submission(self, identity: str) -> Submission:
        """One submission as it is now. Raises SubmissionNotFoundError."""
        return find_submission(self._database, identity)

    def _read_studies(self, limit: int, offset: int) -> list[StudyLine]:
        names = list_studies(self._database, limit=limit, offset=offset)
        found = study_totals(self._database, names)
        return [self._line(totals) if totals.state == "running" else StudyLine(totals=totals) for totals in found]

    def _line(self, totals: StudyTotals) -> StudyLine:
        return StudyLine(totals=totals, outlook=outlook_of(self._database, totals))

    def _read_line(self, name: str) -> StudyLine:
        found = study_totals(self._database, [name])
        if not found:
            raise StudyNotFoundError(f"no study {name!r}")
        return self._line(found[0])

    def _read_study(self, name: str) -> StudyView:
        database = self._database
        line = self._read_line(name)
        running = list_page(database, name, states=("RUNNING",), limit=_SHOWN_RUNNING)
        best = list_page(database, name, order="best", states=("COMPLETE", "PRUNED"), limit=_SHOWN_BEST)
        drawn = [trial.number for trial in (*best[:_SHOWN_CURVES], *running[:_SHOWN_CURVES])]
        current = pace(database, name)
        return StudyView(
            line=line,
            running=running,
            best=best,
            reasons=stop_reasons(database, name),
            history=sampled_trials(database, name, sum(line.totals.counts.values())),
            improvements=improvements(database, name),
            curves=trial_curves(database, name, drawn),
            pace=current,
            eta=_eta(line, current),
            spending=spending_of(database, line.totals),
        )

    def _read_report(self, name: str) -> str:
        frame = study_frame(self._database, recorded_spec(self._database, name))
        return render(frame, ("html",)).texts["html"]

    def _read_schedules(self) -> list[ScheduleLine]:
        known = {each.name: each for each in list_schedules(self._database)}
        names = sorted({*known, *schedules_with_nights(self._database)})
        return [self._line_of(name, known.get(name), nights=1) for name in names]

    def _read_schedule(self, name: str) -> ScheduleLine:
        known = {each.name: each for each in list_schedules(self._database)}
        line = self._line_of(name, known.get(name), nights=_NIGHTS)
        if line.schedule is None and not line.nights:
            raise StudyNotFoundError(f"no schedule {name!r}")
        return line

    def _line_of(self, name: str, schedule: Schedule | None, *, nights: int) -> ScheduleLine:
        found = list_firings(self._database, name, limit=nights)
        problem = schedule_problem(schedule) if schedule else ""
        due = None if problem else _due(schedule, datetime.now(UTC))
        return ScheduleLine(name=name, schedule=schedule, nights=found, due=due, problem=problem)

    def _read_service(self) -> Service:
        schedulers = list_schedulers(self._database)
        return Service(
            alive=[each for each in schedulers if each.seconds_silent <= _SILENT],
            silent=[each for each in schedulers if each.seconds_silent > _SILENT],
            submissions=list_submissions(self._database, limit=_SUBMISSIONS),
        )

    def _check(self) -> Checkup:
        began = datetime.now(UTC)
        violations = check(self._database, None, finished=False, files=False)
        return Checkup(violations=violations, at=began, seconds=(datetime.now(UTC) - began).total_seconds())


def _eta(line: StudyLine, current: Pace | None) -> datetime | None:
    if line.state != "running" or line.outlook is None or current is None or not line.outlook.left:
        return None
    return current.now + timedelta(seconds=line.outlook.left * current.seconds / current.steps)


def _due(schedule: Schedule | None, now: datetime) -> datetime | None:
    if schedule is None or schedule.is_paused:
        return None
    return next(iter(next_slots(schedule.cron, schedule.timezone, max(schedule.fired_until, now), 1)), None)
