"""What is recommended: the fewest parameters that are shown not to be worse than the best by the margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from automl.verify.conclude import conclude
from automl.verify.plan import Arm, Training
from tests.verify.verify_cases import arm, make_plan, noisy, run

WINNER, DEFAULT = arm("trial-3", "finalist"), arm("default", "default", params=2000)
SMALL, TINY = arm("trial-5", "smallest", params=500), arm("trial-6", "finalist", params=100)


def recommended(by_arm: Mapping[str, Sequence[float]], arms: Sequence[Arm], **about: Any) -> dict[str, Any]:
    """The recommendation of a verification with these scores by arm, in the order of the seeds."""
    plan = make_plan(arms, seeds=len(by_arm[arms[0].name]), **about)

    def score(training: Training) -> float:
        return by_arm[training.arm][plan.seeds.index(training.seed)]

    scores, _ = run(plan, score)
    found: dict[str, Any] = conclude(plan, scores)["recommendation"]
    return found


BEST = [0.905, 0.903, 0.906, 0.906]


def test_an_unsteady_smaller_one_is_not_recommended_over_a_far_better_one() -> None:
    by_arm = {"trial-3": BEST, "trial-5": [0.87, 0.45, 0.88, 0.86], "default": [0.88, 0.62, 0.89, 0.60]}
    found = recommended(by_arm, [WINNER, DEFAULT, SMALL])
    assert found["arm"] == found["best"] == "trial-3"
    standings = {each["arm"]: (each["standing"], each["seeds_to_decide"]) for each in found["candidates"]}
    assert standings["trial-5"] == ("undecided", 28)
    assert found["text"] == (
        "trial 3: 1,000 trainable parameters, accuracy 0.9050 on the test rows; the best of all; whether trial 5 with"
        " 500 is less than 0.01 worse is open (accuracy better by -0.1400 [-0.6141, +0.3341] at 98 %, probability"
        " 0.15): about 28 seeds would decide (it had 4)"
    )


def test_a_smaller_one_that_is_shown_to_lose_less_than_the_margin_is_recommended() -> None:
    by_arm = {"trial-3": BEST, "trial-5": [value - 0.002 for value in BEST], "default": [0.6] * 4}
    found = recommended(by_arm, [WINNER, DEFAULT, SMALL], rows=2000)
    assert (found["arm"], found["best"]) == ("trial-5", "trial-3")
    assert found["text"].endswith(
        "0.9030 on the test rows; less than 0.01 worse than the best, trial 3, and smaller; none is smaller"
    )
    assert recommended(by_arm, [WINNER, DEFAULT, SMALL], margin=0.001, rows=2000)["arm"] == "trial-3"
    # On 100 rows, .002 is less than a row: four seeds cannot show it to be below .01 there.
    assert recommended(by_arm, [WINNER, DEFAULT, SMALL], rows=100)["arm"] == "trial-3"


def test_smaller_ones_that_are_worse_are_said_to_be() -> None:
    by_arm = {"trial-3": BEST, "trial-5": [value - 0.2 for value in BEST]}
    found = recommended(by_arm, [WINNER, SMALL])
    assert found["text"].endswith("; the best of all; all that are smaller are worse")
    assert found["candidates"][0]["high"] < 0


def test_of_a_loss_the_margin_is_held_from_above() -> None:
    losses = [0.50, 0.52, 0.51, 0.49]
    small = {"trial-3": losses, "trial-5": [value + 0.004 for value in losses], "trial-6": [0.9, 0.5, 0.51, 0.6]}
    found = recommended(small, [WINNER, SMALL, TINY], metric="loss")
    assert found["arm"] == "trial-5"
    assert [round(each["gain"], 4) for each in found["candidates"]] == [-0.004, -0.1225]
    assert "whether trial 6 with 100 is less than 0.01 worse is open (loss better by -0.1225 [" in found["text"]


def test_alone_it_is_recommended_without_a_comparison() -> None:
    found = recommended({"trial-3": BEST}, [WINNER])
    assert found["text"] == "trial 3: 1,000 trainable parameters, accuracy 0.9050 on the test rows"


@pytest.mark.parametrize("effect", [-0.02, -0.04])
def test_a_truly_worse_one_is_hardly_ever_recommended(effect: float) -> None:
    """A smaller arm that is worse by 2 or 4 standard deviations of a paired difference, 300 times, 4 seeds each."""
    plan = make_plan([WINNER, SMALL], seeds=4)
    wrong = 0
    for study in range(300):
        scores, _ = run(plan, noisy({"trial-5": effect}, sd=0.007, study=study))
        wrong += conclude(plan, scores)["recommendation"]["arm"] == "trial-5"
    assert wrong / 300 <= 0.01
