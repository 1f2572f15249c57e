"""Hyperparameters that a method or a task brings: what a space file may give them, and what they are otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from automl.lora import Hyperparameters
from automl.trial import Scalar

Kind = Literal["truth", "whole", "number", "text"]

_KINDS: Mapping[type, Kind] = {bool: "truth", int: "whole", float: "number", str: "text"}


class Span(NamedTuple):
    """A range to search, ends included; log: on a logarithmic scale."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A hyperparameter that a method or a task brings; the type of its default is its own.

    name: as in the space file. Other methods may have it too, if they declare it alike.
    meaning: in a few words, as `automl init` and the JSON Schema say it.
    low, high: bounds of a number, included. They keep numbers sane; what is worth trying is in `tried`.
    choices: of a text, empty: any.
    tried: what `auto` searches: a span, or values to choose from; empty: nothing, `auto` is refused.
    searched: a space file that does not say what is searched searches it.
    sized: how much is trained or held in memory follows from it.
    packable: values with which trials may be packed, the default among them; None: all.
    shardable: values with which several processes may hold a trial together; True: all, False: the default.
    quantizable: values that a trial may have on a quantised model, the default among them; None: all.
    quant: values that need the extra `quant`.
    having: another setting and its values with which this one means something; None: always.
    """

    name: str
    default: Scalar
    meaning: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    tried: Span | tuple[Scalar, ...] = ()
    searched: bool = False
    sized: bool = False
    packable: tuple[Scalar, ...] | None = None
    shardable: bool | tuple[Scalar, ...] = False
    quantizable: tuple[Scalar, ...] | None = None
    quant: tuple[Scalar, ...] = ()
    having: tuple[str, tuple[Scalar, ...]] | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a declaration that contradicts itself."""
        if not all(part.isidentifier() for part in self.name.split(".")):
            raise ValueError(f"{self.name!r} is no name of a setting")
        tried = (self.tried.low, self.tried.high) if isinstance(self.tried, Span) else self.tried
        wrong = [value for value in (self.default, *tried) if not self.admits(value)]
        if wrong:
            raise ValueError(f"{self.name}: {wrong[0]!r} is outside its own bounds")
        if self.packable is not None and self.default not in self.packable:
            raise ValueError(f"{self.name}: the default {self.default!r} has to be packable")
        if self.quantizable is not None and self.default not in self.quantizable:
            raise ValueError(f"{self.name}: the default {self.default!r} has to be quantizable")

    @property
    def kind(self) -> Kind:
        """What kind of value it has."""
        return _KINDS[type(self.default)]

    def admits(self, value: Scalar) -> bool:
        """Whether the value is of its kind and within its bounds."""
        if isinstance(value, str) or self.kind == "text":
            return isinstance(value, str) and self.kind == "text" and (not self.choices or value in self.choices)
        if (self.kind == "truth") != isinstance(value, bool):
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def typed(self, value: Scalar) -> Scalar:
        """The value in the setting's own type: 8 is 8.0 where that is a number."""
        return float(value) if self.kind == "number" else value

    def of(self, hyper: Hyperparameters) -> Scalar:
        """Its value in this configuration."""
        return hyper.settings.get(self.name, self.default)

    def alone(self, values: Iterable[Scalar]) -> list[Scalar]:
        """Those of the values with which a trial cannot be packed."""
        return [] if self.packable is None else [value for value in values if value not in self.packable]

    def undivided(self, values: Iterable[Scalar]) -> list[Scalar]:
        """Those of the values with which several processes cannot hold a trial together."""
        if self.shardable is True:
            return []
        able = self.shardable or (self.default,)
        return [value for value in values if value not in able]

    def on_whole_weights(self, values: Iterable[Scalar]) -> list[Scalar]:
        """Those of the values that a trial cannot have on a quantised model."""
        return [] if self.quantizable is None else [value for value in values if value not in self.quantizable]


class Exclusion(NamedTuple):
    """Values of a method's settings that do not go together, and why, in words that follow a dash or a comma.

    values: by name of the setting; those of at least two.
    """

    values: Mapping[str, tuple[Scalar, ...]]
    reason: str

    def excludes(self, settings: Iterable[Setting], hyper: Hyperparameters) -> bool:
        """Whether the configuration is one of these. settings: the method's."""
        own = {setting.name: setting.of(hyper) for setting in settings}
        return all(own.get(name) in values for name, values in self.values.items())


def chosen(settings: Iterable[Setting], values: Mapping[str, Scalar]) -> tuple[tuple[str, Scalar], ...]:
    """What a configuration records of these settings: those of the values that are not the default, by name."""
    typed = ((each, each.typed(values[each.name])) for each in settings if each.name in values)
    return tuple(sorted((each.name, value) for each, value in typed if value != each.default))
