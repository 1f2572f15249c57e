"""What every trial of a sweep stands on: the backbone, the prepared data, the resolved space, derived quantities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from automl.errors import ConfigError, Problem
from automl.lora import Hyperparameters, lora_parameters
from automl.models.backbone import BackboneRef, load_tokenizer, resolve_model, skeleton
from automl.models.inventory import head_parameters, resolve_targets
from automl.space.defaults import advice, resolve
from automl.space.spec import CategoricalParameter, SearchSpace, SweepSpec
from automl.sweep.folders import study_folder
from automl.sweep.layout import Layout
from automl.tasks import make_task
from automl.tasks.base import Prepared
from automl.training.host import HostSettings


class Derivation:
    """Quantities that follow from a configuration and the model: `trainable_params` (LoRA and trained head)."""

    def __init__(self, model: torch.nn.Module, targets: Mapping[str, tuple[str, ...]]) -> None:
        self._model = model
        self._targets = targets
        self._head = head_parameters(model)
        self._per_rank: dict[str, int] = {}

    def __call__(self, hyper: Hyperparameters) -> dict[str, float]:
        """Derived quantities by name. Raises TargetError if the target set matches nothing."""
        if hyper.target not in self._per_rank:
            layers = resolve_targets(self._model, hyper.target, self._targets)
            self._per_rank[hyper.target] = lora_parameters(layers, 1)
        return {"trainable_params": float(self._head + hyper.rank * self._per_rank[hyper.target])}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """Backbone and data of a sweep, ready; `space` has every automatic range filled in."""

    backbone: BackboneRef
    model: torch.nn.Module
    prepared: Prepared
    space: SearchSpace
    derive: Derivation
    advice: tuple[str, ...]

    @property
    def fingerprints(self) -> dict[str, str]:
        """What a study's results depend on beside the space file; a resumed study must find the same."""
        return {"model": self.backbone.fingerprint, "data": self.prepared.fingerprint}


def prepare(spec: SweepSpec, cache: Path) -> Ground:
    """Find the model, prepare the data, fill in the space. Raises ModelError, TargetError, DataError, ConfigError.

    No weights are loaded: shapes come from the configuration. Everything found wrong with the space now that the model
    is known is reported at once.
    """
    backbone = resolve_model(spec.model, cache)
    task = make_task(spec.task)
    prepared = task.prepare(load_tokenizer(backbone), cache)
    head = task.head(prepared)
    model = skeleton(backbone, head.kind, head.labels)
    space = resolve(spec.space, backbone.parameters, spec.search.steps)
    derive = Derivation(model, space.targets)
    _check_targets(spec, space, derive)
    notes = advice(space, backbone.parameters, spec.search.steps)
    return Ground(backbone=backbone, model=model, prepared=prepared, space=space, derive=derive, advice=tuple(notes))


def target_names(space: SearchSpace) -> list[str]:
    """Target sets the space can choose, in the order in which they are written."""
    names: list[str] = []
    for parameter in space.parameters:
        if parameter.name == "target" and isinstance(parameter, CategoricalParameter):
            names.extend(str(choice) for choice in parameter.choices)
    if "target" in space.fixed:
        names.append(str(space.fixed["target"]))
    return names or [Hyperparameters().target]


def _check_targets(spec: SweepSpec, space: SearchSpace, derive: Derivation) -> None:
    problems = list(_target_problems(spec, space, derive))
    if problems:
        raise ConfigError(problems)


def _target_problems(spec: SweepSpec, space: SearchSpace, derive: Derivation) -> Iterator[Problem]:
    for name in target_names(space):
        try:
            derive(Hyperparameters(target=name))
        except LookupError as error:
            yield Problem(file=spec.source, line=0, column=0, key="target", message=str(error))


def host_settings(spec: SweepSpec, ground: Ground, layout: Layout) -> HostSettings:
    """What a worker needs to build its host; picklable, without a database URL or any other secret."""
    return HostSettings(
        backbone=ground.backbone,
        task=spec.task,
        prepared=ground.prepared,
        targets=ground.space.targets,
        output=str(study_folder(spec)),
        precision=resolve_precision(spec, layout),
        device=layout.device,
        threads=layout.threads,
        capacity=spec.run.slots or 1,
    )


def resolve_precision(spec: SweepSpec, layout: Layout) -> str:
    """`auto` is fp32 on CPUs and bf16 on GPUs; one precision for the whole study."""
    if spec.run.precision != "auto":
        return spec.run.precision
    return "bf16" if layout.device == "cuda" else "fp32"
