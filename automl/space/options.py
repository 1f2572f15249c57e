"""What an entry may be told in a space file, as a class: one field for each key, with its default.

Fields are pydantic's, and their docstrings are in the JSON Schema. None stands for "chosen when it is built".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from automl.head import Kind
from automl.methods.settings import Setting
from automl.space.schema_base import Section, mistake
from automl.trial import Scalar

Startup = Annotated[int, Field(ge=0, le=100_000)]
Count = Annotated[int, Field(ge=1, le=100_000)]
Share = Annotated[float, Field(ge=0, le=1)]


def _auto_or_count(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10_000_000):
        return value
    raise mistake("value", "must be auto or a whole number of steps from 1 to 10,000,000")


AutoOrCount = Annotated[
    Any,
    BeforeValidator(_auto_or_count),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]}),
]


class Options(Section):
    """A sampler or pruner of the space file, which says its name and its options."""

    name: str = ""

    @classmethod
    def defaults(cls) -> dict[str, Scalar | None]:
        """Every option with its default."""
        return {name: field.default for name, field in cls.model_fields.items() if name != "name"}

    def given(self) -> dict[str, Scalar]:
        """The options that were written, defaults left out: what a study is known by."""
        return self.model_dump(exclude={"name"}, exclude_unset=True, exclude_none=True)


class TaskOptions(Section):
    """A task of the space file, which says its type and its keys.

    implementation: `module:class` of its `automl.tasks.base.Task`, which is imported when it is used; empty where there
    is nothing to train. head: kind of head that it trains, empty for that of what it is like, else a language model's.
    default_metric: the objective of a file that names none. like: a task whose metrics it reports
    too; `loss` is everybody's. settings: hyperparameters of its own, which `space:` and `fixed:` may name. packable:
    its trials can be trained together. shardable: several processes can hold one trial together. rate_factor: on the
    learning rates that `auto` means, where its settings are known by `settings`.
    """

    type: str = ""

    implementation: ClassVar[str] = ""
    head: ClassVar[Kind | Literal[""]] = ""
    default_metric: ClassVar[str] = "loss"
    like: ClassVar[str] = ""
    settings: ClassVar[tuple[Setting, ...]] = ()
    packable: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    rate_factor: ClassVar[float] = 1.0


def merged(defaults: Mapping[str, Scalar | None], given: Mapping[str, Scalar]) -> dict[str, Any]:
    """Options as they are used: defaults overlaid with what was given, without those that have no value."""
    return {name: value for name, value in {**defaults, **given}.items() if value is not None}
