"""Ranks for a budget: what they must always hold, and that no single direction could be better placed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.importance.cuts import global_ranks, parameters


class Case:
    """Strengths of up to 8 modules with up to 6 directions each, largest first, and a size that can be cut to."""

    def __init__(self, draw: st.DrawFn) -> None:
        number = draw(st.integers(1, 8))
        self.costs = draw(st.lists(st.integers(1, 50), min_size=number, max_size=number))
        strength = st.floats(0, 1e6, allow_nan=False)
        found = [draw(st.lists(strength, min_size=1, max_size=6)) for _ in range(number)]
        self.strengths = [sorted(of_module, reverse=True) for of_module in found]
        self.least = draw(st.integers(0, 2))
        floors = [min(self.least, len(of_module)) for of_module in self.strengths]
        self.budget = parameters(floors, self.costs) + draw(st.integers(0, 500))

    def ranks(self) -> list[int]:
        return global_ranks(self.strengths, self.costs, self.budget, least=self.least)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(draw)


@given(cases())
@settings(max_examples=200, deadline=None)
def test_the_budget_holds_and_is_used(case: Case) -> None:
    ranks = case.ranks()
    left = case.budget - parameters(ranks, case.costs)
    assert left >= 0
    sizes = [len(of_module) for of_module in case.strengths]
    assert all(min(case.least, size) <= rank <= size for rank, size in zip(ranks, sizes, strict=True))
    growing = [cost for rank, cost, size in zip(ranks, case.costs, sizes, strict=True) if rank < size]
    assert all(cost > left for cost in growing)  # nothing that still fits was left out
    assert ranks == case.ranks()


@given(cases())
@settings(max_examples=200, deadline=None)
def test_the_ranks_of_a_cut_follow_from_what_it_spends(case: Case) -> None:
    """So the parameters of a cut are all that need be stored of it."""
    ranks = case.ranks()
    spent = parameters(ranks, case.costs)
    assert global_ranks(case.strengths, case.costs, spent, least=case.least) == ranks


@given(cases())
@settings(max_examples=100, deadline=None)
def test_no_kept_direction_is_weaker_for_its_cost_than_one_that_would_fit_in_its_place(case: Case) -> None:
    ranks = case.ranks()
    for module, rank in enumerate(ranks):
        if rank > case.least:
            worst = case.strengths[module][rank - 1] / case.costs[module]
            for other, kept in enumerate(ranks):
                if kept < len(case.strengths[other]) and case.costs[other] <= case.costs[module]:
                    assert case.strengths[other][kept] / case.costs[other] <= worst


def test_the_most_strength_per_parameter_comes_first() -> None:
    # The second module is weaker, but costs a tenth.
    assert global_ranks([[10, 9, 8], [5, 4, 3]], [100, 10], 320) == [2, 3]


def test_a_module_that_does_not_fit_is_closed_and_cheaper_ones_go_on() -> None:
    assert global_ranks([[9, 9, 9], [1, 1, 1]], [50, 10], 80) == [1, 3]


def test_adalora_is_the_case_of_equal_costs() -> None:
    strengths = [[0.9, 0.3, 0.2], [0.8, 0.7, 0.1], [0.4, 0.35, 0.05]]
    kept = sorted((value for module in strengths for value in module), reverse=True)[:5]
    assert global_ranks(strengths, [7] * 3, 35) == [sum(value in kept for value in module) for module in strengths]


def test_least_ranks_beyond_the_budget_are_refused() -> None:
    with pytest.raises(ValueError, match="30 parameters are 10 fewer than rank 1 in every module needs"):
        global_ranks([[1], [1]], [20, 20], 30, least=1)
