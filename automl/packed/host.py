"""The packed host: owns a device, trains its resident trials together, each with a slot file written before it reports.

Follows `automl.execution.base.Host`. Where slot files and finished adapters lie is the business of whoever builds the
host: it is given `files` and `export`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from automl.errors import CheckpointError, is_out_of_memory
from automl.importance.heldout import affordable_rows
from automl.lanes import joined, trial_name
from automl.packed.member import Member
from automl.packed.rounds import Rounds
from automl.packed.thread import TrainingThread
from automl.packed.trainer import Event, PackedTrainer
from automl.training.best_checkpoint import is_at_end, is_over, settled
from automl.training.checkpoint import SlotFolder
from automl.training.early_stopping import steps_to_keep
from automl.training.state import SlotRecord, TrainState
from automl.trial import Measurement, Metrics, TrialFailure, TrialSpec, failure_of

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Resident:
    spec: TrialSpec
    files: SlotFolder
    measurements: list[Measurement] = field(default_factory=list)


class _Draft(NamedTuple):
    """Something to report, and the state that goes into the slot file before; None for a trial that has failed."""

    event: Event
    state: TrainState | None


class PackedHost:
    """Trains up to `capacity` trials in lock-step.

    files: the slot files of an attempt.
    discard: deletes those of a trial that this host has never seen.
    export: writes the adapter of a trial that has made its last step durably, and returns its folder; the trial is
        still in the pack.
    majorities: metrics of the majority class in every lane, empty if its data has none.
    ahead: go on training while slot files are written and somebody decides what becomes of the trials, up to the next
        measurement of any. What a trial has done beyond its slot file is dropped when it is parked or closed, so curves
        and cohorts are those of a host that waits. Nobody else may touch the trainer then.
    busy_seconds: spent on training and evaluating.
    is_finalist: whether a trial that finishes with this measurement is looked at on held-out rows.

    A trial that lacks memory beside others makes the pack smaller: it waits until one of them has gone, and goes on
    from its slot file. One that lacks it alone has failed.
    """

    def __init__(
        self,
        trainer: PackedTrainer,
        *,
        capacity: int,
        files: Callable[[TrialSpec], SlotFolder],
        discard: Callable[[int], None],
        export: Callable[[TrialSpec, Measurement], str],
        majorities: Sequence[Mapping[str, float]],
        ahead: bool = False,
        is_finalist: Callable[[Measurement], bool] = lambda last: False,
    ) -> None:
        self.trainer = trainer
        self.busy_seconds = 0.0
        self._rounds: Rounds[Member, Event] = Rounds(
            trainer.members, micro_step=trainer.micro_step, measure=trainer.measured
        )
        self._thread = TrainingThread(self._tick) if ahead else None
        self._capacity = capacity
        self._files = files
        self._discard = discard
        self._export = export
        self._majorities = majorities
        self._is_finalist = is_finalist
        self._residents: dict[int, _Resident] = {}
        self._known: dict[int, SlotFolder] = {}  # of every trial that was ever handed to this host
        self._damaged: list[TrialFailure] = []
        self._room = capacity  # trials in the pack for which there is memory
        self._waiting: list[int] = []  # residents that are not in the pack for want of it
        self._steps_of_others = 0  # of trials that are not resident any more

    @property
    def capacity(self) -> int:
        """Most trials that can be resident at once; lower than it was when memory was short."""
        return self._room

    @property
    def steps(self) -> int:
        """Steps of all trials it has held so far; for progress only."""
        return self._steps_of_others + sum(member.step for member in list(self.trainer.members.values()))

    def open(self, spec: TrialSpec) -> Sequence[Measurement]:
        """Start a trial, or continue it from its slot file; returns the measurements the file already holds.

        A trial whose slot files are all damaged is reported as a failure by the next `advance`. Raises CheckpointError
        if a later attempt has the trial already, ValueError if the host is full, OutOfMemory if it does not fit.
        """
        self.park(spec.number)
        if len(self._residents) >= self._capacity:
            raise ValueError(f"cannot open {trial_name(spec.number)}: all {self._capacity} slots of the host are taken")
        files = self._known[spec.number] = self._files(spec)
        files.claim()
        try:
            saved = files.load()
        except CheckpointError as error:
            self._damaged.append(failure_of(error, trial=spec.number, step=0))
            return ()
        self._admit(spec, saved)
        known = [replace(item, trial=spec.number) for item in saved.measurements] if saved else []
        self._residents[spec.number] = _Resident(spec, files, known)
        return tuple(known)

    def advance(self) -> Sequence[Event]:
        """Train all resident trials until at least one has something to report, which is in its slot file by then.

        Raises ResourceError if the disk is full and CheckpointError if a later attempt has taken a trial over: both
        concern the host, not the trial.
        """
        self._admit_waiting()
        if self._damaged:
            failures, self._damaged = self._damaged, []
            for failure in failures:
                self.close(failure.trial)
            return failures
        self._train()
        cohort = self._rounds.cohort()
        drafts = self._spared([self._drafted(event) for event in cohort])
        if cohort and not drafts:
            return self.advance()  # in a smaller pack
        if self._thread is not None:
            self._thread.go_on()
        for draft in drafts:
            self._write(draft)
        return [draft.event for draft in drafts]

    def park(self, trial: int) -> None:
        """Free the trial's memory; its slot file stays. Unknown trials are ignored."""
        with self._standstill():
            self._rounds.leave(trial)
            member = self.trainer.members.get(trial)
            self._steps_of_others += member.step if member is not None else 0
            self.trainer.evict(trial)
        self._residents.pop(trial, None)
        self._waiting = [number for number in self._waiting if number != trial]
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
        """Metrics without training, by the majority class if the data has one, else by the untrained model."""
        majorities = enumerate(self._majorities)
        return joined([dict(majority) or self.trainer.baseline(lane) for lane, majority in majorities])

    def shutdown(self) -> None:
        """Take every trial off the backbone. Slot files stay."""
        for trial in list(self._residents):
            self.park(trial)
        if self._thread is not None:
            self._thread.close()
        self.trainer.close()

    def _admit(self, spec: TrialSpec, saved: SlotRecord | None) -> None:
        """Into the pack, as far as there is memory beside the others; otherwise the trial waits."""
        with self._standstill():
            if len(self.trainer.members) >= self._room:
                self._waiting.append(spec.number)
                return
            try:
                self.trainer.admit(spec, saved.state if saved else None)
                self.trainer.members[spec.number].is_over = is_over(saved.measurements if saved else ())
                self._rounds.join(spec.number)
            except (RuntimeError, MemoryError, OSError) as error:
                if not (is_out_of_memory(error) and self.trainer.members):
                    raise
                self._let_wait(spec.number)

    def _admit_waiting(self) -> None:
        """Let those go on who waited for others to go, from their slot files."""
        waiting, self._waiting = self._waiting, []
        for number in waiting:
            resident = self._residents[number]
            try:
                self._admit(resident.spec, resident.files.load())
            except Exception as error:  # noqa: BLE001 - the edge: a trial that cannot go on is data
                self._damaged.append(failure_of(error, trial=number, step=0))

    def _spared(self, drafts: Sequence[_Draft]) -> Sequence[_Draft]:
        """The drafts without the failures of trials that may fit beside fewer others, and wait for that."""
        crowded = [draft.event.trial for draft in drafts if draft.event.trial in self.trainer.crowded]
        for trial in crowded:
            self.trainer.crowded.discard(trial)
            self._rounds.leave(trial)
            self._let_wait(trial)
        return [draft for draft in drafts if draft.event.trial not in crowded]

    def _let_wait(self, trial: int) -> None:
        """Make the pack smaller for a trial that lacks memory beside the others."""
        self._room = max(1, min(self._room - 1, len(self.trainer.members)))
        self._waiting.append(trial)
        logger.warning(
            "%s lacks memory beside others: at most %d trials are packed from now on, and it waits",
            trial_name(trial),
            self._room,
        )

    def _train(self) -> None:
        if self._thread is not None:
            self._thread.finish()
            return
        while self._tick():
            pass

    def _tick(self) -> bool:
        with self._busy():
            return self._rounds.tick()

    @contextmanager
    def _busy(self) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.busy_seconds += time.perf_counter() - began

    def _standstill(self) -> AbstractContextManager[None]:
        """Nobody trains inside the block."""
        return nullcontext() if self._thread is None else self._thread.halted()

    def _drafted(self, event: Event) -> _Draft:
        """All that is to be written of an event, while its trial still stands where it was measured."""
        if isinstance(event, TrialFailure):
            return _Draft(event, None)
        resident, state = self._residents[event.trial], self.trainer.snapshot(event.trial)
        if is_at_end(resident.spec, known := [*resident.measurements, event]):
            with self._busy():
                event = self._settled(resident, known, state)
            if isinstance(event, TrialFailure):
                return _Draft(event, None)
            event = self._finished(resident.spec, event)
        return _Draft(event, state)

    def _settled(self, resident: _Resident, known: Sequence[Measurement], state: TrainState) -> Event:
        """The last measurement with what the trial is worth; it stands where its best evaluation was made."""
        number = resident.spec.number
        try:
            return settled(
                resident.spec,
                known,
                state,
                saved=resident.files.at,
                go_back=lambda to: self.trainer.go_back(number, to),
                measure=lambda: self.trainer.measure_last(number),
            )
        except Exception as error:  # noqa: BLE001 - the edge: what a task or model raises fails one trial
            return self.trainer.fail(number, error)

    def _finished(self, spec: TrialSpec, event: Measurement) -> Measurement:
        """The last measurement with held-out rows looked at, the adapter exported, and what is examined."""
        if self._is_finalist(event):
            with self._busy():
                event = self.trainer.measure_held_out(event, affordable_rows(spec.steps * spec.hyper.batch_size))
        event = replace(event, adapter=self._export(spec, event))
        with self._busy():
            return self.trainer.examine(event)

    def _write(self, draft: _Draft) -> None:
        event = draft.event
        if draft.state is None or isinstance(event, TrialFailure):
            self.close(event.trial)
            return
        resident = self._residents[event.trial]
        resident.measurements.append(event)
        record = SlotRecord(state=draft.state, measurements=tuple(resident.measurements))
        resident.files.save(record, keep=steps_to_keep(resident.spec, resident.measurements))
