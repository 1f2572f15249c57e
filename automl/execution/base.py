"""The seam for executors, and the two halves of the conversation every executor carries.

A worker owns a *host*, which trains the trials it is ordered to and returns cohorts. The driver's `Dispatcher` turns a
cohort into decisions of a source of trials and those into orders. An executor only moves cohorts one way and orders the
other: in one process (`inline`), or between Ray Tune workers and the driver (`ray_tune`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from automl.trial import Measurement, Metrics, TrialFailure, TrialSpec

if TYPE_CHECKING:  # workers import this module, and need neither Optuna nor SQL
    from automl.execution.dispatch import Dispatcher


class Host(Protocol):
    """Owner of one device: trains up to `capacity` trials, each in a slot with a durable slot file.

    A slot file holds parameters, optimizer moments, generators, step, position in the data and all measurements so
    far. It is written (fsync, rename) *before* a measurement is returned, so a crash never loses a returned value.
    """

    @property
    def capacity(self) -> int:
        """Most trials that can be resident at once."""

    @property
    def busy_seconds(self) -> float:
        """Time it has spent on training and evaluating since it was built, also while nobody waited for it."""

    def open(self, spec: TrialSpec) -> Sequence[Measurement]:
        """Start a trial, or continue it from its slot file; returns the measurements the file already holds."""

    def advance(self) -> Sequence[Measurement | TrialFailure]:
        """Train until at least one resident trial has something to report. A trial that failed is closed already.

        Called once everything that was said before has been decided: trials that were neither parked nor closed go on.
        A host may train them on before it is called, but what they do then must not show until it is.

        A trial that has returned its last measurement (step == spec.steps) trains no further, but stays open until it
        is closed. Returns nothing at once if no resident trial has steps left.
        """

    def park(self, trial: int) -> None:
        """Free the trial's memory; its slot file stays."""

    def close(self, trial: int) -> None:
        """Free the trial's memory and delete its slot file. Unknown trials are ignored."""

    def baseline(self) -> Metrics:
        """Metrics of the untrained model (or of the majority class)."""

    def shutdown(self) -> None:
        """Release the device. Slot files stay."""


HostFactory = Callable[[], Host]
"""Builds the host inside the worker; picklable by reference (a `functools.partial` of a module-level function)."""


class Executor(ABC):
    """Runs the trials of a source on hosts until it has nothing left, or everything is told to stop.

    A context manager: entering starts what takes long (so that data can be prepared meanwhile), leaving ends every
    process it has started, whatever happened.
    """

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def start(self) -> None:
        """Begin to start what `run` will need; returns at once. Does nothing the second time."""

    @abstractmethod
    def run(self, dispatcher: Dispatcher, build_host: HostFactory) -> None:
        """Carry cohorts and orders until `dispatcher` has sent every worker home; ends with `dispatcher.finish()`.

        Never calls Optuna or SQL itself. Raises what `finish` raises, and ResourceError if workers cannot be started.
        """

    @abstractmethod
    def close(self) -> None:
        """End everything that was started. Slot files stay."""
