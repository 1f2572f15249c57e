from __future__ import annotations

import pytest

from automl.errors import ConfigError
from automl.squeeze.curve import Cut, Wanted, knee, sizes


def cut(kind: str, parameters: int, accuracy: float, loss: float = 0.5) -> Cut:
    metrics = {"accuracy": accuracy, "loss": loss}
    return Cut(kind=kind, ranks=(1,), parameters=parameters, share=parameters / 800, kept=0.5, metrics=metrics)  # type: ignore[arg-type]


def test_sizes_are_about_eight_from_below_rank_one_to_the_whole() -> None:
    assert sizes(16) == [0.25, 0.5, 1, 2, 4, 8]
    assert sizes(6) == [0.25, 0.5, 1, 2, 4]
    assert sizes(64)[-1] == 32
    assert sizes(1) == [0.25, 0.5]


def test_the_knee_is_the_smallest_global_cut_that_loses_at_most_the_margin() -> None:
    cuts = [cut("whole", 800, 0.90), cut("global", 400, 0.895), cut("global", 200, 0.892), cut("global", 100, 0.80)]
    assert knee([*cuts, cut("even", 50, 0.95)], "accuracy").parameters == 200


def test_a_small_cut_is_no_knee_if_a_larger_one_is_worse() -> None:
    cuts = [cut("whole", 800, 0.90), cut("global", 400, 0.85), cut("global", 200, 0.90)]
    assert knee(cuts, "accuracy").kind == "whole"


def test_the_margin_of_a_loss_is_a_share_of_it() -> None:
    cuts = [cut("whole", 800, 0.9, loss=0.500), cut("global", 400, 0.9, loss=0.5099), cut("global", 200, 0.9, 0.511)]
    assert knee(cuts, "loss").parameters == 400


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (Wanted(budget=0), "--budget: 0 parameters keep nothing"),
        (Wanted(rank=0), "--rank: rank 0 keeps nothing"),
        (Wanted(share=0.0), "--share: 0 is no share"),
        (Wanted(share=1.5), r"--share: 1\.5 is no share"),
        (Wanted(rank=2, share=0.5), "--share: says the size once more"),
    ],
)
def test_sizes_that_are_none_are_one_line(wanted: Wanted, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        wanted.check()
    assert "\n" not in str(refused.value)
