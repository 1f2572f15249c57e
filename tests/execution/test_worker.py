"""The worker's half: obeys orders in the right order, says what slot files hold before it trains on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from automl.errors import MetricError, ResourceError
from automl.execution.worker import Worker
from automl.lora import Hyperparameters
from automl.testing.formula import Fault, FormulaHost, curve
from automl.trial import Measurement, Metrics, Order, OrderKind, StopReason, TrialFailure, TrialSpec


def spec(number: int, *, attempt: int = 1) -> TrialSpec:
    return TrialSpec(
        number=number,
        params={},
        hyper=Hyperparameters(learning_rate=1e-3),
        seed=number,
        data_seed=0,
        steps=4,
        evaluate_every=2,
        attempt=attempt,
    )


def open_order(number: int) -> Order:
    return Order(kind=OrderKind.OPEN, trial=number, spec=spec(number))


def order(kind: OrderKind, number: int = -1) -> Order:
    return Order(kind=kind, trial=number)


@pytest.fixture
def waits() -> list[float]:
    return []


def make_worker(folder: Path, waits: list[float], *, index: int = 0, epoch: int = 1, **host: object) -> Worker:
    return Worker(FormulaHost(str(folder), **host), index, epoch=epoch, idle_seconds=0.5, wait=waits.append)


def test_hello_announces_capacity_and_only_the_very_first_brings_the_baseline(
    tmp_path: Path, waits: list[float]
) -> None:
    first = make_worker(tmp_path, waits, capacity=3).hello()
    assert (first.hello, first.seq, first.capacity, first.baseline) == (True, 0, 3, {"loss": 2.0})
    assert make_worker(tmp_path, waits, epoch=2).hello().baseline is None
    assert make_worker(tmp_path, waits, index=1).hello().baseline is None


class Unjudged(FormulaHost):
    def baseline(self) -> Metrics:
        raise MetricError("metric maximize:judge: judge answered 'nan'")


def test_a_baseline_that_cannot_be_judged_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker(Unjudged(str(tmp_path)), 0, epoch=1)
    assert worker.hello().baseline is None
    assert "the untrained model is not measured: metric maximize:judge: judge answered 'nan'" in caplog.text
    assert worker.step([open_order(0)]).measurements[0].step == 2


def test_residents_report_together_and_follow_their_curves(tmp_path: Path, waits: list[float]) -> None:
    worker = make_worker(tmp_path, waits, capacity=2)
    worker.hello()
    cohort = worker.step([open_order(0), open_order(1)])
    assert [(item.trial, item.step) for item in cohort.measurements] == [(0, 2), (1, 2)]
    assert [item.metrics["loss"] for item in cohort.measurements] == [curve(spec(0))[0][1], curve(spec(1))[0][1]]
    assert (cohort.seq, waits) == (1, [])


def test_a_reopened_trial_says_what_its_slot_file_holds_before_it_trains_on(tmp_path: Path, waits: list[float]) -> None:
    first = make_worker(tmp_path, waits)
    first.step([open_order(0)])
    second = make_worker(tmp_path, waits, epoch=2)
    # The driver may want to stop the trial at step 2, so step 4 must not have been trained yet.
    assert [item.step for item in second.step([open_order(0)]).measurements] == [2]
    assert [item.step for item in second.step([]).measurements] == [4]


def test_memory_is_freed_before_it_is_taken(tmp_path: Path, waits: list[float]) -> None:
    worker = make_worker(tmp_path, waits, capacity=1)
    worker.step([open_order(0)])
    cohort = worker.step([open_order(1), order(OrderKind.PARK, 0)])
    assert [item.trial for item in cohort.measurements] == [1]


def test_parking_keeps_the_slot_file_and_closing_deletes_it(tmp_path: Path, waits: list[float]) -> None:
    worker = make_worker(tmp_path, waits, capacity=2)
    worker.step([open_order(0), open_order(1)])
    worker.step([order(OrderKind.PARK, 0), order(OrderKind.CLOSE, 1)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["trial-00000.json"]


def test_an_idle_worker_waits_and_returns_an_empty_cohort(tmp_path: Path, waits: list[float]) -> None:
    worker = make_worker(tmp_path, waits)
    cohort = worker.step([])
    assert (cohort.measurements, cohort.failures, waits) == ((), (), [0.5])


def test_idle_is_all_time_but_training_while_there_are_trials(tmp_path: Path) -> None:
    now = [100.0]

    class Timed(FormulaHost):
        """Every interval takes 10 seconds, of which 7 are training; opening takes 1."""

        def open(self, spec: TrialSpec) -> Sequence[Measurement]:
            now[0] += 1.0
            return super().open(spec)

        def advance(self) -> Sequence[Measurement | TrialFailure]:
            news = super().advance()
            if news:
                now[0] += 10.0
                self.busy_seconds += 7.0
            return news

    def wait(seconds: float) -> None:
        now[0] += seconds

    worker = Worker(Timed(str(tmp_path)), 0, wait=wait, clock=lambda: now[0])
    now[0] += 50.0  # until it is ready
    worker.hello()
    now[0] += 2.0  # until the first orders are there
    first = worker.step([open_order(0)])
    assert (first.busy_seconds, first.idle_seconds) == (7.0, 2.0 + 1.0 + 3.0)
    worker.step([])
    vacant = worker.step([order(OrderKind.CLOSE, 0)])
    now[0] += 30.0  # the driver has nothing for it
    later = worker.step([open_order(1)])
    assert (vacant.busy_seconds, vacant.idle_seconds) == (14.0, 9.0 + 0.5)
    assert (later.busy_seconds, later.idle_seconds) == (21.0, 9.0 + 1.0 + 3.0)


def test_stop_keeps_all_slot_files_and_trains_no_further(tmp_path: Path, waits: list[float]) -> None:
    worker = make_worker(tmp_path, waits, capacity=2)
    worker.step([open_order(0), open_order(1)])
    cohort = worker.step([order(OrderKind.STOP)])
    assert worker.stopped
    assert (cohort.measurements, waits) == ((), [])
    assert len(list(tmp_path.iterdir())) == 2


def test_a_trial_that_cannot_be_opened_is_a_failure_and_not_an_exception(tmp_path: Path, waits: list[float]) -> None:
    (tmp_path / "trial-00000.json").write_text("not JSON", encoding="utf-8")
    cohort = make_worker(tmp_path, waits).step([open_order(0)])
    assert [(item.trial, item.reason) for item in cohort.failures] == [(0, StopReason.ERROR)]
    assert "JSONDecodeError" in cohort.failures[0].message


class FullDisk(FormulaHost):
    """A host on a full disk."""

    def open(self, spec: TrialSpec) -> list:
        raise ResourceError("disk full at /slots")


def test_lack_of_resources_is_the_workers_trouble_not_the_trials(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="disk full"):
        Worker(FullDisk(str(tmp_path)), 0).step([open_order(0)])


def test_a_failed_trial_leaves_the_others_unchanged(tmp_path: Path, waits: list[float]) -> None:
    worker = make_worker(tmp_path, waits, capacity=2, faults={0: Fault("diverge", 1)})
    first = worker.step([open_order(0), open_order(1)])
    second = worker.step([order(OrderKind.CLOSE, 0)])
    assert [item.reason for item in first.failures] == [StopReason.DIVERGED]
    assert [item.metrics["loss"] for item in second.measurements] == [curve(spec(1))[0][1]]
