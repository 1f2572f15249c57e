"""How far a search is: in steps, from what has been trained and what the pruner is meant to keep."""

from __future__ import annotations

from typing import Any

import pytest

from automl.storage.sql import Database
from automl.study.outlook import outlook
from automl.study.pruning import expected_share
from automl.trial import TrialState
from tests.study.driving import Loop, open_study, settings


@pytest.mark.parametrize("pruner", ["halving", "peer"])
def test_before_the_start_it_is_what_the_plan_says(pruner: str) -> None:
    search = settings(trials=40, pruner=pruner)
    found = outlook(search, reached={}, unfinished={}, to_come=40)
    assert found.left == pytest.approx((expected_share(search) or 0) * 40 * 80, abs=1)
    assert found.share == 0.0


def test_parked_trials_are_part_of_what_has_been_done() -> None:
    """None of 24 has ended, and yet more than half is done."""
    found = outlook(settings(trials=24, pruner="halving"), reached={20: 24}, unfinished={20: 24}, to_come=0)
    assert found.steps == 480
    assert found.left == round(24 / 2.2 * 20 + 24 / 2.2 / 2.2 * 40)
    assert 0.5 < found.share < 0.6


def test_a_running_trial_is_counted_as_far_as_it_is() -> None:
    search = settings(trials=4, pruner="none")
    assert outlook(search, reached={50: 2, 80: 1}, unfinished={50: 2}, to_come=1).left == 2 * 30 + 80


def test_other_pruners_are_judged_by_what_they_have_left_so_far() -> None:
    search = settings(trials=4, pruner="median")
    assert outlook(search, reached={30: 1, 50: 1, 60: 1}, unfinished={60: 1}, to_come=1).left == 40 + 10
    assert outlook(search, reached={}, unfinished={}, to_come=4).left == 320


def test_a_step_budget_is_the_end() -> None:
    search = settings(trials=100, pruner="halving", max_steps=500)
    assert outlook(search, reached={20: 10}, unfinished={20: 10}, to_come=90).left == 300


@pytest.mark.parametrize(
    ("slots", "changes"),
    [(1, {}), (4, {}), (3, {"max_steps": 700}), (3, {"pruner": "none"}), (3, {"pruner": "peer"}), (3, {"patience": 5})],
    ids=["one", "four", "steps", "none", "peer", "patience"],
)
def test_a_search_grows_to_its_end(database: Database, slots: int, changes: dict[str, Any]) -> None:
    """The guess is never far off once half is done, the share never falls by much, and at the end nothing is left."""
    study = open_study(database, settings=settings(**{"trials": 12, "pruner": "halving", **changes}))
    loop, seen = Loop(study, slots=slots), []
    while not study.finished:
        loop.fill()
        loop.report()
        loop.decide()
        seen.append(study.outlook())
    study.close()
    end = study.outlook()
    assert (end.steps, end.left, end.share) == (study.spent_steps, 0, 1.0)
    assert study.counts()[TrialState.RUNNING] == 0
    late = [each for each in seen if each.steps > end.steps / 2]
    assert all(0.7 < each.expected / end.steps < 1.6 for each in late if "patience" not in changes)
    again = open_study(database, settings=settings(**{"trials": 12, "pruner": "halving", **changes}), run=2)
    assert again.outlook().steps == end.steps
