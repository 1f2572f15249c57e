"""What every section of a space file shares: a closed set of keys, and a few kinds of value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from automl.space.messages import nearest

LARGEST_SEED = 2**32 - 1

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=1000)]


def mistake(kind: Literal["value", "section", "unknown_key"], message: str) -> PydanticCustomError:
    """An error of our own. The message of kind `value` follows the value itself: "'x' is not a time"."""
    return PydanticCustomError(kind, "{message}", {"message": message})


def _scalar(value: object) -> object:
    if isinstance(value, (bool, int, float, str)):
        return value
    raise mistake("value", "is not a number, text, true or false")


AnyScalar = Annotated[Any, BeforeValidator(_scalar), WithJsonSchema({"type": ["number", "string", "boolean"]})]


class Section(BaseModel):
    """A mapping with a closed set of keys; an unknown key is answered with the known ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    @model_validator(mode="wrap")
    @classmethod
    def _name_unknown_keys(cls, value: object, handler: ModelWrapValidatorHandler[Section]) -> Section:
        if not isinstance(value, Mapping):
            return handler(value)
        unknown = [key for key in value if key not in cls.model_fields]
        if not unknown:
            return handler(value)
        mistakes = [
            InitErrorDetails(
                type=mistake("unknown_key", unknown_key_message(key, list(cls.model_fields))),
                loc=(key,),
                input=value[key],
            )
            for key in unknown
        ]
        try:
            handler({key: item for key, item in value.items() if key in cls.model_fields})
        except ValidationError as error:
            mistakes += [_again(line) for line in error.errors(include_url=False)]
        raise ValidationError.from_exception_data(cls.__name__, mistakes)


def unknown_key_message(key: str, known: list[str]) -> str:
    """What to say about a key that a section does not have."""
    if key == "trust_remote_code":
        return "code that comes with a model is never run; remove this key"
    return f"unknown key; {nearest(key, known)}"


def _again(line: Mapping[str, Any]) -> InitErrorDetails:
    """A line of a ValidationError in the form in which it can be raised once more."""
    context = line.get("ctx", {})
    kind: Any = line["type"]
    if kind in ("unknown_key", "value", "section"):
        kind = mistake(kind, line["msg"])
    return InitErrorDetails(type=kind, loc=line["loc"], input=line["input"], ctx=context)
