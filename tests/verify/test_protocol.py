"""The whole procedure on simulated scores: how often it errs, when it stops, what it pairs, how it resumes."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from automl.storage.verification import Score
from automl.verify.conclude import conclude
from automl.verify.plan import LOOK, TUNING_SEEDS, Plan, Training, all_trainings, fresh_seeds, trial_spec
from automl.verify.protocol import DIVERGED, SECONDS, Scores, chosen_rate, compare, next_trainings, values
from automl.verify.statistics import in_percent, joint_level
from tests.verify.verify_cases import MAJORITY, arm, make_plan, noisy, pattern_arms, run

TWO = (arm("trial-3", "finalist"), arm("trial-5", "finalist"))


def called_different(plan: Plan, study: int, *, sd: float, step: float = 0.0) -> bool:
    """Whether the procedure calls any two arms different when all are copies of one configuration."""
    noise = noisy({}, sd=sd, study=study)
    scores, _ = run(plan, (lambda each: round(noise(each) / step) * step) if step else noise)
    return any(each["verdict"] != "no clear difference" for each in conclude(plan, scores)["comparisons"])


@pytest.mark.parametrize(
    ("seeds", "sd", "step", "repeats"),
    [(8, 0.02, 0.0, 2000), (8, 0.004, 0.0, 800), (4, 0.02, 0.0, 800), (8, 0.01, 0.01, 800)],
    ids=["8 seeds", "8 seeds, early looks decide", "4 seeds", "8 seeds, scores in steps of a row"],
)
def test_two_copies_of_one_configuration_are_called_different_in_at_most_5_percent(
    seeds: int, sd: float, step: float, repeats: int
) -> None:
    # The whole procedure again and again, with a fixed seed; the standard error of the rate is 0.4 to 0.7 %.
    plan = make_plan(TWO, seeds=seeds)
    alarms = sum(called_different(plan, study, sd=sd, step=step) for study in range(repeats))
    assert alarms / repeats <= 0.05


def test_five_copies_under_five_names_raise_no_more_alarms() -> None:
    arms = [*TWO, arm("trial-8", "finalist"), arm("default", "default"), arm("trial-9", "smallest")]
    alarms = sum(called_different(make_plan(arms), study, sd=0.02) for study in range(400))
    assert alarms / 400 <= 0.05


def test_a_pattern_passes_by_chance_in_at_most_5_percent() -> None:
    plan = make_plan([TWO[0], *pattern_arms()])
    passed = 0
    for study in range(200):
        scores, _ = run(plan, noisy({}, sd=0.02, study=study))
        passed += conclude(plan, scores)["suggestion"]["status"] == "passed"
    assert passed / 200 <= 0.05


def test_ranks_are_recommended_only_if_they_have_passed() -> None:
    winner, suggested, uniform, drawn = TWO[0], *pattern_arms()
    arms = [winner, replace(suggested, trainable_params=990), uniform, replace(drawn, trainable_params=980)]
    for gain, status, name in ((0.0, "no_gain", "trial-3"), (0.1, "passed", "suggested")):
        plan = make_plan(arms)
        scores, _ = run(plan, noisy({"suggested": gain}, sd=0.005, study=6))
        found = conclude(plan, scores)
        assert (found["suggestion"]["status"], found["recommendation"]["arm"]) == (status, name)


def test_a_large_difference_is_found_with_few_seeds() -> None:
    plan = make_plan([TWO[0], arm("default", "default")], seeds=4)
    scores, _ = run(plan, noisy({"default": -0.2}, sd=0.02, study=1))
    (found,) = conclude(plan, scores)["comparisons"]
    assert (found["verdict"], found["wins"], found["seeds"]) == ("better", 4, 4)


def test_what_is_plainly_equal_ends_after_the_first_look() -> None:
    plan = make_plan([*TWO, arm("default", "default")], seeds=12)
    scores, made = run(plan, noisy({"default": -0.3}, sd=0.001, study=2))
    trained = Counter(training.arm for training in made)
    assert trained == {"trial-3": 12, "trial-5": LOOK, "default": 12}  # a gain is claimed after all seeds only
    verdicts = {each["arm"]: each["verdict"] for each in conclude(plan, scores)["comparisons"]}
    assert verdicts == {"trial-5": "no clear difference", "trial-3": "better"}


def test_every_arm_of_a_seed_gets_the_same_start_and_the_same_batches() -> None:
    plan = make_plan([*TWO, *pattern_arms()], metric="loss")
    _, made = run(plan, noisy({}, sd=0.02, study=3))
    by_seed: dict[int, set[tuple[int, int]]] = {}
    for number, training in enumerate(made):
        spec = trial_spec(plan, training, number)
        by_seed.setdefault(training.seed, set()).add((spec.seed, spec.data_seed))
        assert spec.evaluate_every == spec.steps == plan.steps
        assert spec.hyper.learning_rate == training.learning_rate
    assert all(len(found) == 1 for found in by_seed.values())
    assert len({data_seed for found in by_seed.values() for _, data_seed in found}) == len(by_seed)
    for comparison in plan.comparisons:
        scores, _ = run(plan, lambda training: float(training.seed % 97) + len(training.arm))
        paired = compare(plan, scores, comparison)
        assert paired is not None
        # The seeds' own share cancels: only a difference of pairs is without spread here.
        assert paired.estimate.low == pytest.approx(paired.estimate.high)


def test_no_seed_of_the_search_is_used() -> None:
    free = fresh_seeds(7, 1, 10, ())
    drawn = fresh_seeds(7, 1, 10, free[:4])
    assert not set(free[:4]) & set(drawn)
    assert len(set(drawn)) == 10
    assert drawn[:6] == free[4:]
    assert not set(free) & set(fresh_seeds(7, 2, 10, ()))


def test_learning_rates_are_chosen_on_validation_rows_of_seeds_that_are_not_scored() -> None:
    plan = make_plan([TWO[0], *pattern_arms()])
    best = {"suggested": 0.0005, "uniform": 0.001, "random": 0.002}

    def score(training: Training) -> float:
        if training.split == "validation":
            return 0.9 if training.learning_rate == best[training.arm] else 0.5
        return 0.5 if training.learning_rate == best.get(training.arm) else 0.9  # the test rows would say otherwise

    scores, made = run(plan, score)
    tuned = [training for training in made if training.split == "validation"]
    assert made[: len(tuned)] == tuned
    assert len(tuned) == 3 * 3 * TUNING_SEEDS
    assert {training.seed for training in tuned}.isdisjoint(plan.seeds)
    assert {each.name: chosen_rate(plan, scores, each) for each in plan.arms[1:]} == best
    scored = {(training.arm, training.learning_rate) for training in made if training.split == "test"}
    assert scored == {("trial-3", 0.001), *best.items()}


def test_a_training_that_diverges_counts_as_none() -> None:
    plan = make_plan(TWO, seeds=4)
    scores = Scores()
    for training in next_trainings(plan, scores):
        bad = training.arm == "trial-5" and training.seed == plan.seeds[1]
        scores.add(training, {DIVERGED: 1.0} if bad else {"accuracy": 0.8})
    assert next_trainings(plan, scores) == []
    assert list(values(plan, scores, TWO[1]).values()) == [0.8, MAJORITY["accuracy"], 0.8, 0.8]


def test_a_rate_that_diverges_is_not_chosen() -> None:
    plan = make_plan([TWO[0], *pattern_arms()], metric="loss")
    scores = Scores()
    for training in next_trainings(plan, scores):
        high = training.learning_rate > 0.001
        scores.add(training, {DIVERGED: 1.0} if high else {"loss": 1.0 - training.learning_rate})
    assert {chosen_rate(plan, scores, each) for each in plan.arms} == {0.001}


def test_stopped_anywhere_it_goes_on_as_if_it_had_not_been() -> None:
    plan = make_plan([*TWO, *pattern_arms()])
    scorer = noisy({"suggested": 0.03}, sd=0.02, study=9)
    scores, made = run(plan, scorer)
    undisturbed = conclude(plan, scores)
    draw, kept = random.Random(4), []
    for _ in range(len(made)):
        again = Scores(kept)  # what the database holds
        trainings = next_trainings(plan, again)
        for training in trainings[: draw.randint(1, 5)]:
            kept += [
                Score(
                    arm=training.arm,
                    seed=training.seed,
                    learning_rate=training.learning_rate,
                    split=training.split,
                    metric=metric,
                    value=value,
                )
                for metric, value in {"accuracy": scorer(training), SECONDS: 2.0}.items()
            ]
    assert next_trainings(plan, Scores(kept)) == []
    assert conclude(plan, Scores(kept)) == undisturbed
    assert len(kept) == 2 * len(made)  # nothing was trained twice


def test_every_interval_is_named_with_its_own_level() -> None:
    """Two comparisons of the winner share 4 %; suggested ranks against even and random ones have 4 % each."""
    plan = make_plan([*TWO, arm("default", "default"), *pattern_arms()])
    scores, _ = run(plan, noisy({"trial-3": 0.1}, sd=0.02, study=9))
    result = conclude(plan, scores)
    assert [(each["against"], each["level"]) for each in result["comparisons"]] == [
        ("trial-3", pytest.approx(0.98)),
        ("default", pytest.approx(0.98)),
        ("uniform", 0.96),
        ("random", 0.96),
    ]
    assert [result["headline"].count(f"] at {level} %, ahead in") for level in (95, 96, 98)] == [0, 2, 2]


@pytest.mark.parametrize(("count", "expected"), [(1, "96 %"), (2, "98 %"), (3, "98.7 %"), (5, "99.2 %")])
def test_levels_in_words(count: int, expected: str) -> None:
    assert in_percent(joint_level(count)) == expected


def test_every_training_has_a_number_of_its_own() -> None:
    plan = make_plan([*TWO, *pattern_arms()])
    _, made = run(plan, noisy({}, sd=0.02, study=1))
    known = all_trainings(plan)
    assert len(set(known)) == len(known)
    assert set(made) <= set(known)
