"""Trainings of a verification as trials: shared out evenly, scored at once, and saved on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from automl.errors import ResourceError, SearchError
from automl.trial import Examined, Measurement, StopReason, TrialFailure, TrialSpec
from automl.verify.plan import Plan, Training, all_trainings
from automl.verify.protocol import DIVERGED, SECONDS, Scores
from automl.verify.trainings import Trainings
from tests.verify.verify_cases import arm, make_plan, pattern_arms

BEST, DEFAULT = arm("trial-3", "finalist"), arm("default", "default", rates=(2e-4,))


class Bench:
    """A verification's trainings, with the scores they have been given."""

    def __init__(self, plan: Plan, *, split: str = "test", **options: object) -> None:
        self.plan = plan
        self.scores = Scores()
        self.kept: list[Training] = []
        self.discarded: list[int] = []
        settings: dict[str, object] = {"workers": 2, "slots": 4, **options}
        self.trainings = Trainings(
            plan,
            self.scores,
            split,
            number=1,
            keep=self.keep,
            discard=self.discarded.append,
            **settings,  # type: ignore[arg-type]
        )

    def keep(self, training: Training, metrics: Mapping[str, float], examined: Sequence[Examined]) -> None:
        self.scores.add(training, metrics)
        self.kept.append(training)

    def given(self, worker: int) -> list[TrialSpec]:
        """Everything that this worker is handed now."""
        found = []
        while (spec := self.trainings.next(worker)) is not None:
            found.append(spec)
        return found

    def train(self, spec: TrialSpec, value: float = 0.8) -> None:
        self.trainings.report([last(spec, value)])


def test_a_training_ends_at_the_step_that_the_search_chose_on_the_same_schedule() -> None:
    short = replace(BEST, steps=12)
    bench = Bench(make_plan([short, DEFAULT], seeds=4), workers=1, slots=8)
    specs = bench.given(0)
    assert {(spec.stop_after, spec.last_step, spec.steps) for spec in specs} == {(12, 12, 20), (0, 20, 20)}
    chosen = [spec for spec in specs if spec.stop_after]
    assert all(spec.is_due(12) and spec.rows_at(12) is None for spec in chosen), "it is measured at its last step"
    for spec in chosen:
        bench.trainings.report([Measurement(trial=spec.number, step=12, metrics={"accuracy": 0.8}, seconds=3.0)])
    assert len(bench.kept) == len(chosen) == 4
    assert bench.trainings.so_far() == "4 of 8 trainings, 48 of 128 training steps"
    documents = [plan.as_dict()["arms"] for plan in (bench.plan, make_plan([BEST, DEFAULT]))]
    assert [[arm.get("steps") for arm in arms] for arms in documents] == [[12, None], [None, None]]
    assert "steps" not in documents[1][0], "as older versions have recorded it"


def last(spec: TrialSpec, value: float = 0.8) -> Measurement:
    return Measurement(trial=spec.number, step=spec.steps, metrics={"accuracy": value}, seconds=3.0)


@pytest.mark.parametrize(
    ("arms", "workers", "slots", "shares"),
    [
        pytest.param(3, 2, 4, [3, 3], id="two rounds of three on both"),
        pytest.param(2, 2, 4, [4, 4], id="one round"),
        pytest.param(2, 1, 3, [3], id="more rounds than full slots"),
        pytest.param(2, 8, 4, [1] * 8, id="a training for each of many workers"),
    ],
)
def test_trainings_are_shared_out_in_even_rounds(arms: int, workers: int, slots: int, shares: list[int]) -> None:
    plan = make_plan([arm(f"trial-{number}", "finalist") for number in range(arms)], seeds=4)
    bench = Bench(plan, workers=workers, slots=slots)
    assert [len(bench.given(worker)) for worker in range(workers)] == shares


def test_every_training_is_handed_out_once_and_seed_by_seed() -> None:
    bench = Bench(make_plan([BEST, DEFAULT], seeds=3), workers=1, slots=6)
    specs = bench.given(0)
    assert [spec.number for spec in specs] == [place for place, _ in enumerate(all_trainings(bench.plan))]
    assert not bench.trainings.finished
    for spec in specs:
        bench.train(spec)
    assert bench.trainings.finished
    assert (bench.given(0), bench.trainings.live) == ([], {})
    assert bench.kept == all_trainings(bench.plan)
    assert bench.discarded == [spec.number for spec in specs]


def test_a_score_is_kept_with_the_time_it_took_and_only_after_the_last_step() -> None:
    bench = Bench(make_plan([BEST, DEFAULT], seeds=3))
    spec = bench.given(0)[0]
    half = Measurement(trial=spec.number, step=spec.steps // 2, metrics={}, seconds=1.0)
    bench.trainings.report([half])
    assert not bench.kept
    assert bench.trainings.steps == spec.steps // 2
    assert [decision.action.value for decision in bench.trainings.decide([spec.number])] == ["continue"]
    bench.train(spec, 0.625)
    training = bench.kept[0]
    assert bench.scores.metrics(training.arm, training.seed, training.learning_rate, "test") == {
        "accuracy": 0.625,
        SECONDS: 3.0,
    }
    bench.train(spec, 0.1)  # a second time, from a worker that was started again
    assert len(bench.kept) == 1


def test_a_training_is_measured_once_and_saved_on_the_way() -> None:
    spec = Bench(make_plan([BEST, DEFAULT], seeds=3)).given(0)[0]
    due = [step for step in range(1, spec.steps + 1) if spec.is_due(step)]
    assert len(due) == 10
    assert [step for step in due if spec.rows_at(step) != 0] == [spec.steps]


def test_what_has_been_scored_is_not_trained_again_and_late_attempts_are_outdated() -> None:
    plan = make_plan([BEST, DEFAULT], seeds=3)
    bench = Bench(plan, earlier=lambda trial: 3 if trial == 1 else 0)
    bench.scores.add(all_trainings(plan)[0], {"accuracy": 0.5})
    specs = bench.given(0)
    assert 0 not in [spec.number for spec in specs]
    assert {spec.number: spec.attempt for spec in specs}[1] == 4
    assert bench.trainings.restart(1, 1).attempt == 5


def test_the_other_split_is_another_run() -> None:
    arms = [arm("trial-3", "finalist"), *pattern_arms()]
    tuning, scoring = (Bench(make_plan(arms), split=split, workers=9, slots=9) for split in ("validation", "test"))
    specs = [spec for worker in range(9) for spec in tuning.given(worker)]
    assert len(specs) == 3 * 3 * 2  # arms, rates, seeds
    for spec in specs:
        tuning.train(spec)
    assert tuning.trainings.finished
    assert scoring.trainings.finished  # nothing to score before the rates are chosen
    scoring.scores = tuning.scores
    assert {training.split for training in tuning.kept} == {"validation"}


def test_a_divergence_is_a_score_and_everything_else_ends_the_verification() -> None:
    bench = Bench(make_plan([BEST, DEFAULT], seeds=3))
    first, second, third, fourth = (*bench.given(0), *bench.given(1))[:4]
    bench.trainings.fail(failure(first, StopReason.DIVERGED))
    assert bench.scores.metrics(bench.kept[0].arm, bench.kept[0].seed, 1e-3, "test") == {DIVERGED: 1.0}
    with pytest.raises(
        SearchError, match=r"the training of default with seed \d+ failed \(error\): ValueError: bad row"
    ):
        bench.trainings.fail(failure(second, StopReason.ERROR))
    with pytest.raises(ResourceError, match=r"fewer run.slots need less memory"):
        bench.trainings.fail(failure(third, StopReason.OOM))
    with pytest.raises(ResourceError, match=r"perhaps memory was short: fewer run.slots or run.workers"):
        bench.trainings.fail(failure(fourth, StopReason.HOST_CRASH))
    assert len(bench.kept) == 1


def failure(spec: TrialSpec, reason: StopReason) -> TrialFailure:
    return TrialFailure(trial=spec.number, step=3, reason=reason, message="Traceback\nValueError: bad row\n")


def test_how_far_it_is_is_told_in_trainings_and_steps() -> None:
    bench = Bench(make_plan([BEST, DEFAULT], seeds=3))
    specs = bench.given(0)
    bench.train(specs[0])
    bench.trainings.report([Measurement(trial=specs[1].number, step=10, metrics={})])
    assert bench.trainings.so_far() == "1 of 6 trainings, 30 of 120 training steps"
