"""Which configurations are verified and what is held against what: chosen from the search's trials alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Literal

from automl import ranking
from automl.errors import SearchError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.metric import METRICS, standard_error
from automl.results.summary import configuration_text
from automl.setup.prepare import Derivation
from automl.space.assemble import assemble, own_of_task
from automl.space.coordinate import rate_shift
from automl.space.extremes import methods_of
from automl.space.spec import SearchSpace
from automl.storage.trials import TrialRow
from automl.trial import Cut, Scalar, StopReason
from automl.verify.plan import GRID, Arm, ArmKind, Comparison
from automl.verify.ranks import cost, even_ranks, random_ranks, spent
from automl.verify.statistics import LEVEL, joint_level

Squeeze = Literal["auto", "all", "cuts", "off"]

DEFAULT = "default"
SUGGESTED, UNIFORM, RANDOM = "suggested", "uniform", "random"
EQUAL = "equal-lora"

ENOUGH = 5
"""Complete trials of about a rank from which its learning rate is taken as found; with fewer it is tuned."""
_NEAR_RANK = 1.34
"""Factor up to which two ranks are about the same."""


class Candidates:
    """The complete trials of a search and what they cost.

    space: as the search saw it. rows: validation rows that one evaluation of the search has used. final_ranks: by
    trial and module, those at its end; a module that is not named has no rank.
    """

    def __init__(
        self,
        trials: Sequence[TrialRow],
        space: SearchSpace,
        derive: Derivation,
        *,
        metric: str,
        rows: int,
        final_ranks: Mapping[int, Mapping[str, int]] = MappingProxyType({}),
    ) -> None:
        """Raises SearchError if no trial is complete."""
        self._space = space
        self._derive = derive
        self._name = metric
        self._metric = METRICS[metric]
        self._rows = rows
        self._final_ranks = final_ranks
        self._all = ranking.ranked(trials, self._metric.direction)
        self._ranked = ranking.complete(trials, self._metric.direction)
        if not self._ranked:
            raise SearchError("no trial is complete, so there is nothing to verify")

    @property
    def best_value(self) -> float:
        """Validation value of the best trial."""
        return self._ranked[0].value or 0.0

    def finalists(self, count: int) -> list[Arm]:
        """The best trials, at most `count`, no configuration twice; the best one first."""
        arms: list[Arm] = []
        for trial in self._ranked:
            arm = self._arm(trial, "finalist")
            if len(arms) < count and all(arm.hyper != other.hyper for other in arms):
                arms.append(arm)
        return arms

    def of_methods(self) -> list[Arm]:
        """The best trial of each method, best first, each at a choice of learning rates; none if there is one method.

        Of a method of which none was complete, the one that was best when it was stopped.
        """
        if len(methods_of(self._space)) < 2:
            return []
        found: dict[str, Arm] = {}
        for trial in filter(_was_measured, self._all):
            arm = self._arm(trial, "method")
            found.setdefault(arm.hyper.method, replace(arm, learning_rates=_around(arm.hyper.learning_rate)))
        return list(found.values()) if len(found) > 1 else []

    def default(self) -> Arm:
        """What one would train without any search."""
        hyper = Hyperparameters(own=own_of_task(self._space, self._space.fixed))
        params: dict[str, Scalar] = {
            name: getattr(hyper, name) for name in ("rank", "alpha", "dropout", "target", "learning_rate")
        }
        return Arm(
            name=DEFAULT,
            title=f"default configuration: {configuration_text(params)}",
            kind="default",
            trial=None,
            params=params,
            hyper=hyper,
            trainable_params=self._parameters(hyper),
            learning_rates=(hyper.learning_rate,),
        )

    def smallest(self) -> Arm | None:
        """The trial with the fewest parameters within noise of the best; None if that is the best itself."""
        bound = standard_error(self._name, self.best_value, self._rows)
        near = [self._arm(trial, "smallest") for trial in self._ranked if self._is_within(trial, bound)]
        found = min(near, key=lambda arm: arm.trainable_params)  # the better one of equals
        best = self._arm(self._ranked[0], "finalist")
        return found if found.trainable_params < best.trainable_params else None

    def lower_ranks(self, ranks: Iterable[int]) -> list[Arm]:
        """The best trial at each of these ranks that is below its own; none if not LoRA.

        Alpha follows the rank where the space gives it as a ratio, and stays where it does not, as in the search. Each
        at a learning rate of its own: that of the best of ENOUGH complete trials of about the rank, or else chosen
        around the trial's. Either is moved as `rate_shift` says: low ranks want higher rates if alpha follows the rank.
        """
        winner = self._arm(self._ranked[0], "lower")
        if not METHODS[winner.hyper.method].takes_pattern:
            return []
        return [self._at_rank(winner, rank) for rank in sorted(set(ranks)) if 1 <= rank < winner.hyper.rank]

    def pattern_arms(self, ranks: Mapping[str, int], *, seed: int) -> list[Arm]:
        """The best LoRA trial of these modules with suggested, with even and with random ranks.

        All have equal parameters and equal alpha / rank. Every arm gets the same choice of learning rates, since a
        pattern may want another one than the trial's. Raises SearchError if no complete trial has these modules.
        """
        winner = self._with_modules(set(ranks))
        layers = self._derive.layers(winner.hyper.target)
        budget = spent(layers, ranks)
        even = even_ranks(layers, budget)
        mean = budget / sum(map(cost, layers))
        low = min(min(even.values()), max(1, math.floor(mean / 2)))
        drawn = random_ranks(layers, budget, seed=seed, low=low, high=max(math.ceil(4 * mean), max(ranks.values())))
        patterns: tuple[tuple[ArmKind, str, Mapping[str, int]], ...] = (
            ("suggested", "suggested ranks", ranks),
            ("uniform", "even ranks", even),
            ("random", "random ranks", drawn),
        )
        rates = _around(winner.hyper.learning_rate)
        return [self._patterned(winner, kind, title, pattern, rates) for kind, title, pattern in patterns]

    def equal_lora(self, arms: Sequence[Arm]) -> Arm | None:
        """LoRA with the parameters that the first trial among `arms` ended with that finds its ranks; None without.

        They are spread evenly. AdaLoRA's budget counts ranks, whatever they cost, so the same `rank` is no comparison.
        """
        for arm in arms:
            layers = self._derive.layers(arm.hyper.target)
            kept = self._final_ranks.get(arm.trial, {}) if arm.trial is not None else {}
            budget = spent(layers, {layer.path: kept.get(layer.path, 0) for layer in layers})
            if _finds_ranks(arm) and budget >= sum(map(cost, layers)):
                own = own_of_task(self._space, arm.hyper.settings)
                base = replace(arm, hyper=replace(arm.hyper, method=Hyperparameters().method, own=own))
                rates = _around(arm.hyper.learning_rate)
                title = "as LoRA, even ranks, equal parameters"
                return replace(
                    self._patterned(base, "equal", title, even_ranks(layers, budget), rates),
                    name=EQUAL,
                    title=f"trial {arm.trial} {title}",
                )
        return None

    def cuts(self, parameters: int) -> list[Arm]:
        """The best trial's adapter, cut globally to so many parameters, and evenly where that is at least rank 1.

        Their hyperparameters are the trial's at the even rank of that size. None if it is not LoRA, or not smaller.
        """
        winner = self._arm(self._ranked[0], "squeezed")
        layers = self._derive.layers(winner.hyper.target)
        costs = sum(map(cost, layers))
        whole = spent(layers, {layer.path: winner.hyper.rank_of(layer.path) for layer in layers})
        if not METHODS[winner.hyper.method].takes_pattern or parameters >= whole:
            return []
        even = parameters // costs
        sizes: list[tuple[ArmKind, int]] = [("squeezed", parameters)]
        if even:
            sizes.append(("even-cut", even * costs))
        return [self._cut(winner, kind, size, max(1, even), whole) for kind, size in sizes]

    def _cut(self, winner: Arm, kind: ArmKind, size: int, rank: int, whole: int) -> Arm:
        how = "globally" if kind == "squeezed" else f"evenly, rank {rank}"
        return replace(
            winner,
            name=kind,
            title=f"trial {winner.trial} cut {how}",
            kind=kind,
            trainable_params=winner.trainable_params - whole + size,
            hyper=replace(winner.hyper, rank=rank, alpha=winner.hyper.alpha / winner.hyper.rank * rank),
            cut=Cut(kind, size, even=kind == "even-cut"),
        )

    def _at_rank(self, winner: Arm, rank: int) -> Arm:
        follows = "alpha_ratio" in {**self._space.fixed, **winner.params}
        alpha = winner.hyper.alpha / winner.hyper.rank * rank if follows else winner.hyper.alpha
        hyper = replace(winner.hyper, rank=rank, alpha=alpha, rank_pattern=())
        known = self._rate_at(hyper)
        base = hyper.learning_rate * rate_shift(winner.hyper, hyper) if known is None else known
        return replace(
            winner,
            name=f"rank-{rank}",
            title=f"rank {rank} at its own rate, else as trial {winner.trial}",
            params={**winner.params, "rank": rank},
            hyper=replace(hyper, learning_rate=base),
            trainable_params=self._parameters(hyper),
            learning_rates=_around(base) if known is None else (base,),
        )

    def _rate_at(self, wanted: Hyperparameters) -> float | None:
        """Learning rate for this rank by the search's own trials; None if there are too few of about that rank."""
        hypers = [assemble(self._space, trial.params) for trial in self._ranked]  # the best first
        near = [
            hyper
            for hyper in hypers
            if METHODS[hyper.method].takes_pattern
            and hyper.target == wanted.target
            and max(hyper.rank / wanted.rank, wanted.rank / hyper.rank) <= _NEAR_RANK
        ]
        return near[0].learning_rate * rate_shift(near[0], wanted) if len(near) >= ENOUGH else None

    def _with_modules(self, modules: set[str]) -> Arm:
        for trial in self._ranked:
            arm = self._arm(trial, "finalist")
            paths = {layer.path for layer in self._derive.layers(arm.hyper.target)}
            if METHODS[arm.hyper.method].takes_pattern and paths == modules:
                return arm
        raise SearchError(f"ranks for {len(modules)} modules are suggested, but no complete trial has adapted these")

    def _patterned(
        self, winner: Arm, kind: ArmKind, title: str, ranks: Mapping[str, int], rates: tuple[float, ...]
    ) -> Arm:
        hyper = winner.hyper.with_ranks(ranks)
        return replace(
            winner,
            name=kind,
            title=f"trial {winner.trial} with {title}",
            kind=kind,
            hyper=hyper,
            trainable_params=self._parameters(hyper),
            learning_rates=rates,
        )

    def _arm(self, trial: TrialRow, kind: ArmKind) -> Arm:
        hyper = assemble(self._space, trial.params)
        return Arm(
            name=f"trial-{trial.number}",
            title=f"trial {trial.number}: {configuration_text(trial.params, trial.trained_rate)}",
            kind=kind,
            trial=trial.number,
            params=dict(trial.params),
            hyper=hyper,
            trainable_params=self._parameters(hyper) + self._shift(trial.number, hyper),
            learning_rates=(hyper.learning_rate,),
            steps=None if trial.checkpoint is None else trial.checkpoint.step,
        )

    def _shift(self, trial: int, hyper: Hyperparameters) -> int:
        """By how many parameters the ranks that a method has found differ from `rank` everywhere."""
        kept = self._final_ranks.get(trial)
        if not METHODS[hyper.method].finds_ranks or kept is None:
            return 0
        layers = self._derive.layers(hyper.target)
        return sum((kept.get(layer.path, 0) - hyper.rank) * cost(layer) for layer in layers)

    def _is_within(self, trial: TrialRow, bound: float) -> bool:
        return trial.value is not None and abs(trial.value - self.best_value) <= bound

    def _parameters(self, hyper: Hyperparameters) -> int:
        return int(self._derive(hyper)["trainable_params"])


def choose_arms(
    candidates: Candidates,
    *,
    finalists: int,
    squeeze: Squeeze = "off",
    knee: int | None = None,
    suggested: Mapping[str, int] | None = None,
    seed: int = 0,
    methods: bool = True,
) -> list[Arm]:
    """All arms of a verification; the first is the search's best trial. No configuration is there under two names.

    finalists: number of the best trials; where several methods were searched the best of each comes first, however many
    these are. methods: False: as versions had it that did not compare methods. squeeze: which smaller adapters the
    winner is held against. knee: parameters of the low-rank matrices that its adapter is cut to; None: it is not cut.
    suggested: ranks by module for the winner's target set. seed: for the random allocation.
    """
    arms = candidates.of_methods() if methods else []
    further = [arm for arm in candidates.finalists(finalists) if _is_new(arm, arms)]
    arms += further[: max(0, finalists - len(arms))]
    arms += [arm for arm in (candidates.default(),) if _is_new(arm, arms)]
    arms += [arm for arm in (candidates.smallest(),) if arm is not None and _is_new(arm, arms)]
    cuts = candidates.cuts(knee) if squeeze != "off" and knee is not None else []
    even = next((arm.hyper.rank for arm in cuts), None)
    arms += candidates.lower_ranks(lower_ranks(arms[0].hyper.rank, squeeze, even)) + cuts
    if (equal := candidates.equal_lora(arms)) is not None:
        arms.append(equal)
    if suggested is not None:
        arms += candidates.pattern_arms(suggested, seed=seed)
    return arms


def _is_new(arm: Arm, arms: Sequence[Arm]) -> bool:
    return all(arm.hyper != other.hyper for other in arms)


def lower_ranks(rank: int, squeeze: Squeeze, even: int | None = None) -> list[int]:
    """Ranks below this one that the winner is trained at too: a quarter, and if all are wanted a half.

    even: rank that costs what the winner's adapter is cut to: it takes the place of a quarter if it is between an
    eighth and a half, so that what is cut is held against what is trained at that size; if all are wanted it is there
    anyway.
    """
    quarter = max(1, rank // 4)
    if squeeze in ("off", "cuts"):
        return []
    if squeeze == "all":
        return sorted({quarter, max(1, rank // 2), *([] if even is None else [even])})
    return [even if even is not None and rank <= 8 * even <= 4 * rank else quarter]


def choose_comparisons(arms: Sequence[Arm], *, claims: int = 1) -> list[Comparison]:
    """What is tested, named before any training: six questions, each with a false-alarm rate of 5 %.

    Is the search's best trial better than the default, and than the other finalists? Those comparisons hold jointly.
    Is each other method better than LoRA (without it, than the winner's)? They hold jointly.
    Is the suggested pattern better than even ranks *and* than random ones? Both must hold, so each is tested in full.
    Is a method that finds its ranks better than LoRA with as many parameters?
    Are lower ranks at rates of their own not worse than the winner? They hold jointly.
    Is the winner's adapter, cut globally, not worse than the whole, better than cut evenly, and how does it stand
    against what is trained at that size? They hold jointly.

    claims: see `Plan.claims`; each has an equal part of the false alarms (Bonferroni).
    """
    found = [
        *_of_winner(arms),
        *_of_methods(arms),
        *_of_rank(arms),
        *_of_cut(arms),
        *_of_equal(arms),
        *_of_pattern(arms),
    ]
    return [replace(each, level=1.0 - (1.0 - each.level) / claims) for each in found] if claims > 1 else found


def _of_winner(arms: Sequence[Arm]) -> Iterator[Comparison]:
    winner = arms[0].name
    others = [arm for arm in arms[1:] if arm.kind in ("finalist", "default", "smallest")]
    level = joint_level(len(others))
    for arm in others:
        if arm.kind == "default":
            yield Comparison(arm=winner, against=arm.name, level=level)
        else:
            yield Comparison(arm=arm.name, against=winner, level=level)


def reference_of(arms: Sequence[Arm]) -> Arm | None:
    """The method that the others are held against: LoRA, or else the winner's; None where there is one method."""
    methods = [arm for arm in arms if arm.kind == "method"]
    usual = Hyperparameters().method
    return next((arm for arm in methods if arm.hyper.method == usual), methods[0] if methods else None)


def _of_methods(arms: Sequence[Arm]) -> Iterator[Comparison]:
    reference = reference_of(arms)
    others = [arm for arm in arms if arm.kind == "method" and arm is not reference]
    for arm in others:
        assert reference is not None
        yield Comparison(arm=arm.name, against=reference.name, level=joint_level(len(others)))


def _of_rank(arms: Sequence[Arm]) -> Iterator[Comparison]:
    lower = [arm for arm in arms if arm.kind == "lower"]
    for arm in lower:
        yield Comparison(arm=arm.name, against=arms[0].name, level=joint_level(len(lower)))


def _of_cut(arms: Sequence[Arm]) -> Iterator[Comparison]:
    cut = next((arm for arm in arms if arm.kind == "squeezed"), None)
    if cut is None:
        return
    rank = cut.hyper.rank
    others = [arm for arm in arms if arm.kind == "even-cut" or (arm.kind == "lower" and arm.hyper.rank == rank)]
    for against in (arms[0], *others):
        yield Comparison(arm=cut.name, against=against.name, level=joint_level(1 + len(others)))


def _of_equal(arms: Sequence[Arm]) -> Iterator[Comparison]:
    for equal in (arm for arm in arms if arm.kind == "equal"):
        adaptive = next(arm for arm in arms if arm.trial == equal.trial and _finds_ranks(arm))
        yield Comparison(arm=adaptive.name, against=equal.name, level=LEVEL)


def _around(rate: float) -> tuple[float, ...]:
    return tuple(factor * rate for factor in GRID)


def _was_measured(trial: TrialRow) -> bool:
    """Whether it has a value that is the configuration's own."""
    return trial.value is not None and trial.stop_reason not in (StopReason.DIVERGED, StopReason.OOM)


def _finds_ranks(arm: Arm) -> bool:
    return METHODS[arm.hyper.method].finds_ranks


def _of_pattern(arms: Sequence[Arm]) -> Iterator[Comparison]:
    if any(arm.kind == "suggested" for arm in arms):
        for other in (UNIFORM, RANDOM):
            yield Comparison(arm=SUGGESTED, against=other, level=LEVEL)
