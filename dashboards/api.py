"""The JSON API under /api/v1: reading for everybody who may see the pages, submitting and stopping with the token.

Described by /api/v1/openapi.json, which is made from this file. Keys only grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Response
from fastapi import Path as InPath
from pydantic import BaseModel, ConfigDict, Field

from automl.space.submitted import validated
from automl.storage.jobs import Firing, Submission
from automl.storage.overview import PAGE
from automl.storage.sql import Database
from automl.storage.submissions import cancel, submit
from automl.storage.trial_pages import TrialLine
from dashboards.views import Checkup, ScheduleLine, StudyLine, StudyView, Views

_LARGEST_SPACE = 256_000


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Refused(_Answer):
    """Why a request was not fulfilled, in one line."""

    error: str


class StudyAnswer(_Answer):
    """A study in numbers. Values are of the objective on validation rows, seconds and steps summed over all trials.

    trials: by state; PARKED ones are paused, and may go on. planned: trials its latest run was asked for. progress:
    share of the expected steps that has been trained, steps_left: the rest, a guess; null in lists unless it runs.
    ended: why that run ended, null while it runs and if it was killed. device_seconds: for which devices were held,
    null if it was not recorded; cost: what they cost, in `currency`, null if no price was said.
    """

    study: str
    state: Literal["running", "finished", "stopped"]
    metric: str
    direction: Literal["minimize", "maximize"]
    best: float | None
    verified: Literal["no", "running", "yes", "no gain"]
    verification: str
    trials: dict[str, int]
    planned: int
    progress: float | None
    steps_left: int | None
    ended: Literal["finished", "time", "budget", "stopped", "interrupted", "failed"] | None
    steps: int
    seconds: float
    tokens: int
    examples: int
    device_seconds: float | None
    cost: float | None
    currency: str | None
    runs: int
    driver: str | None
    created_at: datetime
    started_at: datetime | None
    last_at: datetime | None


class TrialAnswer(_Answer):
    """A trial. state: as in Optuna, or PARKED. value: of a trial in progress, its latest measurement; step: where.

    forgetting: by how much it is worse on other text than the untuned model; null if that was not measured.
    """

    number: int
    state: str
    value: float | None
    step: int
    params: dict[str, Any]
    stop_reason: str
    error: str
    started_at: datetime | None
    ended_at: datetime | None
    forgetting: float | None


class Improvement(_Answer):
    """A COMPLETE trial that was better than all before it."""

    number: int
    value: float


class StudyDetail(StudyAnswer):
    """A study with its best trials, those in progress, and its history. eta: its end at this pace."""

    best_trials: list[TrialAnswer]
    running_trials: list[TrialAnswer]
    improvements: list[Improvement]
    stop_reasons: dict[str, int]
    eta: datetime | None


class TrialPage(_Answer):
    """Some trials of a study; total: how many there are, of the states asked for."""

    study: str
    total: int
    trials: list[TrialAnswer]


class NightAnswer(_Answer):
    """A slot of a schedule and what came of it. comparison: with the night before, see docs/schedules.md."""

    schedule: str
    slot: datetime
    state: str
    cause: str
    study: str | None
    value: float | None
    comparison: dict[str, Any] | None
    started_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    message: str


class ScheduleAnswer(_Answer):
    """A schedule. due: its next slot, null while it is paused or after it was removed.

    problem: why it cannot be read, so that none of its nights is run; empty if it can.
    """

    name: str
    cron: str
    timezone: str
    is_paused: bool
    due: datetime | None
    problem: str
    last: NightAnswer | None


class SubmissionAnswer(_Answer):
    """A sweep that was submitted. attempts: how often a scheduler has started it."""

    id: str
    study: str
    state: str
    submitted_by: str
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    attempts: int
    exit_code: int | None
    message: str


class Finding(_Answer):
    """An invariant that does not hold; rows: the first of those that break it."""

    id: str
    description: str
    count: int
    rows: list[list[Any]]


class CheckupAnswer(_Answer):
    """What the doctor found. Files on disk are not looked at: `automl doctor` does."""

    at: datetime
    seconds: float
    findings: list[Finding]


class Asked(BaseModel):
    """A sweep to be run. space: the text of a space file (YAML). submitted_by: a label for people."""

    model_config = ConfigDict(extra="forbid", strict=True)

    space: Annotated[str, Field(min_length=1, max_length=_LARGEST_SPACE)]
    submitted_by: Annotated[str, Field(max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")] = "api"


_Identity = Annotated[str, InPath(pattern=r"^[0-9a-f]{32}$", description="As given when it was submitted.")]
_Study = Annotated[str, InPath(min_length=1, max_length=255)]
_Limit = Annotated[int, Query(ge=1, le=PAGE)]
_Offset = Annotated[int, Query(ge=0, le=10_000_000)]
_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Refused, "description": "A token is needed."},
    421: {"model": Refused, "description": "Not for this host name."},
    422: {"model": Refused, "description": "A parameter or the body is not as described."},
    503: {"model": Refused, "description": "The database cannot be read or written now."},
}
_ABSENT: dict[int | str, dict[str, Any]] = {404: {"model": Refused, "description": "There is none of that name."}}
_CHANGES: dict[int | str, dict[str, Any]] = {
    403: {"model": Refused, "description": "Read-only, or from another site."},
    413: {"model": Refused, "description": "Larger than 1 MB."},
    415: {"model": Refused, "description": "Not JSON."},
}


def api(views: Views, writable: Database | None) -> APIRouter:
    """The routes. writable: where submissions go, None if there are to be none."""
    router = APIRouter(prefix="/api/v1", responses=_REFUSALS)
    _add_studies(router, views)
    _add_nights(router, views)
    _add_submissions(router, views, writable)
    return router


def _add_studies(router: APIRouter, views: Views) -> None:
    @router.get("/studies", tags=["studies"])
    def list_studies(response: Response, limit: _Limit = PAGE, offset: _Offset = 0) -> list[StudyAnswer]:
        """Studies, those in progress first; the header `X-Total-Count` says how many there are."""
        response.headers["x-total-count"] = str(views.count())
        return [StudyAnswer(**_study(line)) for line in views.studies(limit=limit, offset=offset)]

    @router.get("/studies/{study:path}/trials", tags=["studies"], responses=_ABSENT)
    def list_trials(
        study: _Study,
        state: Annotated[
            list[Literal["RUNNING", "PARKED", "COMPLETE", "PRUNED", "FAIL", "WAITING"]] | None, Query()
        ] = None,
        order: Literal["number", "best"] = "number",
        limit: _Limit = 50,
        offset: _Offset = 0,
    ) -> TrialPage:
        """Trials of a study: the latest first, or the best first."""
        line, trials = views.trials(study, order=order, states=state or (), limit=limit, offset=offset)
        counts = line.totals.counts
        total = sum(count for name, count in counts.items() if not state or name in state)
        return TrialPage(study=study, total=total, trials=[_trial(trial) for trial in trials])

    @router.get("/studies/{study:path}", tags=["studies"], responses=_ABSENT)
    def read_study(study: _Study) -> StudyDetail:
        """One study: totals, best trials, trials in progress, improvements."""
        return _detail(views.study(study))


def _add_nights(router: APIRouter, views: Views) -> None:
    @router.get("/schedules", tags=["schedules"])
    def list_schedules() -> list[ScheduleAnswer]:
        """All schedules with their latest night."""
        return [_schedule(line) for line in views.schedules()]

    @router.get("/schedules/{name}/nights", tags=["schedules"], responses=_ABSENT)
    def list_nights(name: Annotated[str, InPath(max_length=100)], limit: _Limit = 30) -> list[NightAnswer]:
        """Nights of a schedule, the latest first (at most 120)."""
        return [_night(night) for night in views.schedule(name).nights[:limit]]

    @router.get("/doctor", tags=["service"])
    def read_doctor() -> CheckupAnswer:
        """Invariants of the database that do not hold; at most a minute old."""
        return _checkup(views.checkup())


def _add_submissions(router: APIRouter, views: Views, writable: Database | None) -> None:
    @router.get("/submissions", tags=["submissions"])
    def list_all(limit: _Limit = 50) -> list[SubmissionAnswer]:
        """Submissions, the latest first."""
        return [_submission(each) for each in views.submissions(limit)]

    @router.get("/submissions/{identity}", tags=["submissions"], responses=_ABSENT)
    def read_submission(identity: _Identity) -> SubmissionAnswer:
        """One submission."""
        return _submission(views.submission(identity))

    @router.post(
        "/submissions",
        tags=["submissions"],
        status_code=201,
        responses={
            **_CHANGES,
            409: {"model": Refused, "description": "A sweep of this study is queued or running."},
            429: {"model": Refused, "description": "Too many sweeps are queued."},
        },
    )
    def submit_sweep(asked: Asked) -> SubmissionAnswer:
        """Queue a sweep; `automl scheduler` runs it. Which space files are allowed: see docs/dashboards.md."""
        database = _to_write(writable)
        spec = validated(asked.space)
        return _submission(submit(database, spec.study, asked.space, asked.submitted_by))

    @router.post("/submissions/{identity}/cancel", tags=["submissions"], responses={**_CHANGES, **_ABSENT})
    def cancel_sweep(identity: _Identity) -> SubmissionAnswer:
        """Take a submission back: a queued one is not started, a running one is stopped, and can be resumed."""
        return _submission(cancel(_to_write(writable), identity))


def _to_write(database: Database | None) -> Database:
    if database is None:  # the guard has refused before
        raise HTTPException(403, "this dashboard is read-only")
    return database


def _study(line: StudyLine) -> dict[str, Any]:
    totals = line.totals
    shared = ("study", "metric", "direction", "best", "steps", "seconds", "tokens", "runs", "driver")
    times = ("created_at", "started_at", "last_at")
    return {
        **{name: getattr(totals, name) for name in (*shared, *times)},
        **{name: getattr(totals.spent, name) for name in ("examples", "device_seconds", "cost", "currency")},
        "state": line.state,
        "verified": line.verified,
        "verification": totals.verification.headline if totals.verification else "",
        "trials": dict(totals.counts),
        "planned": line.planned,
        "progress": None if line.outlook is None else round(line.outlook.share, 4),
        "steps_left": None if line.outlook is None else line.outlook.left,
        "ended": totals.last_run.ended if totals.last_run else None,
    }


def _detail(view: StudyView) -> StudyDetail:
    return StudyDetail(
        **_study(view.line),
        best_trials=[_trial(trial) for trial in view.best],
        running_trials=[_trial(trial) for trial in view.running],
        improvements=[Improvement(number=place.number, value=place.value) for place in view.improvements],
        stop_reasons=dict(view.reasons),
        eta=view.eta,
    )


def _trial(trial: TrialLine) -> TrialAnswer:
    names = TrialAnswer.model_fields
    return TrialAnswer(**{name: getattr(trial, name) for name in names} | {"params": dict(trial.params)})


def _schedule(line: ScheduleLine) -> ScheduleAnswer:
    schedule = line.schedule
    return ScheduleAnswer(
        name=line.name,
        cron=schedule.cron if schedule else "",
        timezone=schedule.timezone if schedule else "UTC",
        is_paused=schedule.is_paused if schedule else True,
        due=line.due,
        problem=line.problem,
        last=_night(line.last) if line.last else None,
    )


def _night(night: Firing) -> NightAnswer:
    return NightAnswer(**{name: getattr(night, name) for name in NightAnswer.model_fields})


def _submission(submission: Submission) -> SubmissionAnswer:
    return SubmissionAnswer(**{name: getattr(submission, name) for name in SubmissionAnswer.model_fields})


def _checkup(found: Checkup) -> CheckupAnswer:
    findings = [
        Finding(id=each.id, description=each.description, count=len(each.rows), rows=_first(each.rows))
        for each in found.violations
    ]
    return CheckupAnswer(at=found.at, seconds=found.seconds, findings=findings)


def _first(rows: Sequence[Sequence[Any]], most: int = 20) -> list[list[Any]]:
    return [list(row) for row in rows[:most]]
