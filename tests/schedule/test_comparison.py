"""Two verified nights: a row more in every seed is no regression, whether or not they share seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from automl.schedule.comparison import Night, compare_nights
from automl.space.load import parse_space
from automl.space.spec import SweepSpec
from automl.storage.trials import TrialRow
from automl.storage.verification import Verification
from automl.trial import TrialState

ROWS = 400
TEXT = "version: 1\nstudy: s\nmodel: org/name\ntask: {type: classification, data: rows.csv}\n"


def spec(metric: str) -> SweepSpec:
    found = parse_space(TEXT, "s.yaml", Path())
    return replace(found, task=replace(found.task, metric=metric))


def night(study: str, scores: Sequence[float], metric: str, *, first_seed: int = 0) -> Night:
    best = TrialRow(number=0, state=TrialState.COMPLETE, value=scores[0], steps=10)
    by_seed = {str(first_seed + place): score for place, score in enumerate(scores)}
    verification = Verification(
        study=study,
        number=1,
        plan={"test": "same", "test_rows": ROWS},
        result={"metric": {"name": metric}, "arms": [{"scores": by_seed}]},
        started_at=datetime.now(UTC),
        ended_at=None,
    )
    return Night(study=study, rows=(best,), best=best, verification=verification, ground={})


@pytest.mark.parametrize("first_seed", [0, 100], ids=["same seeds", "other seeds"])
@pytest.mark.parametrize(("rows", "verdict"), [(1, "no clear difference"), (-1, "no clear difference"), (-8, "worse")])
def test_a_row_in_every_seed_is_no_difference(rows: int, verdict: str, first_seed: int) -> None:
    before = night("before", [0.8, 0.8, 0.8, 0.8], "accuracy")
    tonight = night("tonight", [0.8 + rows / ROWS] * 4, "accuracy", first_seed=first_seed)
    found = compare_nights(spec("accuracy"), tonight, before)
    assert found is not None
    assert (found.basis, found.verdict) == ("verification", verdict)


def test_a_loss_has_no_such_step() -> None:
    tonight, before = night("tonight", [0.5, 0.5, 0.5001], "loss"), night("before", [0.6, 0.6, 0.6], "loss")
    found = compare_nights(spec("loss"), tonight, before)
    assert found is not None
    assert found.verdict == "better"
