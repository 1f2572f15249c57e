"""How often a verdict errs and how often it finds what is there: `python -m tests.verify.verdict_rates` prints both.

And how often what is said to be likely is so.

Errors by simulation of copies of one configuration, scored in whole test rows, and of two that are equally good on all
rows there could be, each better on some of them; power exactly, from the non-central t.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import product

import numpy as np

from automl.outcomes import Outcomes
from automl.results.rank_gate import told_of
from automl.verify.rows import row_error, widened
from automl.verify.statistics import (
    LEVEL,
    chance_above,
    detectable_shift,
    is_not_worse,
    joint_level,
    paired,
    power,
    spread,
    t_quantile,
    verdict,
)

STUDIES = 20_000
SEEDS = (3, 4, 8)
ROWS = (0.4, 1.0, 3.0)
"""Standard deviations of a score over seeds, in test rows."""

SAMPLED_STUDIES = 2_000
SAMPLED_ROWS = 200
"""Test rows of the studies in which rows are a sample, drawn anew for each."""
SPECIAL = (0.0, 0.5, 2.0)
"""How much a row may favour one of the two configurations, in logits: the standard deviation over rows."""


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


def sampled(seeds: int, special: float) -> np.ndarray:
    """Right or wrong [SAMPLED_STUDIES, 2 arms, seeds, SAMPLED_ROWS]: rows differ in how hard they are and in whom they
    favour, either arm alike; seeds differ a little.
    """
    draw = np.random.default_rng([seeds, round(10 * special)])
    hard = draw.normal(1.5, 1.5, (SAMPLED_STUDIES, 1, 1, SAMPLED_ROWS))
    favour = draw.normal(0.0, special, (SAMPLED_STUDIES, 1, 1, SAMPLED_ROWS)) * np.array([0.5, -0.5]).reshape(2, 1, 1)
    seed = draw.normal(0.0, 0.1, (SAMPLED_STUDIES, 2, seeds, 1))
    logits = hard + favour + seed
    return draw.random(logits.shape) < 1.0 / (1.0 + np.exp(-logits))


def alarms_over_rows(seeds: int, special: float) -> tuple[float, float]:
    """Share of such studies in which one arm is called better: by the interval over seeds, and over seeds and rows."""
    alarms = [0, 0]
    for study in sampled(seeds, special).astype(float):
        ours, theirs = (tuple(Outcomes("values", rows) for rows in arm.tolist()) for arm in study)
        differences = (study[0].mean(axis=1) - study[1].mean(axis=1)).tolist()
        of_seeds = paired(differences, LEVEL, grain=1.0 / SAMPLED_ROWS)
        error = row_error(list(zip(ours, theirs, strict=True)), "accuracy", ())
        for place, estimate in enumerate((of_seeds, widened(of_seeds, error, SAMPLED_ROWS, LEVEL))):
            alarms[place] += verdict(estimate, "maximize") != "no clear difference"
    return alarms[0] / SAMPLED_STUDIES, alarms[1] / SAMPLED_STUDIES


def chance(seeds: int, difference: float) -> float:
    """Chance to call a configuration better that truly is, by so many standard deviations of the paired differences."""
    return power(difference * seeds**0.5, t_quantile((1.0 + LEVEL) / 2.0, seeds - 1), seeds - 1)


def at_the_margin(seeds: int, stated: float) -> float:
    """Share of studies in which what truly loses exactly the margin is given more than the stated probability."""
    draw = np.random.default_rng([seeds, 1])
    found = [_chance(gains) for gains in draw.normal(-1.0, 1.0, (STUDIES, seeds)).tolist()]
    return sum(each > stated for each in found) / STUDIES


def likely(seeds: int, ranks: int) -> list[tuple[float, float]]:
    """For each tenth of the probability that is told: its mean, and the share of studies in which it was so.

    A margin of 1, so many lower ranks against one winner whose noise all share, effects spread evenly over -7 to 5, and
    noise from a third of the margin to three times.
    """
    draw = np.random.default_rng([seeds, ranks])
    sd = 3.0 ** draw.uniform(-1.0, 1.0, (STUDIES, 1, 1))
    effects = draw.uniform(-7.0, 5.0, (STUDIES, ranks))
    noise = sd * draw.normal(0.0, 1.0, (STUDIES, 1 + ranks, seeds))
    gains = effects[:, :, None] + noise[:, 1:] - noise[:, :1]
    told: list[tuple[float, bool]] = []
    for of_study, truly in zip(gains.tolist(), (effects > -1.0).tolist(), strict=True):
        chances = [_chance(each) for each in of_study]
        place = told_of(chances)
        told.append((chances[place], truly[place]))
    tenths = [[each for each in told if int(10 * each[0]) == tenth] for tenth in range(10)]
    return [(sum(p for p, _ in of) / len(of), sum(so for _, so in of) / len(of)) for of in tenths]


def _chance(gains: list[float]) -> float:
    """That the true gain is above a margin of 1."""
    return chance_above(sum(gains) / len(gains) + 1.0, [(spread(gains) / len(gains) ** 0.5, len(gains) - 1)])


def tables() -> Iterator[str]:
    yield "false alarms: seeds | comparisons | s.d. in rows -> share"
    for seeds, comparisons, sd in product(SEEDS, (1, 3), ROWS):
        yield f"{seeds} | {comparisons} | {sd} -> {false_alarms(seeds, comparisons, sd):.2%}"
    yield "not worse although it loses the margin of 4 rows: seeds | s.d. in rows -> share"
    for seeds, sd in product(SEEDS, ROWS):
        yield f"{seeds} | {sd} -> {false_passes(seeds, sd, 4.0):.2%}"
    yield "false alarms where rows are drawn anew: seeds | s.d. of favour in logits -> over seeds, over seeds and rows"
    for seeds, special in product(SEEDS, SPECIAL):
        alone, both = alarms_over_rows(seeds, special)
        yield f"{seeds} | {special} -> {alone:.2%}, {both:.2%}"
    yield "not worse is said to be likely, by two lower ranks: seeds -> stated probability, share that was so"
    for seeds in SEEDS:
        yield f"{seeds} -> {'; '.join(f'{stated:.2f} {share:.2f}' for stated, share in likely(seeds, 2))}"
    yield "power: seeds -> chance at a true difference of 1, 2, 3 s.d. | difference found with 80 %"
    for seeds in (*SEEDS, 16, 32):
        chances = " ".join(f"{chance(seeds, difference):.0%}" for difference in (1, 2, 3))
        yield f"{seeds} -> {chances} | {detectable_shift(seeds, LEVEL) / seeds**0.5:.2f} s.d."


if __name__ == "__main__":
    sys.stdout.writelines(f"{line}\n" for line in tables())
