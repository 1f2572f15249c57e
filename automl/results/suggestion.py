"""A rank for every module of a study's winner: those of its adapter cut to a size, as its squeeze has found them.

As ranks of a cut adapter they are measured. As ranks to train with they are a hypothesis: only a verification (`automl
verify`) can say whether they are better than even ranks. Beside them stand the importances that trials have left.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from automl import ranking
from automl.errors import NotEnoughEvidence
from automl.head import HEADS
from automl.importance.aggregate import Aggregate, ModuleAggregate, TrialEvidence, aggregate, is_eligible
from automl.importance.pattern import patterned, peft_block
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.metric import METRICS
from automl.results.recorded import recorded_baseline, recorded_space, recorded_spec
from automl.results.squeezed import squeezed_ranks
from automl.space.assemble import assemble
from automl.space.entries import head_of
from automl.space.spec import SweepSpec
from automl.storage.sql import Database
from automl.storage.squeezes import ModuleRow, SqueezeRow, read_squeezes
from automl.storage.trials import TrialRow, list_trials
from automl.storage.verification import latest
from automl.trial import ModuleImportance

logger = logging.getLogger(__name__)

Status = Literal["not_run", "passed", "no_gain", "worse"]

ESTIMATOR = "sv_sensitivity_time_mean"
SCHEMA = "importance/2"
_LITTLE = 0.25
"""A kind of module whose share of the score is less than this part of its share of the parameters may not be needed."""
_LEAST_TRAINED = 2
"""Ranks to train with are not tried below the parameters of this even rank: every module keeps at least rank 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuggestedModule:
    """One row of the table. rank_whole: directions of the whole adapter; rank_suggested: those kept, 0: none.

    energy: its part of the strength of all kept directions. share, low, high: part of the importances of all modules,
    with a 90 % interval over trials; top_half in [0, 1]; effective_rank: that of the winner's update. They, and
    held_out, are None where trials have left no importances.
    """

    module: str
    in_features: int
    out_features: int
    cost_per_rank: int
    rank_whole: int
    rank_suggested: int
    energy: float
    share: float | None = None
    low: float | None = None
    high: float | None = None
    top_half: float | None = None
    held_out: float | None = None
    held_out_error: float | None = None
    effective_rank: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """Ranks of every module of the winner, and how far to believe them.

    trial: the winner, whose adapter was cut.
    ranks: by module; 0: left out of the targets.
    uniform_rank: what the budget allows everywhere; 0: less than rank 1.
    rank, alpha: those of the whole configuration.
    scaling: alpha over rank (over its root with rsLoRA), the same in every module.
    budget_params, used_params: parameters of the low-rank matrices, without the head.
    is_knee: whether the budget is that of the smallest size that is not worse than the whole.
    trained_ranks: what a verification trains with; None if there is nothing to give out.
    status: of those, by the latest verification of exactly these ranks.
    stability, least_stability: correlation of importances between trials, mean and least; None with fewer than two.
    n_eff: effective number of trials with importances.
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
    trained_ranks: Mapping[str, int] | None
    uniform_rank: int
    rank: int
    alpha: float
    scaling: float
    budget_params: int
    used_params: int
    is_knee: bool
    stability: float | None
    least_stability: float | None
    n_eff: float
    weights: Mapping[int, float]
    peft: Mapping[str, Any]
    task_type: str
    modules: tuple[SuggestedModule, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def is_verified(self) -> bool:
        """Whether a verification has found them, as ranks to train with, better than even and than random ones."""
        return self.status == "passed"

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        document = asdict(self)
        document["verification"] = {"status": document.pop("status")}
        return {"schema": SCHEMA, "estimator": ESTIMATOR, **document}


def suggestion_of(database: Database, study: str, *, budget: int | None = None, trial: int | None = None) -> Suggestion:
    """Ranks of the best complete trial of a study, or of `trial`, cut to a size.

    budget: parameters of the low-rank matrices; None: those of the knee. Raises NotEnoughEvidence, saying what is
    missing, if its adapter was not squeezed, or for a size that it cannot be cut to.
    """
    found = _Trials(database, study)
    winner = found.winner(trial)
    squeeze = found.squeezes[winner.number]
    given = squeeze.knee if budget is None else budget
    ranks = _ranks(squeeze, given, study)
    together = aggregate(found.evidence(), [module.module for module in squeeze.modules])
    hyper = found.hyper(winner)
    kept = {module: rank for module, rank in ranks.items() if rank}
    configuration = patterned(replace(hyper, method="lora"), kept)
    trained = training_ranks(squeeze)
    return Suggestion(
        study=study,
        trial=winner.number,
        status=_status(database, study, hyper, trained),
        ranks=ranks,
        trained_ranks=trained,
        uniform_rank=given // _unit(squeeze),
        rank=configuration.rank,
        alpha=configuration.alpha,
        scaling=configuration.scaling,
        budget_params=given,
        used_params=sum(ranks[module.module] * module.cost for module in squeeze.modules),
        is_knee=given == squeeze.knee,
        stability=together.stability if together else None,
        least_stability=together.least_stability if together else None,
        n_eff=together.n_eff if together else 0.0,
        weights=together.weights if together else {},
        peft=peft_block(configuration, list(kept)),
        task_type=HEADS[head_of(found.spec.task.type)].peft,
        modules=_modules(squeeze, ranks, together, found.importances.get(winner.number, ())),
        advice=_target_advice(together, squeeze.modules) if together else (),
        notes=_notes(squeeze, given, together),
    )


def suggested_ranks(database: Database, study: str) -> Mapping[str, int] | None:
    """Ranks by module to train the study's winner with; None, with a line in the log, if there are none."""
    try:
        found = suggestion_of(database, study)
    except NotEnoughEvidence as reason:
        logger.info("no ranks are suggested: %s", reason)
        return None
    if found.trained_ranks is None:
        logger.info("no ranks are suggested: the adapter of trial %d is too small to give any out", found.trial)
    return found.trained_ranks


def training_ranks(squeeze: SqueezeRow) -> dict[str, int] | None:
    """The squeezed ranks with at least 1 in every module, at the size of the knee or of even rank 2 if that is more.

    None if the whole adapter is no larger, or has a module without any direction.
    """
    budget = max(squeeze.knee, _LEAST_TRAINED * _unit(squeeze))
    if budget >= squeeze.whole.parameters or not all(module.rank for module in squeeze.modules):
        return None
    return squeezed_ranks(squeeze, budget, least=1)


class _Trials:
    """A study's trials with their importances and squeezes, read once."""

    def __init__(self, database: Database, study: str) -> None:
        self.study = study
        self.spec: SweepSpec = recorded_spec(database, study)
        store = database.store(study)
        self.importances = database.importances(study)
        self.squeezes = read_squeezes(database, study)
        self._rows = {row.number: row for row in list_trials(database, study)}
        self._space = recorded_space(store, self.spec)
        self._baseline = recorded_baseline(store, self.spec.task.metric)
        self._metric = METRICS[self.spec.task.metric]

    def hyper(self, row: TrialRow) -> Hyperparameters:
        """The trial's whole configuration."""
        names = {parameter.name for parameter in self._space.parameters}
        return assemble(self._space, {name: value for name, value in row.params.items() if name in names})

    def winner(self, number: int | None) -> TrialRow:
        """The best complete trial, or the one asked for. Raises NotEnoughEvidence unless its adapter was squeezed."""
        best = ranking.best(self._rows.values(), self._metric.direction)
        found = best if number is None else self._rows.get(number)
        if found is None:
            which = "complete trial" if number is None else f"trial {number}"
            raise NotEnoughEvidence(f"study {self.study!r} has no {which} whose adapter could be cut")
        if not self._space.columns and "rank" not in METHODS[method := self.hyper(found).method].takes:
            raise NotEnoughEvidence(
                f"study {self.study!r}: trial {found.number} is of method {method}, which has no ranks to suggest"
            )
        if found.number not in self.squeezes:
            asked = "" if number is None else f" --trial {number}"
            raise NotEnoughEvidence(
                f"study {self.study!r}: the adapter of trial {found.number} was not squeezed, and suggested ranks are"
                f" those of its cut; run: automl squeeze {self.study}{asked}"
            )
        return found

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


def _unit(squeeze: SqueezeRow) -> int:
    """Parameters of rank 1 in every module."""
    return sum(module.cost for module in squeeze.modules)


def _ranks(squeeze: SqueezeRow, budget: int, study: str) -> dict[str, int]:
    """The ranks at that size. Raises NotEnoughEvidence if it is none of this adapter."""
    whole = squeeze.whole.parameters
    if budget > whole:
        raise NotEnoughEvidence(
            f"study {study!r}: {budget:,} parameters are more than the {whole:,} of trial {squeeze.trial}'s adapter,"
            " and a cut gives no rank that was not trained"
        )
    ranks = squeezed_ranks(squeeze, budget)
    if not any(ranks.values()):
        least = min(module.cost for module in squeeze.modules if module.rank)
        raise NotEnoughEvidence(f"study {study!r}: {budget:,} parameters keep nothing; one direction has {least:,}")
    return ranks


def _modules(
    squeeze: SqueezeRow,
    ranks: Mapping[str, int],
    together: Aggregate | None,
    importances: Sequence[ModuleImportance],
) -> tuple[SuggestedModule, ...]:
    strength = {module.module: sum(module.strengths[: ranks[module.module]]) for module in squeeze.modules}
    shares = {share.module: share for share in together.modules} if together else {}
    effective = {module.module: module.effective_rank for module in importances}
    total = sum(strength.values())
    return tuple(
        SuggestedModule(
            module=module.module,
            in_features=module.in_features,
            out_features=module.out_features,
            cost_per_rank=module.cost,
            rank_whole=module.rank,
            rank_suggested=ranks[module.module],
            energy=strength[module.module] / total,
            effective_rank=effective.get(module.module),
            **_diagnosis(shares.get(module.module)),
        )
        for module in squeeze.modules
    )


def _diagnosis(share: ModuleAggregate | None) -> dict[str, float | None]:
    names = ("share", "low", "high", "top_half", "held_out", "held_out_error")
    return {} if share is None else {name: getattr(share, name) for name in names}


def _notes(squeeze: SqueezeRow, budget: int, together: Aggregate | None) -> tuple[str, ...]:
    notes = []
    if budget >= squeeze.whole.parameters:
        notes.append("no smaller size is as good as the whole adapter, so these are its own ranks")
    if together is None:
        notes.append("no trial with these modules has left importances, so none stand beside the ranks")
    elif together.shortage:
        notes.append(f"the importances beside the ranks rest on little: {together.shortage}")
    return tuple(notes)


def _status(database: Database, study: str, hyper: Hyperparameters, ranks: Mapping[str, int] | None) -> Status:
    """Status by the latest complete verification, if it was one of these ranks for this configuration."""
    verified = latest(database, study, done=True)
    if verified is None or verified.result is None or ranks is None:
        return "not_run"
    arms = [arm for arm in verified.result.get("arms", ()) if arm.get("kind") == "suggested"]
    if not any(dict(arm.get("rank_pattern", {})) == hyper.with_ranks(ranks).ranks for arm in arms):
        return "not_run"
    status: Status = verified.result["suggestion"]["status"]
    return status


def _target_advice(together: Aggregate, modules: Sequence[ModuleRow]) -> tuple[str, ...]:
    """Kinds of modules with little of the score for their parameters: about the target set, not about ranks."""
    kinds: dict[str, list[int]] = {}
    for index, module in enumerate(modules):
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", module.module), []).append(index)
    total = sum(module.cost for module in modules)
    lines = []
    for kind, members in kinds.items():
        share = sum(together.modules[index].share for index in members)
        part = sum(modules[index].cost for index in members) / total
        if len(kinds) > 1 and share < _LITTLE * part:
            lines.append(
                f"{kind} has {share:.1%} of the score for {part:.1%} of the parameters: try a target set without it"
            )
    return tuple(lines)
