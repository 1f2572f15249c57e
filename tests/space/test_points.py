"""The values of a parameter are decimals, counted exactly, and the same for grids, distributions and checks."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from automl.space.points import (
    configurations,
    contains,
    count_configurations,
    grid_values,
    last_point,
    snapped,
    values,
)
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, SearchSpace, When
from automl.study.distributions import distribution

WIDTHS = [Decimal(digits) * Decimal(10) ** -power for digits in (1, 2, 3, 5, 7, 25) for power in (1, 2, 4)]


@settings(max_examples=200, deadline=None)
@given(st.integers(-300, 300), st.sampled_from(WIDTHS), st.integers(1, 30), st.sampled_from([0, 0.4, 0.9]))
def test_every_point_is_the_decimal_that_is_written(start: int, width: Decimal, steps: int, rest: float) -> None:
    low = start * width
    high = low + steps * width + Decimal(str(rest)) * width
    parameter = FloatParameter(name="x", low=float(low), high=float(high), step=float(width))
    points = list(values(parameter))
    assert points == [float(low + number * width) for number in range(steps + 1)]
    assert points[-1] == last_point(parameter) <= parameter.high
    dist = distribution(parameter)
    for number, point in enumerate(points):
        assert dist._contains(dist.to_internal_repr(point))
        in_binary = parameter.low + number * float(width)
        assert contains(parameter, point)
        assert contains(parameter, in_binary)
        assert snapped(parameter, in_binary) == point
        assert not contains(parameter, point + float(width) / 3)


def test_the_points_of_a_range_with_a_thousandth_of_a_billion_steps_take_no_memory() -> None:
    points = values(FloatParameter(name="x", low=0.0, high=1e6, step=1e-6))
    assert len(points) == 10**12 + 1
    assert points[10**12 - 1] == 999999.999999
    assert points[-1] == 1e6


@pytest.mark.parametrize(
    ("parameter", "all_values", "grid"),
    [
        (IntParameter(name="rank", low=2, high=9, step=3), [2, 5, 8], [2, 5, 8]),
        (IntParameter(name="rank", low=3, high=13, log=True), list(range(3, 14)), [3, 6, 12]),
        (CategoricalParameter(name="target", choices=("qv", "mlp")), ["qv", "mlp"], ["qv", "mlp"]),
    ],
)
def test_a_grid_visits_all_values_but_doubles_on_a_log_scale(parameter, all_values, grid) -> None:  # type: ignore[no-untyped-def]
    assert list(values(parameter)) == all_values
    assert list(grid_values(parameter)) == grid


def test_a_value_from_outside_is_clipped_into_a_continuous_range() -> None:
    assert snapped(FloatParameter(name="x", low=0.1, high=0.3), 0.1 + 0.2) == 0.3


CHOICES = ("qv", "mlp", "attention")
TREE = SearchSpace(
    parameters=(
        CategoricalParameter(name="target", choices=CHOICES),
        IntParameter(name="rank", low=2, high=16, log=True),
        FloatParameter(
            name="dropout", low=0.0, high=0.3, step=0.1, when=When(parameter="target", values=("mlp", "qv"))
        ),
        CategoricalParameter(name="use_rslora", choices=(True, False), when=When(parameter="rank", values=(4, 5))),
        IntParameter(name="batch_size", low=8, high=32, step=8, when=When(parameter="use_rslora", values=(True,))),
    )
)


@pytest.mark.parametrize("of", [values, grid_values])
def test_configurations_of_a_conditional_space_are_counted_without_listing_them(of) -> None:  # type: ignore[no-untyped-def]
    listed = list(configurations(TREE, of))
    assert len({tuple(point.items()) for point in listed}) == len(listed) == count_configurations(TREE, of)


def test_a_continuous_space_has_no_count() -> None:
    space = SearchSpace(parameters=(*TREE.parameters, FloatParameter(name="learning_rate", low=1e-4, high=1e-2)))
    assert count_configurations(space) is None
