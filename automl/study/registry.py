"""Names and options of samplers and pruners, checked with a message that says what would be right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from automl.errors import ConfigError, Problem
from automl.registry import Registry
from automl.space.messages import nearest
from automl.space.options import merged
from automl.trial import Scalar

T = TypeVar("T")


def refuse(key: str, message: str) -> ConfigError:
    """A problem of `search:` in the space file."""
    return ConfigError([Problem("space file", 0, 0, f"search.{key}", message)])


def lookup(name: str, registry: Registry[T]) -> T:
    """The entry of that name; raises ConfigError listing the known ones and the nearest; PluginError if broken."""
    if name not in registry:
        raise refuse(registry.kind, f"unknown {name!r}; {nearest(name, registry)}")
    return registry[name]


def merge_options(kind: str, given: Mapping[str, Scalar], defaults: Mapping[str, Scalar | None]) -> dict[str, Scalar]:
    """Defaults overlaid with what the user gave; raises ConfigError for an unknown name."""
    for name in given:
        if name not in defaults:
            known = nearest(name, defaults) if defaults else f"this {kind} takes no options"
            raise refuse(f"{kind}_options", f"unknown {name!r}; {known}")
    return merged(defaults, given)
