"""Runs jobs as child processes, several at once, without ever waiting for one: `tick` looks at each.

A job ends in one of five ways: its processes end; its deadline comes; it is interrupted (its cluster went away,
somebody stopped it), has no result yet and is given back to be continued; this process is to stop, and gives it back
likewise; or it is taken away (cancelled, or another scheduler thought this one dead), and its process is stopped. What
may succeed later (database away, killed from outside) is given back a few times before it counts as failed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from datetime import datetime
from enum import Enum

from automl.durable import disk_errors_named
from automl.errors import AutomlError, StorageError
from automl.execution.cluster import unreachable
from automl.schedule.job import (
    INTERRUPTED,
    Job,
    Outcome,
    Place,
    Step,
    is_worth_retrying,
    trials_ended,
    was_cut_short,
)
from automl.schedule.process import Child

logger = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
STOP_SECONDS = 30.0
"""How long a sweep may take to stop in order before it is killed; it needs up to 20."""

_RETRY_SECONDS = 30.0
_RENEW_SECONDS = 10.0
_GLANCE_SECONDS = 2.0


class _Stop(Enum):
    LEAVING = "the scheduler ends"
    DEADLINE = "deadline"
    TAKEN = "cancelled or taken over"


class JobRun:
    """One job in progress."""

    def __init__(self, job: Job, place: Place, now: Callable[[], datetime]) -> None:
        self.job = job
        self._place = place
        self._now = now
        self._steps: list[Step] = []
        self._child: Child | None = None
        self._stop: _Stop | None = None
        self._renewed = time.monotonic()
        self._code = 0
        self._has_begun = False
        self._ended_before = 0

    @property
    def pid(self) -> int | None:
        """Process id of its present process."""
        return self._child.pid if self._child else None

    def tick(self) -> tuple[bool, Outcome | None]:
        """Do what is to be done now; returns whether it is over, and how it ended if that is this process's to tell.

        Raises StorageError if the database cannot be asked; the next tick tries again. Any other error is the end of
        this job, and of no other.
        """
        try:
            return self._tick()
        except StorageError:
            raise
        except Exception as error:
            logger.exception("%s failed", self.job.name)
            if self._child is not None:
                self._child.kill()
            return True, self.job.fail(self._code or 1, f"internal error ({type(error).__name__}): {error}")

    def _tick(self) -> tuple[bool, Outcome | None]:
        if not self._has_begun and self._stop is None:
            return self._begin()
        if self._child is not None:
            code = self._child.poll()
            if code is None:
                self._look_after(self._child)
                return False, None
            self._code = code
            if code == 0 and self._stop is None and self._steps:
                return self._started(self._start_next)
        return True, self._conclude()

    def leave(self) -> None:
        """Stop its process, so that the job can be given back."""
        self._ask_to_stop(_Stop.LEAVING)

    def _begin(self) -> tuple[bool, Outcome | None]:
        if self.job.attempts > MOST_ATTEMPTS:
            return True, self.job.fail(None, f"given up: it was started {MOST_ATTEMPTS} times and never ended")
        return self._started(self._start_first)

    def _started(self, start: Callable[[], None]) -> tuple[bool, Outcome | None]:
        """Start a process; a job whose process cannot be started has failed."""
        try:
            start()
        except StorageError:
            raise
        except AutomlError as error:
            return True, self.job.fail(error.exit_code, str(error).splitlines()[0])
        return False, None

    def _start_first(self) -> None:
        self._steps = self.job.begin()
        self._ended_before = trials_ended(self.job)
        self._start_next()
        self._has_begun = True

    def _start_next(self) -> None:
        step = self._steps[0]
        with disk_errors_named(step.log):
            self._child = Child(step.command, step.log, self._place.environment)
        self._steps.pop(0)
        logger.info("%s: process %d started; its output is in %s", self.job.name, self._child.pid, step.log)

    def _look_after(self, child: Child) -> None:
        left = self.job.seconds_left(self._now())
        if left is not None and left <= 0:
            self._ask_to_stop(_Stop.DEADLINE)
        if self._stop is not _Stop.TAKEN and time.monotonic() - self._renewed >= _RENEW_SECONDS:
            if not self.job.renew():
                self._ask_to_stop(_Stop.TAKEN)
            self._renewed = time.monotonic()

    def _ask_to_stop(self, why: _Stop) -> None:
        if self._stop is None or why is _Stop.TAKEN:
            self._stop = why
            if self._child is not None:
                logger.info("%s: stopping process %d (%s)", self.job.name, self._child.pid, why.value)
                self._child.stop(STOP_SECONDS)

    def _conclude(self) -> Outcome | None:
        job, code = self.job, self._code
        message = self._last_words()
        if self._stop is _Stop.TAKEN:
            return None
        if self._child is not None and code == 0 and not self._steps:
            return job.finish(code, message)  # it was faster than whoever wanted to stop it
        if self._stop is _Stop.LEAVING:
            job.give_back("interrupted: the scheduler ended; it is continued", wait_seconds=0.0, counts=False)
            return None
        if self._stop is _Stop.DEADLINE:
            return job.time_out()
        is_cut_off = code != 0 and bool(unreachable(job.address(), _GLANCE_SECONDS))
        if is_cut_off or (code == INTERRUPTED and was_cut_short(job)):
            return self._continue_later(code, message, counts=not is_cut_off)
        if is_worth_retrying(code, joins=job.address() is not None) and job.attempts < MOST_ATTEMPTS:
            wait = _RETRY_SECONDS * 2 ** (job.attempts - 1)
            logger.warning("%s: %s; tried again in %.0f s", job.name, message, wait)
            job.give_back(message, wait_seconds=wait, counts=True)
            return None
        return job.finish(code, message)

    def _continue_later(self, code: int, message: str, *, counts: bool) -> Outcome | None:
        """Give an interrupted job back, which has no result yet; without progress it is not continued for ever."""
        counts = counts and trials_ended(self.job) <= self._ended_before
        if counts and self.job.attempts >= MOST_ATTEMPTS:
            return self.job.fail(code, f"given up: it was interrupted {MOST_ATTEMPTS} times: {message}")
        logger.warning("%s: interrupted, it is continued: %s", self.job.name, message)
        self.job.give_back(f"interrupted, it is continued: {message}", wait_seconds=_RETRY_SECONDS, counts=counts)
        return None

    def _last_words(self) -> str:
        """The last line of its output that says something; of a killed process, by which signal."""
        if self._child is None:
            return "never started"
        lines = [line.strip() for line in self._child.tail() if line.strip()]
        said = _message(lines[-1])[:500] if lines else "no output"
        return f"ended by signal {-self._code}: {said}" if self._code < 0 else said


def _message(line: str) -> str:
    """What a line of output says, also one of a process that logs JSON."""
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return line
