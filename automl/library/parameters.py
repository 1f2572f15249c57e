"""How a range is written in Python: what `{type: int, low: 2, high: 32, log: true}` is in a space file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from automl.trial import Scalar

When = Mapping[str, Scalar | Sequence[Scalar]]
"""Condition on another parameter: active only if that has this value, or one of these."""


@dataclass(frozen=True, slots=True)
class Float:
    """A real number in [low, high].

    log: sample its logarithm uniformly. step: distance of neighbouring values, not with log. when: as in
    `{"target": "all-linear"}`, active only if that parameter has this value, or one of these. at_alpha: of learning
    rates, the alpha that they are for.
    """

    type: ClassVar[str] = "float"
    low: float
    high: float
    _: KW_ONLY
    log: bool = False
    step: float | None = None
    when: When | None = None
    at_alpha: float | None = None


@dataclass(frozen=True, slots=True)
class Int:
    """A whole number in [low, high]; log, step and when as for `Float`."""

    type: ClassVar[str] = "int"
    low: int
    high: int
    _: KW_ONLY
    log: bool = False
    step: int = 1
    when: When | None = None


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of these values; a plain list means the same. when: as for `Float`."""

    type: ClassVar[str] = "categorical"
    choices: Sequence[Scalar]
    _: KW_ONLY
    when: When | None = None


Range = Float | Int | Categorical


def section(parameter: Range) -> dict[str, Any]:
    """The mapping that a space file has for it, defaults left out."""
    fields = {name: getattr(parameter, name) for name in parameter.__dataclass_fields__ if name != "_"}
    defaults = {"log": False, "step": 1 if isinstance(parameter, Int) else None, "when": None, "at_alpha": None}
    given = {name: value for name, value in fields.items() if name not in defaults or value != defaults[name]}
    return {"type": parameter.type, **given}
