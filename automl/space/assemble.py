"""From sampled parameters to a complete configuration: conditions, fixed values, defaults, alpha from its ratio."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields

from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.methods.settings import Setting, chosen
from automl.space.coordinate import as_trained, searched_rate
from automl.space.entries import TASKS
from automl.space.extremes import names_of
from automl.space.limits import NAMES, RATE, plain
from automl.space.spec import Parameter, SearchSpace
from automl.trial import Scalar

_FIELDS = {field.name: field.default for field in fields(Hyperparameters)}


def assemble(space: SearchSpace, params: Mapping[str, Scalar]) -> Hyperparameters:
    """Sampled values over fixed ones over the defaults; alpha = alpha_ratio * rank where the ratio is given.

    A learning rate that is searched at an alpha becomes the one that the trial is trained with.

    Names with a condition that does not hold are simply absent from `params` and take their default; settings that
    another method brings are left out.
    Raises ValueError if `params` holds a name that the space does not search.
    """
    searched = {*(parameter.name for parameter in space.parameters), *space.columns}
    strange = [name for name in params if name not in searched]
    if strange:
        raise ValueError(f"{strange[0]!r} is not a parameter of this space; it has {', '.join(sorted(searched))}")
    sampled = {plain(name): value for name, value in params.items() if name not in space.columns}
    values = {**space.fixed, **sampled}
    ratio = values.pop("alpha_ratio", None)
    if ratio is not None:
        values["alpha"] = float(ratio) * int(values.get("rank", Hyperparameters().rank))
    general = {name: _as_declared(name, value) for name, value in values.items() if name in _FIELDS}
    method = METHODS[str(values.get("method", Hyperparameters().method))]
    own = chosen((*method.settings, *_of_task(space, values)), values)
    return as_trained(space, params, Hyperparameters(**general, own=own))  # type: ignore[arg-type]


def own_of_task(space: SearchSpace, values: Mapping[str, Scalar]) -> tuple[tuple[str, Scalar], ...]:
    """The part of these values that the task brings, as `Hyperparameters.own` records it."""
    return chosen(_of_task(space, values), values)


def _of_task(space: SearchSpace, values: Mapping[str, Scalar]) -> list[Setting]:
    """The settings of the task that mean something with these values."""
    if not space.task:
        return []
    settings = {setting.name: setting for setting in TASKS[space.task].settings}

    def counts(setting: Setting) -> bool:
        if setting.having is None:
            return True
        other, wanted = setting.having
        return values.get(other, settings[other].default) in wanted

    return list(filter(counts, settings.values()))


def active_parameters(space: SearchSpace, params: Mapping[str, Scalar]) -> Iterator[Parameter]:
    """Yield the parameters whose condition holds, in order.

    Lazy: the caller may sample each one and put it into `params` before asking for the next.
    """
    for parameter in space.parameters:
        if is_active(parameter, params):
            yield parameter


def is_active(parameter: Parameter, params: Mapping[str, Scalar]) -> bool:
    """Whether the condition of a parameter holds; a condition on an inactive parameter does not."""
    when = parameter.when
    return when is None or (when.parameter in params and params[when.parameter] in when.values)


def constraint_values(
    space: SearchSpace, params: Mapping[str, Scalar], hyper: Hyperparameters, derived: Mapping[str, float]
) -> dict[str, Scalar]:
    """All names that a constraint may read, with their values; `derived` holds trainable_params.

    hyper: what `params` assemble to. A ratio that is sampled or fixed is read as it was written, since alpha / rank
    need not be the same number: 0.3 * 3 / 3 is not 0.3. So is a learning rate, which may be searched at an alpha.
    """
    plain = {name: getattr(hyper, name) for name in NAMES if name != "alpha_ratio"}
    if (rate := searched_rate(params)) is not None:
        plain[RATE] = rate
    own = {name: setting.of(hyper) for name, setting in names_of(space).own.items()}
    written = {"alpha_ratio": hyper.alpha / hyper.rank, **space.fixed, **params}
    return {**plain, **own, "alpha_ratio": written["alpha_ratio"], **derived}


def _as_declared(name: str, value: Scalar) -> Scalar:
    """A whole number given for a float field, as a float."""
    return float(value) if isinstance(_FIELDS[name], float) else value
