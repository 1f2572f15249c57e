"""Stops a trial that has not improved for a while, if another pruner agrees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, Field

from automl.space.entries import PRUNERS, Pruner
from automl.space.messages import not_known
from automl.space.named import check_name
from automl.space.options import Options, merged
from automl.space.schema_base import mistake
from automl.space.spec import SearchSettings

if TYPE_CHECKING:
    from optuna.pruners import BasePruner


def _wrappable() -> list[str]:
    return [name for name, entry in PRUNERS.usable().items() if entry.wrappable]


def _checked(name: str) -> str:
    check_name(PRUNERS, name)
    if not PRUNERS[name].wrappable:
        raise mistake("section", not_known(name, _wrappable()))
    return name


def _list_names(schema: dict[str, Any]) -> None:
    schema["enum"] = _wrappable()


class PatientOptions(Options):
    """Stops a trial that has not improved for a while, if the wrapped pruner agrees."""

    patience: Annotated[int, Field(ge=0)] = 2
    """Evaluations without improvement that are waited for."""
    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """Smallest change that counts as an improvement."""
    wrapped: Annotated[str, AfterValidator(_checked), Field(json_schema_extra=_list_names)] = "median"
    """Pruner that must agree; none = patience alone decides."""


def _build(settings: SearchSettings, options: Mapping[str, Any]) -> BasePruner:
    """Ask the wrapped pruner (with its default options) only when there was no gain for `patience` evaluations."""
    from optuna.pruners import PatientPruner

    name = _checked(options["wrapped"])
    wrapped = PRUNERS[name]
    inner = None if name == "none" else wrapped.build(settings, merged(wrapped.defaults(settings), {}))
    return PatientPruner(inner, options["patience"], options["min_delta"])


PATIENT = Pruner(options=PatientOptions, build=_build, wrappable=False)
