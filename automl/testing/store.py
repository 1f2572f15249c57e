"""The contract of a result store: what a driver has written comes back, once, in order, and only where it belongs."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import ClassVar

import pytest

from automl.errors import StorageError
from automl.storage.base import Artifact, AttemptState, ResultStore
from automl.trial import Measurement, StopReason


def _measurement(trial: int, step: int, **metrics: float) -> Measurement:
    return Measurement(trial=trial, step=step, metrics=metrics or {"loss": 1 / 3}, seconds=0.1 * step, tokens=7 * step)


class StoreContract:
    """Derive, and give two fixtures: `store`, an empty store of one study, and `other`, of another study beside it."""

    def test_measurements_come_back_as_they_were_stored(self, store: ResultStore) -> None:
        stored = [
            _measurement(0, 10, loss=0.1 + 0.2, accuracy=1.0),
            Measurement(
                trial=0, step=20, metrics={"loss": 5e-324}, seconds=1e9, tokens=1 << 40, adapter="a/trial-00000"
            ),
            _measurement(1, 10, loss=1.7976931348623157e308, mcc=-1.0),
        ]
        store.add_measurements(stored)
        assert store.measurements() == stored

    def test_measurements_are_ordered_by_trial_and_step(self, store: ResultStore) -> None:
        store.add_measurements([_measurement(1, 20), _measurement(1, 10), _measurement(0, 30)])
        assert [(m.trial, m.step) for m in store.measurements()] == [(0, 30), (1, 10), (1, 20)]

    def test_measurements_of_one_trial(self, store: ResultStore) -> None:
        store.add_measurements([_measurement(0, 10), _measurement(1, 10)])
        assert store.measurements(1) == [_measurement(1, 10)]
        assert store.measurements(2) == []

    # A replay after a crash must change nothing, and must not add metrics to a step that was recorded without them.
    def test_measurements_a_stored_step_is_kept_as_it_is(self, store: ResultStore) -> None:
        store.add_measurements([_measurement(0, 10, loss=1.0)])
        store.add_measurements([_measurement(0, 10, loss=2.0, accuracy=0.5), _measurement(0, 20, loss=3.0)])
        assert store.measurements() == [_measurement(0, 10, loss=1.0), _measurement(0, 20, loss=3.0)]

    def test_measurements_of_two_for_one_step_the_first_is_kept(self, store: ResultStore) -> None:
        store.add_measurements([_measurement(0, 10, loss=1.0), _measurement(0, 10, loss=2.0)])
        assert store.measurements() == [_measurement(0, 10, loss=1.0)]

    def test_measurements_none_is_no_transaction(self, store: ResultStore) -> None:
        store.add_measurements([])
        assert store.measurements() == []

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_measurements_that_are_not_finite_are_refused_with_their_cohort(
        self, store: ResultStore, value: float
    ) -> None:
        with pytest.raises(StorageError, match="cannot store 2 measurements"):
            store.add_measurements([_measurement(0, 10, loss=1.0), _measurement(1, 10, loss=value)])
        assert store.measurements() == []

    def test_measurements_belong_to_one_study(self, store: ResultStore, other: ResultStore) -> None:
        store.add_measurements([_measurement(0, 10)])
        assert other.measurements() == []

    def test_attempts_are_numbered_from_one_per_trial(self, store: ResultStore) -> None:
        numbers = []
        for trial in (0, 0, 1):
            numbers.append(store.start_attempt(trial, worker=3, run=1).number)
            store.end_attempt(trial, AttemptState.PARKED, "parked")
        assert numbers == [1, 2, 1]

    def test_attempts_know_where_and_when(self, store: ResultStore) -> None:
        started = store.start_attempt(4, worker=2, run=5)
        assert started == store.attempts(4)[0]
        assert (started.worker, started.run, started.state) == (2, 5, AttemptState.RUNNING)
        assert started.started_at is not None
        assert abs(datetime.now(UTC) - started.started_at) < timedelta(seconds=60)
        assert started.ended_at is None

    def test_attempts_opening_one_closes_the_running_one_as_lost(self, store: ResultStore) -> None:
        store.start_attempt(0, worker=0, run=1)
        store.start_attempt(0, worker=1, run=1)
        lost, running = store.attempts(0)
        assert (lost.state, running.state) == (AttemptState.LOST, AttemptState.RUNNING)
        assert lost.reason
        assert lost.ended_at is not None
        assert running.started_at is not None
        assert lost.ended_at <= running.started_at

    def test_attempts_end_with_state_and_reason(self, store: ResultStore) -> None:
        store.start_attempt(0, worker=0, run=1)
        store.end_attempt(0, AttemptState.SUCCEEDED, StopReason.FINISHED)
        (ended,) = store.attempts(0)
        assert (ended.state, ended.reason) == (AttemptState.SUCCEEDED, "finished")
        assert ended.ended_at is not None

    def test_attempts_ending_twice_changes_nothing(self, store: ResultStore) -> None:
        store.start_attempt(0, worker=0, run=1)
        store.end_attempt(0, AttemptState.INTERRUPTED, "SIGTERM")
        before = store.attempts()
        store.end_attempt(0, AttemptState.FAILED, "error")
        store.end_attempt(9, AttemptState.FAILED, "error")
        assert store.attempts() == before

    def test_attempts_of_all_trials_are_ordered(self, store: ResultStore) -> None:
        for trial in (2, 0, 2):
            store.start_attempt(trial, worker=0, run=1)
        assert [(attempt.trial, attempt.number) for attempt in store.attempts()] == [(0, 1), (2, 1), (2, 2)]

    def test_attempts_a_told_attempt_needs_a_stop_reason(self, store: ResultStore) -> None:
        store.start_attempt(0, worker=0, run=1)
        with pytest.raises(StorageError, match="close the attempt of trial 0"):
            store.end_attempt(0, AttemptState.SUCCEEDED, "because")

    def test_attempts_cannot_end_as_running(self, store: ResultStore) -> None:
        with pytest.raises(ValueError, match="RUNNING"):
            store.end_attempt(0, AttemptState.RUNNING, "")

    adapter: ClassVar[Artifact] = Artifact(
        trial=1, kind="adapter", path="/a/trial-00001", sha256="0" * 64, bytes=1 << 33, metric=0.875
    )

    def test_artifacts_come_back_as_they_were_stored(self, store: ResultStore) -> None:
        plain = Artifact(trial=0, kind="adapter", path="b", sha256="1" * 64, bytes=0)
        for artifact in (self.adapter, plain):
            store.add_artifact(artifact)
        assert store.artifacts() == [plain, self.adapter]

    def test_artifacts_one_of_the_same_trial_and_kind_is_replaced(self, store: ResultStore) -> None:
        store.add_artifact(self.adapter)
        store.delete_artifact(1, "adapter")
        newer = Artifact(trial=1, kind="adapter", path="/c", sha256="2" * 64, bytes=5, metric=None)
        store.add_artifact(newer)
        assert store.artifacts(include_deleted=True) == [newer]

    def test_artifacts_deleted_ones_keep_their_row(self, store: ResultStore) -> None:
        store.add_artifact(self.adapter)
        store.delete_artifact(1, "adapter")
        assert store.artifacts() == []
        (row,) = store.artifacts(include_deleted=True)
        assert row.deleted_at is not None
        store.delete_artifact(1, "adapter")
        assert store.artifacts(include_deleted=True) == [row]

    def test_events_come_back_oldest_first(self, store: ResultStore) -> None:
        store.add_event("first", {"text": "größer", "list": [1, 2.5, None, True]})
        store.add_event("second", {})
        (early, kind, detail), (late, _, empty) = store.events()
        assert (kind, detail, empty) == ("first", {"text": "größer", "list": [1, 2.5, None, True]}, {})
        assert early <= late
        assert early.tzinfo is UTC

    def test_events_the_last_of_a_kind_is_found_among_others(self, store: ResultStore) -> None:
        assert store.last_event("ground") is None
        for number in range(3):
            store.add_event("ground", {"number": number})
            store.add_event("other", {})
        assert store.last_event("ground") == {"number": 2}
        assert store.last_event("workers") is None

    def test_events_without_json_are_refused(self, store: ResultStore) -> None:
        with pytest.raises((StorageError, ValueError)):
            store.add_event("bad", {"loss": math.nan})
        assert store.events() == []
