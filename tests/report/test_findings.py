"""The three sentences say no more than the state of the evidence allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from automl.report.findings import Evidence, findings
from automl.report.frames import StudyFrame
from automl.report.reading import read_verification
from automl.report.render import render
from automl.report.sections import sections
from automl.storage.sql import Database
from automl.trial import BestCheckpoint
from tests.report.studies import add_verification, verification_result

Make = Callable[..., StudyFrame]


def test_an_unverified_winner_is_called_so_with_the_command_to_run(plain_frame: StudyFrame) -> None:
    found = findings(plain_frame)
    assert found.evidence is Evidence.NOT_VERIFIED
    assert found.believed.startswith("Not verified")
    assert found.next_command == "automl verify topics"
    assert "learning rate mattered most" in found.found


def test_trials_that_ended_themselves_and_rates_that_were_searched_are_told_as_such(plain_frame: StudyFrame) -> None:
    best = plain_frame.best
    assert best is not None
    ended = BestCheckpoint(step=20, metrics={"accuracy": 0.9}, reason="overfits since step 20")
    other = next(trial for trial in plain_frame.complete if trial is not best)
    changed = {best.number: replace(best, trained_rate=0.0125), other.number: replace(other, checkpoint=ended)}
    frame = replace(plain_frame, trials=tuple(changed.get(trial.number, trial) for trial in plain_frame.trials))
    found = findings(frame)
    assert f"{frame.counts['COMPLETE'] - 1} trained to the end, 1 ended themselves" in found.searched
    assert ", trained at rate 0.0125" in found.found
    report = "".join(str(block) for section in sections(frame, found) for block in section.blocks)
    assert "Rates are those searched, at one alpha" in report


def test_a_verified_winner_is_given_with_its_interval_and_seeds(verified_frame: Make) -> None:
    found = findings(verified_frame(verification_result()))
    assert found.evidence is Evidence.VERIFIED
    assert (
        "trial 3 against the default: better, difference +0.360 [+0.330, +0.390] at 98 % over 5 seeds" in found.believed
    )
    assert found.next_command is None


def test_a_result_of_before_levels_were_kept_has_those_of_its_plan(plain_frame: StudyFrame, database: Database) -> None:
    result = verification_result()
    levels = {(each["arm"], each["against"]): each.pop("level") for each in result["comparisons"]}
    add_verification(database, plain_frame.study, result, levels=levels)
    found = read_verification(database, plain_frame.study)
    assert found is not None
    assert {(each.arm, each.against): each.level for each in found.comparisons} == levels


def test_no_better_than_the_majority_class_is_said_first_of_all(verified_frame: Make) -> None:
    found = findings(verified_frame(verification_result(beats=False)))
    assert found.evidence is Evidence.MAJORITY
    assert "no configuration beats the majority class" in found.believed


def test_a_verification_that_runs_proves_nothing_yet(verified_frame: Make) -> None:
    found = findings(verified_frame(None))
    assert found.evidence is Evidence.VERIFYING
    assert "not finished" in found.believed


@pytest.mark.parametrize(
    ("study", "evidence", "said"),
    [
        ({"trials": 0}, Evidence.NOTHING, "no trial has begun"),
        ({"trials": 0, "running": 2}, Evidence.NOTHING, "2 not finished yet"),
        ({"trials": 0, "failed": 3}, Evidence.NOTHING, "3 failed"),
        ({"trials": 1}, Evidence.NOT_VERIFIED, "1 LoRA configuration "),
        ({"trials": 9, "complete": False}, Evidence.NOTHING, "9 stopped early"),
        ({"trials": 9, "running": 2}, Evidence.NOT_VERIFIED, "2 not finished yet"),
    ],
    ids=["empty", "running", "failed", "one-trial", "all-pruned", "half-way"],
)
def test_a_study_in_any_state_has_a_report(
    frame_of: Make, study: dict[str, int], evidence: Evidence, said: str
) -> None:
    frame = frame_of(**study)
    report = render(frame)
    assert report.findings.evidence is evidence
    assert said in report.findings.searched
    assert all(said in text for text in (report.texts["html"], report.texts["markdown"], report.texts["json"]))


def test_a_search_that_has_not_ended_is_called_provisional(frame_of: Make) -> None:
    assert "provisional" in findings(frame_of(trials=3, running=2)).warnings[0]


def test_a_search_that_ended_early_says_so(frame_of: Make) -> None:
    assert findings(frame_of(trials=3)).warnings == ("The search ended after 3 of 24 planned trials.",)


def test_a_best_trial_at_the_level_of_the_untrained_model_is_a_warning(plain_frame: StudyFrame) -> None:
    assert plain_frame.best is not None
    assert "nothing was learnt" in findings(replace(plain_frame, baseline=plain_frame.best.value)).warnings[0]
