"""A sweep that somebody submitted through the API."""

from __future__ import annotations

from datetime import datetime

from automl.errors import ConfigError, Problem
from automl.results.folders import study_folder
from automl.schedule.job import DONE, INTERRUPTED, LOG_FILE, SPACE_FILE, Job, Outcome, Place, Step, write_space
from automl.space.derive import derived_text
from automl.space.load import parse_space
from automl.space.submitted import validated
from automl.storage.claims import Claimant
from automl.storage.jobs import Submission, SubmissionState
from automl.storage.submissions import SubmissionStore


class SubmissionJob(Job):
    """A sweep that somebody submitted."""

    def __init__(self, claimant: Claimant, submission: Submission, place: Place) -> None:
        self.submission = submission
        self.name = f"submitted study {submission.study}"
        self.study = submission.study
        self.database = claimant.database
        self._store = SubmissionStore(claimant)
        self._place = place

    @property
    def attempts(self) -> int:
        return self.submission.attempts

    def address(self) -> str | None:
        return self._place.address

    def begin(self) -> list[Step]:
        given, folder = self.submission, self._place.folder
        if (study := validated(given.space_text).study) != given.study:
            raise ConfigError([Problem(f"submission {given.id}", 0, 0, "study", f"{study!r} is queued as another one")])
        spec = parse_space(given.space_text, f"submission {given.id}", folder)
        heading = f"Submitted by {given.submitted_by} as {given.id}."
        address = self._place.address
        text = derived_text(spec, study=given.study, heading=heading, folder=folder, address=address)
        own = study_folder(parse_space(text, f"submission {given.id}", folder))
        write_space(own, text)
        return [Step([*self._place.program, "search", str(own / SPACE_FILE)], own / LOG_FILE)]

    def renew(self) -> bool:
        return self._store.renew(self.submission)

    def seconds_left(self, now: datetime) -> float | None:
        return None

    def give_back(self, message: str, *, wait_seconds: float, counts: bool) -> bool:
        return self._store.requeue(self.submission, message, wait_seconds=wait_seconds, counts=counts)

    def finish(self, exit_code: int, message: str) -> Outcome | None:
        if exit_code not in (DONE, INTERRUPTED):
            return self.fail(exit_code, message)
        return self._end(SubmissionState.DONE, message if exit_code else "done", exit_code)

    def time_out(self) -> Outcome | None:
        return self.fail(INTERRUPTED, "stopped at its deadline")

    def fail(self, exit_code: int | None, message: str) -> Outcome | None:
        return self._end(SubmissionState.FAILED, message, exit_code)

    def _end(self, state: SubmissionState, message: str, exit_code: int | None) -> Outcome | None:
        if not self._store.end(self.submission, state, message, exit_code):
            return None
        return Outcome(self.name, state.value, message, state is SubmissionState.FAILED)
