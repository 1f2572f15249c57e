"""The numbers behind a verdict, against scipy and against their own definitions."""

from __future__ import annotations

import random

import pytest
from scipy import stats

from automl.verify.statistics import (
    LEVEL,
    POWER,
    PROPOSED_SEEDS,
    chance_above,
    detectable_shift,
    is_not_worse,
    is_settled,
    joint_level,
    paired,
    power,
    seeds_to_decide,
    spread,
    t_distribution,
    t_quantile,
    verdict,
)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 8, 31, 100])
def test_student_t_is_that_of_scipy(freedom: int) -> None:
    for probability in (0.01, 0.5001, 0.8, 0.975, 0.9999):
        assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)
    for t in (-3.0, 0.0, 0.5, 12.0):
        assert t_distribution(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-13)


@pytest.mark.parametrize(("probability", "freedom"), [(0.0, 3), (1.0, 3), (0.5, 0)])
def test_a_quantile_that_does_not_exist_is_refused(probability: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="no t quantile"):
        t_quantile(probability, freedom)


def test_the_interval_is_that_of_the_paired_t_test() -> None:
    draw = random.Random(3)
    ours, theirs = ([draw.gauss(0.8, 0.02) for _ in range(8)] for _ in range(2))
    found = paired([a - b for a, b in zip(ours, theirs, strict=True)], level=0.9)
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)


def test_an_interval_needs_two_differences() -> None:
    with pytest.raises(ValueError, match="1 differences"):
        paired([0.1])


def test_a_detectable_difference_is_seen_as_often_as_said() -> None:
    # 4,000 draws of 8 differences with exactly the spread the estimate assumes; a fixed seed.
    draw, number, sd = random.Random(5), 8, 0.02
    reach = detectable_shift(number, LEVEL) * sd / number**0.5
    seen = sum(paired([draw.gauss(reach, sd) for _ in range(number)]).low > 0 for _ in range(4000)) / 4000
    assert seen == pytest.approx(POWER, abs=0.02)


@pytest.mark.parametrize("freedom", [2, 3, 7, 31, 999])
def test_power_is_that_of_scipys_non_central_t(freedom: int) -> None:
    reach = t_quantile(0.98, freedom)
    for shift in (0.5, reach, 2.0 * reach):
        assert power(shift, reach, freedom) == pytest.approx(stats.nct.sf(reach, freedom, shift), abs=1e-8)
    assert power(0.0, reach, freedom) == pytest.approx(0.02, abs=1e-8)


def test_differences_that_agree_to_the_row_are_no_certainty() -> None:
    one_row, four_rows = [0.001] * 4, [0.004] * 4
    assert paired(one_row).low == 0.001  # without the grain
    assert verdict(paired(one_row, grain=0.001), "maximize") == "no clear difference"
    assert verdict(paired(four_rows, grain=0.001), "maximize") == "better"
    assert paired([0.0] * 4, grain=0.001).detectable == pytest.approx(detectable_shift(4, LEVEL) * 0.001 / 2)
    wide = [0.02, -0.03, 0.04, 0.01]
    assert paired(wide, grain=0.001) == paired(wide)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [([-0.002, -0.004, -0.003, -0.001], True), ([-0.03, 0.02, -0.01, 0.01], False), ([-0.012] * 4, False)],
)
def test_not_worse_is_shown_by_an_interval_above_the_margin(gains: list[float], expected: bool) -> None:
    assert is_not_worse(paired(gains, grain=0.001), 0.01) is expected


def test_so_many_seeds_decide_as_often_as_said() -> None:
    gain, sd, margin = paired([-0.004, 0.004, 0.004, -0.004]), 0.01, 0.01
    needed = seeds_to_decide(gain, sd, margin, LEVEL)
    assert needed is not None
    draw = random.Random(11)

    def decided(number: int) -> float:
        found = (paired([draw.gauss(gain.mean, sd) for _ in range(number)]) for _ in range(2000))
        return sum(is_not_worse(each, margin) for each in found) / 2000

    before = PROPOSED_SEEDS[PROPOSED_SEEDS.index(needed) - 1]
    assert decided(before) < POWER + 0.02
    assert decided(needed) > POWER - 0.02
    assert seeds_to_decide(paired([-0.05, -0.03, -0.04, -0.04]), 0.02, margin, LEVEL) == 5  # it is worse, plainly
    assert seeds_to_decide(gain, 0.3, margin, LEVEL) is None


@pytest.mark.parametrize(
    ("differences", "direction", "expected"),
    [
        ([0.02, 0.03, 0.025, 0.022], "maximize", "better"),
        ([0.02, 0.03, 0.025, 0.022], "minimize", "worse"),
        ([-0.02, -0.03, -0.025, -0.022], "minimize", "better"),
        ([0.02, -0.03, 0.025, -0.022], "maximize", "no clear difference"),
        ([0.0, 0.0, 0.0, 0.0], "maximize", "no clear difference"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero(differences: list[float], direction: str, expected: str) -> None:
    assert verdict(paired(differences), direction) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("differences", "settled"),
    [
        ([0.001, -0.001, 0.002, -0.001], True),
        ([0.03, -0.02, 0.02, -0.01], False),  # wide
        ([0.003, 0.0031, 0.0029, 0.003], False),  # small, but not zero: a gain may be claimed after all seeds
    ],
)
def test_an_early_look_ends_only_what_is_plainly_equal(differences: list[float], settled: bool) -> None:
    assert is_settled(paired(differences), 0.01) is settled


def test_several_comparisons_share_the_false_alarms() -> None:
    assert joint_level(1) == pytest.approx(LEVEL)
    assert joint_level(4) == pytest.approx(1.0 - (1.0 - LEVEL) / 4)
    assert spread([3.0]) == 0.0


@pytest.mark.parametrize("gap", [-3.0, -0.4, 0.0, 0.4, 3.0])
def test_the_probability_of_a_flat_prior_is_students(gap: float) -> None:
    assert chance_above(gap, [(0.7, 3), (0.0, 200)]) == pytest.approx(stats.t.cdf(gap / 0.7, 3))


def test_without_any_error_the_side_is_certain() -> None:
    assert [chance_above(gap, [(0.0, 3)]) for gap in (-0.1, 0.0, 0.1)] == [0.0, 0.5, 1.0]


def test_a_gap_far_beyond_two_errors_ends_the_search_for_its_probability() -> None:
    assert chance_above(1e9, [(0.7, 1), (0.1, 200)]) == pytest.approx(1.0, abs=1e-5)
