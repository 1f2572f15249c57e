"""The task `preference`: its section, and the hyperparameters that its losses bring."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from automl.methods.settings import Setting, Span
from automl.space.schema_task import TaskSection

LOSSES = ("dpo", "ipo", "kto", "orpo", "simpo", "cpo")


def _with(*losses: str) -> tuple[str, tuple[str, ...]]:
    return "loss", losses


LOSS = Setting(
    name="loss",
    default="dpo",
    meaning="what is minimised: dpo, ipo, orpo, simpo or cpo for pairs; kto for single labels, and for pairs as well",
    choices=LOSSES,
)
BETA = Setting(
    name="beta",
    default=0.1,
    meaning="how much log-ratios count against the reference (ipo: tau; orpo: weight of the odds ratio)",
    low=1e-4,
    high=100.0,
    tried=Span(0.01, 1.0, log=True),
    searched=True,
    having=_with("dpo", "ipo", "kto", "orpo", "cpo"),
)
LABEL_SMOOTHING = Setting(
    name="label_smoothing",
    default=0.0,
    meaning="share of the pairs that are taken to be labelled the wrong way round",
    low=0.0,
    high=0.49,
    tried=(0.0, 0.1, 0.2),
    having=_with("dpo", "simpo", "cpo"),
)
LENGTH_NORMALIZATION = Setting(
    name="length_normalization",
    default=False,
    meaning="compare log-ratios per token instead of per response",
    tried=(False, True),
    having=_with("dpo"),
)
SFT_WEIGHT = Setting(
    name="sft_weight",
    default=0.0,
    meaning="weight of the mean cross-entropy of chosen responses beside the loss",
    low=0.0,
    high=100.0,
    tried=(0.0, 0.1, 0.3, 1.0),
    having=_with("dpo", "ipo", "kto", "simpo"),
)
CPO_ALPHA = Setting(
    name="cpo_alpha",
    default=1.0,
    meaning="weight of the mean cross-entropy of chosen responses in cpo",
    low=0.0,
    high=100.0,
    tried=(0.1, 0.3, 1.0),
    having=_with("cpo"),
)
SIMPO_BETA = Setting(
    name="simpo_beta",
    default=2.0,
    meaning="how much the difference of mean log-probabilities counts in simpo",
    low=1e-4,
    high=1000.0,
    tried=Span(1.0, 10.0, log=True),
    searched=True,
    having=_with("simpo"),
)
SIMPO_GAMMA = Setting(
    name="simpo_gamma",
    default=1.0,
    meaning="margin by which simpo wants chosen responses to lead",
    low=0.0,
    high=100.0,
    tried=Span(0.3, 1.6),
    searched=True,
    having=_with("simpo"),
)
DESIRABLE_WEIGHT = Setting(
    name="desirable_weight",
    default=1.0,
    meaning="weight of desirable responses in kto",
    low=0.0,
    high=100.0,
    tried=(1.0, 1.33, 2.0),
    having=_with("kto"),
)
UNDESIRABLE_WEIGHT = Setting(
    name="undesirable_weight",
    default=1.0,
    meaning="weight of undesirable responses in kto",
    low=0.0,
    high=100.0,
    tried=(1.0, 1.33, 2.0),
    having=_with("kto"),
)


class PreferenceTask(TaskSection):
    """Prefer one response over another, or desirable responses over undesirable ones."""

    type: Literal["preference"]
    thinking: Annotated[Literal["refuse", "keep", "template"], Field(exclude=True)] = "refuse"
    """Thoughts (<think> ... </think>) that the chat template removes: refuse the data, keep them, or let it do so."""

    implementation: ClassVar[str] = "automl.tasks.preference:Preference"
    default_metric: ClassVar[str] = "preference_accuracy"
    shardable: ClassVar[bool] = False
    rate_factor: ClassVar[float] = 0.1
    settings: ClassVar[tuple[Setting, ...]] = (
        LOSS,
        BETA,
        LABEL_SMOOTHING,
        LENGTH_NORMALIZATION,
        SFT_WEIGHT,
        CPO_ALPHA,
        SIMPO_BETA,
        SIMPO_GAMMA,
        DESIRABLE_WEIGHT,
        UNDESIRABLE_WEIGHT,
    )
