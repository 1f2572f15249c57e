from __future__ import annotations

import itertools
import random

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from automl.study.peer import PeerPruner

STEPS, EVERY = 80, 10


def study_of(curves: list[list[float]], direction: str = "minimize") -> tuple[optuna.Study, list[FrozenTrial]]:
    """A study whose trials have these values at evaluations 1, 2, 3 ...; all RUNNING."""
    study = optuna.create_study(direction=direction)
    for number, curve in enumerate(curves):
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params={"x": number / 100},
                distributions={"x": FloatDistribution(0, 1)},
                intermediate_values={(index + 1) * EVERY: value for index, value in enumerate(curve)},
            )
        )
    return study, study.get_trials()


def survivors(curves: list[list[float]], direction: str = "minimize", **options: float) -> list[int]:
    study, trials = study_of(curves, direction)
    pruner = PeerPruner(evaluate_every=EVERY, steps=STEPS, **options)  # type: ignore[arg-type]
    return [trial.number for trial in trials if not pruner.prune(study, trial)]


def test_a_cohort_keeps_its_best_third_in_every_order_of_asking() -> None:
    values = [0.9, 0.3, 0.7, 0.5, 0.8, 0.4, 0.6, 0.2]
    study, trials = study_of([[value, value] for value in values])
    orders = [
        sorted(trials, key=lambda trial: values[trial.number]),
        sorted(trials, key=lambda trial: -values[trial.number]),
        random.Random(3).sample(trials, len(trials)),
    ]
    kept = []
    for order in orders:
        pruner = PeerPruner(evaluate_every=EVERY, steps=STEPS)
        kept.append(sorted(trial.number for trial in order if not pruner.prune(study, trial)))
    assert kept == [[1, 5, 7]] * 3  # the best ceil(8 / 3)


def test_maximising_keeps_the_highest() -> None:
    assert survivors([[v, v] for v in (0.1, 0.9, 0.5, 0.4, 0.3, 0.8)], "maximize") == [1, 5]


@pytest.mark.parametrize("evaluations", [1, 3, 5, 6, 7, 8])
def test_nothing_is_decided_between_rungs_or_at_the_last_step(evaluations: int) -> None:
    curves = [[float(number)] * evaluations for number in range(1, 9)]
    assert survivors(curves) == list(range(8))


@pytest.mark.parametrize("evaluations", [2, 4])
def test_rungs_double(evaluations: int) -> None:
    curves = [[float(number)] * evaluations for number in range(1, 9)]
    assert survivors(curves) == [0, 1, 2]


def test_half_of_the_last_gain_is_expected_again() -> None:
    # The first is ahead by 0.05, the second has just gained 0.4 and is expected to gain 0.2 more.
    assert survivors([[0.5, 0.5], [0.95, 0.55], [0.9, 0.9], [0.9, 0.9]], reduction_factor=4.0) == [1]


def test_a_value_that_got_worse_is_not_extrapolated() -> None:
    assert survivors([[0.1, 0.6], [0.55, 0.55], [0.9, 0.9], [0.9, 0.9]], reduction_factor=4.0) == [1]


def test_trials_that_have_learnt_all_there_is_stand_out_though_early_gains_are_extrapolated() -> None:
    # All gain 0.5 of accuracy up to the first rung, where their scores expect up to 1.1; then they level off at 0.93.
    curves = [[0.3, 0.8 + 0.01 * number, 0.90, 0.91 + 0.004 * number] for number in range(6)]
    assert survivors(curves, "maximize") == [4, 5]


def test_too_few_peers_go_on() -> None:
    curves = [[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]]
    assert survivors(curves) == [0, 1, 2]
    assert survivors([*curves, [1.0, 1.0]]) == [0, 1]
    assert survivors(curves, min_peers=2) == [0]


def test_a_trial_alone_goes_on() -> None:
    assert survivors([[0.693] * 2], min_peers=1) == [0]


def test_nobody_is_stopped_at_the_first_rung_while_nothing_stands_out() -> None:
    chance = [[0.693 + 0.0001 * number] * 2 for number in range(8)]
    assert survivors(chance) == list(range(8))
    # One that has learnt settles what chance is: the rest of its cohort is no better than the crowd.
    assert survivors([*chance, [0.5, 0.5]]) == [8]


def test_later_only_the_best_goes_on_while_nothing_stands_out() -> None:
    assert survivors([[0.693 - 0.0001 * number] * 4 for number in range(8)]) == [7]


def test_ties_go_to_the_lower_number() -> None:
    assert survivors([[0.5, 0.5]] * 6 + [[0.9, 0.9]] * 6) == [0, 1, 2, 3]


def test_the_guard_is_relative_to_the_size_of_the_median() -> None:
    # Accuracies around a median of 0.5: 1 % of it is 0.005.
    crowd = [[0.5, 0.5]] * 5
    assert survivors([*crowd, [0.504, 0.504]], "maximize") == list(range(6))
    assert survivors([*crowd, [0.506, 0.506]], "maximize") == [5]


def test_with_a_median_of_zero_any_gain_stands_out() -> None:
    assert survivors([*([[0.0, 0.0]] * 5), [0.01, 0.01]], "maximize") == [5]
    assert survivors([[0.0, 0.0]] * 6, "maximize") == list(range(6))


def test_whatever_became_of_a_trial_it_counts() -> None:
    study, trials = study_of([[0.1 * number] * 2 for number in range(1, 9)])
    for trial, state in zip(trials[:7], itertools.cycle((TrialState.PRUNED, TrialState.FAIL)), strict=False):
        study.tell(trial.number, state=state)
    pruner = PeerPruner(evaluate_every=EVERY, steps=STEPS)
    assert pruner.prune(study, trials[7])


def test_a_new_pruner_gives_the_same_answer_from_the_database() -> None:
    study, trials = study_of([[0.1 * number] * 2 for number in range(1, 9)])
    used = PeerPruner(evaluate_every=EVERY, steps=STEPS)
    first = [used.prune(study, trial) for trial in trials]
    again = [PeerPruner(evaluate_every=EVERY, steps=STEPS).prune(study, trial) for trial in trials]
    assert first == again


def test_the_reason_names_the_rank() -> None:
    study, trials = study_of([[0.1 * number] * 2 for number in range(1, 9)])
    verdict = PeerPruner(evaluate_every=EVERY, steps=STEPS).judge(trials[5], trials, study.direction)
    assert verdict == (True, "rank 6 of 8 peers")


@pytest.mark.parametrize(
    "options", [{"first_rung": 0}, {"reduction_factor": 1.0}, {"min_peers": 0}, {"guard": -0.1}], ids=str
)
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PeerPruner(evaluate_every=EVERY, steps=STEPS, **options)  # type: ignore[arg-type]
