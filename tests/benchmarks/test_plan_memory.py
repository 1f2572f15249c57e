"""Memory planned for a step against what is there at its peak."""

from __future__ import annotations

import pytest

from benchmarks.plan_memory import CASES, QUICK, Case, measure

STRAIGHT = [case for case in CASES if case.method != "adapter"]


@pytest.mark.parametrize("case", QUICK, ids=str)
def test_the_plan_is_within_a_tenth_of_the_peak(case: Case) -> None:
    found = measure(case)
    assert found.planned == pytest.approx(found.tensors, rel=0.1)


@pytest.mark.full
@pytest.mark.parametrize("case", STRAIGHT, ids=str)
def test_every_plan_is_within_a_tenth_of_the_peak(case: Case) -> None:
    found = measure(case)
    assert found.planned == pytest.approx(found.tensors, rel=0.1)
