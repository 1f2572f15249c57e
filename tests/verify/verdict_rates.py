"""How often a verdict errs and how often it finds what is there: `python -m tests.verify.verdict_rates` prints both.

Errors by simulation of copies of one configuration, scored in whole test rows; power exactly, from the non-central t.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product

import numpy as np

from automl.verify.statistics import (
    LEVEL,
    detectable_shift,
    is_not_worse,
    joint_level,
    paired,
    power,
    t_quantile,
    verdict,
)

STUDIES = 20_000
SEEDS = (3, 4, 8)
ROWS = (0.4, 1.0, 3.0)
"""Standard deviations of a score over seeds, in test rows."""


def scores(seeds: int, arms: int, sd: float) -> np.ndarray:
    """Scores in whole rows [STUDIES, arms, seeds]: noise of the seed, shared by its arms, and each arm's own."""
    draw = np.random.default_rng([seeds, arms, round(10 * sd)])
    shared = draw.normal(0.0, 2.0, (STUDIES, 1, seeds))
    found: np.ndarray = np.round(shared + draw.normal(0.0, sd, (STUDIES, arms, seeds)))
    return found


def false_alarms(seeds: int, comparisons: int, sd: float) -> float:
    """Share of studies in which any of so many copies is called better or worse than the first."""
    found = scores(seeds, 1 + comparisons, sd)
    differences = (found[:, 1:] - found[:, :1]).tolist()
    level = joint_level(comparisons)
    alarms = sum(
        any(verdict(paired(each, level, grain=1.0), "maximize") != "no clear difference" for each in study)
        for study in differences
    )
    return alarms / STUDIES


def false_passes(seeds: int, sd: float, margin: float) -> float:
    """Share of studies in which a configuration that truly loses the whole margin is called not worse."""
    found = scores(seeds, 2, sd)
    gains = (found[:, 1] - found[:, 0] - margin).tolist()
    return sum(is_not_worse(paired(each, grain=1.0), margin) for each in gains) / STUDIES


def chance(seeds: int, difference: float) -> float:
    """Chance to call a configuration better that truly is, by so many standard deviations of the paired differences."""
    return power(difference * seeds**0.5, t_quantile((1.0 + LEVEL) / 2.0, seeds - 1), seeds - 1)


def tables() -> Iterator[str]:
    yield "false alarms: seeds | comparisons | s.d. in rows -> share"
    for seeds, comparisons, sd in product(SEEDS, (1, 3), ROWS):
        yield f"{seeds} | {comparisons} | {sd} -> {false_alarms(seeds, comparisons, sd):.2%}"
    yield "not worse although it loses the margin of 4 rows: seeds | s.d. in rows -> share"
    for seeds, sd in product(SEEDS, ROWS):
        yield f"{seeds} | {sd} -> {false_passes(seeds, sd, 4.0):.2%}"
    yield "power: seeds -> chance at a true difference of 1, 2, 3 s.d. | difference found with 80 %"
    for seeds in (*SEEDS, 16, 32):
        chances = " ".join(f"{chance(seeds, difference):.0%}" for difference in (1, 2, 3))
        yield f"{seeds} -> {chances} | {detectable_shift(seeds, LEVEL) / seeds**0.5:.2f} s.d."


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in tables())
