"""Training while somebody else decides: what it gives is what waiting gives, and it never shows before it should."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from automl import durable
from automl.packed.host import PackedHost
from automl.packed.thread import TrainingThread
from automl.packed.trainer import Event, PackedTrainer
from automl.training.checkpoint import SlotFolder
from automl.trial import Measurement, StopReason, TrialFailure, TrialSpec
from automl.trial_folders import slot_folder
from tests.architectures import tiny_model
from tests.packed.packed_oracle import spec, workload

STEPS, EVERY = 12, 3
TRIALS = [
    spec(0, rank=4, target="qv", batch_size=2, learning_rate=3e-3),
    spec(1, rank=8, dropout=0.1, batch_size=4, learning_rate=3e-3),
    spec(2, rank=2, dropout=0.2, target="mlp", batch_size=8, learning_rate=3e-3),
    spec(3, rank=3, dropout=0.2, batch_size=4, learning_rate=3e-3),
    spec(4, rank=4, batch_size=4, learning_rate=1e30),
]
TRIALS = [replace(trial, steps=STEPS, evaluate_every=EVERY) for trial in TRIALS]
CLOSE_AT = {(1, 3): "close", (0, 6): "park"}

Said = tuple[int, int, Mapping[str, float] | StopReason]


def await_that(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240.0
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def slot(output: Path, trial: TrialSpec) -> SlotFolder:
    return SlotFolder(slot_folder(output, trial.number), attempt=1, identity={"seed": trial.seed})


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str, bool], PackedHost]:
    def build(name: str, ahead: bool) -> PackedHost:
        trainer = PackedTrainer(tiny_model("bert"), workload())
        return PackedHost(
            trainer,
            capacity=3,
            files=lambda trial: slot(tmp_path / name, trial),
            discard=lambda trial: durable.remove_folder(slot_folder(tmp_path / name, trial)),
            export=lambda trial, measurement: "",
            majorities=[{}],
            ahead=ahead,
        )

    return build


def conversation(host: PackedHost, *, pause: Callable[[], None]) -> list[list[Said]]:
    """All cohorts of five trials in three slots; one is closed on the way, one parked and taken up again."""
    waiting, cohorts, opened = list(TRIALS), [], 0
    while True:
        while opened < 3 and waiting:
            host.open(waiting.pop(0))
            opened += 1
        if not (news := host.advance()):
            return cohorts
        cohorts.append([said(event) for event in news])
        pause()
        for event in news:
            order = CLOSE_AT.get((event.trial, event.step)) if isinstance(event, Measurement) else "failed"
            if order == "park":
                host.park(event.trial)
                waiting.append(TRIALS[event.trial])
            elif order == "close" or event.step == STEPS:
                host.close(event.trial)
            opened -= order is not None or event.step == STEPS


def said(event: Event) -> Said:
    return (event.trial, event.step, event.reason if isinstance(event, TrialFailure) else event.metrics)


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.3])
def test_cohorts_and_curves_are_those_of_a_host_that_waits(
    make: Callable[[str, bool], PackedHost], seconds: float
) -> None:
    patient, eager = make("patient", False), make("eager", True)
    expected = conversation(patient, pause=lambda: None)
    assert conversation(eager, pause=lambda: time.sleep(seconds)) == expected
    eager.shutdown()
    assert {number for cohort in expected for number, _, _ in cohort} == {0, 1, 2, 3, 4}
    assert any(item[0] == 4 and item[2] is StopReason.DIVERGED for cohort in expected for item in cohort)


def test_the_slot_file_stands_where_the_measurement_was_whatever_was_trained_since(
    make: Callable[[str, bool], PackedHost], tmp_path: Path
) -> None:
    host = make("eager", True)
    host.open(TRIALS[0])
    host.advance()
    await_that(lambda: host.trainer.members[0].step == 2 * EVERY)
    record = slot(tmp_path / "eager", TRIALS[0]).load()
    assert record is not None
    assert (record.state.step, [item.step for item in record.measurements]) == (EVERY, [EVERY])
    host.park(0)
    assert [item.step for item in host.open(TRIALS[0])] == [EVERY]
    assert [event.step for event in host.advance()] == [2 * EVERY]
    host.shutdown()


def test_nothing_is_trained_beyond_the_next_measurement_nor_after_the_end(
    make: Callable[[str, bool], PackedHost],
) -> None:
    threads = threading.active_count()
    host = make("eager", True)
    host.open(TRIALS[0])
    host.advance()
    busy = 0.0
    while busy != host.busy_seconds or host.trainer.members[0].step < 2 * EVERY:  # until it has come to rest
        busy = host.busy_seconds
        time.sleep(0.2)
    assert host.trainer.members[0].step == 2 * EVERY
    host.shutdown()
    assert threading.active_count() == threads


class Counter:
    """A tick that can be held, and that fails at a given number."""

    def __init__(self, ticks: int, *, fails_at: int | None = None) -> None:
        self.done = 0
        self.free = threading.Event()
        self.free.set()
        self._ticks = ticks
        self._fails_at = fails_at

    def __call__(self) -> bool:
        self.free.wait()
        self.done += 1
        if self.done == self._fails_at:
            raise RuntimeError("the device fell off")
        return self.done < self._ticks


@pytest.fixture
def threads() -> Sequence[TrainingThread]:
    made: list[TrainingThread] = []
    yield made
    for thread in made:
        thread.close()


def test_it_ticks_until_there_is_nothing_to_do(threads: list[TrainingThread]) -> None:
    counter = Counter(5)
    threads.append(TrainingThread(counter))
    assert counter.done == 0
    threads[0].finish()
    assert counter.done == 5


def test_nothing_ticks_while_it_is_halted_and_it_goes_on_afterwards(threads: list[TrainingThread]) -> None:
    counter = Counter(10**9)
    threads.append(TrainingThread(counter))
    threads[0].go_on()
    await_that(lambda: counter.done > 3)
    with threads[0].halted():
        before = counter.done
        time.sleep(0.05)
        assert counter.done == before
    await_that(lambda: counter.done > before)


def test_halting_does_not_start_what_did_not_run(threads: list[TrainingThread]) -> None:
    counter = Counter(3)
    threads.append(TrainingThread(counter))
    with threads[0].halted():
        pass
    time.sleep(0.05)
    assert counter.done == 0


def test_an_error_is_raised_where_somebody_waits_and_stops_the_training(threads: list[TrainingThread]) -> None:
    counter = Counter(10, fails_at=3)
    threads.append(TrainingThread(counter))
    threads[0].go_on()
    await_that(lambda: counter.done == 3)
    with threads[0].halted():
        pass
    with pytest.raises(RuntimeError, match="fell off"):
        threads[0].finish()
    assert counter.done == 3


def test_closing_waits_for_the_tick_under_way(threads: list[TrainingThread]) -> None:
    counter = Counter(10**9)
    counter.free.clear()
    thread = TrainingThread(counter)
    thread.go_on()
    threading.Timer(0.1, counter.free.set).start()
    thread.close()
    assert counter.done <= 1
