"""A rank for every module of a study's winner, from the importances its trials have left in SQL; or why there is none.

A suggestion is a hypothesis. Only a verification (`automl verify`) can say whether it is better than even ranks.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

from automl import ranking
from automl.errors import NotEnoughEvidence
from automl.importance.aggregate import Aggregate, TrialEvidence, aggregate, is_eligible
from automl.importance.allocation import allocate, bounds
from automl.importance.pattern import patterned, peft_block
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.metric import METRICS
from automl.results.recorded import recorded_baseline, recorded_space, recorded_spec
from automl.space.assemble import assemble
from automl.space.entries import is_like
from automl.space.spec import SweepSpec
from automl.storage.sql import Database
from automl.storage.trials import TrialRow, list_trials
from automl.storage.verification import latest
from automl.trial import ModuleImportance

logger = logging.getLogger(__name__)

Status = Literal["not_run", "passed", "no_gain", "worse"]

ESTIMATOR = "sv_sensitivity_time_mean"
FAMILY = "gradient"
SCHEMA = "importance/1"
_LITTLE = 0.25
"""A kind of module whose share of the score is less than this part of its share of the parameters may not be needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestedModule:
    """One row of the table. share, low, high: part of the score, with a 90 % interval over trials; top_half in [0, 1].

    rank_low, rank_high: 90 % interval of the suggested rank when trials are drawn anew. effective_rank: that of the
    winner's update. rank_uniform: rank that the budget allows everywhere.
    """

    module: str
    in_features: int
    out_features: int
    cost_per_rank: int
    share: float
    low: float
    high: float
    top_half: float
    held_out: float | None
    held_out_error: float | None
    effective_rank: float
    rank_uniform: int
    rank_suggested: int
    rank_low: int
    rank_high: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """Ranks of every module of the winner's target set, and how far to believe them.

    trial: the winner, whose target set, scaling and (unless another was given) budget hold.
    ranks: by module, at least 1.
    uniform_rank: what the budget allows everywhere.
    rank, alpha: those of the whole configuration.
    scaling: alpha over rank (over its root with rsLoRA), the same in every module.
    budget_params, used_params: parameters of the low-rank matrices, without the head.
    status: by the latest verification of exactly these ranks.
    stability, least_stability: correlation between trials, mean and least.
    n_eff: effective number of trials.
    weights: by trial.
    peft: arguments of LoraConfig.
    task_type: PEFT's.
    advice: what to try about the target set, one line each.
    notes: what limits the suggestion.
    """

    study: str
    trial: int
    status: Status
    ranks: Mapping[str, int]
    uniform_rank: int
    rank: int
    alpha: float
    scaling: float
    budget_params: int
    used_params: int
    stability: float
    least_stability: float
    n_eff: float
    weights: Mapping[int, float]
    peft: Mapping[str, Any]
    task_type: str
    modules: tuple[SuggestedModule, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_verified(self) -> bool:
        """Whether a verification has found these ranks better than even and than random ones."""
        return self.status == "passed"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        document = asdict(self)
        document["verification"] = {"status": document.pop("status")}
        return {"schema": SCHEMA, "estimator": ESTIMATOR, "family": FAMILY, **document}


def suggestion_of(database: Database, study: str, *, budget: int | None = None, trial: int | None = None) -> Suggestion:
    """Suggest ranks for the best complete LoRA trial of a study, or for `trial`.

    budget: parameters of the low-rank matrices; None = as many as that trial has. Raises NotEnoughEvidence, saying
    what is missing, if the trials are too few or disagree, or if the budget leaves nothing to allocate.
    """
    found = _Trials(database, study)
    winner = found.winner(trial)
    hyper, modules = found.hyper(winner), found.importances[winner.number]
    names = [module.module for module in modules]
    together = aggregate(found.evidence(), names)
    if together is None or together.shortage:
        why = together.shortage if together else "no trial with these modules is half done and better than no training"
        raise NotEnoughEvidence(f"study {study!r}: not enough evidence for a rank suggestion: {why}")
    costs = [_cost(module) for module in modules]
    given = sum(module.rank * cost for module, cost in zip(modules, costs, strict=True)) if budget is None else budget
    ranks, ceilings, notes = _allocated(together, costs, given, study)
    low, high = _rank_intervals(together, costs, given, ranks=ranks, ceilings=ceilings)
    suggested = dict(zip(names, ranks, strict=True))
    configuration = patterned(hyper, suggested)
    assert together.stability is not None
    assert together.least_stability is not None
    return Suggestion(
        study=study,
        trial=winner.number,
        status=_status(database, study, hyper, suggested),
        ranks=suggested,
        uniform_rank=given // sum(costs),
        rank=configuration.rank,
        alpha=configuration.alpha,
        scaling=configuration.scaling,
        budget_params=given,
        used_params=sum(rank * cost for rank, cost in zip(ranks, costs, strict=True)),
        stability=together.stability,
        least_stability=together.least_stability,
        n_eff=together.n_eff,
        weights=together.weights,
        peft=peft_block(configuration, names),
        task_type="SEQ_CLS" if is_like("classification", found.spec.task.type) else "CAUSAL_LM",
        modules=tuple(
            SuggestedModule(
                module=module.module,
                in_features=module.in_features,
                out_features=module.out_features,
                cost_per_rank=cost,
                share=share.share,
                low=share.low,
                high=share.high,
                top_half=share.top_half,
                held_out=share.held_out,
                held_out_error=share.held_out_error,
                effective_rank=module.effective_rank,
                rank_uniform=given // sum(costs),
                rank_suggested=rank,
                rank_low=least,
                rank_high=most,
            )
            for module, cost, share, rank, least, most in zip(
                modules, costs, together.modules, ranks, low, high, strict=True
            )
        ),
        advice=_target_advice(together, modules),
        notes=notes,
    )


def suggested_ranks(database: Database, study: str) -> Mapping[str, int] | None:
    """Ranks by module for the study's winner; None, with a line in the log, if there is not enough evidence."""
    try:
        return suggestion_of(database, study).ranks
    except NotEnoughEvidence as reason:
        logger.info("no ranks are suggested: %s", reason)
        return None


class _Trials:
    """A study's trials with their importances, read once."""

    def __init__(self, database: Database, study: str) -> None:
        self.study = study
        self.spec: SweepSpec = recorded_spec(database, study)
        store = database.store(study)
        self.importances = database.importances(study)
        self._rows = {row.number: row for row in list_trials(database, study)}
        self._space = recorded_space(store, self.spec)
        self._baseline = recorded_baseline(store, self.spec.task.metric)
        self._metric = METRICS[self.spec.task.metric]

    def hyper(self, row: TrialRow) -> Hyperparameters:
        """The trial's whole configuration."""
        names = {parameter.name for parameter in self._space.parameters}
        return assemble(self._space, {name: value for name, value in row.params.items() if name in names})

    def winner(self, number: int | None) -> TrialRow:
        """The best complete LoRA trial, or the one asked for. Raises NotEnoughEvidence if it has no importances."""
        if number is None:
            first = ranking.best(filter(self._counts, self._rows.values()), self._metric.direction)
            if first is not None:
                return first
            raise NotEnoughEvidence(
                f"study {self.study!r}: no complete LoRA trial has importances; they are collected with"
                " search: {importance: true}, which is the default"
            )
        if number not in self._rows or not self._counts(self._rows[number]):
            raise NotEnoughEvidence(f"study {self.study!r}: trial {number} has no importances, or is no LoRA trial")
        return self._rows[number]

    def evidence(self) -> list[TrialEvidence]:
        """Trials that may speak."""
        loss = self._metric.loss
        baseline = None if self._baseline is None else loss(self._baseline)
        return [
            TrialEvidence(trial=row.number, loss=loss(row.value), importances=self.importances[row.number])
            for row in self._rows.values()
            if row.value is not None
            and self._counts(row)
            and is_eligible(self.importances[row.number], loss(row.value), baseline)
        ]

    def _counts(self, row: TrialRow) -> bool:
        return row.number in self.importances and METHODS[self.hyper(row).method].takes_pattern


def _cost(module: ModuleImportance) -> int:
    return module.in_features + module.out_features


class _Allocated(NamedTuple):
    """Ranks, the largest that each could have been, and what limits them."""

    ranks: Sequence[int]
    ceilings: Sequence[int]
    notes: tuple[str, ...]


def _allocated(together: Aggregate, costs: Sequence[int], budget: int, study: str) -> _Allocated:
    """The budget given out. Raises NotEnoughEvidence if it is rank 1 everywhere or less."""
    mean = budget / sum(costs)
    if mean < 1 or budget - sum(costs) < min(costs):
        raise NotEnoughEvidence(
            f"study {study!r}: {budget:,} parameters are rank {mean:.2g} in each of {len(costs)} modules; every one"
            f" keeps at least rank 1, so nothing is left to give out (--budget above {sum(costs):,})"
        )
    floor, ceiling = bounds(mean)
    supported = [share.has_held_out_evidence for share in together.modules]
    ceilings = [ceiling if evidence else floor for evidence in supported]
    scores = [[share.component(number) for number in range(ceiling)] for share in together.modules]
    floors = [floor] * len(costs)
    ranks = allocate(scores, costs, budget, floors=floors, ceilings=ceilings)
    against = supported.count(False)
    if not against:
        return _Allocated(ranks, ceilings, ())
    if budget - sum(rank * cost for rank, cost in zip(ranks, costs, strict=True)) >= max(costs):
        note = (
            f"held-out rows speak against {against} of {len(costs)} modules: too many to follow, so this was left aside"
        )
        ceilings = [ceiling] * len(costs)
        return _Allocated(allocate(scores, costs, budget, floors=floors, ceilings=ceilings), ceilings, (note,))
    note = f"held-out rows speak against {against} of {len(costs)} modules, which keep the least rank, {floor}"
    return _Allocated(ranks, ceilings, (note,))


def _rank_intervals(
    together: Aggregate, costs: Sequence[int], budget: int, *, ranks: Sequence[int], ceilings: Sequence[int]
) -> tuple[list[int], list[int]]:
    """5 % and 95 % quantiles of each rank over the draws of trials; what held-out rows say is not drawn anew."""
    floor, ceiling = bounds(budget / sum(costs))
    drawn: list[list[int]] = []
    for shares in together.resampled:
        moved = [replace(module, share=share) for module, share in zip(together.modules, shares, strict=True)]
        scores = [[module.component(number) for number in range(ceiling)] for module in moved]
        drawn.append(allocate(scores, costs, budget, floors=[floor] * len(costs), ceilings=ceilings))
    columns = [sorted(column) for column in zip(*drawn, strict=True)]
    last = len(drawn) - 1
    low = [min(rank, column[round(0.05 * last)]) for rank, column in zip(ranks, columns, strict=True)]
    high = [max(rank, column[round(0.95 * last)]) for rank, column in zip(ranks, columns, strict=True)]
    return low, high


def _status(database: Database, study: str, hyper: Hyperparameters, ranks: Mapping[str, int]) -> Status:
    """Status by the latest complete verification, if it was one of these ranks for this configuration."""
    verified = latest(database, study, done=True)
    if verified is None or verified.result is None:
        return "not_run"
    arms = [arm for arm in verified.result.get("arms", ()) if arm.get("kind") == "suggested"]
    if not any(dict(arm.get("rank_pattern", {})) == hyper.with_ranks(ranks).ranks for arm in arms):
        return "not_run"
    status: Status = verified.result["suggestion"]["status"]
    return status


def _target_advice(together: Aggregate, modules: Sequence[ModuleImportance]) -> tuple[str, ...]:
    """Kinds of modules with little of the score for their parameters: about the target set, not about ranks."""
    kinds: dict[str, list[int]] = {}
    for index, module in enumerate(modules):
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", module.module), []).append(index)
    total = sum(map(_cost, modules))
    lines = []
    for kind, members in kinds.items():
        share = sum(together.modules[index].share for index in members)
        part = sum(_cost(modules[index]) for index in members) / total
        if len(kinds) > 1 and share < _LITTLE * part:
            lines.append(
                f"{kind} has {share:.1%} of the score for {part:.1%} of the parameters: try a target set without it"
            )
    return tuple(lines)
