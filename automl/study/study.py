"""The only decider: proposes trials, takes their values, decides what becomes of them, and tells Optuna.

Executors and trainers know nothing of Optuna. Everything durable is in SQL, and every write is ordered so that a driver
killed between two of them leaves a state the next one can complete (docs/adr/0003-cohort-decisions.md):
measurements before Optuna's intermediate values; attributes, constraint, artifact and attempt before `tell`.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import NopPruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial
from optuna.trial import TrialState as OptunaState

from automl.errors import ConfigError, Problem
from automl.lora import Hyperparameters
from automl.metric import METRICS, Direction
from automl.ranking import point
from automl.space.assemble import active_parameters, assemble
from automl.space.satisfiable import Derive
from automl.space.spec import SearchSettings, SearchSpace
from automl.storage.base import AttemptState, ResultStore
from automl.storage.optuna_cache import CachedStorage
from automl.study.budget import Budget, last_line
from automl.study.continuing import OURS, refuse_unfit
from automl.study.distributions import suggest
from automl.study.enqueueing import WARM_START, lent, missing
from automl.study.feasibility import Feasibility
from automl.study.outcome import CONSTRAINT_OF, STATE_OF, STOP_REASON, BestTrial, StudyEvent, exhausted_text
from automl.study.outlook import Outlook, outlook
from automl.study.parking import ParkingPruner
from automl.study.peer import PeerPruner, Verdict
from automl.study.pruning import make_pruner
from automl.study.retention import ADAPTER, Retention
from automl.study.sampling import configurations_of, make_sampler, view_for
from automl.study.screening import screen
from automl.study.seeding import data_seed, trial_seed
from automl.study.shown import ShownTrials
from automl.study.stopping import Stall
from automl.trial import Action, Decision, Measurement, Scalar, StopReason, TrialFailure, TrialSpec, TrialState

__all__ = ["BestTrial", "Study", "StudyEvent"]

logger = logging.getLogger(__name__)

_ERROR_CHARACTERS = 4000
_ENQUEUED = "enqueued"

STALLED = "stalled"
"""Event: `search.patience` was exhausted."""
EXHAUSTED = "exhausted"
"""Event: every configuration of a finite space has been tried."""


@dataclass(slots=True, kw_only=True)
class _Open:
    """A trial that is RUNNING in Optuna.

    seen: steps whose values are stored. reached: the last of them, 0 if there is none. last: its newest measurement.
    judged: the step it was last decided on.
    """

    trial: optuna.Trial
    params: Mapping[str, Scalar]
    hyper: Hyperparameters
    seen: set[int] = field(default_factory=set)
    reached: int = 0
    last: Measurement | None = None
    judged: int = 0
    worker: int | None = None
    spec: TrialSpec | None = None

    @property
    def number(self) -> int:
        return self.trial.number


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
    ) -> None:
        """Create the study or open it, and settle or queue what an earlier driver left RUNNING.

        storage: Optuna's; store: the rest of the same database. space: resolved, without `auto` ranges. metric: name of
        the objective; direction and bounds (closed) default to those of `automl.metric.METRICS`. run: number of this
        run of the study, from 1. derive: quantities that constraints may use, such as trainable_params; stored with
        the trial. retire: called with a trial whose adapter may be deleted, perhaps again after a crash. discard:
        called with a parked trial that has ended: its slot files may be deleted. digest: (sha256, bytes) of an adapter
        folder.

        Raises ConfigError for unusable search settings, SpaceChangedError if the stored trials do not fit the space.
        """
        known = METRICS.get(metric)
        if known is None and (direction is None or bounds is None):
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
        self._names = tuple(parameter.name for parameter in space.parameters)
        self._feasibility = Feasibility(space, derive)
        self._budget = Budget(settings)
        self._live: dict[int, _Open] = {}
        self._queued: dict[int, _Open] = {}
        self._parked: dict[int, _Open] = {}
        self._reached: Counter[int] = Counter()  # of all trials that were started
        self._waiting = 0
        self._exhausted = False
        self._is_stalled = any(
            kind == STALLED and detail.get("patience") == settings.patience for _, kind, detail in store.events()
        )
        self._best: BestTrial | None = None
        self._sampler = make_sampler(settings, space, self._feasibility, run=run)
        self._configurations = configurations_of(self._sampler)
        self._pruner = make_pruner(settings)
        self._parking = self._pruner if isinstance(self._pruner, ParkingPruner) else None
        self._directions = [self.direction] if settings.also_minimize is None else [self.direction, "minimize"]
        view = view_for(settings, self._parked.keys, can_park=self._parking is not None)
        self._objectives = [self.metric, *filter(None, [settings.also_minimize])]
        refuse_unfit(self._storage, name, space=space, objectives=self._objectives, directions=self._directions)
        self._optuna = optuna.create_study(
            study_name=name,
            storage=self._storage,
            sampler=self._sampler if view is None else ShownTrials(self._sampler, view),
            pruner=self._pruner,
            directions=self._directions,
            load_if_exists=True,
        )
        patience = settings.patience
        self._stall = None if patience is None else Stall(self._optuna.directions, patience)
        self._describe(space_sha256)
        self._adopt(self._optuna.get_trials(deepcopy=False))

    # --- what others read -------------------------------------------------------------------------------------------

    @property
    def optuna(self) -> optuna.Study:
        """The Optuna study itself, for reading."""
        return self._optuna

    @property
    def live(self) -> Mapping[int, TrialSpec]:
        """Trials that are with a worker, by number."""
        return {number: opened.spec for number, opened in self._live.items() if opened.spec is not None}

    @property
    def in_progress(self) -> set[int]:
        """Trials that may still go on: with a worker, interrupted or parked."""
        return {*self._live, *self._queued, *self._parked}

    @property
    def latest(self) -> Mapping[int, Measurement]:
        """Newest measurement of each live trial that has one, by number."""
        return {number: opened.last for number, opened in self._live.items() if opened.last is not None}

    @property
    def finished(self) -> bool:
        """Whether nothing is running and nothing will be handed out any more. Raises SearchError as `next` does."""
        if self._live:
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
    def parked(self) -> int:
        """Trials that are paused; they may go on, or not."""
        return len(self._parked)

    def outlook(self) -> Outlook:
        """How far the search is, and what it may take yet."""
        unfinished = Counter(
            opened.reached for place in (self._live, self._queued, self._parked) for opened in place.values()
        )
        to_come = self._waiting + self._new_trials
        return outlook(self._settings, reached=self._reached, unfinished=unfinished, to_come=to_come)

    def counts(self) -> Mapping[TrialState, int]:
        """Number of trials by state."""
        return {**{state: self._budget.states[state] for state in TrialState}, TrialState.RUNNING: self._in_progress}

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
            violated = self._feasibility.violated(opened.params)
            if violated is None:
                return self._hand_out(opened, worker)
            self._end(opened, StopReason.INFEASIBLE, detail=f"violates {violated.expression!r}")
            self._budget.check_feasible(violated.expression)
        return None

    def restart(self, trial: int, worker: int) -> TrialSpec:
        """Hand a live trial out again after its worker was lost: its attempt becomes LOST, the next one opens."""
        return self._hand_out(self._live[trial], worker)

    def report(self, measurements: Sequence[Measurement]) -> None:
        """Store what has arrived together. Decides nothing but divergence; see `decide`.

        Measurements of trials that are not live, and steps that are stored already, are ignored. A metric that is not
        finite, or an objective outside its bounds, ends the trial as diverged and is never stored.
        """
        sound, failures = screen(measurements, self._is_new, metric=self.metric, bounds=self._bounds)
        self._store.add_measurements(sound)
        for measurement in sound:
            self._record(self._live[measurement.trial], measurement)
        for failure in failures:
            self.fail(failure)

    def fail(self, failure: TrialFailure) -> None:
        """End a live trial that cannot go on. Diverged and out of memory are infeasible, the rest is replaced."""
        opened = self._live.get(failure.trial)
        if opened is not None:
            self._end(opened, failure.reason, detail=f"at step {failure.step}", error=failure.message)

    def decide(self, trials: Sequence[int]) -> list[Decision]:
        """Judge trials that have reported, all of them before any is ended; trials that are not live are left out.

        Parked trials that can no longer be promoted are ended too, and their decisions follow.
        """
        reported = [self._live[number] for number in dict.fromkeys(trials) if number in self._live]
        judged = self._judge_all(reported)
        for opened, decision in judged:
            opened.judged = opened.reached
            self._carry_out(opened, decision)
        return [*(decision for _, decision in judged), *self._give_up()]

    def interrupt(self, reason: str) -> None:
        """Leave all live trials resumable: attempts become INTERRUPTED, Optuna's rows stay RUNNING."""
        for number in sorted(self._live):
            self._store.end_attempt(number, AttemptState.INTERRUPTED, reason)
            self._queued[number] = self._live.pop(number)

    def close(self) -> None:
        """End what will not go on, so that nothing is left in progress: parked trials, and what the budget cut off."""
        for opened in sorted((*self._live.values(), *self._queued.values()), key=lambda opened: opened.number):
            self._end(opened, StopReason.BUDGET)
        for _, opened in sorted(self._parked.items()):
            self._end(opened, StopReason.PRUNED, detail="still parked at the end")
        while self._waiting:
            self._end(self._ask(), StopReason.BUDGET)

    # --- opening trials ---------------------------------------------------------------------------------------------

    def _take(self) -> _Open | None:
        """The next trial to hand out, out of its place of waiting."""
        opened = next((opened for _, opened in sorted(self._queued.items()) if self._affordable(opened)), None)
        may_create = self._may_create()
        if opened is None and (promoted := self._promotable(may_start=may_create)) is not None:
            opened = self._parked[promoted]
        if opened is None and not may_create:
            return None
        self._budget.check()
        return opened or self._ask()

    def _hand_out(self, opened: _Open, worker: int) -> TrialSpec:
        number = opened.number
        attempt = self._store.start_attempt(number, worker=worker, run=self._run)
        opened.worker = worker
        opened.spec = TrialSpec(
            number=number,
            params=opened.params,
            hyper=opened.hyper,
            seed=trial_seed(self._settings.seed, number),
            data_seed=data_seed(self._settings.seed),
            steps=self._settings.steps,
            evaluate_every=self._settings.evaluate_every,
            evaluations=self._settings.evaluations or (),
            attempt=attempt.number,
        )
        self._forget(number)
        self._live[number] = opened
        kind = "started" if attempt.number == 1 else "continued"
        progress = f" after step {opened.reached}" if opened.reached else ""
        self._tell_observers(kind, number, f"trial {number} {kind}{progress}: {_in_words(opened.params)}")
        return opened.spec

    def _ask(self) -> _Open:
        trial = self._optuna.ask()
        self._waiting = max(0, self._waiting - 1)  # Optuna hands out what is enqueued first
        self._reached.update([0])
        params = suggest(trial, self._space)
        return _Open(trial=trial, params=params, hyper=assemble(self._space, params))

    def _may_create(self) -> bool:
        """Whether a new trial may be asked for: the budget has room and a finite space holds something untried."""
        if self._budget.trials_left(self._in_progress) <= 0 or not self._budget.affords(*self._cost(0)):
            return False
        if not self._waiting and self._has_stalled():
            return False
        return bool(self._waiting) or not self._is_exhausted()

    def _is_exhausted(self) -> bool:
        """Whether every configuration of a finite space has had its trial; once so, it stays so."""
        known = self._configurations
        if known is None or self._exhausted or not known.are_exhausted(self._optuna):
            return self._exhausted
        self._exhausted = True
        count = len(known.feasible)
        self._store.add_event(EXHAUSTED, {"configurations": count, "run": self._run})
        logger.info("no new trials: %s", exhausted_text(count))
        return True

    def _has_stalled(self) -> bool:
        """Whether nothing better is to be expected; once said, it stays so, whatever the last promotions bring."""
        if self._stall is None or self._is_stalled:
            return self._is_stalled
        self._is_stalled = self._stall.has_come(self._optuna.get_trials(deepcopy=False), self._parked.keys())
        if self._is_stalled:
            patience = self._settings.patience
            self._store.add_event(STALLED, {"patience": patience, "run": self._run})
            logger.info("no new trials: the last %d brought nothing better (search.patience)", patience)
        return self._is_stalled

    def _has_more(self) -> bool:
        return (
            any(self._affordable(opened) for opened in self._queued.values())
            or self._may_create()
            or self._promotable(may_start=False) is not None
        )

    def _promotable(self, *, may_start: bool) -> int | None:
        if not self._parked or self._parking is None:
            return None
        trials = self._optuna.get_trials(deepcopy=False)
        number = self._parking.promote(
            trials, self._parked.keys(), direction=self._optuna.direction, may_start=may_start
        )
        return number if number is not None and self._affordable(self._parked[number]) else None

    def _affordable(self, opened: _Open) -> bool:
        fits = self._budget.trials_left(len(self._live) + 1) >= 0
        return fits and self._budget.affords(*self._cost(opened.reached))

    def _cost(self, reached: int) -> tuple[int, int]:
        """Steps a trial may still need until it ends or is parked, and those set aside: what all live trials may need,
        and, until one is complete, what it takes to finish the one that has come furthest.
        """
        goal = self._horizon(reached)
        reserved = sum(self._horizon(opened.reached) - opened.reached for opened in self._live.values())
        if self._best is None:
            parked = (opened.reached for opened in self._parked.values())
            reserved += self._settings.steps - max(
                (goal, *(self._horizon(o.reached) for o in self._live.values()), *parked)
            )
        return goal - reached, reserved

    def _horizon(self, reached: int) -> int:
        return self._settings.steps if self._parking is None else self._parking.horizon(reached)

    @property
    def _in_progress(self) -> int:
        return len(self._live) + len(self._queued) + len(self._parked)

    def _forget(self, number: int) -> None:
        for place in (self._live, self._queued, self._parked):
            place.pop(number, None)

    # --- taking values ----------------------------------------------------------------------------------------------

    def _is_new(self, measurement: Measurement) -> bool:
        opened = self._live.get(measurement.trial)
        return opened is not None and measurement.step not in opened.seen

    def _record(self, opened: _Open, measurement: Measurement) -> None:
        reached = opened.reached
        step, value = measurement.step, measurement.metrics[self.metric]
        if self._settings.also_minimize is None:
            opened.trial.report(value, step)
        else:  # report refuses studies of two objectives (Optuna 5.0), though the tables have a place for their curves
            self._storage.set_trial_intermediate_value(opened.trial._trial_id, step, value)
        opened.seen.add(step)
        if step > reached:
            opened.reached, opened.last = step, measurement
            self._reached.subtract([reached])
            self._reached.update([step])
            self._budget.steps += step - reached

    # --- deciding ---------------------------------------------------------------------------------------------------

    def _judge_all(self, reported: Sequence[_Open]) -> list[tuple[_Open, Decision]]:
        """Decisions on one state of the study: all trials are read once, and only if the peer pruner has to compare."""
        peers: Sequence[FrozenTrial] = ()
        if isinstance(self._pruner, PeerPruner) and any(self._pruner.is_rung(opened.reached) for opened in reported):
            peers = self._optuna.get_trials(deepcopy=False)
        return [(opened, self._judge(opened, peers)) for opened in reported]

    def _judge(self, opened: _Open, peers: Sequence[FrozenTrial]) -> Decision:
        number, step = opened.number, opened.reached
        if step >= self._settings.steps:
            return Decision(trial=number, action=Action.FINISH, reason=f"reached step {step}")
        if step == opened.judged:  # a worker that reopens a trial sends what was decided on long ago
            return Decision(trial=number, action=Action.CONTINUE, reason=f"nothing new since step {step}")
        if self._parking is not None:
            return self._parking.decide(self._storage.get_trial(opened.trial._trial_id))
        if isinstance(self._pruner, PeerPruner) and self._pruner.is_rung(step):
            verdict = self._pruner.judge(peers[number], peers, self._optuna.direction)
        elif isinstance(self._pruner, NopPruner):  # not asked: should_prune refuses studies of two objectives
            verdict = Verdict(False, "none pruner")
        else:
            verdict = Verdict(opened.trial.should_prune(), f"{self._settings.pruner} pruner")
        action = Action.PRUNE if verdict.prune else Action.CONTINUE
        return Decision(trial=number, action=action, reason=verdict.reason)

    def _carry_out(self, opened: _Open, decision: Decision) -> None:
        match decision.action:
            case Action.FINISH:
                self._end(opened, StopReason.FINISHED)
            case Action.PRUNE:
                self._end(opened, StopReason.PRUNED, detail=decision.reason)
            case Action.PARK:
                self._park(opened, decision.reason)
            case Action.CONTINUE:
                pass

    def _park(self, opened: _Open, reason: str) -> None:
        number = opened.number
        self._store.end_attempt(number, AttemptState.PARKED, "parked")
        self._forget(number)
        self._parked[number] = opened
        self._tell_observers("parked", number, f"trial {number} parked {self._position(opened)}: {reason}")

    def _give_up(self) -> list[Decision]:
        """End the parked trials that can no longer be promoted: their slot files would lie there to the end."""
        decisions = [
            Decision(trial=number, action=Action.PRUNE, reason="can no longer be promoted")
            for number in self._hopeless()
        ]
        for decision in decisions:
            self._end(self._parked[decision.trial], StopReason.PRUNED, detail=decision.reason)
            self._discard(decision.trial)
        return decisions

    def _hopeless(self) -> list[int]:
        if not self._parked or self._parking is None:
            return []
        return self._parking.hopeless(
            self._optuna.get_trials(deepcopy=False),
            self._parked.keys(),
            direction=self._optuna.direction,
            to_come=self._new_trials,
            steps_left=self._budget.steps_left,
        )

    @property
    def _new_trials(self) -> int:
        """Trials that may still be created, beside those that are enqueued."""
        return 0 if self._is_stalled or self._exhausted else self._room

    # --- ending trials ----------------------------------------------------------------------------------------------

    def _end(self, opened: _Open, reason: StopReason, *, detail: str = "", error: str = "") -> None:
        """Everything about a trial's end, `tell` last. Can be repeated by another driver from any point."""
        number, last = opened.number, opened.last
        state = self._state_for(opened, reason)
        for key, value in self._attributes(opened, reason, error).items():
            opened.trial.set_user_attr(key, value)
        constraint = CONSTRAINT_OF.get(reason)
        if constraint is not None and constraint not in opened.trial.constraints:
            opened.trial.set_constraint(constraint, 1.0)
        final = self._values(opened.hyper, last) if state is TrialState.COMPLETE and last is not None else None
        if final is not None and last is not None and last.adapter is not None:
            self._retention.record(number, last.adapter, final[0])
        attempt = AttemptState.FAILED if state is TrialState.FAIL else AttemptState.SUCCEEDED
        self._store.end_attempt(number, attempt, reason)
        with warnings.catch_warnings():  # CMA-ES warns that it does not steer away from what diverged
            warnings.filterwarnings("ignore", "Constraints have been set", UserWarning)
            self._optuna.tell(opened.trial, final, state=OptunaState[state])
        self._forget(number)
        self._budget.ended(number, state, reason, error)
        if final is not None:
            for dropped in self._rank(number, final, opened.params):
                self._retention.give_up(dropped)
        text = f"trial {number} {reason} {self._position(opened)}".rstrip()
        self._tell_observers(reason, number, ": ".join(part for part in (text, detail, last_line(error)) if part))

    def _state_for(self, opened: _Open, reason: StopReason) -> TrialState:
        if reason is StopReason.BUDGET and (not opened.seen or self._budget.trials_left(0) <= 0):
            return TrialState.FAIL
        if reason is StopReason.BUDGET and self._settings.also_minimize is not None:
            return TrialState.FAIL  # TPE (Optuna 5.0) cannot rank a PRUNED trial that is feasible among two objectives
        return STATE_OF[reason]

    def _values(self, hyper: Hyperparameters, last: Measurement) -> list[float]:
        """The objectives of a trial that was trained to its end: the metric, and what is minimised beside it."""
        metric = last.metrics[self.metric]
        match self._settings.also_minimize:
            case None:
                return [metric]
            case "seconds":
                return [metric, last.seconds]
            case name:
                return [metric, float(self._derive(hyper)[name])]

    def _attributes(self, opened: _Open, reason: StopReason, error: str) -> dict[str, Any]:
        """User attributes of an ended trial, the reason last: a trial that has it is ended by whoever adopts it."""
        attributes: dict[str, Any] = {}
        if reason is not StopReason.LOST:
            attributes.update(self._derive(opened.hyper))
        if opened.last is not None:
            attributes |= {"seconds": opened.last.seconds, "tokens": opened.last.tokens}
            if opened.last.adapter is not None:
                attributes[ADAPTER] = opened.last.adapter
        if opened.worker is not None:
            attributes["worker"] = opened.worker
        if error:
            attributes["error"] = error[-_ERROR_CHARACTERS:]
        return {**attributes, STOP_REASON: str(reason)}

    def _rank(self, number: int, values: Sequence[float], params: Mapping[str, Scalar]) -> list[int]:
        """Take a COMPLETE trial into the ranking; returns the trials whose adapters need not stay."""
        dropped = self._retention.rank(point(number, values, self.direction))
        if self._retention.best == number:
            self._best = BestTrial(number=number, value=values[0], params=params)
        return dropped

    def _position(self, opened: _Open) -> str:
        if opened.last is None:
            return ""
        return f"at step {opened.last.step}, {self.metric} {opened.last.metrics[self.metric]:.4g}"

    def _tell_observers(self, kind: str, trial: int, text: str) -> None:
        logger.info("%s", text)
        self._on_event(StudyEvent(kind=str(kind), trial=trial, text=text))

    # --- opening the study ------------------------------------------------------------------------------------------

    def _describe(self, space_sha256: str) -> None:
        """Say in Optuna's tables what the study is about, where its dashboard shows it."""
        told = self._optuna.user_attrs
        about = {"objective": self.metric, "direction": self.direction, OURS: space_sha256}
        for key, value in about.items():
            if told.get(key) != value:
                self._optuna.set_user_attr(key, value)
        if self._optuna.metric_names != self._objectives:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._optuna.set_metric_names(self._objectives)

    def _adopt(self, trials: Sequence[FrozenTrial]) -> None:
        """Take over what the study holds: count what has ended, complete or queue what has not, enqueue what is new."""
        running = [trial for trial in trials if trial.state is OptunaState.RUNNING]
        self._waiting = sum(trial.state is OptunaState.WAITING for trial in trials)
        for trial in trials:
            if trial.state.is_finished():
                self._count(trial)
        adopted = [self._reopen(trial) for trial in running]
        for trial, (opened, decision) in zip(running, self._judge_all(adopted), strict=True):
            self._settle(trial, opened, decision)
        self._retention.tidy()
        self._budget.start_run()
        if running:
            detail = {"run": self._run, "trials": [trial.number for trial in running], "queued": sorted(self._queued)}
            self._store.add_event("adopted", detail)
        self._enqueue(trials)

    def _count(self, trial: FrozenTrial) -> None:
        reason = trial.user_attrs.get(STOP_REASON)
        error = trial.user_attrs.get("error", "")
        self._budget.ended(trial.number, TrialState(trial.state.name), StopReason(reason) if reason else None, error)
        self._budget.steps += trial.last_step or 0
        self._reached.update([trial.last_step or 0])
        if trial.state is OptunaState.COMPLETE:
            self._rank(trial.number, trial.values, trial.params)

    def _reopen(self, frozen: FrozenTrial) -> _Open:
        """A RUNNING trial with all values the store has; Optuna gets those it missed."""
        trial = optuna.Trial(self._optuna, frozen._trial_id)
        params: Mapping[str, Scalar] = {name: frozen.params[name] for name in self._names if name in frozen.params}
        if "fixed_params" in frozen.system_attrs:
            params = suggest(trial, self._space)  # an enqueued trial keeps its values, whenever the driver was killed
        opened = _Open(
            trial=trial,
            params=params,
            hyper=assemble(self._space, params),
            seen=set(frozen.intermediate_values),
            reached=frozen.last_step or 0,
        )
        self._budget.steps += opened.reached
        self._reached.update([opened.reached])
        for measurement in self._store.measurements(opened.number):
            if measurement.step in opened.seen:
                opened.last = measurement
            else:
                self._record(opened, measurement)
        attempts = self._store.attempts(opened.number)
        opened.worker = attempts[-1].worker if attempts else None
        self._queued[opened.number] = opened
        return opened

    def _settle(self, frozen: FrozenTrial, opened: _Open, decision: Decision) -> None:
        """Complete what the last driver had begun with a RUNNING trial; what can go on stays queued, or parked."""
        number = opened.number
        reason = frozen.user_attrs.get(STOP_REASON)
        opened.judged = opened.reached
        if reason is not None:
            self._end(opened, StopReason(reason), error=frozen.user_attrs.get("error", ""))
            return
        if any(parameter.name not in opened.params for parameter in active_parameters(self._space, opened.params)):
            self._end(opened, StopReason.LOST)
            return
        gone = [name for name in frozen.params if name not in self._names]
        if gone:
            self._end(opened, StopReason.INFEASIBLE, detail=f"{gone[0]!r} is not searched any more")
            return
        if self._parking is not None and self._was_parked(number):
            self._parked[number] = self._queued.pop(number)
        else:
            self._carry_out(opened, decision)

    def _was_parked(self, number: int) -> bool:
        attempts = self._store.attempts(number)
        return bool(attempts) and attempts[-1].state is AttemptState.PARKED

    def _enqueue(self, trials: Sequence[FrozenTrial]) -> None:
        """Enqueue the configurations the study has not got yet, never more than the budget leaves."""
        for params in missing(self._space.enqueue, trials)[: self._room]:
            self._add(params, {_ENQUEUED: True})
        earlier = self._settings.warm_start
        if earlier is not None:  # one that is enqueued anyway is not trained twice
            borrowed = lent(self._storage, self._store, earlier, self._space, trials)
            for params in missing(borrowed, self._optuna.get_trials(deepcopy=False))[: self._room]:
                self._add(params, {WARM_START: earlier})

    @property
    def _room(self) -> int:
        """Trials that may still be enqueued."""
        return max(0, self._budget.trials_left(self._in_progress + self._waiting))

    def _add(self, params: Mapping[str, Scalar], attributes: Mapping[str, Any]) -> None:
        self._optuna.enqueue_trial(dict(params), user_attrs=dict(attributes))
        self._waiting += 1


def _in_words(params: Mapping[str, Scalar]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in params.items()
    )
