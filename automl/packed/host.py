"""The packed host: owns a device, trains its resident trials together, each with a slot file written before it speaks.

Follows `automl.execution.base.Host`. Where slot files and finished adapters lie is the business of whoever builds the
host: it is given `files` and `export`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from automl.errors import CheckpointError
from automl.packed.trainer import Event, PackedTrainer
from automl.training.checkpoint import SlotFolder
from automl.training.state import SlotRecord
from automl.trial import Measurement, Metrics, StopReason, TrialFailure, TrialSpec

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Resident:
    spec: TrialSpec
    files: SlotFolder
    measurements: list[Measurement] = field(default_factory=list)


class PackedHost:
    """Trains up to `capacity` trials in lock-step.

    files: the slot files of an attempt. discard: deletes those of a trial that this host has never seen. export: writes
    the adapter of a trial that has made its last step durably, and returns its folder; the trial is still in the pack.
    majority: metrics of the majority class, empty if the data has none.
    """

    def __init__(
        self,
        trainer: PackedTrainer,
        *,
        capacity: int,
        files: Callable[[TrialSpec], SlotFolder],
        discard: Callable[[int], None],
        export: Callable[[TrialSpec, Measurement], str],
        majority: Mapping[str, float],
    ) -> None:
        self.trainer = trainer
        self._capacity = capacity
        self._files = files
        self._discard = discard
        self._export = export
        self._majority = majority
        self._residents: dict[int, _Resident] = {}
        self._known: dict[int, SlotFolder] = {}  # of every trial that was ever handed to this host
        self._damaged: list[TrialFailure] = []

    @property
    def capacity(self) -> int:
        """Most trials that can be resident at once."""
        return self._capacity

    def open(self, spec: TrialSpec) -> Sequence[Measurement]:
        """Start a trial, or continue it from its slot file; returns the measurements the file already holds.

        A trial whose slot files are all damaged is reported as a failure by the next `advance`. Raises CheckpointError
        if a later attempt has the trial already, ValueError if the host is full, OutOfMemory if it does not fit.
        """
        self.park(spec.number)
        if len(self._residents) >= self.capacity:
            raise ValueError(f"cannot open trial {spec.number}: all {self.capacity} slots of the host are taken")
        files = self._known[spec.number] = self._files(spec)
        files.claim()
        try:
            saved = files.load()
        except CheckpointError as error:
            self._damaged.append(TrialFailure(trial=spec.number, step=0, reason=StopReason.ERROR, message=str(error)))
            return ()
        self.trainer.admit(spec, saved.state if saved else None)
        resident = self._residents[spec.number] = _Resident(spec, files, list(saved.measurements) if saved else [])
        return tuple(resident.measurements)

    def advance(self) -> Sequence[Event]:
        """Train all resident trials until at least one has something to say, which is in its slot file by then.

        Raises ResourceError if the disk is full and CheckpointError if a later attempt has taken a trial over: both
        concern the host, not the trial.
        """
        if self._damaged:
            failures, self._damaged = self._damaged, []
            for failure in failures:
                self.close(failure.trial)
            return failures
        return [self._booked(event) for event in self.trainer.advance()]

    def park(self, trial: int) -> None:
        """Free the trial's memory; its slot file stays. Unknown trials are ignored."""
        self.trainer.evict(trial)
        self._residents.pop(trial, None)
        self._damaged = [failure for failure in self._damaged if failure.trial != trial]

    def close(self, trial: int) -> None:
        """Free the trial's memory and delete its slot file, also that of a trial parked earlier."""
        self.park(trial)
        files = self._known.pop(trial, None)
        if files is None:
            self._discard(trial)
        else:
            files.remove()

    def baseline(self) -> Metrics:
        """Metrics without training: of the majority class if the data has one, else of the untrained model."""
        return dict(self._majority) or self.trainer.baseline()

    def shutdown(self) -> None:
        """Take every trial off the backbone. Slot files stay."""
        for trial in list(self._residents):
            self.park(trial)
        self.trainer.close()

    def _booked(self, event: Event) -> Event:
        if isinstance(event, TrialFailure):
            self.close(event.trial)
            return event
        resident = self._residents[event.trial]
        state = self.trainer.snapshot(event.trial)
        if event.step >= resident.spec.steps:
            event = replace(event, adapter=self._export(resident.spec, event))
        resident.files.save(SlotRecord(state=state, measurements=(*resident.measurements, event)))
        resident.measurements.append(event)
        return event
