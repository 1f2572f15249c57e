"""The `space:`, `fixed:` and `enqueue:` sections: ranges, values, conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from automl.methods.registry import METHODS
from automl.space import limits as hyper
from automl.space.schema_base import AnyScalar, Section, mistake
from automl.trial import Scalar

_SCALAR = ["number", "string", "boolean"]


@dataclass(frozen=True, slots=True, eq=False)
class _OneName:
    """Annotates a mapping from one of the names to values of it."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        scalar = {"type": _SCALAR}
        return {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 1,
            "propertyNames": {
                "anyOf": [
                    {"enum": list(dict.fromkeys([*hyper.NAMES, *hyper.every_setting()]))},
                    {"pattern": hyper.FIELDS},
                ]
            },
            "additionalProperties": {"anyOf": [scalar, {"type": "array", "minItems": 1, "items": scalar}]},
        }


Condition = Annotated[dict[str, Any], _OneName()]


class _ParameterSection(Section):
    when: Condition | None = None
    """Active only if that parameter has this value, or one of these: {target: all-linear}."""


class FloatSection(_ParameterSection):
    """A real number in [low, high]."""

    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    """Sample the logarithm uniformly; for quantities that vary over orders of magnitude."""
    step: Annotated[float, Field(gt=0)] | None = None
    """Distance of neighbouring values; not with log."""
    at_alpha: Annotated[float, Field(ge=0.01, le=65_536)] | None = None
    """For learning rates: the range is that of the rate at this alpha; a trial is trained with it times
    sqrt(at_alpha / its alpha), so that the best rate does not move with rank and alpha."""


class IntSection(_ParameterSection):
    """A whole number in [low, high]."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    """Sample the logarithm uniformly."""
    step: Annotated[int, Field(ge=1)] = 1
    """Distance of neighbouring values; not with log."""


class ChoiceSection(_ParameterSection):
    """One of the listed values."""

    type: Literal["categorical"]
    choices: Annotated[list[AnyScalar], Field(min_length=1, max_length=100)]


class AutoSection(Section):
    """A range chosen by the model's size; written `auto`."""

    type: Literal["auto"]


_AnyParameter = Annotated[FloatSection | IntSection | ChoiceSection | AutoSection, Field(discriminator="type")]


def _widen_parameter(value: object) -> object:
    if value == "auto":
        return {"type": "auto"}
    if isinstance(value, (bool, int, float, str)):
        raise mistake("value", "is a single value; write it under fixed:")
    if isinstance(value, list):
        raise mistake("section", "a list has no type; write {type: categorical, choices: [...]}")
    return value


ParameterSection = Annotated[
    _AnyParameter,
    BeforeValidator(
        _widen_parameter, json_schema_input_type=Literal["auto"] | FloatSection | IntSection | ChoiceSection
    ),
]


class SpaceSection(Section):
    """What may vary: these names, and the settings that methods bring."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        form = handler(schema)
        properties = handler.resolve_ref_schema(form)["properties"]
        for name, setting in hyper.every_setting().items():
            properties[name] = {**properties["rank"], "title": name, "description": setting.meaning}
        for method in METHODS.usable():
            name = hyper.own_rate(method)
            properties[name] = {**properties[hyper.RATE], "title": name, "description": f"of method {method} alone"}
        handler.resolve_ref_schema(form)["patternProperties"] = {hyper.FIELDS: properties["rank"]}
        return form

    method: ParameterSection | None = None
    rank: ParameterSection | None = None
    alpha: ParameterSection | None = None
    alpha_ratio: ParameterSection | None = None
    dropout: ParameterSection | None = None
    target: ParameterSection | None = None
    learning_rate: ParameterSection | None = None
    weight_decay: ParameterSection | None = None
    batch_size: ParameterSection | None = None
    warmup: ParameterSection | None = None
    schedule: ParameterSection | None = None
    clip: ParameterSection | None = None
    use_rslora: ParameterSection | None = None
    neftune_alpha: ParameterSection | None = None


class Assignment(Section):
    """Values for some of the names, and of settings that methods bring."""

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        form = handler(schema)
        properties = handler.resolve_ref_schema(form)["properties"]
        properties |= {name: hyper.adapter_of(each).json_schema() for name, each in hyper.every_setting().items()}
        handler.resolve_ref_schema(form)["patternProperties"] = {hyper.FIELDS: {"type": _SCALAR}}
        return form

    method: hyper.Method | None = None
    rank: hyper.Rank | None = None
    alpha: hyper.Alpha | None = None
    alpha_ratio: hyper.AlphaRatio | None = None
    dropout: hyper.Dropout | None = None
    target: hyper.Target | None = None
    learning_rate: hyper.LearningRate | None = None
    weight_decay: hyper.WeightDecay | None = None
    batch_size: hyper.BatchSize | None = None
    warmup: hyper.Warmup | None = None
    schedule: hyper.Schedule | None = None
    clip: hyper.Clip | None = None
    use_rslora: hyper.Switch | None = None
    neftune_alpha: hyper.Noise | None = None

    def values(self) -> dict[str, Scalar]:
        """The names that were given, with their values."""
        given = {name: getattr(self, name) for name in hyper.NAMES}
        return {name: value for name, value in given.items() if value is not None}


class FixedSection(Assignment):
    """What does not vary, where it differs from the defaults."""

    max_length: hyper.MaxLength = 128
