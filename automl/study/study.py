"""The only decider: proposes trials, takes their values, decides what becomes of them, and tells Optuna.

Executors and trainers know nothing of Optuna. Everything durable is in SQL, and every write is ordered so that a driver
killed between two of them leaves a state the next one can complete (docs/adr/0003-cohort-decisions.md):
measurements before Optuna's intermediate values; attributes, constraint, artifact and attempt before `tell`.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from automl.errors import ConfigError, Problem
from automl.metric import METRICS, Direction
from automl.ranking import point
from automl.space.assemble import assemble
from automl.space.satisfiable import Derive
from automl.space.spec import SearchSettings, SearchSpace
from automl.storage.base import AttemptState, ResultStore
from automl.storage.optuna_cache import CachedStorage
from automl.study.adoption import describe, ending_of, enqueue, left_running, reopen, was_parked
from automl.study.budget import Budget, last_line
from automl.study.checkpoints import in_words, note
from automl.study.continuing import OURS, refuse_unfit, scales_of
from automl.study.distributions import suggest
from automl.study.ending import attributes_of, missed_at_end, objectives_of, state_of, violations_of
from automl.study.feasibility import Feasibility
from automl.study.judging import Judge
from automl.study.open_trials import OpenTrial, OpenTrials
from automl.study.outcome import STOP_REASON, BestTrial, StudyEvent
from automl.study.outlook import Outlook, outlook
from automl.study.parking import ParkingPruner
from automl.study.pruning import make_pruner
from automl.study.retention import Retention
from automl.study.room import Room
from automl.study.sampling import configurations_of, make_sampler, view_for
from automl.study.screening import screen
from automl.study.shown import ShownTrials
from automl.study.specs import spec_for
from automl.study.stopping import Stopping
from automl.study.work import Work
from automl.trial import Action, Decision, Measurement, Scalar, StopReason, TrialFailure, TrialSpec, TrialState

__all__ = ["BestTrial", "Study", "StudyEvent"]

logger = logging.getLogger(__name__)


class Study:
    """All trials for one objective over one space, in one process that holds the study's lease.

    With `settings.also_minimize` there are two objectives: `metric`, which all that speaks of one objective means, and
    the other, which a trial is given at its end.

    Trials in progress are *live* (with a worker), *queued* (interrupted, to be handed out again) or *parked* (paused by
    a ParkingPruner). Not thread-safe: one thread calls it. Raises StorageError when the database fails.
    """

    def __init__(
        self,
        *,
        name: str,
        storage: BaseStorage,
        store: ResultStore,
        space: SearchSpace,
        settings: SearchSettings,
        metric: str,
        run: int,
        derive: Derive,
        direction: Direction | None = None,
        bounds: tuple[float, float] | None = None,
        space_sha256: str = "",
        retire: Callable[[int], None] = lambda trial: None,
        discard: Callable[[int], None] = lambda trial: None,
        digest: Callable[[str], tuple[str, int]] = lambda folder: ("", 0),
        on_event: Callable[[StudyEvent], None] = lambda event: None,
        label: str = "",
        room: Room | None = None,
    ) -> None:
        """Create the study or open it, and settle or queue what an earlier driver left RUNNING.

        storage: Optuna's; store: the rest of the same database. space: resolved, without `auto` ranges. metric: name of
        the objective; direction and bounds (closed) default to those of `automl.metric.METRICS`. run: number of this
        run of the study, from 1. derive: quantities that constraints may use, such as trainable_params; stored with
        the trial. retire: called with a trial whose adapter may be deleted, perhaps again after a crash. discard:
        called with a parked trial that has ended: its slot files may be deleted. digest: (sha256, bytes) of an adapter
        folder. label: stands before what is logged of its trials. room: memory for a trial; None: there is enough.

        Raises ConfigError for unusable search settings, SpaceChangedError if the stored trials do not fit the space.
        """
        if metric not in METRICS and (direction is None or bounds is None):
            message = f"unknown {metric!r}; known: {', '.join(METRICS)}"
            raise ConfigError([Problem("space file", 0, 0, "task.metric", message)])
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # its INFO lines repeat what this module logs
        self.name = name
        self.metric = metric
        self.direction: Direction = direction or METRICS[metric].direction
        self._bounds = bounds or (METRICS[metric].low, METRICS[metric].high)
        self._storage = CachedStorage(storage)
        self._store = store
        self._space = space
        self._settings = settings
        self._run = run
        self._derive = derive
        self._retention = Retention(store, keep=settings.keep, retire=retire, digest=digest)
        self._discard = discard
        self._on_event = on_event
        self._label = label
        self._feasibility = Feasibility(space, derive, room)
        self._budget = Budget(settings)
        self._open = OpenTrials()
        self._waiting = 0
        self._best: BestTrial | None = None
        sampler, pruner = make_sampler(settings, space, self._feasibility, run=run), make_pruner(settings)
        objectives, directions = [metric], [self.direction]
        if settings.also_minimize is not None:
            objectives, directions = [*objectives, settings.also_minimize], [*directions, "minimize"]
        refuse_unfit(self._storage, name, space=space, objectives=objectives, directions=directions)
        view = view_for(settings, self._open.parked.keys, can_park=isinstance(pruner, ParkingPruner))
        self._optuna = optuna.create_study(
            study_name=name,
            storage=self._storage,
            sampler=sampler if view is None else ShownTrials(sampler, view),
            pruner=pruner,
            directions=directions,
            load_if_exists=True,
        )
        self._judge = Judge(settings, self._optuna, pruner)
        self._stopping = Stopping(
            self._optuna, store, patience=settings.patience, configurations=configurations_of(sampler), run=run
        )
        scales = scales_of(settings, space, self._optuna.user_attrs)
        about = {"objective": metric, "direction": self.direction, OURS: space_sha256, **scales}
        describe(self._optuna, about, objectives)
        self._adopt(self._optuna.get_trials(deepcopy=False))

    # --- what others read -------------------------------------------------------------------------------------------

    @property
    def optuna(self) -> optuna.Study:
        """The Optuna study itself, for reading."""
        return self._optuna

    @property
    def live(self) -> Mapping[int, TrialSpec]:
        """Trials that are with a worker, by number."""
        return {number: opened.spec for number, opened in self._open.live.items() if opened.spec is not None}

    @property
    def in_progress(self) -> set[int]:
        """Trials that may still go on: with a worker, interrupted or parked."""
        return {opened.number for opened in self._open}

    @property
    def latest(self) -> Mapping[int, Measurement]:
        """Newest measurement of each live trial that has one, by number."""
        return {number: opened.last for number, opened in self._open.live.items() if opened.last is not None}

    @property
    def finished(self) -> bool:
        """Whether nothing is running and nothing will be handed out any more. Raises SearchError as `next` does."""
        if self._open.live:
            return False
        if not self._has_more():
            return True
        self._budget.check()
        return False

    @property
    def spent_steps(self) -> int:
        """Training steps of all trials, up to their last measurement."""
        return self._budget.steps

    @property
    def work(self) -> Work:
        """What all trials were trained on, up to their last measurement."""
        return self._budget.work

    @property
    def parked(self) -> int:
        """Trials that are paused; they may go on, or not."""
        return len(self._open.parked)

    def outlook(self) -> Outlook:
        """How far the search is, and what it may take yet."""
        to_come = self._waiting + self._new_trials
        reached, unfinished = self._budget.reached, self._open.reached()
        return outlook(self._settings, reached=reached, unfinished=unfinished, to_come=to_come)

    def counts(self) -> Mapping[TrialState, int]:
        """Number of trials by state."""
        return {**{state: self._budget.states[state] for state in TrialState}, TrialState.RUNNING: len(self._open)}

    def best(self) -> BestTrial | None:
        """The best COMPLETE trial by the metric, None if there is none yet."""
        return self._best

    # --- what executors call ----------------------------------------------------------------------------------------

    def next(self, worker: int) -> TrialSpec | None:
        """Hand a trial to a worker: interrupted ones first, then promoted, enqueued and new ones.

        None if there is nothing to hand out now; a live trial may still fail and be replaced. Raises SearchError if too
        many trials have failed, or if the sampler finds nothing that satisfies the constraints.
        """
        while (opened := self._take()) is not None:
            refusal = self._feasibility.refusal(opened.params, has_trained=opened.reached > 0)
            if not refusal:
                return self._hand_out(opened, worker)
            self._end(opened, StopReason.INFEASIBLE, error=refusal)
            self._budget.check_feasible(refusal)
        return None

    def restart(self, trial: int, worker: int) -> TrialSpec:
        """Hand a live trial out again after its worker was lost: its attempt becomes LOST, the next one opens."""
        return self._hand_out(self._open.live[trial], worker)

    def report(self, measurements: Sequence[Measurement]) -> None:
        """Store what has arrived together. Decides nothing but divergence; see `decide`.

        Measurements of trials that are not live, and steps that are stored already, are ignored. A metric that is not
        finite, or an objective outside its bounds, ends the trial as diverged and is never stored.
        """
        note(self._open.live, measurements, self._settings)
        sound, failures = screen(measurements, self._is_new, metric=self.metric, bounds=self._bounds)
        sound = sound if self._space.columns else [self._open.live[each.trial].with_examples(each) for each in sound]
        self._store.add_measurements(sound)
        for measurement in sound:
            self._record(self._open.live[measurement.trial], measurement)
        for failure in failures:
            self.fail(failure)

    def fail(self, failure: TrialFailure) -> None:
        """End a live trial that cannot go on. Diverged and out of memory are infeasible, the rest is replaced."""
        opened = self._open.live.get(failure.trial)
        if opened is not None:
            self._feasibility.learn(opened.hyper, failure.reason)
            self._budget.worked(opened.worked_until(failure))
            self._end(opened, failure.reason, detail=f"at step {failure.step}", error=failure.message)

    def decide(self, trials: Sequence[int]) -> list[Decision]:
        """Judge trials that have reported, all of them before any is ended; trials that are not live are left out.

        Parked trials that can no longer be promoted are ended too, and their decisions follow.
        """
        live = self._open.live
        judged = self._judge.decisions([live[number] for number in dict.fromkeys(trials) if number in live])
        for opened, decision in judged:
            opened.judged = opened.reached
            self._carry_out(opened, decision)
        return [*(decision for _, decision in judged), *self._give_up()]

    def interrupt(self, reason: str) -> None:
        """Leave all live trials resumable: attempts become INTERRUPTED, Optuna's rows stay RUNNING."""
        for number, opened in sorted(self._open.live.items()):
            self._store.end_attempt(number, AttemptState.INTERRUPTED, reason)
            self._open.queue(opened)

    def close(self) -> None:
        """End what will not go on, so that nothing is left in progress: parked trials, and what the budget cut off."""
        for _, opened in sorted((self._open.live | self._open.queued).items()):
            self._end(opened, StopReason.BUDGET)
        for _, opened in sorted(self._open.parked.items()):
            self._end(opened, StopReason.PRUNED, detail="still parked at the end")
        while self._waiting:
            self._end(self._ask(), StopReason.BUDGET)

    # --- opening trials ---------------------------------------------------------------------------------------------

    def _take(self) -> OpenTrial | None:
        """The next trial to hand out, out of its place of waiting."""
        opened = next((opened for _, opened in sorted(self._open.queued.items()) if self._affordable(opened)), None)
        may_create = self._may_create()
        if opened is None and (promoted := self._promotable(may_start=may_create)) is not None:
            opened = self._open.parked[promoted]
        if opened is None and not may_create:
            return None
        self._budget.check()
        return opened or self._ask()

    def _hand_out(self, opened: OpenTrial, worker: int) -> TrialSpec:
        number = opened.number
        attempt = self._store.start_attempt(number, worker=worker, run=self._run)
        opened.worker = worker
        opened.spec = spec_for(opened, self._settings, metric=self.metric, attempt=attempt.number)
        self._open.hand_out(opened)
        kind = "started" if attempt.number == 1 else "continued"
        progress = f" after step {opened.last.step}" if opened.last is not None else ""
        self._tell_observers(kind, number, f"trial {number} {kind}{progress}: {opened.in_words}")
        return opened.spec

    def _ask(self) -> OpenTrial:
        trial = self._optuna.ask()
        self._waiting = max(0, self._waiting - 1)  # Optuna hands out what is enqueued first
        self._budget.started()
        params = suggest(trial, self._space)
        return OpenTrial(trial=trial, params=params, hyper=assemble(self._space, params))

    def _may_create(self) -> bool:
        """Whether a new trial may be asked for: the budget has room and a finite space holds something untried."""
        if self._budget.trials_left(len(self._open)) <= 0 or not self._budget.affords(*self._cost(0)):
            return False
        if self._waiting:
            return True
        return not self._stopping.is_stalled(self._open.parked.keys()) and not self._stopping.is_exhausted()

    def _has_more(self) -> bool:
        return (
            any(self._affordable(opened) for opened in self._open.queued.values())
            or self._may_create()
            or self._promotable(may_start=False) is not None
        )

    def _promotable(self, *, may_start: bool) -> int | None:
        number = self._judge.promotable(self._open.parked.keys(), may_start=may_start)
        return number if number is not None and self._affordable(self._open.parked[number]) else None

    def _affordable(self, opened: OpenTrial) -> bool:
        fits = self._budget.trials_left(len(self._open.live) + 1) >= 0
        return fits and self._budget.affords(*self._cost(opened.reached))

    def _cost(self, reached: int) -> tuple[int, int]:
        """Steps a trial may still need until it ends or is parked, and those set aside: what all live trials may need,
        and, until one is complete, what it takes to finish the one that has come furthest.
        """
        goal = self._judge.horizon(reached)
        live = [opened.reached for opened in self._open.live.values()]
        horizons = [self._judge.horizon(step) for step in live]
        reserved = sum(horizons) - sum(live)
        if self._best is None:
            parked = (opened.reached for opened in self._open.parked.values())
            reserved += self._settings.steps - max((goal, *horizons, *parked))
        return goal - reached, reserved

    # --- taking values ----------------------------------------------------------------------------------------------

    def _is_new(self, measurement: Measurement) -> bool:
        opened = self._open.live.get(measurement.trial)
        return opened is not None and not opened.has_seen(measurement, self._settings)

    def _record(self, opened: OpenTrial, measurement: Measurement) -> None:
        reached, steps = opened.reached, opened.steps_of(measurement, self._settings)
        for step in steps:
            self._tell_value(opened, step, measurement.metrics[self.metric])
        self._budget.worked(opened.worked(measurement.tokens, measurement.examples))
        opened.take(measurement, steps)
        self._budget.advanced(reached, opened.reached)

    def _tell_value(self, opened: OpenTrial, step: int, value: float) -> None:
        if step in opened.seen:  # of several, a driver that was killed had told some
            return
        if self._settings.also_minimize is None:
            opened.trial.report(value, step)
        else:  # report refuses studies of two objectives (Optuna 5.0), though the tables have a place for their curves
            self._storage.set_trial_intermediate_value(opened.trial._trial_id, step, value)

    # --- deciding ---------------------------------------------------------------------------------------------------

    def _carry_out(self, opened: OpenTrial, decision: Decision) -> None:
        match decision.action:
            case Action.FINISH:
                self._end(opened, StopReason.FINISHED, detail=in_words(opened, self.metric))
            case Action.PRUNE:
                self._end(opened, StopReason.PRUNED, detail=decision.reason)
            case Action.PARK:
                self._park(opened, decision.reason)
            case Action.CONTINUE:
                pass

    def _park(self, opened: OpenTrial, reason: str) -> None:
        number = opened.number
        self._store.end_attempt(number, AttemptState.PARKED, "parked")
        self._open.park(opened)
        self._tell_observers("parked", number, f"trial {number} parked {opened.position(self.metric)}: {reason}")

    def _give_up(self) -> list[Decision]:
        """End the parked trials that can no longer be promoted: their slot files would lie there to the end."""
        decisions = [
            Decision(trial=number, action=Action.PRUNE, reason="can no longer be promoted")
            for number in self._judge.hopeless(
                self._open.parked.keys(), to_come=self._new_trials, steps_left=self._budget.steps_left
            )
        ]
        for decision in decisions:
            self._end(self._open.parked[decision.trial], StopReason.PRUNED, detail=decision.reason)
            self._discard(decision.trial)
        return decisions

    @property
    def _new_trials(self) -> int:
        """Trials that may still be created, beside those that are enqueued."""
        return 0 if self._stopping.is_over else self._room

    @property
    def _room(self) -> int:
        """Trials that may still be created or enqueued."""
        return max(0, self._budget.trials_left(len(self._open) + self._waiting))

    # --- ending trials ----------------------------------------------------------------------------------------------

    def _end(self, opened: OpenTrial, reason: StopReason, *, detail: str = "", error: str = "") -> None:
        """Everything about a trial's end, `tell` last. Can be repeated by another driver from any point."""
        number, last = opened.number, opened.last
        missed = missed_at_end(opened, reason, self._settings, self._feasibility)
        if missed is not None:
            reason, detail = StopReason.INFEASIBLE, missed.text
        state = state_of(opened, reason, self._settings, is_wanted=self._budget.trials_left(0) > 0)
        for key, value in attributes_of(opened, reason, error, self._derive).items():
            opened.trial.set_user_attr(key, value)
        for constraint, by in violations_of(reason, missed).items():
            if constraint not in opened.trial.constraints:
                opened.trial.set_constraint(constraint, by)
        final = None
        if state is TrialState.COMPLETE and last is not None:
            final = objectives_of(opened, last, self.metric, self._settings.also_minimize, self._derive)
        if last is not None and last.adapter is not None and (final or missed):
            self._retention.record(number, last.adapter, opened.worth[self.metric])
        attempt = AttemptState.FAILED if state is TrialState.FAIL else AttemptState.SUCCEEDED
        self._store.end_attempt(number, attempt, reason)
        with warnings.catch_warnings():  # CMA-ES warns that it does not steer away from what diverged
            warnings.filterwarnings("ignore", "Constraints have been set", UserWarning)
            self._optuna.tell(opened.trial, final, state=OptunaState[state])
        self._open.forget(number)
        self._budget.ended(number, state, reason, error)
        if final is not None:
            for dropped in self._rank(number, final, opened.params):
                self._retention.give_up(dropped)
        elif missed is not None:
            self._retention.give_up(number)
        parts = (f"trial {number} {reason} {opened.position(self.metric)}".rstrip(), detail, last_line(error))
        self._tell_observers(reason, number, ": ".join(filter(None, parts)))

    def _rank(self, number: int, values: Sequence[float], params: Mapping[str, Scalar]) -> list[int]:
        """Take a COMPLETE trial into the ranking; returns the trials whose adapters need not stay."""
        dropped = self._retention.rank(point(number, values, self.direction))
        if self._retention.best == number:
            self._best = BestTrial(number=number, value=values[0], params=params)
        return dropped

    def _tell_observers(self, kind: str, trial: int, text: str) -> None:
        logger.info("%s%s", self._label, text)
        self._on_event(StudyEvent(kind=str(kind), trial=trial, text=text))

    # --- opening the study ------------------------------------------------------------------------------------------

    def _adopt(self, trials: Sequence[FrozenTrial]) -> None:
        """Take over what the study holds: count what has ended, complete or queue what has not, enqueue what is new."""
        running = left_running(trials)
        self._waiting = sum(trial.state is OptunaState.WAITING for trial in trials)
        for trial in (each for each in trials if each.state.is_finished()):
            self._count(trial)
        adopted = [self._reopen(trial) for trial in running]
        for trial, (opened, decision) in zip(running, self._judge.decisions(adopted), strict=True):
            self._settle(trial, opened, decision)
        self._retention.tidy()
        self._budget.start_run()
        if running:
            numbers, queued = [trial.number for trial in running], sorted(self._open.queued)
            self._store.add_event("adopted", {"run": self._run, "trials": numbers, "queued": queued})
        self._waiting += enqueue(
            self._optuna, self._store, self._space, trials, self._settings, self._feasibility, room=self._room
        )

    def _count(self, trial: FrozenTrial) -> None:
        reason, error = trial.user_attrs.get(STOP_REASON), trial.user_attrs.get("error", "")
        self._budget.started(trial.last_step or 0, Work.of(trial.user_attrs))
        self._budget.ended(trial.number, TrialState(trial.state.name), StopReason(reason) if reason else None, error)
        if trial.state is OptunaState.COMPLETE:
            self._rank(trial.number, trial.values, trial.params)

    def _reopen(self, frozen: FrozenTrial) -> OpenTrial:
        """A RUNNING trial with all values the store has; Optuna gets those it missed."""
        opened = reopen(self._optuna, frozen, self._space)
        self._budget.started(opened.reached)
        for measurement in self._store.measurements(opened.number):
            if opened.has_seen(measurement, self._settings):
                self._budget.worked(opened.worked(measurement.tokens, measurement.examples))
                opened.last = measurement
            else:
                self._record(opened, measurement)
        opened.worker = next((each.worker for each in reversed(self._store.attempts(opened.number))), None)
        self._open.queue(opened)
        return opened

    def _settle(self, frozen: FrozenTrial, opened: OpenTrial, decision: Decision) -> None:
        """Complete what the last driver had begun with a RUNNING trial; what can go on stays queued, or parked."""
        opened.judged = opened.reached
        ending = ending_of(frozen, opened, self._space)
        if ending is not None:
            self._end(opened, ending.reason, detail=ending.detail, error=ending.error)
        elif self._judge.can_park and was_parked(self._store.attempts(opened.number)):
            self._open.park(opened)
        else:
            self._carry_out(opened, decision)
