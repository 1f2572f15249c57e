"""What every trial of a sweep stands on: the backbone, the prepared data, the resolved space, derived quantities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from automl.errors import ConfigError, Problem
from automl.lora import Hyperparameters, LinearShape
from automl.methods.base import Footprint
from automl.methods.registry import METHODS
from automl.models.backbone import BackboneRef, load_tokenizer, skeleton
from automl.models.folder import read_config
from automl.models.inventory import head_parameters, notes, resolvable_sets, resolve_targets
from automl.packed.build import obstacle
from automl.setup.fitness import (
    check_architecture,
    check_ends,
    check_extras,
    check_harness_methods,
    check_inputs,
    check_joins,
    check_length,
    check_positions,
    check_stacks,
    check_start,
    check_vocabulary,
)
from automl.setup.keeping import prepare_keep
from automl.space.advice import search_advice
from automl.space.assemble import own_of_task
from automl.space.budget import coverage_advice
from automl.space.defaults import advice, resolve
from automl.space.entries import TASKS
from automl.space.extremes import (
    corners,
    extremes,
    methods_of,
    not_quantizable,
    own_values,
    setting_values,
    target_names,
    variants,
)
from automl.space.length import Seen, settle_length
from automl.space.points import grid_values, values
from automl.space.satisfiable import is_hopeless
from automl.space.spec import Quantization, SearchSettings, SearchSpace, SweepSpec
from automl.tasks import make_task
from automl.tasks.base import Head, Prepared, Task
from automl.tasks.batches import mean_tokens
from automl.tasks.mixture import places_of
from automl.training.beginning import resolve_start
from automl.training.kept import Keep


class Derivation:
    """Quantities that follow from a configuration and the model: `trainable_params` (adapter and trained head)."""

    def __init__(self, model: torch.nn.Module, targets: Mapping[str, tuple[str, ...]]) -> None:
        self._model = model
        self._targets = targets
        self._head = head_parameters(model)
        self._layers: dict[str, list[LinearShape]] = {}

    def __call__(self, hyper: Hyperparameters) -> dict[str, float]:
        """Derived quantities by name. Raises TargetError if the target set matches nothing."""
        adapter = METHODS[hyper.method].trainable(self._model, self.layers(hyper.target), hyper)
        return {"trainable_params": float(self._head + adapter)}

    def most_parameters(self, hyper: Hyperparameters) -> int:
        """Parameters that a trial holds at most, as memory is planned by. Raises TargetError as well."""
        return self.footprint(hyper).parameters

    def footprint(self, hyper: Hyperparameters) -> Footprint:
        """What memory is planned by. Raises TargetError as well."""
        return METHODS[hyper.method].footprint(self._model, self.layers(hyper.target), hyper)

    def layers(self, target: str) -> list[LinearShape]:
        """The layers that a target set means in this model. Raises TargetError if it matches nothing."""
        if target not in self._layers:
            self._layers[target] = resolve_targets(self._model, target, self._targets)
        return self._layers[target]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """Backbone and data of a sweep, ready; `space` has every automatic range filled in.

    target_sets: named ones that the model has. obstacle: why its trials cannot be packed, empty if they can. notes: the
    part of the advice, what the summary and the report repeat. search: that of the spec, with the steps of a trial that
    follow from the data. keep: the data of `keep:`, if there is any.
    """

    backbone: BackboneRef
    model: torch.nn.Module
    prepared: Prepared
    space: SearchSpace
    derive: Derivation
    target_sets: tuple[str, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]
    obstacle: str
    cache: Path
    search: SearchSettings
    keep: Keep | None = None

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a study's results depend on beside the space file; a resumed study must find the same."""
        return {"model": self.backbone.fingerprint, "data": self.prepared.fingerprint}


def prepare(spec: SweepSpec, cache: Path, *, has_trials: bool = False) -> Inputs:
    """Find the model, prepare the data, fill in the space. Raises ModelError, TargetError, DataError, ConfigError.

    No weights are loaded: shapes come from the configuration. Everything found wrong with the space now that the model
    is known is reported at once. has_trials: the study has begun, so its max_length was accepted; with short texts it
    may be above the model's positions.
    """
    check_extras(spec)
    backbone = resolve_start(spec.model, cache)
    check_architecture(spec, read_config(Path(backbone.path)))
    too_long = () if has_trials else tuple(check_length(spec, Path(backbone.path)))
    task, tokenizer = make_task(spec.task), load_tokenizer(backbone)
    prepared = task.prepare(tokenizer, cache)
    head = task.head(prepared)
    keep, told_of_keep = prepare_keep(spec, task, prepared, tokenizer, cache)
    model = skeleton(backbone, head.kind, head.labels)
    if head.kind == "seq2seq-lm":
        check_start(model)
        check_stacks(spec, spec.space, head)
    unknown = tuple(check_vocabulary(tokenizer, model, task, prepared))
    check_ends(tokenizer, model, task, prepared)
    target_sets = resolvable_sets(model)
    spec = replace(spec, search=_search(spec, backbone, prepared, head, task=task, target_sets=target_sets))
    space = resolve(spec.space, backbone.parameters, spec.search.steps, target_sets)
    derive = Derivation(model, space.targets)
    _check_targets(spec, space, derive)
    if backbone.quantization is not None:
        _check_quantizable(spec, space, backbone.quantization)
    _check_positions(spec, space, model, derive)
    adaptable = (layer for name in target_names(space) for layer in derive.layers(name))
    check_inputs(spec, space, adaptable, task.rows(prepared, "train"))
    if not has_trials:
        _check_constraints(spec, space, derive)
    _check_task(spec, space, task, prepared)
    hindrance = _alone(spec) or obstacle(model, methods_of(space), own_values(space))
    if hindrance and spec.run.precision == "bf16h":
        raise ConfigError([Problem(spec.source, 0, 0, "run.precision", f"bf16h is for packed training; {hindrance}")])
    seen = (*prepared.notes, *told_of_keep, *_coverage(spec, space, prepared, head))
    return Inputs(
        backbone=backbone,
        model=model,
        prepared=prepared,
        space=space,
        derive=derive,
        target_sets=target_sets,
        advice=(
            *too_long,
            *unknown,
            *notes(model),
            *seen,
            *advice(space, backbone.parameters, spec.search.steps),
            *search_advice(space, spec.search),
        ),
        notes=seen,
        obstacle=hindrance,
        cache=cache,
        search=spec.search,
        keep=keep,
    )


def _search(
    spec: SweepSpec, backbone: BackboneRef, prepared: Prepared, head: Head, *, task: Task, target_sets: tuple[str, ...]
) -> SearchSettings:
    """The search with the steps of a full trial; those of a length follow from the rows and the smallest batch."""
    batches = resolve(spec.space, backbone.parameters, 1, target_sets)  # they do not depend on the steps
    longest = min(prepared.longest, spec.task.longest_row)

    def tokens() -> float:
        return mean_tokens(task, task.rows(prepared, "train"))

    seen = Seen(_rows(prepared), _classes(head), max(1, longest), tokens)
    return settle_length(spec.search, seen, smallest=extremes(batches, "batch_size")[0], source=spec.source)


def _rows(prepared: Prepared) -> int:
    """Training rows of an epoch: each of every place once."""
    return sum(places_of(prepared.shares)) if prepared.shares else prepared.rows["train"]


def _classes(head: Head) -> int:
    return len(head.labels) if head.kind == "classification" else 0


def _coverage(spec: SweepSpec, space: SearchSpace, prepared: Prepared, head: Head) -> list[str]:
    smallest = extremes(space, "batch_size")[0]
    return coverage_advice(_rows(prepared), _classes(head), steps=spec.search.steps, batch_size=smallest)


def _check_constraints(spec: SweepSpec, space: SearchSpace, derive: Derivation) -> None:
    sampled = grid_values if spec.search.sampler == "grid" else values
    if is_hopeless(space.constraints, space, sampled, derive):
        message = "no configuration of the space satisfies them on this model; `automl inspect` shows its sizes"
        raise ConfigError([Problem(spec.source, 0, 0, "constraints", message)])


def _check_positions(spec: SweepSpec, space: SearchSpace, model: Any, derive: Derivation) -> None:
    """Raise ConfigError if virtual tokens leave a text too few positions, or do not go with joined rows."""
    most = max(derive.footprint(hyper).virtual_tokens for hyper in corners(space))
    check_positions(spec, model.config.to_dict(), most)
    check_joins(spec, model, most)
    check_harness_methods(spec, most)


def _check_targets(spec: SweepSpec, space: SearchSpace, derive: Derivation) -> None:
    problems = list(_target_problems(spec, space, derive))
    if problems:
        raise ConfigError(problems)


def _check_quantizable(spec: SweepSpec, space: SearchSpace, held: Quantization) -> None:
    """Check models that come quantised, of which the space file does not speak."""
    problems = [Problem(spec.source, 0, 0, name, message) for name, message in not_quantizable(space)]
    if spec.run.shards > 1 and held.kind == "int8":
        message = f"{spec.run.shards} processes cannot hold a model that is stored in int8; use one in nf4 or fp4"
        problems.append(Problem(spec.source, 0, 0, "run.shards", message))
    if problems:
        raise ConfigError(problems)


def _target_problems(spec: SweepSpec, space: SearchSpace, derive: Derivation) -> Iterator[Problem]:
    for name in target_names(space):
        try:
            derive(Hyperparameters(target=name))
        except LookupError as error:
            yield Problem(file=spec.source, line=0, column=0, key="target", message=str(error))
            return
    for message in dict.fromkeys(_refusals(space, derive)):
        yield Problem(file=spec.source, line=0, column=0, key="method", message=message)


def _alone(spec: SweepSpec) -> str:
    return "" if TASKS[spec.task.type].packable else f"task {spec.task.type} cannot be packed"


def _check_task(spec: SweepSpec, space: SearchSpace, task: Task, prepared: Prepared) -> None:
    """Raise ConfigError if the data cannot be learnt with a value that the space chooses of a setting of the task."""
    for setting in TASKS[space.task].settings if space.task else ():
        for value in setting_values(space, setting) if setting.choices else ():
            own = own_of_task(space, {**space.fixed, setting.name: value})
            if refusal := task.refusal(prepared, Hyperparameters(own=own)):
                raise ConfigError([Problem(spec.source, 0, 0, setting.name, refusal)])


def _refusals(space: SearchSpace, derive: Derivation) -> Iterator[str]:
    """Why methods that the space can choose cannot adapt this model."""
    for hyper in (*corners(space), *variants(space)):
        try:
            derive(hyper)
        except LookupError as error:
            yield str(error)
