"""The `search:` section: sampler, pruner and budgets. Their options are in the files of samplers and pruners."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from automl.space.entries import PRUNERS, SAMPLERS
from automl.space.named import SectionOf
from automl.space.options import Options
from automl.space.schema_base import Section, Seed, mistake
from automl.space.spec import Length

SamplerSection = Annotated[Options, SectionOf(SAMPLERS, "name", lambda entry: entry.options, has_short_form=True)]
PrunerSection = Annotated[Options, SectionOf(PRUNERS, "name", lambda entry: entry.options, has_short_form=True)]

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


def _currency(value: str) -> str:
    if not re.fullmatch(r"[A-Z]{3}", value):
        raise mistake("value", "is not a currency; write its code of three capital letters, such as EUR or USD")
    return value


Squeeze = Annotated[
    Literal["auto", "off"],
    BeforeValidator(lambda given: {True: "auto", False: "off"}[given] if isinstance(given, bool) else given),
    WithJsonSchema({"enum": ["auto", "off", True, False]}),
]
"""An unquoted off is refused as ambiguous where the file is read, so that false must do."""


LearnFrom = Annotated[
    Literal["auto", "off"],
    BeforeValidator(lambda given: {True: "auto", False: "off"}[given] if isinstance(given, bool) else given),
    WithJsonSchema({"enum": ["auto", "off", True, False]}),
]


class CostSection(Section):
    """What devices cost, and how much of it may be spent."""

    per_gpu_hour: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
    """Price of a device for an hour."""
    limit: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
    """Most that the search may cost."""
    currency: Annotated[str, AfterValidator(_currency)] = "EUR"
    """Unit of both: a code of three capital letters."""


class BudgetSection(Section):
    """What the whole search may spend beside trials and time. Each is counted over all runs of the study."""

    gpu_hours: Annotated[float, Field(gt=0, le=1e7, allow_inf_nan=False)] | None = None
    """Hours of devices: each GPU, or on CPUs each worker, from when workers are asked for to when they have gone."""
    tokens: Annotated[int, Field(ge=1, le=10**15)] | None = None
    """Training tokens of all trials, padding left out."""
    examples: Annotated[int, Field(ge=1, le=10**15)] | None = None
    """Rows trained on by all trials, as often as each is."""
    cost: CostSection | None = None
    """Money for the hours of devices."""

    @model_validator(mode="after")
    def _says_something(self) -> BudgetSection:
        if not any(value is not None for _, value in self):
            raise mistake("section", f"says nothing; write one or more of {', '.join(type(self).model_fields)}")
        return self


MOST_EPOCHS = 10_000


def _parse_epochs(value: object) -> float | str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value != "auto" and not (is_number and 0 < value <= MOST_EPOCHS):  # type: ignore[operator]  # it is a number
        raise mistake("value", f"must be auto or a number above 0 and at most {MOST_EPOCHS:,}")
    return "auto" if value == "auto" else float(value)  # type: ignore[arg-type]  # as well


Epochs = Annotated[
    Any,
    BeforeValidator(_parse_epochs),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": MOST_EPOCHS}, {"const": "auto"}]}),
]


class SearchSection(Section):
    """How the space is searched and when the search ends."""

    sampler: Annotated[SamplerSection, Field(json_schema_extra={"default": "tpe"})] = Field(
        default_factory=lambda: SAMPLERS["tpe"].options(name="tpe")
    )
    """Proposes configurations."""
    pruner: Annotated[PrunerSection, Field(json_schema_extra={"default": "halving"})] = Field(
        default_factory=lambda: PRUNERS["halving"].options(name="halving")
    )
    """Pauses or stops weak trials."""
    trials: Annotated[int, Field(ge=1, le=100_000)] = 24
    """Complete and pruned trials of the whole study."""
    steps: Annotated[int, Field(ge=1, le=10_000_000)] = 120
    """Optimizer steps of a full trial. Instead of them epochs, examples or tokens may be given: then trials see as many
    rows whatever their batch size."""
    epochs: Epochs | None = None
    """Passes over the training rows that a full trial makes, instead of steps; auto: by rows and classes."""
    examples: Annotated[int, Field(ge=1, le=10**10)] | None = None
    """Training rows that a full trial sees, instead of steps."""
    tokens: Annotated[int, Field(ge=1, le=10**13)] | None = None
    """Tokens that a full trial sees, instead of steps: as many rows as have them on average."""
    evaluate_every: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Steps between two measurements, each on all of task.evaluate_rows. Left out, trials are measured where they are
    judged, and early on fewer rows, so that measuring takes about a sixth of the time."""
    seed: Seed = 0
    time: Seconds | None = None
    """Wall clock, in seconds or as 2h, 30m, 1h30m."""
    max_steps: Annotated[int, Field(ge=1, le=10**12)] | None = None
    """Training steps of all trials together."""
    budget: BudgetSection | None = None
    """What all trials together may spend: hours of devices, tokens, examples, money."""
    max_failed_trials: Annotated[int, Field(ge=0, le=100_000)] = 10
    """Failed trials that are replaced before the search gives up."""
    keep: Annotated[int, Field(ge=1, le=1000)] = 3
    """Adapters that stay on disk."""
    importance: bool = True
    """Measure on the way how much the loss depends on each module's update: a diagnostic beside ranks."""
    squeeze: Squeeze = "auto"
    """Measure the winner's adapter at smaller sizes when the search ends, in seconds; not if it cannot be cut."""
    warm_start: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """Another study of the database, whose best configurations are tried first; its values are not used."""
    learn_from: LearnFrom = "off"
    """auto: the best configurations of at most three earlier studies of the database are tried first, one of each, the
    newest first: of those on a model of the same type and for a task of the same type."""
    patience: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Trials in a row without a better value after which no new one starts."""
    also_minimize: Literal["trainable_params", "seconds", "forgetting"] | None = None
    """A second objective beside the metric: the search looks for the Pareto front of both, without pruning."""
    checkpoint: Literal["best", "last"] = "last"
    """Which checkpoint of a trial counts: that of its best evaluation, or its last one."""
    early_stopping: bool | None = None
    """End a trial itself once it overfits, diverges or is flat; with checkpoint best, unless this is false."""

    @property
    def length(self) -> Length | None:
        """What is said of a trial instead of its steps."""
        if self.epochs is not None:
            return Length("epochs", None if self.epochs == "auto" else self.epochs)
        if self.examples is not None:
            return Length("examples", self.examples)
        return None if self.tokens is None else Length("tokens", self.tokens)

    @model_validator(mode="before")
    @classmethod
    def _two_objectives_are_not_pruned(cls, given: Any) -> Any:
        is_silent = isinstance(given, dict) and given.get("also_minimize") is not None and "pruner" not in given
        return {**given, "pruner": "none"} if is_silent else given
