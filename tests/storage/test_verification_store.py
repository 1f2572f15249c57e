"""Verifications are written as they go and read back as they were, on both databases."""

from __future__ import annotations

import pytest

from automl.errors import LeaseLostError, StorageError
from automl.storage.sql import Database
from automl.storage.verification import Score, VerificationStore, latest

PLAN = {"arms": [{"name": "best"}], "seeds": [4, 5]}


def score(value: float, **other: object) -> Score:
    return Score(
        **{"arm": "best", "seed": 4, "learning_rate": 1e-3, "split": "test", "metric": "loss", **other}, value=value
    )  # type: ignore[arg-type]


def test_a_verification_is_running_until_it_has_a_result(database: Database) -> None:
    store = VerificationStore(database, "s")
    assert latest(database, "s") is None
    store.begin(1, PLAN)
    found = latest(database, "s")
    assert found is not None
    assert (found.number, found.plan, found.result, found.is_done, found.ended_at) == (1, PLAN, None, False, None)
    assert latest(database, "s", done=True) is None
    store.finish(1, {"headline": "done"})
    found = latest(database, "s", done=True)
    assert found is not None
    assert found.result == {"headline": "done"}
    assert found.ended_at is not None
    assert found.ended_at >= found.started_at


def test_the_latest_is_the_one_with_the_highest_number_of_this_study(database: Database) -> None:
    store, other = VerificationStore(database, "s"), VerificationStore(database, "other")
    store.begin(1, PLAN)
    store.finish(1, {})
    store.begin(2, PLAN)
    other.begin(7, PLAN)
    numbers = [found.number for done in (False, True) if (found := store.latest(done=done))]
    assert numbers == [2, 1]
    with pytest.raises(StorageError, match="verification 2"):
        store.begin(2, PLAN)


def test_the_first_of_two_equal_scores_stays(database: Database) -> None:
    store = VerificationStore(database, "s")
    store.begin(1, PLAN)
    store.add_scores(1, [score(0.5), score(0.25, split="validation")])
    store.add_scores(1, [score(0.75), score(0.125, seed=5)])
    found = [(each.seed, each.split, each.value) for each in store.scores(1)]
    assert found == [(4, "test", 0.5), (4, "validation", 0.25), (5, "test", 0.125)]


def test_scores_of_a_verification_that_was_not_begun_are_refused(database: Database) -> None:
    with pytest.raises(StorageError, match="store 1 scores of verification 3"):
        VerificationStore(database, "s").add_scores(3, [score(0.5)])


def test_without_the_lease_nothing_is_stored(database: Database) -> None:
    def lost(_: object) -> None:
        raise LeaseLostError("taken over")

    VerificationStore(database, "s").begin(1, PLAN)
    with pytest.raises(LeaseLostError):
        VerificationStore(database, "s", lost).add_scores(1, [score(0.5)])
    assert VerificationStore(database, "s").scores(1) == []
