"""The driver's half: all values before any decision, free slots filled, dead workers' trials given back, halting."""

from __future__ import annotations

import pytest

from automl.errors import BudgetSpent, ClusterLost, InterruptedSearch, ModelError, ResourceError, StorageError, TimeIsUp
from automl.execution.dispatch import CLUSTER_LOST, TIME_IS_UP, Dispatcher, Occupation
from automl.execution.stop import Halt
from automl.trial import Action, Cohort, Measurement, Order, OrderKind, StopReason, TrialFailure, TrialSpec
from tests.execution.scripted import ScriptedStudy


class Talk:
    """One worker's side of the conversation, written out; holds no host."""

    def __init__(self, dispatcher: Dispatcher, *, worker: int = 0, capacity: int = 1) -> None:
        self.dispatcher = dispatcher
        self.worker = worker
        self.capacity = capacity
        self.epoch = 0
        self.seq = 0

    def hello(self) -> list[str]:
        self.epoch += 1
        self.seq = 0
        return self.say(hello=True)

    def say(
        self, *reports: tuple[int, int], failed: tuple[int, ...] = (), hello: bool = False, loss: float = 1.0
    ) -> list[str]:
        """Report (trial, step) pairs and failures; returns the orders as short texts."""
        cohort = Cohort(
            worker=self.worker,
            epoch=self.epoch,
            seq=self.seq,
            hello=hello,
            measurements=tuple(Measurement(trial=trial, step=step, metrics={"loss": loss}) for trial, step in reports),
            failures=tuple(TrialFailure(trial=t, step=1, reason=StopReason.ERROR, message="boom") for t in failed),
            capacity=self.capacity,
        )
        self.seq += 1
        return [short(order) for order in self.dispatcher.exchange(cohort)]


def short(order: Order) -> str:
    if order.kind is OrderKind.OPEN:
        assert order.spec is not None
        return f"open {order.trial}.{order.spec.attempt}"
    return str(order.kind) if order.kind is OrderKind.STOP else f"{order.kind} {order.trial}"


class Clock:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_hello_fills_the_slots_the_worker_has() -> None:
    assert Talk(Dispatcher(ScriptedStudy(5)), capacity=3).hello() == ["open 0.1", "open 1.1", "open 2.1"]


def test_all_values_of_a_cohort_are_reported_before_any_decision() -> None:
    study = ScriptedStudy(2, {(0, 2): Action.PRUNE})
    talk = Talk(Dispatcher(study), capacity=2)
    talk.hello()
    assert talk.say((0, 2), (1, 2)) == ["close 0"]
    assert study.log == ["report 0@2", "report 1@2", "prune 0@2", "continue 1@2"]


def test_a_free_slot_is_filled_in_the_same_exchange_and_the_end_sends_home() -> None:
    talk = Talk(Dispatcher(ScriptedStudy(2)))
    assert talk.hello() == ["open 0.1"]
    assert talk.say((0, 2)) == []
    assert talk.say((0, 4)) == ["close 0", "open 1.1"]
    assert talk.say((1, 2), (1, 4)) == ["close 1", "stop"]


def test_a_worker_whose_pack_has_become_smaller_gets_no_more_than_it_has_room_for() -> None:
    talk = Talk(Dispatcher(ScriptedStudy(5)), capacity=3)
    talk.hello()
    talk.capacity = 1
    assert talk.say((0, 2), (0, 4)) == ["close 0"]
    assert talk.say((1, 2), (1, 4)) == ["close 1"]
    assert talk.say((2, 2), (2, 4)) == ["close 2", "open 3.1"]


def test_a_parked_trial_frees_its_slot_and_is_opened_again_later() -> None:
    talk = Talk(Dispatcher(ScriptedStudy(2, {(0, 2): Action.PARK})))
    talk.hello()
    assert talk.say((0, 2)) == ["park 0", "open 1.1"]
    assert talk.say((1, 4)) == ["close 1", "open 0.1"]


def test_a_failure_is_told_after_the_values_that_came_with_it() -> None:
    study = ScriptedStudy(2)
    talk = Talk(Dispatcher(study), capacity=2)
    talk.hello()
    assert talk.say((1, 2), failed=(0,)) == ["close 0"]
    assert study.log == ["report 1@2", "fail 0 error", "continue 1@2"]


def test_a_trial_the_study_ends_while_it_reports_is_closed_and_not_judged() -> None:
    study = ScriptedStudy(1)
    talk = Talk(Dispatcher(study))
    talk.hello()
    assert talk.say((0, 2), loss=1e9) == ["close 0", "stop"]
    assert study.log == ["report 0@2", "diverged 0"]


def test_a_worker_with_nothing_to_do_waits_while_others_may_still_fail() -> None:
    dispatcher = Dispatcher(ScriptedStudy(1))
    busy, idle = Talk(dispatcher, worker=0), Talk(dispatcher, worker=1)
    busy.hello()
    assert idle.hello() == []
    assert idle.say() == []
    busy.say((0, 4))
    assert idle.say() == ["stop"]


def test_a_restarted_worker_gets_its_trials_back_and_old_steps_are_not_judged_again() -> None:
    study = ScriptedStudy(2)
    talk = Talk(Dispatcher(study), capacity=2)
    talk.hello()
    talk.say((0, 2), (1, 2))
    assert talk.hello() == ["open 0.2", "open 1.2"]
    study.log.clear()
    assert talk.say((0, 2), (1, 2), (1, 4)) == ["close 1"]
    assert study.log == ["report 1@4", "finish 1@4"]


def test_a_late_cohort_of_an_earlier_start_changes_nothing_and_its_sender_goes_home() -> None:
    study = ScriptedStudy(1)
    dispatcher = Dispatcher(study)
    talk = Talk(dispatcher)
    talk.hello()
    talk.hello()
    zombie = Talk(dispatcher)
    zombie.epoch = 1
    assert zombie.say((0, 2)) == ["stop"]
    assert study.log == ["restart 0"]
    # The later start is still there: its trial goes on.
    assert not dispatcher.over
    assert talk.say((0, 2)) == []


def test_after_two_deaths_in_company_suspects_train_alone_and_the_guilty_one_fails() -> None:
    study = ScriptedStudy(3)
    talk = Talk(Dispatcher(study), capacity=3)
    talk.hello()
    assert talk.hello() == ["open 0.2", "open 1.2", "open 2.2"]
    assert talk.hello() == ["open 0.3", "open 1.3", "open 2.3"]
    assert talk.hello() == ["open 0.4"]
    # Trial 0 makes progress alone, so it is innocent and makes room for the next suspect.
    assert talk.say((0, 2)) == ["park 0", "open 1.4"]
    # Trial 1 kills its worker three times alone.
    assert talk.hello() == ["open 1.5"]
    assert talk.hello() == ["open 1.6"]
    assert talk.hello() == ["close 1", "open 2.4"]
    assert talk.say((2, 2)) == ["open 0.4"]
    assert "fail 1 host_crash" in study.log


def test_progress_of_its_own_clears_a_trial_but_not_its_neighbour() -> None:
    talk = Talk(Dispatcher(ScriptedStudy(2)), capacity=2)
    talk.hello()
    talk.hello()
    talk.hello()
    talk.say((0, 2))
    # Trial 1 has now died three times without progress, trial 0 once.
    assert talk.hello() == ["open 1.4"]


def test_with_one_slot_a_trial_is_always_alone_and_fails_at_the_third_death() -> None:
    study = ScriptedStudy(2)
    talk = Talk(Dispatcher(study))
    talk.hello()
    assert talk.hello() == ["open 0.2"]
    assert talk.hello() == ["open 0.3"]
    assert talk.hello() == ["close 0", "open 1.1"]


def test_an_idle_worker_goes_on_with_the_trials_of_one_that_died_and_is_not_back() -> None:
    study = ScriptedStudy(3)
    dispatcher = Dispatcher(study)
    gone, heir = Talk(dispatcher, worker=0, capacity=2), Talk(dispatcher, worker=1)
    gone.hello()
    gone.say((0, 2))
    heir.hello()
    dispatcher.lost(0, "its node is dead")
    # What it was given first goes first.
    assert heir.say((2, 2)) == []
    assert heir.say((2, 4)) == ["close 2", "open 0.2"]
    # The worker is back in time for the other one.
    assert gone.hello() == ["open 1.2"]
    assert heir.say((0, 2), (0, 4)) == ["close 0"]
    assert gone.say((1, 2), (1, 4)) == ["close 1", "stop"]
    assert heir.say() == ["stop"]
    assert dispatcher.over
    assert study.log.count("report 0@2") == 1


def test_a_worker_whose_pack_has_become_smaller_takes_over_nothing_beyond_its_room() -> None:
    dispatcher = Dispatcher(ScriptedStudy(4))
    gone, heir = Talk(dispatcher, worker=0, capacity=2), Talk(dispatcher, worker=1, capacity=2)
    gone.hello()
    heir.hello()
    dispatcher.lost(0, "its node is dead")
    heir.capacity = 1
    assert heir.say((2, 2)) == []
    assert heir.say((2, 4)) == ["close 2"]
    assert heir.say((3, 4)) == ["close 3", "open 0.2"]


def test_a_search_ends_although_a_dead_worker_never_comes_back() -> None:
    dispatcher = Dispatcher(ScriptedStudy(2))
    gone, heir = Talk(dispatcher, worker=0), Talk(dispatcher, worker=1)
    gone.hello()
    heir.hello()
    dispatcher.lost(0, "its node is dead")
    assert heir.say((1, 4)) == ["close 1", "open 0.2"]
    assert heir.say((0, 4)) == ["close 0", "stop"]
    assert dispatcher.over


def test_a_trial_that_kills_one_worker_after_the_other_fails_at_the_third_death() -> None:
    study = ScriptedStudy(1)
    dispatcher = Dispatcher(study)
    first, second = Talk(dispatcher, worker=0), Talk(dispatcher, worker=1)
    first.hello()
    second.hello()
    dispatcher.lost(0, "killed")
    assert second.say() == ["open 0.2"]
    assert first.hello() == []
    dispatcher.lost(1, "killed")
    assert first.say() == ["open 0.3"]
    dispatcher.lost(0, "killed")
    assert second.hello() == ["close 0", "stop"]
    assert "fail 0 host_crash" in study.log


def test_stop_takes_what_has_come_and_sends_every_worker_home() -> None:
    study = ScriptedStudy(4)
    dispatcher = Dispatcher(study)
    first, second = Talk(dispatcher, worker=0), Talk(dispatcher, worker=1)
    first.hello()
    second.hello()
    dispatcher.stop("SIGTERM")
    dispatcher.stop("SIGINT")
    assert first.say((0, 4)) == ["close 0", "stop"]
    assert not dispatcher.over
    assert second.say() == ["stop"]
    assert dispatcher.over
    dispatcher.finish()
    assert (dispatcher.stopped, study.log[-1]) == ("SIGTERM", "interrupt SIGTERM")


def test_a_stop_that_came_too_late_is_none() -> None:
    dispatcher = Dispatcher(ScriptedStudy(1))
    talk = Talk(dispatcher)
    talk.hello()
    dispatcher.stop("SIGTERM")
    talk.say((0, 4))
    dispatcher.finish()
    assert dispatcher.stopped is None


def test_wall_clock_stops_the_run() -> None:
    clock = Clock()
    dispatcher = Dispatcher(ScriptedStudy(2), max_seconds=60.0, clock=clock)
    talk = Talk(dispatcher)
    talk.hello()
    clock.now = 59.9
    assert talk.say((0, 2)) == []
    clock.now = 60.0
    assert talk.say() == ["stop"]
    assert dispatcher.stopped == "time"


class BrokenStudy(ScriptedStudy):
    """A study whose database goes away."""

    def next(self, worker: int) -> TrialSpec | None:
        raise StorageError("database is gone")


# Who continues it, and when, depends on what it was: a cluster that went away, its own time or budget, or somebody.
@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        (CLUSTER_LOST, ClusterLost),
        (TIME_IS_UP, TimeIsUp),
        ("40 EUR are spent", BudgetSpent),
        ("SIGTERM", InterruptedSearch),
        (None, ClusterLost),  # the executor ended with trials left, and nobody had asked it to
    ],
)
def test_why_a_run_stopped_before_its_end_is_known(reason: str | None, kind: type[InterruptedSearch]) -> None:
    study = ScriptedStudy(2)
    dispatcher = Dispatcher(study)
    Talk(dispatcher).hello()
    if reason is not None:
        dispatcher.stop(reason, kind)
    dispatcher.finish()
    interruption = dispatcher.interruption("1 of 2 trials, 8 training steps")
    assert type(interruption) is kind
    more = "with more, " if kind is BudgetSpent else ""
    said = f"after 1 of 2 trials, 8 training steps; nothing is lost, {more}the same command continues"
    assert said in str(interruption)


def test_what_must_not_go_on_is_asked_between_what_came_and_what_is_given() -> None:
    """Not an evaluation later: the worker that brought the last of the budget is sent home with its answer."""
    study = ScriptedStudy(4)
    asked: list[int] = []

    def halted() -> Halt | None:
        asked.append(len(study.live))
        return Halt("spent", BudgetSpent) if len(asked) == 3 else None

    talk = Talk(dispatcher := Dispatcher(study, halted=halted))
    talk.hello()
    assert "stop" not in talk.say((0, 2))
    assert "stop" in talk.say((0, 4))
    assert asked == [0, 1, 0]
    dispatcher.finish()
    assert isinstance(dispatcher.interruption(""), BudgetSpent)


def test_an_error_of_the_study_sends_workers_home_and_is_raised_at_the_end() -> None:
    study = BrokenStudy(1)
    dispatcher = Dispatcher(study)
    assert Talk(dispatcher).hello() == ["stop"]
    assert Talk(dispatcher, worker=1).hello() == ["stop"]
    with pytest.raises(StorageError, match="database is gone"):
        dispatcher.finish()
    assert study.log == ["interrupt StorageError: database is gone"]


def test_an_error_of_a_worker_ends_the_run() -> None:
    dispatcher = Dispatcher(ScriptedStudy(1))
    dispatcher.failed(0, ModelError("no such model: 'x'"))
    assert dispatcher.over
    with pytest.raises(ModelError, match="no such model"):
        dispatcher.finish()


def test_a_worker_that_never_gets_ready_ends_the_run_at_the_third_death() -> None:
    dispatcher = Dispatcher(ScriptedStudy(1))
    talk = Talk(dispatcher)
    talk.hello()
    dispatcher.lost(0, "killed")  # it had been heard of: this one does not count
    dispatcher.lost(0, "killed")
    dispatcher.lost(0, "killed")
    assert dispatcher.stopped is None
    dispatcher.lost(0, "out of memory")
    with pytest.raises(ResourceError, match="3 times before it was ready, last: out of memory"):
        dispatcher.finish()


def test_baseline_and_exchanges_are_passed_on() -> None:
    heard: list[object] = []
    dispatcher = Dispatcher(ScriptedStudy(1), on_exchange=lambda: heard.append(dispatcher.baseline))
    dispatcher.exchange(Cohort(worker=0, epoch=1, seq=0, hello=True, baseline={"loss": 2.0}))
    assert heard == [{"loss": 2.0}]


def test_the_time_of_every_start_of_a_worker_is_remembered() -> None:
    dispatcher = Dispatcher(ScriptedStudy(2))
    for epoch, seq, busy, idle in ((1, 0, 0.0, 0.0), (1, 1, 5.0, 1.0), (2, 0, 0.0, 0.0), (2, 1, 3.0, 0.5)):
        dispatcher.exchange(
            Cohort(worker=0, epoch=epoch, seq=seq, hello=seq == 0, busy_seconds=busy, idle_seconds=idle)
        )
    assert dispatcher.occupation == [Occupation(0, 1, 5.0, 1.0), Occupation(0, 2, 3.0, 0.5)]
