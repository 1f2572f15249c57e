"""Writes the commented space file that `automl init` starts a user with; valid by construction."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from automl.lora import Hyperparameters
from automl.metric import METRICS
from automl.registry import Registry
from automl.space.budget import Budget
from automl.space.defaults import TARGETS, default_searched, have_different_rates, own_rates, suggested_ranges
from automl.space.entries import PRUNERS, SAMPLERS, TASKS, fits, is_like
from automl.space.limits import RATE, Names, own_rate
from automl.space.priors import ALPHA_RATIO, RANK, Prior
from automl.space.schema_data import DATA_SUFFIXES
from automl.space.spec import CategoricalParameter, FloatParameter, Parameter
from automl.space.write import scalar
from automl.trial import Scalar

DEFAULT_LENGTH = 128
_UNKNOWN = Budget(batch_size=8, steps=120, length="steps: 120", meaning="optimizer steps of a full trial")
_OF_LANGUAGE = ("completion", "instruction", "preference")
_KEEP = (
    "# keep: {data: {package: automl, file: tasks/texts/general.jsonl}}"
    "  # measure what trials forget of plain English; or a file of your own"
)
DEFAULT_METHODS = (Hyperparameters().method,)

_COMMENTS = {
    "rank": "capacity of the adapter; memory grows with it",
    "alpha_ratio": "alpha = ratio x rank: how strongly the update counts",
    "dropout": "against overfitting",
    "target": "which layers to adapt; more layers learn more and take longer",
    "learning_rate": "matters most",
}


def commented_space(
    study: str,
    model: str,
    data: str,
    task_type: str,
    model_parameters: int | None = None,
    columns: Mapping[str, str] | None = None,
    target_sets: Sequence[str] = TARGETS,
    max_length: int = DEFAULT_LENGTH,
    target_length: int = DEFAULT_LENGTH,
    cut: str = "longer ones are cut",
    methods: Sequence[str] = (),
    fixed: Mapping[str, Scalar] = MappingProxyType({}),
    budget: Budget = _UNKNOWN,
    prior: Prior | None = None,
) -> str:
    """Text of a space file with a comment on every line that has something to decide.

    model, data: as a user would write them (hub id, folder, file). model_parameters: number of parameters of the
    backbone; None leaves the ranges to `auto`. columns: our column name -> theirs, where they differ.
    target_sets: those that the model has. target_length: of a target, where it is apart. cut: what max_length means
    for this data, in a few words. methods: the one that is fixed, or those that are searched; empty: the default,
    unsaid. fixed: what the data wants of the task's own hyperparameters. budget: for rows that are counted.
    prior: the rate that LoRA tries first, if it is a method of the search; preferences want far lower ones.
    """
    brought = TASKS[task_type].settings
    values = {setting.name: fixed.get(setting.name, setting.default) for setting in brought}
    names = Names(methods or DEFAULT_METHODS, task_type if brought else "", lambda setting: [values[setting.name]])
    metric = TASKS[task_type].default_metric
    has_prior = model_parameters is not None and "lora" in names.methods and not is_like("preference", task_type)
    first = prior if has_prior else None
    fitting = ", ".join(name for name in METRICS.usable() if fits(name, task_type))
    return "\n".join(
        [
            "# A hyperparameter search over LoRA configurations. Check it: automl validate; run it: automl search.",
            "version: 1",
            f"study: {scalar(study)}  # results are kept under this name; the same file again continues it",
            "",
            f"model: {scalar(model)}  # hub id, folder, or .gguf file",
            "",
            "task:",
            f"  type: {task_type}",
            *_data_lines(data, {ours: theirs for ours, theirs in (columns or {}).items() if ours != theirs}),
            *_target_lines(task_type, target_length),
            *_metric_lines(metric, fitting),
            "  split: {test: 0.2, validation: 0.2}  # shares of the rows; the search never reads the test rows",
            "  seed: 7  # fixes the split and the order of the batches",
            "# tasks: [{name: one, type: ...}, {name: two, ...}]  # instead: a study for each, on one model",
            *([_KEEP] if any(is_like(each, task_type) for each in _OF_LANGUAGE) else []),
            "",
            "space:  # what may vary; what is not mentioned keeps its default",
            *_parameter_lines(model_parameters, budget.steps, target_sets, names, is_said=bool(methods), prior=first),
            *_first_lines(first, target_sets, names),
            "",
            "fixed:",
            *(f"  method: {method}" for method in methods if len(methods) == 1),
            *(f"  {each.name}: {values[each.name]}  # {each.meaning}" for each in brought if each.choices),
            f"  batch_size: {budget.batch_size}  # rows per optimizer step",
            f"  max_length: {max_length}  # tokens per example; {cut}",
            "",
            "# constraints:",
            '#   - "trainable_params <= 1_000_000"  # checked before a trial costs anything',
            "",
            "search:",
            f"  sampler: tpe  # or: {_others(SAMPLERS, 'tpe')}",
            f"  pruner: halving  # pauses weak trials; or: {_others(PRUNERS, 'halving')}",
            "  trials: 24  # complete and pruned ones together",
            f"  {budget.length}  # {budget.meaning}",
            "  checkpoint: best  # a trial is worth its best evaluation, and ends itself once it overfits; or: last",
            "  # evaluate_every: 10  # measure so often, on all rows; left out: where trials are judged, cheaply",
            "  seed: 7",
            "  # time: 2h  # stop after so long; the same command continues",
            "  # budget: {gpu_hours: 8}  # or tokens, examples, cost: {per_gpu_hour: 2.5, limit: 40, currency: EUR}",
            "",
            "run:",
            "  executor: ray  # worker processes; inline runs in this one",
            "",
            "# storage: {url: sqlite:///automl.db}  # the default; PostgreSQL: set AUTOML_DB_URL",
            "",
        ]
    )


def _target_lines(task_type: str, length: int) -> list[str]:
    """The limit of targets, of a task that has sources and targets."""
    name = "max_target_length"
    return [f"  {name}: {length}  # tokens of a target"] if name in TASKS[task_type].model_fields else []


def _metric_lines(metric: str, fitting: str) -> list[str]:
    """The objective, and what else it may be, over as many lines as that takes."""
    first, *others = textwrap.wrap(f"or one of: {fitting}", width=100)
    return [f"  metric: {metric}  # {first}", *(f"  #   {line}" for line in others)]


def _others(registry: Registry[Any], name: str) -> str:
    return ", ".join(other for other in registry if other != name)


def _data_lines(data: str, columns: Mapping[str, str]) -> list[str]:
    if not columns:
        return [f"  data: {scalar(data)}  # file, folder with a sub-folder per label, or {{hub: id}}"]
    renamed = ", ".join(f"{ours}: {scalar(theirs)}" for ours, theirs in columns.items())
    is_file = data.endswith(DATA_SUFFIXES) or data.startswith((".", "/", "~", "\\"))
    source = f"    {'file' if is_file else 'hub'}: {scalar(data)}"
    return ["  data:", source, f"    columns: {{{renamed}}}  # our name: the name in the data"]


def _parameter_lines(
    model_parameters: int | None,
    steps: int,
    target_sets: Sequence[str],
    names: Names,
    *,
    is_said: bool,
    prior: Prior | None,
) -> list[str]:
    """What is searched, and as comments what else may be; is_said: with the methods' own settings."""
    comments = _COMMENTS | {name: setting.meaning for name, setting in names.own.items()}
    ranges = {} if model_parameters is None else suggested_ranges(model_parameters, steps, target_sets, names)
    by_size = "; auto: by the model's size" if model_parameters is None else ""
    rates = {} if model_parameters is None else own_rates(names, model_parameters, steps)
    if have_different_rates(rates.values()):
        ranges |= rates
        comments |= dict.fromkeys(rates, "of this method alone")
    if prior is not None:
        ranges[_lora_rate(ranges)] = _around(prior.rate, ranges[_lora_rate(ranges)])
    searched = {name: _range(ranges[name]) if ranges else "auto" for name in _searched(names, ranges)}
    lines = [f"  {name}: {text}  # {comments[name]}{by_size}" for name, text in searched.items()]
    tried = (name for name, setting in names.own.items() if setting.tried and not names.idle(name))
    others = [name for name in tried if name not in searched]
    also = [f"  # {name}: auto  # {comments[name]}" for name in others if is_said or names.is_of_task(name)]
    several = f"{{type: categorical, choices: [{', '.join(names.methods)}]}}"
    choice = [f"  method: {several}  # what the others are for is left out for a method that has no use for it"]
    return [*(choice if len(names.methods) > 1 else []), *lines, *also]


def _first_lines(prior: Prior | None, target_sets: Sequence[str], names: Names) -> list[str]:
    """The configuration that is tried first."""
    if prior is None:
        return []
    target = next((name for name in TARGETS if name in target_sets), TARGETS[0])
    method = "method: lora, " if len(names.methods) > 1 else ""
    entry = f"{method}rank: {RANK}, alpha_ratio: {ALPHA_RATIO:g}, target: {target}, learning_rate: {scalar(prior.rate)}"
    return ["", "enqueue:  # tried first", f"  - {{{entry}}}  # {prior.source}"]


def _lora_rate(ranges: Mapping[str, Parameter]) -> str:
    """The name under which LoRA's learning rate is searched."""
    return own_rate("lora") if own_rate("lora") in ranges else RATE


def _around(rate: float, parameter: Parameter) -> Parameter:
    """The range of a learning rate, with three times what is known to be good in it."""
    if not isinstance(parameter, FloatParameter):
        return parameter
    return replace(parameter, low=min(parameter.low, rate / 3), high=max(parameter.high, 3 * rate))


def _searched(names: Names, ranges: Mapping[str, Parameter]) -> list[str]:
    """What is searched: with a learning rate for each method where their ranges are known to differ."""
    general = default_searched(names)
    rates = [own_rate(method) for method in names.methods if own_rate(method) in ranges]
    return names.ordered([*(name for name in general if name != RATE or not rates), *rates])


def _range(parameter: Parameter) -> str:
    if isinstance(parameter, CategoricalParameter):
        return f"{{type: categorical, choices: [{', '.join(scalar(choice) for choice in parameter.choices)}]}}"
    kind = "int" if isinstance(parameter.low, int) else "float"
    log = ", log: true" if parameter.log else ""
    return f"{{type: {kind}, low: {scalar(parameter.low)}, high: {scalar(parameter.high)}{log}}}"
