"""A host without torch: real slots, real durable files, and a learning curve that is a formula of the trial's spec."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from automl.trial import Measurement, Metrics, StopReason, TrialFailure, TrialSpec


@dataclass(frozen=True)
class Fault:
    """What a trial does wrong at a step: "raise", "diverge", "oom", "exit" (the process ends, every time), "exit once"
    (only the first of its processes does), or "bug" (the host has an error that is no trial's).
    """

    kind: str
    step: int


class FormulaHost:
    """Trains by formula: loss falls towards a floor set by the learning rate, with noise that depends on seed and step.

    The state is carried from step to step, so a resumed trial continues its curve only if its slot file was right.
    `ledger`: a line for every measurement the driver has acknowledged, that is, has answered before the next call.
    """

    def __init__(
        self,
        folder: str,
        *,
        capacity: int = 1,
        step_seconds: float = 0.0,
        faults: Mapping[int, Fault] | None = None,
        ledger: str | None = None,
    ) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self.busy_seconds = 0.0
        self._capacity = capacity
        self._step_seconds = step_seconds
        self._faults = dict(faults or {})
        self._ledger = Path(ledger) if ledger else None
        self._slots: dict[int, _Slot] = {}
        self._unacknowledged: list[tuple[int, Measurement]] = []

    @property
    def capacity(self) -> int:
        return self._capacity

    def open(self, spec: TrialSpec) -> Sequence[Measurement]:
        self._acknowledge()
        assert len(self._slots) < self._capacity, "more trials than slots"
        slot = _Slot(spec, self._folder / f"trial-{spec.number:05d}.json")
        slot.load()
        self._slots[spec.number] = slot
        return slot.measurements()

    def advance(self) -> Sequence[Measurement | TrialFailure]:
        self._acknowledge()
        news: list[Measurement | TrialFailure] = []
        while not news and any(slot.step < slot.spec.steps for slot in self._slots.values()):
            for slot in [slot for slot in self._slots.values() if slot.step < slot.spec.steps]:
                item = self._train(slot)
                if item is not None:
                    news.append(item)
        for item in news:
            if isinstance(item, TrialFailure):
                del self._slots[item.trial]
            else:
                self._unacknowledged.append((self._slots[item.trial].spec.attempt, item))
        return news

    def park(self, trial: int) -> None:
        self._acknowledge()
        self._slots.pop(trial, None)

    def close(self, trial: int) -> None:
        self._acknowledge()
        self._slots.pop(trial, None)
        (self._folder / f"trial-{trial:05d}.json").unlink(missing_ok=True)

    def baseline(self) -> Metrics:
        return {"loss": 2.0}

    def shutdown(self) -> None:
        self._slots.clear()

    def _train(self, slot: _Slot) -> Measurement | TrialFailure | None:
        if self._step_seconds:
            time.sleep(self._step_seconds)
            self.busy_seconds += self._step_seconds
        slot.advance()
        fault = self._faults.get(slot.spec.number)
        if fault is not None and slot.step == fault.step and (fault.kind != "exit once" or self._is_first(slot)):
            if fault.kind in ("exit", "exit once"):
                os._exit(9)
            if fault.kind == "bug":
                raise RuntimeError("the device fell off")
            return _failure(slot, fault.kind)
        if not slot.spec.is_due(slot.step):
            return None
        return slot.measure()

    def _is_first(self, slot: _Slot) -> bool:
        mark = self._folder / f"died-in-{slot.spec.number}"
        is_first = not mark.exists()
        mark.touch()
        return is_first

    def _acknowledge(self) -> None:
        if self._ledger is not None and self._unacknowledged:
            lines = [
                json.dumps([item.trial, attempt, item.step, item.metrics.get("loss"), os.getpid()]) + "\n"
                for attempt, item in self._unacknowledged
            ]
            descriptor = os.open(self._ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            try:
                os.write(descriptor, "".join(lines).encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        self._unacknowledged.clear()


class _Slot:
    """One trial's state and its file: step, loss, and the losses measured so far."""

    def __init__(self, spec: TrialSpec, path: Path) -> None:
        self.spec = spec
        self.path = path
        self.step = 0
        self.loss = 2.0
        self.curve: list[tuple[int, float]] = []

    def load(self) -> None:
        if self.path.exists():
            content = json.loads(self.path.read_text(encoding="utf-8"))
            self.step, self.loss = content["step"], content["loss"]
            self.curve = [(step, loss) for step, loss in content["curve"]]

    def advance(self) -> None:
        self.step += 1
        self.loss = next_loss(self.spec, self.step, self.loss)

    def measure(self) -> Measurement:
        self.curve.append((self.step, self.loss))
        temporary = self.path.with_suffix(".tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump({"step": self.step, "loss": self.loss, "curve": self.curve}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)
        return self.measurements()[-1]

    def measurements(self) -> list[Measurement]:
        return [
            Measurement(
                trial=self.spec.number,
                step=step,
                metrics={} if self.spec.rows_at(step) == 0 else {"loss": loss},
                seconds=0.01 * step,
                tokens=10 * step,
            )
            for step, loss in self.curve
        ]


def next_loss(spec: TrialSpec, step: int, loss: float) -> float:
    """The loss one step later: best at a learning rate of 1e-3, and noisy."""
    rate = spec.hyper.learning_rate
    floor = 0.2 + min(1.5, abs(math.log10(rate) + 3.0) * 0.5)
    noise = random.Random(f"{spec.seed}:{step}").gauss(0.0, 0.01)
    return max(0.01, loss + 0.1 * (floor - loss) + noise)


def curve(spec: TrialSpec) -> list[tuple[int, float]]:
    """The whole undisturbed curve: (step, loss) on the evaluation grid."""
    loss, points = 2.0, []
    for step in range(1, spec.steps + 1):
        loss = next_loss(spec, step, loss)
        if spec.is_due(step):
            points.append((step, loss))
    return points


_REASONS = {"diverge": StopReason.DIVERGED, "oom": StopReason.OOM, "raise": StopReason.ERROR}


def _failure(slot: _Slot, kind: str) -> TrialFailure:
    return TrialFailure(
        trial=slot.spec.number,
        step=slot.step,
        reason=_REASONS[kind],
        message=f"{kind} at step {slot.step} on purpose",
        tokens=10 * slot.step,
    )
