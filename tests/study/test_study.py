from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState as State

from automl.errors import ConfigError, SearchError, SpaceChangedError
from automl.space.spec import CategoricalParameter, SearchSpace
from automl.storage.base import AttemptState
from automl.storage.sql import Database
from automl.storage.trials import best_trials, list_trials
from automl.study.seeding import data_seed, sampler_seed, trial_seed
from automl.study.study import Study, StudyEvent
from automl.trial import Action, Measurement, StopReason, TrialFailure, TrialSpec, TrialState
from tests.fakes import MemoryStore
from tests.study.driving import SPACE, Loop, bowl, constrained, measured, numbers, open_study, settings, trials


def reasons(study: Study) -> list[str]:
    return [trial.user_attrs["stop_reason"] for trial in trials(study)]


def take(study: Study) -> TrialSpec:
    spec = study.next(worker=3)
    assert spec is not None
    return spec


def failure(spec: TrialSpec, reason: StopReason, message: str = "why") -> TrialFailure:
    return TrialFailure(trial=spec.number, step=20, reason=reason, message=message)


def test_a_search_ends_with_the_budget_and_nothing_in_progress(database: Database) -> None:
    study = open_study(database)
    loop = Loop(study, slots=3)
    loop.run()
    assert {state: count for state, count in study.counts().items() if count} == {
        TrialState.COMPLETE: len(loop.ended(Action.FINISH)),
        TrialState.PRUNED: len(loop.ended(Action.PRUNE)),
    }
    assert len(trials(study)) == 8
    assert numbers(study, State.RUNNING, State.WAITING) == []
    assert study.next(worker=0) is None


def test_a_pruned_trial_was_really_stopped(database: Database) -> None:
    study = open_study(database)
    loop = Loop(study, slots=8)
    loop.run()
    store = database.store("study")
    pruned = [trial for trial in trials(study) if trial.state is State.PRUNED]
    assert pruned
    for trial in pruned:
        stored = [measurement.step for measurement in store.measurements(trial.number)]
        assert stored == sorted(trial.intermediate_values)
        assert stored[-1] == loop.done[trial.number] < 80
        assert trial.value == trial.intermediate_values[stored[-1]]


def test_a_lock_step_cohort_is_judged_after_all_values_are_in(database: Database) -> None:
    study = open_study(database)
    loop = Loop(study, slots=8)
    loop.fill()
    for _ in range(2):
        loop.report()
    values = {trial.number: trial.intermediate_values[20] for trial in trials(study)}
    loop.study.decide(sorted(values, key=lambda number: -values[number]))
    assert sorted(study.live) == sorted(sorted(values, key=lambda number: values[number])[:3])


def test_specs_hold_seeds_that_depend_on_study_and_trial_only(database: Database) -> None:
    study = open_study(database, settings=settings(seed=5))
    first, second = take(study), take(study)
    assert first.seed == trial_seed(5, 0) != second.seed == trial_seed(5, 1)
    assert first.data_seed == second.data_seed == data_seed(5)
    assert (first.steps, first.evaluate_every, first.attempt) == (80, 10, 1)
    assert first.hyper.rank == first.params["rank"]
    assert all(0 <= seed < 2**31 for seed in (first.seed, first.data_seed))
    assert sampler_seed(5, 1) != sampler_seed(5, 2) != sampler_seed(6, 2)


def test_the_end_of_a_trial_is_recorded(database: Database) -> None:
    events: list[StudyEvent] = []
    study = open_study(
        database,
        settings=settings(trials=1),
        digest=lambda folder: (f"sha of {folder}"[:64], 7),
        on_event=events.append,
    )
    Loop(study, adapters=True).run()
    (trial,) = trials(study)
    assert trial.user_attrs == {
        "trainable_params": trial.params["rank"] * (1000 if trial.params["target"] == "qv" else 4000),
        "seconds": 8.0,
        "tokens": 8000,
        "examples": 640,
        "adapter": "adapters/0",
        "worker": 0,
        "stop_reason": "finished",
    }
    (artifact,) = database.store("study").artifacts()
    assert (artifact.trial, artifact.path, artifact.bytes, artifact.metric) == (0, "adapters/0", 7, trial.value)
    (attempt,) = database.store("study").attempts()
    assert (attempt.state, attempt.reason, attempt.run) == (AttemptState.SUCCEEDED, "finished", 1)
    assert [event.kind for event in events] == ["started", "finished"]
    assert events[1].text.startswith("trial 0 finished at step 80, loss ")


def test_the_study_describes_itself_for_dashboards(database: Database) -> None:
    study = open_study(database, metric="accuracy", space_sha256="abc")
    assert study.optuna.metric_names == ["accuracy"]
    assert study.optuna.user_attrs == {"objective": "accuracy", "direction": "maximize", "space_sha256": "abc"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.1], ids=str)
def test_a_diverged_trial_is_infeasible_and_its_value_reaches_no_table(database: Database, value: float) -> None:
    study = open_study(database)
    spec = take(study)
    study.report([measured(spec, 10, 0.7)])
    study.report([measured(spec, 20, value)])
    (trial,) = trials(study)
    assert (trial.state, trial.value, trial.intermediate_values) == (State.PRUNED, 0.7, {10: 0.7})
    assert trial.constraints == {"finite": 1.0}
    assert trial.user_attrs["stop_reason"] == "diverged"
    assert trial.user_attrs["error"].startswith("loss is ")
    assert [m.step for m in database.store("study").measurements()] == [10]
    assert not study.live


def test_a_metric_beside_the_objective_must_be_finite_too(database: Database) -> None:
    study = open_study(database)
    study.report([measured(take(study), 10, 0.7, perplexity=math.inf)])
    assert reasons(study) == ["diverged"]


def test_a_trial_that_diverges_before_its_first_report_has_no_value(database: Database) -> None:
    study = open_study(database)
    study.fail(failure(take(study), StopReason.DIVERGED))
    (trial,) = trials(study)
    assert (trial.state, trial.value) == (State.PRUNED, None)


def test_out_of_memory_is_infeasible(database: Database) -> None:
    study = open_study(database)
    study.fail(failure(take(study), StopReason.OOM))
    (trial,) = trials(study)
    assert (trial.state, trial.constraints) == (State.PRUNED, {"memory": 1.0})
    assert study.counts()[TrialState.PRUNED] == 1


def test_a_feasible_trial_sets_no_constraint(database: Database) -> None:
    study = open_study(database, settings=settings(trials=1))
    Loop(study).run()
    assert trials(study)[0].constraints == {}


def test_a_diverging_trial_leaves_the_others_of_its_cohort_alone(database: Database) -> None:
    study = open_study(database)
    first, second = take(study), take(study)
    study.report([measured(first, 10, math.nan), measured(second, 10, 0.5)])
    assert list(study.live) == [second.number]
    assert [decision.trial for decision in study.decide([first.number, second.number])] == [second.number]


def test_an_objective_that_was_not_measured_is_an_error(database: Database) -> None:
    study = open_study(database)
    spec = take(study)
    study.report([Measurement(trial=spec.number, step=10, metrics={"accuracy": 0.5})])
    (trial,) = trials(study)
    assert trial.state is State.FAIL
    assert trial.user_attrs["error"] == "objective 'loss' was not measured; there is accuracy"


def test_an_error_fails_the_trial_is_replaced_and_not_counted(database: Database) -> None:
    study = open_study(database, settings=settings(trials=2))
    study.fail(failure(take(study), StopReason.ERROR, "x" * 5000 + "\nKeyError: 'label'\n"))
    Loop(study).run()
    failed, *rest = trials(study)
    assert failed.state is State.FAIL
    assert len(failed.user_attrs["error"]) == 4000
    assert len(rest) == 2
    assert database.store("study").attempts(0)[0].state is AttemptState.FAILED


def test_too_many_errors_end_the_search(database: Database) -> None:
    study = open_study(database, settings=settings(max_failed_trials=2))
    for number in range(2):
        study.fail(failure(take(study), StopReason.ERROR, f"Traceback\nKeyError: {number}"))
    message = (
        r"2 trials failed \(max_failed_trials: 2\); last: trial 1: KeyError: 1; once the cause is mended, the same"
    )
    with pytest.raises(SearchError, match=message):
        study.next(worker=0)
    with pytest.raises(SearchError, match=message):
        _ = study.finished
    again = open_study(database, settings=settings(max_failed_trials=2), run=2)
    assert again.next(worker=0) is not None, "the next run may fail as often again"


def test_late_results_of_ended_trials_and_stored_steps_are_ignored(database: Database) -> None:
    study = open_study(database)
    spec = take(study)
    study.report([measured(spec, 10, 0.7), measured(spec, 10, 0.1)])
    study.report([measured(spec, 10, 0.2)])
    assert trials(study)[0].intermediate_values == {10: 0.7}
    study.fail(failure(spec, StopReason.ERROR))
    study.report([measured(spec, 20, 0.5)])
    study.fail(failure(spec, StopReason.DIVERGED))
    assert study.decide([spec.number, 99]) == []
    assert reasons(study) == ["error"]
    assert study.spent_steps == 10


def test_a_lost_worker_hands_the_trial_out_again(database: Database) -> None:
    study = open_study(database)
    spec = take(study)
    study.report([measured(spec, 10, 0.7)])
    again = study.restart(spec.number, worker=4)
    assert again == replace(spec, attempt=2)
    assert study.live == {0: again}
    states = [(attempt.state, attempt.worker) for attempt in database.store("study").attempts()]
    assert states == [(AttemptState.LOST, 3), (AttemptState.RUNNING, 4)]


def test_an_interrupted_study_goes_on_in_the_same_or_in_another_process(database: Database) -> None:
    study = open_study(database)
    loop = Loop(study, slots=3)
    loop.fill()
    loop.report()
    study.interrupt("SIGTERM")
    assert not study.live
    assert {attempt.reason for attempt in database.store("study").attempts()} == {"SIGTERM"}
    assert numbers(study, State.RUNNING) == [0, 1, 2]
    assert [take(study).number for _ in range(3)] == [0, 1, 2]
    study.interrupt("SIGTERM")
    other = open_study(database, run=2)
    spec = take(other)
    assert (spec.number, spec.attempt, spec.params) == (0, 3, trials(study)[0].params)
    assert database.store("study").attempts(0)[-1].run == 2


def test_enqueued_configurations_come_first_and_once(database: Database) -> None:
    known = {"rank": 8, "learning_rate": 2e-4, "target": "qv"}
    space = replace(SPACE, enqueue=(known, {"rank": 4}))
    study = open_study(database, space=space)
    assert take(study).params == known
    again = open_study(database, space=space, run=2)
    assert [take(again).params["rank"] for _ in range(2)] == [8, 4]
    assert take(again).number == 2
    assert len(trials(again)) == 3


def test_no_more_is_enqueued_than_the_budget_leaves(database: Database) -> None:
    space = replace(SPACE, enqueue=tuple({"rank": rank} for rank in range(2, 12)))
    study = open_study(database, space=space, settings=settings(trials=3))
    assert len(trials(study)) == 3
    Loop(study).run()
    assert numbers(study, State.RUNNING, State.WAITING) == []
    # A larger budget later takes the rest.
    larger = open_study(database, space=space, settings=settings(trials=5), run=2)
    Loop(larger).run()
    assert [trial.params["rank"] for trial in trials(larger)] == [2, 3, 4, 5, 6]


def test_waiting_rows_a_smaller_budget_leaves_are_closed(database: Database) -> None:
    space = replace(SPACE, enqueue=tuple({"rank": rank} for rank in range(2, 6)))
    open_study(database, space=space)
    study = open_study(database, space=space, settings=settings(trials=1), run=2)
    Loop(study).run()
    assert [trial.state for trial in trials(study)] == [State.COMPLETE, State.FAIL, State.FAIL, State.FAIL]
    assert reasons(study)[1:] == ["budget"] * 3


def test_an_enqueued_configuration_over_a_constraint_fails_before_it_costs_anything(database: Database) -> None:
    space = replace(constrained(SPACE, "trainable_params <= 20_000"), enqueue=({"rank": 32, "target": "all-linear"},))
    study = open_study(database, space=space)
    assert take(study).number == 1
    assert trials(study)[0].state is State.FAIL
    assert trials(study)[0].user_attrs["stop_reason"] == "infeasible"
    assert study.counts()[TrialState.FAIL] == 1


def test_a_space_without_a_feasible_point_ends_with_the_constraint(database: Database) -> None:
    space = constrained(SPACE, "trainable_params <= 10")
    study = open_study(database, space=space, storage=InMemoryStorage(), store=MemoryStore())
    with pytest.raises(SearchError, match=r"200 configurations in a row .*'trainable_params <= 10'"):
        study.next(worker=0)


def test_a_grid_ends_when_it_is_used_up(database: Database) -> None:
    space = SearchSpace(parameters=(CategoricalParameter(name="rank", choices=(2, 4, 8)),))
    study = open_study(database, space=space, settings=settings(sampler="grid", trials=20))
    Loop(study, curve=lambda spec, step: 1 / spec.hyper.rank).run()
    assert sorted(trial.params["rank"] for trial in trials(study)) == [2, 4, 8]
    assert open_study(database, space=space, settings=settings(sampler="grid", trials=20), run=2).finished


def test_max_steps_is_never_exceeded_and_every_started_trial_may_finish(database: Database) -> None:
    study = open_study(database, settings=settings(trials=100, max_steps=500))
    loop = Loop(study, slots=8)
    loop.fill()
    assert len(study.live) == 6  # 6 * 80 <= 500
    loop.run()
    assert study.spent_steps == sum(loop.done.values()) <= 500
    assert set(reasons(study)) == {"finished", "pruned"}
    assert 500 - study.spent_steps < 80, "what pruning saved is spent on further trials"


def test_what_a_smaller_step_budget_cuts_off_is_closed(database: Database) -> None:
    study = open_study(database)
    loop = Loop(study, slots=3)
    loop.fill()
    loop.report()
    study.interrupt("stopped")
    smaller = open_study(database, settings=settings(max_steps=90), run=2)
    assert smaller.finished
    smaller.close()
    assert [trial.state for trial in trials(smaller)] == [State.PRUNED] * 3
    assert reasons(smaller) == ["budget"] * 3


def test_a_step_budget_below_one_trial_is_refused(database: Database) -> None:
    with pytest.raises(ConfigError, match=r"search\.max_steps: 79 is less than the 80 steps of one trial"):
        open_study(database, settings=settings(max_steps=79))


def test_only_the_best_adapters_are_kept(database: Database) -> None:
    retired: list[int] = []
    study = open_study(database, settings=settings(trials=6, keep=2, pruner="none"), retire=retired.append)
    Loop(study, adapters=True).run()
    ranked = sorted(trials(study), key=lambda trial: trial.value or 0.0)
    kept = {trial.number for trial in ranked[:2]}
    assert {artifact.trial for artifact in database.store("study").artifacts()} == kept
    assert set(retired) == set(range(6)) - kept
    best = study.best()
    assert best is not None
    assert (best.number, best.value, best.params) == (ranked[0].number, ranked[0].value, ranked[0].params)
    # A driver that died between row and files: the next one asks again, and keeps what is kept.
    asked: list[int] = []
    again = open_study(database, settings=settings(trials=6, keep=2, pruner="none"), retire=asked.append, run=2)
    assert set(asked) == set(retired)
    assert again.best() == best


def test_a_changed_space_that_optuna_cannot_continue_is_refused(database: Database) -> None:
    Loop(open_study(database, settings=settings(trials=1))).run()
    changed = SearchSpace(parameters=(CategoricalParameter(name="target", choices=("qv", "mlp")),))
    with pytest.raises(SpaceChangedError, match="parameter 'target' cannot change"):
        open_study(database, space=changed, run=2)
    with pytest.raises(SpaceChangedError, match="to minimize its objective, not to maximize it"):
        open_study(database, metric="accuracy", run=2)


def test_a_trial_of_a_parameter_that_is_gone_is_not_continued(database: Database) -> None:
    study = open_study(database)
    take(study)
    study.interrupt("stopped")
    other = open_study(database, space=SearchSpace(parameters=SPACE.parameters[:2]), run=2)
    assert reasons(other) == ["infeasible"]
    assert take(other).number == 1


def test_an_unknown_objective_is_refused_with_the_known_ones(database: Database) -> None:
    with pytest.raises(ConfigError, match=r"task\.metric: unknown 'acc'; known: accuracy"):
        open_study(database, metric="acc")


def test_the_same_store_contract_in_memory(database: Database) -> None:
    study = open_study(database, store=MemoryStore())
    Loop(study, slots=4).run()
    assert study.counts()[TrialState.COMPLETE] + study.counts()[TrialState.PRUNED] == 8


def test_trials_and_totals_can_be_read_while_it_runs(database: Database) -> None:
    space = replace(SPACE, enqueue=({"rank": 8},) * 2)
    study = open_study(database, space=space)
    loop = Loop(study, slots=1, adapters=True)
    while not loop.ended(Action.FINISH):
        loop.fill()
        loop.report()
        loop.decide()
    second = take(study)
    study.report([measured(second, 10, 0.7)])
    store = database.store("study")
    first, running = list_trials(database, "study")
    assert (first.number, first.state, first.steps, first.seconds) == (0, TrialState.COMPLETE, 80, 8.0)
    assert (first.stop_reason, first.adapter) == ("finished", "adapters/0")
    assert first.value == pytest.approx(bowl(_spec_like(first.params, study), 80))
    assert (running.state, running.value, running.steps, running.seconds) == (TrialState.RUNNING, None, 10, 1.0)
    assert best_trials(database, "study", "maximize", 1) == [first]
    store.delete_artifact(0, "adapter")
    assert list_trials(database, "study")[0].adapter is None


def _spec_like(params: Any, study: Study) -> TrialSpec:
    return replace(next(iter(study.live.values())), hyper=replace(next(iter(study.live.values())).hyper, **params))
