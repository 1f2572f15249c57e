"""The scheduler: fires what is due, runs nights and submissions, keeps their leases, tells how they ended, tidies up.

Any number may run on any number of machines on one database: who fires a slot and who runs a night is decided by
compare-and-set in SQL. One thread does everything; it never waits for longer than a transaction, so leases are renewed
in time. Only notification, which waits for other servers, and the removal of older nights, which may take minutes, have
threads of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from automl.errors import StorageError
from automl.execution.cluster import unreachable
from automl.schedule.due import fire_due
from automl.schedule.job import USAGE, Job, Outcome, Place
from automl.schedule.job_run import STOP_SECONDS, JobRun
from automl.schedule.nights import NightJob, run_address
from automl.schedule.notices import after_night, after_problem, after_slots, tell, tidy_up
from automl.schedule.notify import Notification
from automl.schedule.options import schedule_problem
from automl.schedule.submission import SubmissionJob
from automl.storage.claims import Claimant
from automl.storage.jobs import FiringState, Schedule
from automl.storage.schedules import UNFINISHED, ScheduleStore, list_firings, list_schedules
from automl.storage.submissions import SubmissionStore

logger = logging.getLogger(__name__)

_GLANCE = 0.1
_CLUSTER_SECONDS = 2.0
_AFTER_STOP = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """capacity: jobs at once. poll_seconds: between two looks at the database."""

    capacity: int = 1
    poll_seconds: float = 5.0
    takes_submissions: bool = True


class Scheduler:
    """One scheduler process. `tick` does everything that is to be done now; `run` ticks until it is told to stop."""

    def __init__(self, claimant: Claimant, place: Place, settings: Settings | None = None) -> None:
        self._claimant = claimant
        self._place = place
        self._settings = settings or Settings()
        self._nights = ScheduleStore(claimant)
        self._submissions = SubmissionStore(claimant)
        self._runs: list[JobRun] = []
        self._teller = ThreadPoolExecutor(max_workers=1, thread_name_prefix="notify")
        self._tidier = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tidy")
        self._is_away = False
        self._unreadable: dict[str, str] = {}
        self._answers: dict[str, str] = {}
        self._silent: set[str] = set()

    @property
    def running(self) -> list[str]:
        """Names of the jobs in progress."""
        return [run.job.name for run in self._runs]

    @property
    def pids(self) -> list[int]:
        """Process ids of the jobs in progress."""
        return [run.pid for run in self._runs if run.pid is not None]

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set; then give back what is running, in order."""
        logger.info("scheduler %s is ready", self._claimant.owner)
        while not stop.is_set():
            self.tick()
            stop.wait(self._settings.poll_seconds)
        self.leave()

    def tick(self) -> None:
        """Everything that is to be done now. A database that is away is waited for; processes go on meanwhile."""
        try:
            for task in (self._beat, self._fire, self._look_after, self._take):
                task()
        except StorageError as error:
            self._away(error)
        else:
            self._back()

    def leave(self) -> None:
        """Stop all processes in order, give their jobs back, and say goodbye."""
        for run in self._runs:
            run.leave()
        until = time.monotonic() + STOP_SECONDS + _AFTER_STOP
        while self._runs and time.monotonic() < until:  # without a database, leases end by themselves
            try:
                self._look_after()
            except StorageError as error:
                self._away(error)
            time.sleep(_GLANCE)
        self._teller.shutdown(wait=True, cancel_futures=False)
        self._tidier.shutdown(wait=True, cancel_futures=True)  # what was not begun follows the next night
        try:
            self._submissions.sign_off()
        except StorageError as error:
            self._away(error)
        logger.info("scheduler %s ends", self._claimant.owner)

    def _beat(self) -> None:
        self._submissions.beat(self.running)

    def _fire(self) -> None:
        found: dict[str, str] = {}

        def unreadable(schedule: Schedule, problem: str) -> None:
            found[schedule.name] = problem
            if self._unreadable.get(schedule.name) != problem:  # told once, not at every look
                after_problem(schedule, problem, self._tell)

        written = fire_due(self._claimant, unreadable=unreadable)
        self._unreadable = found
        after_slots(written, self._tell)

    def _look_after(self) -> None:
        failed: StorageError | None = None
        for run in list(self._runs):
            try:
                is_over, outcome = run.tick()
            except StorageError as error:
                failed = error
                continue
            if is_over:
                self._runs.remove(run)
                self._over(run.job, outcome)
        if failed is not None:
            raise failed

    def _take(self) -> None:
        self._answers = {}
        while len(self._runs) < self._settings.capacity and (job := self._next()) is not None:
            logger.info("%s begins", job.name)
            self._runs.append(JobRun(job, self._place, self._claimant.now))
            self._look_after()

    def _next(self) -> Job | None:
        while (firing := self._nights.take(without=self._cut_off())) is not None:
            schedule = self._schedule(firing.schedule)
            problem = "its schedule was removed" if schedule is None else schedule_problem(schedule)
            if schedule is not None and not problem:
                return NightJob(self._claimant, schedule, firing, self._place)
            logger.error("a night of schedule %s cannot be run: %s", firing.schedule, problem)
            self._nights.end(firing, FiringState.FAILED, problem, exit_code=USAGE)
        submission = self._submissions.take() if self._takes_submissions() else None
        return SubmissionJob(self._claimant, submission, self._place) if submission else None

    def _cut_off(self) -> set[str]:
        """Schedules with nights to run whose Ray cluster does not answer: they wait for it."""
        waiting = {night.schedule for night in list_firings(self._claimant.database, states=UNFINISHED)}
        known = [each for each in list_schedules(self._claimant.database) if each.name in waiting]
        return {each.name for each in known if not self._answer(run_address(each))}

    def _takes_submissions(self) -> bool:
        is_asked = self._settings.takes_submissions and self._submissions.has_work()
        return is_asked and self._answer(self._place.address)

    def _answer(self, address: str | None) -> bool:
        """Whether the cluster is there, or none is needed; asked once at each look."""
        if address is None:
            return True
        if address not in self._answers:
            self._answers[address] = problem = unreachable(address, _CLUSTER_SECONDS)
            if problem and address not in self._silent:
                logger.warning("%s; what needs it waits", problem)
                self._silent.add(address)
            elif not problem and address in self._silent:
                logger.warning("the Ray cluster at %s answers again", address)
                self._silent.discard(address)
        return not self._answers[address]

    def _schedule(self, name: str) -> Schedule | None:
        known = list_schedules(self._claimant.database)
        return next((schedule for schedule in known if schedule.name == name), None)

    def _over(self, job: Job, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        if isinstance(job, NightJob):
            try:
                after_night(job, outcome, self._tell)
            except Exception:
                logger.exception("%s: what follows a night failed", job.name)
            self._tidier.submit(tidy_up, self._claimant.database, job.schedule)
        else:
            logger.log(logging.WARNING if outcome.alert else logging.INFO, "%s: %s: %s", *outcome[:3])

    def _tell(self, targets: tuple[str, ...], message: Notification) -> None:
        self._teller.submit(tell, targets, message)

    def _away(self, error: StorageError) -> None:
        if not self._is_away:
            logger.warning("the database is away, tried again every %.0f s: %s", self._settings.poll_seconds, error)
        self._is_away = True

    def _back(self) -> None:
        if self._is_away:
            logger.warning("the database is back")
        self._is_away = False
