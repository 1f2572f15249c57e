"""The solo host: owns a device, trains its resident trials one after the other, each from its slot file.

Resident trials take turns at the backbone, a stretch between two measurements each, the one that has come least far
first; so trials that share a host reach a step close together, and the study can compare them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

from automl.errors import CheckpointError, ResourceError
from automl.importance.heldout import affordable_rows
from automl.lanes import joined, lane_of, trial_name
from automl.training.adapter import adapter_meta
from automl.training.best_checkpoint import is_at_end, is_over, settled
from automl.training.checkpoint import SlotFolder, discard_slot_files, finished_folder, slot_files
from automl.training.early_stopping import steps_to_keep
from automl.training.export import export_adapter, travelling
from automl.training.finalists import Finalists
from automl.training.parallel import SINGLE_PROCESS, ParallelStrategy
from automl.training.runtime import HostSettings, Runtime, load_model, load_runtimes
from automl.training.solo import SoloTrial, train
from automl.training.state import SlotRecord, TrainState
from automl.trial import Measurement, Metrics, TrialFailure, TrialSpec, failure_of

logger = logging.getLogger(__name__)


def build_solo_host(settings: HostSettings) -> SoloHost:
    """Load backbone and data and return the host; called inside the worker."""
    first, *beside = load_runtimes(settings)
    return SoloHost(settings, first, beside=beside)


class Resident:
    """A trial of the host. generator: set while it is on the backbone. state: the one in its slot file."""

    def __init__(self, spec: TrialSpec, slot: SlotFolder) -> None:
        self.spec = spec
        self.slot = slot
        self.state: TrainState | None = None
        self.measurements: list[Measurement] = []
        self.damage: CheckpointError | None = None
        self.trial: SoloTrial | None = None
        self.generator: Generator[Measurement, None, None] | None = None

    @property
    def step(self) -> int:
        return self.state.step if self.state else 0

    @property
    def reached(self) -> int:
        """Steps so far, those beyond the slot file included."""
        trial = self.trial
        return trial.step if trial is not None else self.step

    @property
    def is_finished(self) -> bool:
        return self.step >= self.spec.last_step or is_over(self.measurements)

    def restore(self) -> None:
        """Read the slot file; if all of it is damaged, that is kept as the trial's failure."""
        try:
            record = self.slot.load()
        except CheckpointError as error:
            self.damage = error
            return
        if record is not None:
            self.state = record.state
            self.measurements = [replace(item, trial=self.spec.number) for item in record.measurements]

    def detach(self) -> None:
        """Take the trial off the backbone; nothing is lost that the slot file holds."""
        if self.generator is not None:
            self.generator.close()
        self.generator = self.trial = None


class SoloHost:
    """Trains trials with the plain PEFT loop; follows `automl.execution.base.Host`.

    strategy: how a trial is spread over processes, each of which has such a host. beside: the runtimes of further lanes
    (`automl.lanes`), whose models share the backbone of the first; not with trials in several processes.
    busy_seconds: spent on training, evaluating and writing what came of it.
    """

    def __init__(
        self,
        settings: HostSettings,
        runtime: Runtime,
        strategy: ParallelStrategy = SINGLE_PROCESS,
        *,
        beside: Sequence[Runtime] = (),
    ) -> None:
        self.settings = settings
        self.runtime = runtime
        self._strategy = strategy
        self._is_whole = True  # the backbone of the runtime
        self._beside = beside
        self._finalists = [Finalists(each.task.metric) for each in settings.lanes]
        self.busy_seconds = 0.0
        self._residents: dict[int, Resident] = {}
        self._steps_of_others = 0  # of trials that are not resident any more
        self._slots: dict[int, SlotFolder] = {}  # of every trial that was ever handed to this host

    @property
    def capacity(self) -> int:
        """Most trials that can be resident at once."""
        return self.settings.capacity

    @property
    def steps(self) -> int:
        """Steps of all trials it has held so far; for progress only."""
        return self._steps_of_others + sum(resident.reached for resident in list(self._residents.values()))

    def open(self, spec: TrialSpec) -> Sequence[Measurement]:
        """Start a trial, or continue it from its slot file; returns the measurements the file already holds.

        A trial whose slot files are all damaged is reported as a failure by the next `advance`. Raises CheckpointError
        if a later attempt has the trial already, ValueError if the host is full.
        """
        self.park(spec.number)
        if len(self._residents) >= self.capacity:
            raise ValueError(f"cannot open {trial_name(spec.number)}: all {self.capacity} slots of the host are taken")
        slot = slot_files(self.settings, spec)
        self._slots[spec.number] = slot
        if self._strategy.is_writer:
            slot.claim()
        self._strategy.wait()  # the others read when the writer has claimed
        resident = Resident(spec, slot)
        resident.restore()
        self._residents[spec.number] = resident
        return tuple(resident.measurements)

    def advance(self) -> Sequence[Measurement | TrialFailure]:
        """Train one resident trial up to its next measurement, which is in its slot file when this returns.

        Raises ResourceError if the disk refuses and CheckpointError if a later attempt has taken the trial over: both
        concern the host, not the trial.
        """
        ready = [resident for resident in self._residents.values() if not resident.is_finished]
        if not ready:
            return ()
        began = time.perf_counter()
        try:
            return (self._advance(min(ready, key=lambda resident: resident.step)),)
        finally:
            self.busy_seconds += time.perf_counter() - began

    def park(self, trial: int) -> None:
        """Free the trial's memory; its slot file stays. Unknown trials are ignored."""
        resident = self._residents.pop(trial, None)
        if resident is not None:
            self._steps_of_others += resident.reached
            resident.detach()

    def close(self, trial: int) -> None:
        """Free the trial's memory and delete its slot file, also that of a trial parked earlier."""
        self.park(trial)
        slot = self._slots.pop(trial, None)
        if not self._strategy.is_writer:
            return
        if slot is not None:
            slot.remove()
        else:
            discard_slot_files(self.settings, trial)

    def baseline(self) -> Metrics:
        """Metrics without training, by the majority class if the data has one, else by the untrained model."""
        return joined([self._baseline(lane) for lane in range(len(self.settings.lanes))])

    def _baseline(self, lane: int) -> Metrics:
        if majority := self.settings.lanes[lane].prepared.baseline:
            return majority
        for resident in self._residents.values():
            resident.detach()
        runtime = self._whole(lane)
        self._strategy.distribute(runtime.model)
        return runtime.evaluate(runtime.model, runtime.evaluation_rows, runtime.evaluation_tokens)

    def shutdown(self) -> None:
        """Take every trial off the backbone. Slot files stay."""
        for trial in list(self._residents):
            self.park(trial)

    def _advance(self, resident: Resident) -> Measurement | TrialFailure:
        if resident.damage is not None:
            return self._fail(resident, resident.damage)
        try:
            with self._strategy.naming_lost_peers():
                return self._stretch(resident)
        except (CheckpointError, ResourceError, KeyboardInterrupt, SystemExit):
            resident.detach()  # should the host go on, the trial starts from its slot file
            raise
        except Exception as error:  # noqa: BLE001 - the executor's edge: what a task or model raises fails one trial
            return self._fail(resident, error)

    def _stretch(self, resident: Resident) -> Measurement:
        """Train up to the next measurement, which is in the slot file then."""
        measurement = next(self._attach(resident))
        assert resident.trial is not None
        state, known = resident.trial.snapshot(), [*resident.measurements, measurement]
        if is_at_end(resident.spec, known):
            measurement = self._finish(resident.trial, self._settled(resident, known, state))
        self._save(resident, measurement, state)
        return measurement

    def _settled(self, resident: Resident, known: Sequence[Measurement], state: TrainState) -> Measurement:
        """The last measurement with what the trial is worth; it stands where its best evaluation was made."""
        trial = resident.trial
        assert trial is not None
        saved = resident.slot.at
        return settled(resident.spec, known, state, saved=saved, go_back=trial.go_back, measure=trial.measure)

    def _attach(self, resident: Resident) -> Generator[Measurement, None, None]:
        """Attach the trial to the backbone, detaching any other; returns what trains it."""
        if resident.generator is None:
            for other in self._residents.values():
                other.detach()
            resident.trial = SoloTrial(
                resident.spec, self._whole(lane_of(resident.spec.number)), resident.state, strategy=self._strategy
            )
            resident.generator = train(resident.trial)
        return resident.generator

    def _finish(self, trial: SoloTrial, measurement: Measurement) -> Measurement:
        """After the last step, look at held-out rows, export the adapter and name it in the measurement."""
        if self._finalists[lane_of(measurement.trial)].admit(measurement.worth):
            trained = trial.spec.steps * trial.spec.hyper.batch_size
            measurement = trial.measure_held_out(measurement, affordable_rows(trained))
        exported = replace(measurement, adapter=str(self._export(trial, measurement)))
        return trial.examine(exported)

    def _export(self, trial: SoloTrial, measurement: Measurement) -> Path:
        """The finished adapter's folder. Every process gives its share of the tensors."""
        folder = finished_folder(self.settings, trial.spec.number)
        tensors = {name: self._strategy.full(tensor) for name, tensor in travelling(trial.model).items()}
        if self._strategy.is_writer:
            meta = adapter_meta(self.settings.of(trial.spec.number), trial.runtime.task, trial.spec, measurement)
            export_adapter(trial.model, folder, meta, tokenizer=self.runtime.tokenizer, tensors=tensors)
        return folder

    def _save(self, resident: Resident, measurement: Measurement, state: TrainState) -> None:
        """Write the slot file before the measurement leaves the host, so that it is never lost."""
        measurements = [*resident.measurements, measurement]
        if self._strategy.is_writer:
            record = SlotRecord(state=state, measurements=tuple(measurements))
            resident.slot.save(record, keep=steps_to_keep(resident.spec, measurements))
        resident.state, resident.measurements = state, measurements
        if resident.is_finished:
            resident.detach()

    def _whole(self, lane: int) -> Runtime:
        """The runtime of a lane, with a backbone that holds no adapter, and of which no process has a share."""
        if not self._is_whole:
            self.runtime = replace(self.runtime, model=load_model(self.settings))
        self._is_whole = self._strategy.keeps_backbone
        return (self.runtime, *self._beside)[lane]

    def _fail(self, resident: Resident, error: Exception) -> TrialFailure:
        trial = resident.trial
        step, tokens = (trial.step, trial.tokens) if trial is not None else (resident.step, 0)
        self.close(resident.spec.number)
        failure = failure_of(error, trial=resident.spec.number, step=step, tokens=tokens)
        logger.info("%s failed at step %d: %s", trial_name(failure.trial), step, failure.reason)
        return failure
