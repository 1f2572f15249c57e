"""Ranks for a budget: what it must always hold, and that no single unit could be better placed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.importance.allocation import allocate, bounds


class Case:
    """Scores of up to 8 modules with up to 6 components each, and limits that can be kept."""

    def __init__(self, draw: st.DrawFn) -> None:
        number = draw(st.integers(1, 8))
        self.costs = draw(st.lists(st.integers(1, 50), min_size=number, max_size=number))
        score = st.floats(0, 1e6, allow_nan=False)
        self.scores = [draw(st.lists(score, min_size=1, max_size=6)) for _ in range(number)]
        self.floors = draw(st.lists(st.integers(1, 3), min_size=number, max_size=number))
        self.ceilings = [floor + draw(st.integers(0, 8)) for floor in self.floors]
        least = sum(floor * cost for floor, cost in zip(self.floors, self.costs, strict=True))
        self.budget = least + draw(st.integers(0, 500))

    def ranks(self) -> list[int]:
        return allocate(self.scores, self.costs, self.budget, floors=self.floors, ceilings=self.ceilings)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(draw)


@given(cases())
@settings(max_examples=200, deadline=None)
def test_budget_floor_and_ceiling_hold_and_the_budget_is_used(case: Case) -> None:
    ranks = case.ranks()
    left = case.budget - sum(rank * cost for rank, cost in zip(ranks, case.costs, strict=True))
    assert left >= 0
    assert all(low <= rank <= high for low, rank, high in zip(case.floors, ranks, case.ceilings, strict=True))
    growing = [cost for rank, cost, high in zip(ranks, case.costs, case.ceilings, strict=True) if rank < high]
    assert all(cost > left for cost in growing)  # nothing that still fits was left out
    assert ranks == case.ranks()


@given(cases(), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_the_order_of_modules_does_not_matter_but_for_ties(case: Case, random: object) -> None:
    order = list(range(len(case.costs)))
    random.shuffle(order)  # type: ignore[attr-defined]
    distinct = [[value + index * 1e-3 + 1.0 for value in scores] for index, scores in enumerate(case.scores)]
    costs = [10] * len(order)  # with equal costs nothing is closed before another could take its place
    budget = 10 * sum(case.floors) + 10 * (case.budget % 20)
    straight = allocate(distinct, costs, budget, floors=case.floors, ceilings=case.ceilings)
    shuffled = allocate(
        [distinct[i] for i in order],
        costs,
        budget,
        floors=[case.floors[i] for i in order],
        ceilings=[case.ceilings[i] for i in order],
    )
    ratios = {min(scores[: rank + 1]) for scores, rank in zip(distinct, straight, strict=True)}
    if len(ratios) == len(order):
        assert sum(shuffled) == sum(straight)


def test_the_most_score_per_parameter_comes_first() -> None:
    # The second module scores less, but costs a tenth.
    assert allocate([[10, 9, 8], [5, 4, 3]], [100, 10], 320, floors=[1, 1], ceilings=[3, 3]) == [2, 3]


def test_a_later_component_is_worth_no_more_than_an_earlier_one() -> None:
    assert allocate([[1, 100, 100], [2, 2, 2]], [1, 1], 4, floors=[1, 1], ceilings=[3, 3]) == [1, 3]


def test_a_module_that_does_not_fit_is_closed_and_cheaper_ones_go_on() -> None:
    assert allocate([[9, 9, 9], [1, 1, 1]], [50, 10], 80, floors=[1, 1], ceilings=[3, 3]) == [1, 3]


def test_ties_go_to_the_earlier_module() -> None:
    assert allocate([[1, 1]] * 3, [1] * 3, 4, floors=[1] * 3, ceilings=[2] * 3) == [2, 1, 1]


def test_adalora_is_the_case_of_equal_costs() -> None:
    scores = [[0.9, 0.3, 0.2], [0.8, 0.7, 0.1], [0.4, 0.35, 0.05]]
    kept = sorted((value for module in scores for value in module), reverse=True)[:5]
    ranks = allocate(scores, [7] * 3, 35, floors=[0] * 3, ceilings=[3] * 3)
    assert ranks == [sum(value in kept for value in module) for module in scores]


def test_floors_beyond_the_budget_are_refused() -> None:
    with pytest.raises(ValueError, match="30 parameters are 10 fewer than the least ranks need"):
        allocate([[1], [1]], [20, 20], 30, floors=[1, 1], ceilings=[2, 2])


@pytest.mark.parametrize(("mean", "expected"), [(1.0, (1, 4)), (2.0, (1, 8)), (4.0, (2, 16)), (8.5, (4, 34))])
def test_bounds_leave_half_of_the_budget_uniform(mean: float, expected: tuple[int, int]) -> None:
    assert bounds(mean) == expected
