"""Ranges for parameters left to `auto`, by the size of the model and the length of a trial, and warnings about others.

What is known, and where it comes from (learning rates are those of AdamW with LoRA):

| model        | trial        | learning rate | source                                                               |
|--------------|--------------|---------------|----------------------------------------------------------------------|
| below 500 M  | <= 300 steps | 1e-4 ... 2e-2 | MiniLM-L6, 60 steps: best near 5e-3, chance at 3e-4, diverged at     |
|              |              |               | 3e-2; a 25 M GPT: best at 1e-2                                       |
| below 500 M  | longer       | 5e-5 ... 1e-2 | interpolated: the longer the run, the lower the best rate            |
| 500 M to 4 B | any          | 1e-5 ... 2e-3 | Gemma-3-1B, r = 128: best near 2e-4, a cliff at 2e-3                 |
| above 4 B    | any          | 2e-5 ... 1e-3 | LoRA Without Regret: about 10x full fine-tuning's; QLoRA: 2e-4, 1e-4 |

For preferences a tenth of these: with LoRA, DPO is trained at 5e-6 (Zephyr 7B) to 5e-5 (TRL's examples), where 2e-4 is
usual for instructions.

Rank: results are flat above 8 to 16 in the tables for GPT-2 and GPT-3 (Hu et al. 2021), TRL and QLoRA use 32 to 64 for
large models: 2 ... 64 below 1 B, 4 ... 128 from there. Alpha as a multiple of the rank, as alpha = r or 2 r is usual.
Dropout 0, 0.05, 0.1 (QLoRA). Batch size at most 32: LoRA suffers from large batches (TRL). Warm-up and schedule as in
QLoRA (0.03, constant) and Unsloth (5 to 10 %).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from automl.methods.registry import METHODS
from automl.methods.settings import Setting, Span
from automl.space import limits as hyper
from automl.space.entries import TASKS
from automl.space.extremes import names_of
from automl.space.spec import CategoricalParameter, FloatParameter, IntParameter, Parameter, SearchSpace
from automl.trial import Scalar

WIDE = 1_000_000_000
"""Models with at least so many parameters pay for higher ranks."""
FEW_STEPS = 50

DEFAULT_SEARCHED = ("rank", "alpha_ratio", "dropout", "target", "learning_rate")
"""What is searched if the file has no `space:` (without those that `fixed:` names), as far as the method uses it."""

AUTO_NAMES = (
    "rank",
    "alpha_ratio",
    "dropout",
    "target",
    "learning_rate",
    "weight_decay",
    "batch_size",
    "warmup",
    "schedule",
    "use_rslora",
    "neftune_alpha",
)
"""Names that may be `auto`, whatever the method."""


TARGETS = ("all-linear", "qv", "attention", "mlp")
"""Target sets that are tried, where the model has them."""


_USUAL = hyper.Names(["lora"])


def default_searched(names: hyper.Names) -> list[str]:
    """What is searched with these methods, unless it is said."""
    general = [name for name in DEFAULT_SEARCHED if names.methods_with(name)]
    own = (name for name, setting in names.own.items() if setting.searched and not names.idle(name))
    return [*general, *own]


def auto_names(names: hyper.Names) -> list[str]:
    """Names that may be `auto` with these methods."""
    return [*AUTO_NAMES, *(name for name, setting in names.own.items() if setting.tried)]


def suggested_ranges(
    model_parameters: int, steps: int, target_sets: Sequence[str] = TARGETS, names: hyper.Names = _USUAL
) -> dict[str, Parameter]:
    """The ranges above, for every name in AUTO_NAMES, and what methods and task try of their own settings.

    model_parameters: the backbone's; steps: those of a full trial; target_sets: those that the model has. names: what
    may be named; each method says which learning rates suit it.
    """
    smallest, largest = (2, 64) if model_parameters < WIDE else (4, 128)
    return {
        "rank": IntParameter(name="rank", low=smallest, high=largest, log=True),
        "alpha_ratio": CategoricalParameter(name="alpha_ratio", choices=(0.5, 1.0, 2.0, 4.0)),
        "dropout": CategoricalParameter(name="dropout", choices=(0.0, 0.05, 0.1)),
        "target": CategoricalParameter(name="target", choices=_targets(target_sets)),
        "learning_rate": _rate(hyper.RATE, _learning_rates(names, names.methods, model_parameters, steps)),
        "weight_decay": CategoricalParameter(name="weight_decay", choices=(0.0, 0.01, 0.1)),
        "batch_size": CategoricalParameter(name="batch_size", choices=(8, 16, 32)),
        "warmup": CategoricalParameter(name="warmup", choices=(0.0, 0.03, 0.06, 0.1)),
        "schedule": CategoricalParameter(name="schedule", choices=("constant", "linear", "cosine")),
        "use_rslora": CategoricalParameter(name="use_rslora", choices=(False, True)),
        "neftune_alpha": CategoricalParameter(name="neftune_alpha", choices=(0.0, 5.0, 10.0, 15.0)),
        **{name: _tried(setting) for name, setting in names.own.items() if setting.tried},
    }


def resolve(space: SearchSpace, model_parameters: int, steps: int, target_sets: Sequence[str] = TARGETS) -> SearchSpace:
    """The space with a range for each name in `auto`, widened so that it contains every enqueued value."""
    names = names_of(space)
    ranges = suggested_ranges(model_parameters, steps, target_sets, names)
    rates = own_rates(names, model_parameters, steps)
    auto = _with_each_method(space, names, rates)
    given = {*auto, *(parameter.name for parameter in space.parameters)}
    if sharing := names.without_own_rates(given):
        ranges[hyper.RATE] = _rate(hyper.RATE, _learning_rates(names, sharing, model_parameters, steps))
    enqueue = tuple(with_own_rates(entry, given) for entry in space.enqueue)
    automatic = {
        name: replace(_widened((ranges | rates)[name], _enqueued(enqueue, name)), when=names.condition(name, given))
        for name in auto
    }
    known = {parameter.name: parameter for parameter in (*automatic.values(), *space.parameters)}
    free = [known[name] for name in names.ordered(known) if known[name].when is None]
    conditional = [parameter for parameter in (*space.parameters, *automatic.values()) if parameter.when is not None]
    return replace(space, parameters=(*free, *conditional), auto=(), enqueue=enqueue)


def own_rates(names: hyper.Names, model_parameters: int, steps: int) -> dict[str, Parameter]:
    """The range of learning rates of each method by the name it has in a space."""
    return {
        name: _rate(name, _learning_rates(names, (method,), model_parameters, steps))
        for method, name in zip(names.methods, map(hyper.own_rate, names.methods), strict=True)
    }


def have_different_rates(rates: Iterable[Parameter]) -> bool:
    """Whether some of these ranges of methods differ, so that one for all would be wide."""
    return len({(each.low, each.high) for each in rates if isinstance(each, FloatParameter)}) > 1


def with_own_rates(entry: Mapping[str, Scalar], given: Collection[str]) -> Mapping[str, Scalar]:
    """An enqueued configuration with its learning rate under the name that it has for its method.

    given: names that are searched.
    """
    name = hyper.own_rate(str(entry.get("method")))
    if hyper.RATE not in entry or name not in given:
        return entry
    return {name if key == hyper.RATE else key: value for key, value in entry.items()}


def _with_each_method(space: SearchSpace, names: hyper.Names, rates: Mapping[str, Parameter]) -> tuple[str, ...]:
    """Names of automatic ranges, with a learning rate for each method where theirs differ.

    It remains one for all if an enqueued configuration gives one without its method.
    """
    given = {*space.auto, *(parameter.name for parameter in space.parameters)}
    own = [hyper.own_rate(method) for method in names.without_own_rates(given)]
    is_clear = all("method" in entry for entry in space.enqueue if hyper.RATE in entry)
    if hyper.RATE not in space.auto or not is_clear or not have_different_rates(rates[name] for name in own):
        return space.auto
    return tuple(names.ordered({*space.auto, *own} - {hyper.RATE}))


def _rate(name: str, span: tuple[float, float]) -> FloatParameter:
    return FloatParameter(name=name, low=span[0], high=span[1], log=True)


def advice(space: SearchSpace, model_parameters: int, steps: int) -> list[str]:
    """One line for each choice that is legal but known to waste trials; may be empty."""
    parameters = {parameter.name: parameter for parameter in space.parameters}
    notes = [*_rates_advice(space, parameters, model_parameters, steps)]
    if steps < FEW_STEPS:
        notes.append(f"steps: {steps} teach little; differences between trials show from about {FEW_STEPS} steps on")
    rank, alpha = parameters.get("rank"), parameters.get("alpha")
    if isinstance(rank, IntParameter) and alpha is not None and rank.high >= 8 * rank.low:
        notes.append("alpha: searched beside rank over a wide range; alpha_ratio searches the scale instead")
    return notes


def _rates_advice(
    space: SearchSpace, parameters: Mapping[str, Parameter], model_parameters: int, steps: int
) -> Iterator[str]:
    """Advice on each range of learning rates, and on a fixed one."""
    names = names_of(space)
    sharing = names.without_own_rates(parameters)
    for name, methods in ((hyper.RATE, sharing), *((hyper.own_rate(each), (each,)) for each in names.methods)):
        if methods:
            low, high = _learning_rates(names, methods, model_parameters, steps)
            usual = f"{low:g} to {high:g} suits a model of {model_parameters:,} parameters and trials of {steps} steps"
            yield from _rate_advice(name, parameters.get(name), space.fixed, low, high, usual=usual)


def _rate_advice(
    name: str, parameter: Parameter | None, fixed: Mapping[str, Scalar], low: float, high: float, *, usual: str
) -> list[str]:
    rate = fixed.get(name)
    if isinstance(rate, float) and not low <= rate <= high:
        return [f"{name}: fixed at {rate:g}; {usual}"]
    if not isinstance(parameter, FloatParameter):
        return []
    notes = []
    if parameter.high < high / 2:
        notes.append(f"{name}: the range ends at {parameter.high:g}, perhaps below the best rate; {usual}")
    if parameter.high > high * 5:
        notes.append(f"{name}: the range ends at {parameter.high:g}, where trials may diverge; {usual}")
    if not parameter.log and parameter.step is None and parameter.high > 10 * parameter.low:
        notes.append(f"{name}: without log: true nearly all trials fall into the top tenth of the range")
    return notes


def _learning_rates(
    names: hyper.Names, methods: Sequence[str], model_parameters: int, steps: int
) -> tuple[float, float]:
    """From the lowest to the highest rate that one of the methods is to be tried with on the task."""
    ranges = [METHODS[name].learning_rates(model_parameters, steps) for name in methods]
    factor = TASKS[names.task].rate_factor if names.task else 1.0
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    return float(f"{factor * low:.4g}"), float(f"{factor * high:.4g}")


def _tried(setting: Setting) -> Parameter:
    """What `auto` means for a method's own setting."""
    name, tried = setting.name, setting.tried
    if not isinstance(tried, Span):
        return CategoricalParameter(name=name, choices=tried)
    if setting.kind == "whole":
        return IntParameter(name=name, low=int(tried.low), high=int(tried.high), log=tried.log)
    return FloatParameter(name=name, low=tried.low, high=tried.high, log=tried.log)


def _targets(target_sets: Sequence[str]) -> tuple[str, ...]:
    """What `target` is chosen from; without any the first, whose refusal then says what the model has."""
    return tuple(name for name in TARGETS if name in target_sets) or TARGETS[:1]


def _enqueued(entries: Iterable[Mapping[str, Scalar]], name: str) -> list[Scalar]:
    return [entry[name] for entry in entries if name in entry]


def _widened(parameter: Parameter, values: list[Scalar]) -> Parameter:
    """The range with these values in it. A user's own target set counts as well."""
    if isinstance(parameter, CategoricalParameter):
        return replace(parameter, choices=tuple(dict.fromkeys([*parameter.choices, *values])))
    numbers = [value for value in values if not isinstance(value, str)]
    if isinstance(parameter, IntParameter):
        whole = [int(number) for number in numbers]
        return replace(parameter, low=min([parameter.low, *whole]), high=max([parameter.high, *whole]))
    return replace(parameter, low=min([parameter.low, *numbers]), high=max([parameter.high, *numbers]))
