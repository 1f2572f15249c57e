"""The `search:` section: samplers, pruners and their options, budgets.

Options have the names of Optuna's constructors (5.0); defaults of those left out are set in `automl.study`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from automl.space.schema_base import Section, Seed, mistake

Startup = Annotated[int, Field(ge=0, le=100_000)]
Share = Annotated[float, Field(ge=0, le=1)]


class TpeSampler(Section):
    """Tree-structured Parzen estimator: the usual choice."""

    name: Literal["tpe"]
    n_startup_trials: Startup | None = None
    n_ei_candidates: Annotated[int, Field(ge=1, le=10_000)] | None = None
    multivariate: bool | None = None
    group: bool | None = None
    constant_liar: bool | None = None

    @model_validator(mode="after")
    def _group_needs_multivariate(self) -> TpeSampler:
        if self.group and self.multivariate is False:
            raise mistake("section", "group: true needs multivariate: true")
        return self


class GpSampler(Section):
    """Gaussian process; for few, slow trials."""

    name: Literal["gp"]
    n_startup_trials: Startup | None = None
    deterministic_objective: bool | None = None


class CmaEsSampler(Section):
    """Covariance matrix adaptation; for numbers only, choices are drawn at random."""

    name: Literal["cmaes"]
    sigma0: Annotated[float, Field(gt=0, le=1000)] | None = None
    n_startup_trials: Startup | None = None
    consider_pruned_trials: bool | None = None
    popsize: Annotated[int, Field(ge=2, le=10_000)] | None = None
    use_separable_cma: bool | None = None
    with_margin: bool | None = None
    lr_adapt: bool | None = None

    @model_validator(mode="after")
    def _one_variant(self) -> CmaEsSampler:
        variants = ("use_separable_cma", "with_margin", "lr_adapt")
        given = [name for name in variants if getattr(self, name)]
        if len(given) > 1:
            raise mistake("section", f"{' and '.join(given)} exclude each other")
        return self


class QmcSampler(Section):
    """Quasi-random sequence: an even coverage, without learning."""

    name: Literal["qmc"]
    qmc_type: Literal["sobol", "halton"] | None = None
    scramble: bool | None = None


class RandomSampler(Section):
    """Independent uniform draws."""

    name: Literal["random"]


class GridSampler(Section):
    """Every combination once; needs choices, whole numbers or steps."""

    name: Literal["grid"]


class NsgaSampler(Section):
    """Genetic algorithm NSGA-II."""

    name: Literal["nsga2"]
    population_size: Annotated[int, Field(ge=2, le=100_000)] | None = None
    mutation_prob: Share | None = None
    crossover_prob: Share | None = None
    swapping_prob: Share | None = None


class HalvingPruner(Section):
    """Parks trials at rungs and promotes the best; half of all training goes to new trials. The default."""

    name: Literal["halving"]
    first_rung: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Evaluations before a trial is parked for the first time."""
    reduction_factor: Annotated[float, Field(gt=1, le=100)] | None = None
    """At each rung the best 1/reduction_factor may go on."""
    explore: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of all steps that goes to new trials."""
    guard: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share by which a trial must beat the median of the first rung to go on while new trials can be started."""
    expected_gain: Annotated[float, Field(ge=0, le=10)] | None = None
    """Share of the last doubling's gain that is expected again when trials are ranked."""
    finalists: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Trials that go on at each rung at the end of the search, at least."""


class PeerPruner(Section):
    """Stops a trial that ranks low among all that reached the same rung, running ones included."""

    name: Literal["peer"]
    first_rung: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Evaluations before the first decision."""
    reduction_factor: Annotated[float, Field(gt=1, le=100)] | None = None
    """At each rung the best 1/reduction_factor go on."""
    min_peers: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Trials that must have reached a rung before anyone is stopped there."""
    guard: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share by which a trial must beat the median of the first rung, against chance."""


class MedianPruner(Section):
    """Stops a trial that is worse than the median of complete trials at the same step."""

    name: Literal["median"]
    n_startup_trials: Startup | None = None
    n_warmup_steps: Annotated[int, Field(ge=0)] | None = None
    interval_steps: Annotated[int, Field(ge=1)] | None = None
    n_min_trials: Annotated[int, Field(ge=1)] | None = None


class PercentilePruner(Section):
    """Like median, with another percentile."""

    name: Literal["percentile"]
    percentile: Annotated[float, Field(ge=0, le=100)] | None = None
    """Trials worse than this percentile of complete trials are stopped: 25 keeps the best quarter."""
    n_startup_trials: Startup | None = None
    n_warmup_steps: Annotated[int, Field(ge=0)] | None = None
    interval_steps: Annotated[int, Field(ge=1)] | None = None
    n_min_trials: Annotated[int, Field(ge=1)] | None = None


_AUTO_OR_COUNT = WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]})


def _auto_or_count(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10_000_000):
        return value
    raise mistake("value", "must be auto or a whole number of steps from 1 to 10,000,000")


AutoOrCount = Annotated[Any, BeforeValidator(_auto_or_count), _AUTO_OR_COUNT]


class SuccessiveHalvingPruner(Section):
    """Asynchronous successive halving, as in Optuna."""

    name: Literal["successive-halving"]
    min_resource: AutoOrCount | None = None
    reduction_factor: Annotated[int, Field(ge=2, le=100)] | None = None
    min_early_stopping_rate: Annotated[int, Field(ge=0, le=100)] | None = None
    bootstrap_count: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _bootstrap_needs_resource(self) -> SuccessiveHalvingPruner:
        if self.bootstrap_count and self.min_resource == "auto":
            raise mistake("section", "bootstrap_count needs min_resource as a number of steps, not auto")
        return self


class HyperbandPruner(Section):
    """Several successive halvings side by side, as in Optuna."""

    name: Literal["hyperband"]
    min_resource: Annotated[int, Field(ge=1)] | None = None
    max_resource: AutoOrCount | None = None
    reduction_factor: Annotated[int, Field(ge=2, le=100)] | None = None
    bootstrap_count: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _bootstrap_needs_resource(self) -> HyperbandPruner:
        if self.bootstrap_count and self.max_resource == "auto":
            raise mistake("section", "bootstrap_count needs max_resource as a number of steps, not auto")
        return self


class PatientPruner(Section):
    """Stops a trial that has not improved for a while, if the wrapped pruner agrees."""

    name: Literal["patient"]
    patience: Annotated[int, Field(ge=0)] | None = None
    """Evaluations without improvement that are waited for."""
    min_delta: Annotated[float, Field(ge=0)] | None = None
    """Smallest change that counts as an improvement."""
    wrapped: Literal["none", "peer", "median", "percentile", "successive-halving", "hyperband"] | None = None
    """Pruner that must agree; none = patience alone decides."""


class ThresholdPruner(Section):
    """Stops a trial whose value leaves fixed bounds."""

    name: Literal["threshold"]
    lower: float | None = None
    upper: float | None = None
    n_warmup_steps: Annotated[int, Field(ge=0)] | None = None
    interval_steps: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _some_bound(self) -> ThresholdPruner:
        if self.lower is None and self.upper is None:
            raise mistake("section", "threshold needs lower, upper, or both")
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise mistake("section", f"lower {self.lower:g} is not below upper {self.upper:g}")
        return self


class NoPruner(Section):
    """Every trial runs to its last step."""

    name: Literal["none"]


_AnySampler = Annotated[
    TpeSampler | GpSampler | CmaEsSampler | QmcSampler | RandomSampler | GridSampler | NsgaSampler,
    Field(discriminator="name"),
]
_AnyPruner = Annotated[
    HalvingPruner
    | PeerPruner
    | MedianPruner
    | PercentilePruner
    | SuccessiveHalvingPruner
    | HyperbandPruner
    | PatientPruner
    | ThresholdPruner
    | NoPruner,
    Field(discriminator="name"),
]
SamplerName = Literal["tpe", "gp", "cmaes", "qmc", "random", "grid", "nsga2"]
PrunerName = Literal["halving", "peer", "median", "percentile", "successive-halving", "hyperband", "patient", "none"]
"""Pruners that need no option, so that the name alone will do (all but threshold)."""


def _widen_name(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


SamplerSection = Annotated[_AnySampler, BeforeValidator(_widen_name, json_schema_input_type=SamplerName | _AnySampler)]
PrunerSection = Annotated[_AnyPruner, BeforeValidator(_widen_name, json_schema_input_type=PrunerName | _AnyPruner)]

_SECONDS_PER_UNIT = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
LONGEST_SECONDS = 366 * 86_400


def parse_seconds(value: object) -> float:
    """Seconds from a number, or from texts such as '2h', '30m', '1h30m'."""
    seconds = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else _spelt_out(value)
    if not 0 < seconds <= LONGEST_SECONDS:
        raise mistake("value", "must be longer than nothing and at most 366 days")
    return seconds


def _spelt_out(value: object) -> float:
    match = re.fullmatch(r"(\d{1,9}d)?(\d{1,9}h)?(\d{1,9}m)?(\d{1,9}s)?", value) if isinstance(value, str) else None
    if not match or not value:
        raise mistake("value", "is not a time; write seconds, or '2h', '30m', '1h30m'")
    return float(sum(int(part[:-1]) * _SECONDS_PER_UNIT[part[-1]] for part in match.groups() if part))


Seconds = Annotated[
    Any,
    BeforeValidator(parse_seconds),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}),
]


class SearchSection(Section):
    """How the space is searched and when the search ends."""

    sampler: SamplerSection = TpeSampler(name="tpe")
    """Proposes configurations."""
    pruner: PrunerSection = HalvingPruner(name="halving")
    """Pauses or stops weak trials."""
    trials: Annotated[int, Field(ge=1, le=100_000)] = 24
    """Complete and pruned trials of the whole study."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 120
    """Optimizer steps of a full trial."""
    evaluate_every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Steps between two measurements, each on all of task.evaluate_rows. Left out, trials are measured where they are
    judged, and early on fewer rows, so that measuring takes about a sixth of the time."""
    seed: Seed = 0
    time: Seconds | None = None
    """Wall clock, in seconds or as 2h, 30m, 1h30m."""
    max_steps: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Training steps of all trials together."""
    max_failed_trials: Annotated[int, Field(ge=0, le=100_000)] = 10
    """Failed trials that are replaced before the search gives up."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    """Adapters that stay on disk."""
    importance: bool = True
    """Measure on the way how much the loss hangs on each module's update; the base of automl suggest."""
    warm_start: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """Another study of the database, whose best configurations are tried first; its values are not used."""
    patience: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Trials in a row without a better value after which no new one starts."""
    also_minimize: Literal["trainable_params", "seconds"] | None = None
    """A second objective beside the metric: the search looks for the Pareto front of both, without pruning."""

    @model_validator(mode="before")
    @classmethod
    def _two_objectives_are_not_pruned(cls, given: Any) -> Any:
        is_silent = isinstance(given, dict) and given.get("also_minimize") is not None and "pruner" not in given
        return {**given, "pruner": "none"} if is_silent else given
