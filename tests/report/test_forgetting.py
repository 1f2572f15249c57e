"""What trials forgot, as the report says and draws it: front, winner, the constraint's line, what it rules out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from automl.report.answers import forgetting_front
from automl.report.findings import findings
from automl.report.forgetting_chart import quality_by_forgetting
from automl.report.forgetting_section import forgetting
from automl.report.frames import StudyFrame
from automl.space.constraints import parse_constraint, upper_limit
from automl.storage.trials import TrialRow
from automl.trial import TrialState

VALUES: Mapping[int, tuple[float, float | None, TrialState, str]] = {
    0: (0.70, -0.01, TrialState.COMPLETE, "finished"),
    1: (0.80, 0.02, TrialState.COMPLETE, "finished"),
    2: (0.75, 0.04, TrialState.COMPLETE, "finished"),  # worse than 1, and forgot more
    3: (0.90, 0.30, TrialState.PRUNED, "infeasible"),
    4: (0.60, None, TrialState.PRUNED, "pruned"),
    5: (0.82, 0.05, TrialState.COMPLETE, "finished"),
}


@pytest.fixture
def frame(plain_frame: StudyFrame) -> StudyFrame:
    trials = tuple(
        TrialRow(number=number, state=state, value=value, forgetting=forgot, steps=80, stop_reason=reason)
        for number, (value, forgot, state, reason) in VALUES.items()
    )
    return replace(plain_frame, direction="maximize", trials=trials, keep="loss", forgetting_limit=0.05)


def test_the_front_holds_what_none_beats_in_both(frame: StudyFrame) -> None:
    assert [trial.number for trial in forgetting_front(frame)] == [0, 1, 5]


def test_the_chart_marks_front_winner_limit_and_what_is_ruled_out(frame: StudyFrame) -> None:
    figure = quality_by_forgetting(frame)
    assert figure is not None
    drawn = {trace.name: list(trace.x) for trace in figure.data}
    assert drawn == {
        "forgot more than a constraint allows": [0.30],
        "complete": [0.04],
        "none that forgot less is better": [-0.01, 0.02, 0.05],
        "the winner": [0.05],
    }
    assert sorted(shape.x0 for shape in figure.layout.shapes) == [0.0, 0.05]
    assert {note.text for note in figure.layout.annotations} == {"the untuned model", "the constraint"}


def test_the_section_says_what_the_constraint_did(frame: StudyFrame) -> None:
    said = " ".join(str(block) for block in forgetting(frame, findings(frame)))
    assert "1 trial of those violate a constraint on forgetting (at most 0.05) and cannot be the best" in said
    assert "1 had a better" in said
    assert not list(forgetting(replace(frame, trials=frame.trials[4:5]), findings(frame)))
    assert quality_by_forgetting(replace(frame, trials=frame.trials[4:5])) is None


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("forgetting <= 0.05", 0.05),
        ("0.1 > forgetting", 0.1),
        ("forgetting < 0.02 * 2", 0.04),
        ("forgetting <= rank / 100", None),
        ("forgetting <= 0.05 or rank <= 4", None),
        ("rank <= 4", None),
        ("forgetting >= 0.05", None),
    ],
)
def test_a_limit_is_read_off_a_constraint_that_says_just_that(text: str, limit: float | None) -> None:
    assert upper_limit(parse_constraint(text), "forgetting") == (None if limit is None else pytest.approx(limit))
