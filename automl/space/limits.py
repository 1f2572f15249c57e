"""The names a space file may use, with the type and bounds of their values: the one table of hyperparameters' limits.

Bounds keep numbers sane (a typo such as rank 10,000), they are not advice; advice by model size is in
`automl.space.defaults`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter

from automl.lora import ScheduleName
from automl.methods.registry import METHODS
from automl.space.constraints import Kind
from automl.space.named import NameIn
from automl.trial import Scalar

Method = Annotated[str, NameIn(METHODS), Field(description="PEFT method")]
Rank = Annotated[int, Field(ge=1, le=1024, description="rank of the low-rank update")]
Alpha = Annotated[float, Field(gt=0, le=65_536, description="numerator of the update's scale, as an absolute number")]
AlphaRatio = Annotated[float, Field(gt=0, le=1024, description="alpha as a multiple of the rank; instead of alpha")]
Dropout = Annotated[float, Field(ge=0, lt=1, description="dropout before the low-rank update")]
Target = Annotated[str, Field(min_length=1, max_length=50, description="name of a target set: which layers to adapt")]
LearningRate = Annotated[float, Field(gt=0, le=10, description="peak learning rate")]
WeightDecay = Annotated[float, Field(ge=0, le=10, description="AdamW's decoupled weight decay")]
BatchSize = Annotated[int, Field(ge=1, le=4096, description="rows per optimizer step")]
Warmup = Annotated[float, Field(ge=0, le=1, description="share of all steps over which the learning rate rises")]
Schedule = Annotated[ScheduleName, Field(description="course of the learning rate after the warm-up")]
Clip = Annotated[float, Field(ge=0, le=1_000_000, description="largest gradient norm; 0 = no clipping")]
Switch = Annotated[bool, Field(description="scale by alpha / sqrt(rank) (rank-stabilised LoRA)")]
MaxLength = Annotated[int, Field(ge=8, le=131_072, description="tokens per example; longer ones are cut")]

_ADAPTERS: dict[str, TypeAdapter[Scalar]] = {
    "method": TypeAdapter(Method),
    "rank": TypeAdapter(Rank),
    "alpha": TypeAdapter(Alpha),
    "alpha_ratio": TypeAdapter(AlphaRatio),
    "dropout": TypeAdapter(Dropout),
    "target": TypeAdapter(Target),
    "learning_rate": TypeAdapter(LearningRate),
    "weight_decay": TypeAdapter(WeightDecay),
    "batch_size": TypeAdapter(BatchSize),
    "warmup": TypeAdapter(Warmup),
    "schedule": TypeAdapter(Schedule),
    "clip": TypeAdapter(Clip),
    "use_rslora": TypeAdapter(Switch),
}

NAMES = tuple(_ADAPTERS)
"""Every name that `space:` and `enqueue:` may use, in the order in which parameters are sampled."""

WHOLE_NUMBERS = frozenset({"rank", "batch_size"})
TEXTS = frozenset({"method", "target", "schedule"})
SWITCHES = frozenset({"use_rslora"})
DERIVED = frozenset({"trainable_params"})
"""Names that only constraints may use: they follow from the model and the other parameters."""

KINDS: dict[str, Kind] = {
    name: "text" if name in TEXTS else "truth" if name in SWITCHES else "number" for name in (*NAMES, *sorted(DERIVED))
}
"""Kind of every name that a constraint may use."""


def checked(name: str, value: object) -> Scalar:
    """The value as the hyperparameter's own type (8 -> 8.0 for a float). Raises pydantic's ValidationError."""
    return _ADAPTERS[name].validate_python(value, strict=True)
