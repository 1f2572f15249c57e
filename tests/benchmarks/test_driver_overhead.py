"""The driver's benchmark: real studies in real databases, and times that are read at the right place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import driver_overhead, postgres
from benchmarks.driver_overhead import Ledger
from benchmarks.measure import Timing

Document = Callable[[Callable[..., int], list[str]], dict[str, Any]]


def test_time_per_trial_is_that_of_the_last_tenth() -> None:
    ledger = Ledger()
    for number in range(200):
        ledger.add(1, Timing(cpu=1.0 if number < 180 else 3.0, wall=2.0))
    assert ledger.per_trial(100) == (1.0, 2.0)
    assert ledger.per_trial(200) == (3.0, 2.0)


def test_a_study_in_sqlite(document: Document) -> None:
    found = document(driver_overhead.main, ["--quick", "--storages", "sqlite"])
    (result,) = found["results"]
    assert list(result["at"]) == ["10", "30"]
    assert result["raw"][-1][0] == 30
    assert 0 < result["total"]["cpu"] <= result["total"]["wall"] * 2


@pytest.mark.postgres
def test_a_study_in_postgresql(document: Document) -> None:
    reason = postgres.why_not()
    if reason is not None:
        pytest.skip(reason)
    found = document(driver_overhead.main, ["--quick", "--storages", "postgresql"])
    assert [result["storage"] for result in found["results"]] == ["postgresql"]
