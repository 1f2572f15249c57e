"""The folder of a finished adapter: where it lies, what its manifest says, and what lies beside the adapter's files.

Every trainer writes adapter_model.safetensors and adapter_config.json in its own way; PEFT is not needed here.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from automl import durable
from automl.head import Kind, Scale, about_head
from automl.lanes import own_number
from automl.lora import Hyperparameters
from automl.models.backbone import BackboneRef
from automl.models.quantisation import loading_arguments
from automl.tasks.base import Task
from automl.training.runtime import HostSettings
from automl.trial import Measurement, TrialSpec

LARGEST_TOKENIZER = 10_000_000
"""Bytes of tokenizer files that still travel with an adapter; a larger one is left with the backbone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterMeta:
    """What the manifest of an adapter says about where it comes from.

    metric: name of the objective, one of the measurement's metrics. data: fingerprint of the prepared data. labels:
    names of what the head tells apart in the order of their ids, empty for text tasks. targets: the user's target sets.
    schedule_steps: for which the learning rate's schedule was made, 0 = up to the step of the measurement.
    head, scale: the kind of head, and the unit of a number that it predicts.
    """

    measurement: Measurement
    metric: str
    hyper: Hyperparameters
    backbone: BackboneRef
    data: str
    precision: str
    labels: tuple[str, ...] = ()
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    schedule_steps: int = 0
    head: Kind | None = None
    scale: Scale | None = None

    def to_json(self) -> dict[str, Any]:
        """The `about` of the manifest."""
        best = self.measurement.best
        step = self.measurement.step if best is None else best.step
        return {
            "kind": "adapter",
            "trial": self.measurement.trial,
            "step": step,
            **({"schedule_steps": self.schedule_steps} if self.schedule_steps > step else {}),
            "metric": {"name": self.metric, "value": self.measurement.worth[self.metric]},
            "metrics": dict(self.measurement.worth),
            "hyperparameters": self.hyper.as_dict(),
            "backbone": _backbone_json(self.backbone),
            "data": {"fingerprint": self.data},
            "precision": self.precision,
            "labels": list(self.labels),
            **(about_head(self.head, self.scale) if self.head else {}),
            **({"targets": {name: list(patterns) for name, patterns in self.targets.items()}} if self.targets else {}),
        }


def adapter_meta(settings: HostSettings, task: Task, spec: TrialSpec, measurement: Measurement) -> AdapterMeta:
    """Describe the adapter of a trial that has made its last step. task: the one of the settings."""
    head = task.head(settings.prepared)
    return AdapterMeta(
        measurement=replace(measurement, trial=own_number(measurement.trial)),
        metric=settings.task.metric,
        hyper=spec.hyper,
        backbone=settings.backbone,
        data=settings.prepared.fingerprint,
        precision=settings.precision,
        labels=head.labels,
        targets=settings.targets,
        schedule_steps=spec.steps,
        head=head.kind,
        scale=head.scale,
    )


@contextmanager
def adapter_draft(folder: Path, meta: AdapterMeta, *, config: Any, tokenizer: Any) -> Iterator[Path]:
    """A draft that becomes the adapter's folder when the block ends; an older folder is replaced.

    The block writes the adapter's two files into it. The tokenizer is added unless it is large, and for classification
    config, the model's, whose id2label names the classes. Raises ResourceError if the disk refuses.
    """
    with durable.sealed_folder(folder, _about(meta, config)) as draft:
        yield draft
        if meta.labels:
            stored = _as_stored(config, meta.backbone)
            note_scale(stored, meta.scale)
            stored.to_json_file(draft / "config.json")
        _write_tokenizer(tokenizer, draft)


def _about(meta: AdapterMeta, config: Any) -> dict[str, Any]:
    """What the manifest says; of a quantised backbone also what bitsandbytes was told."""
    about, held = meta.to_json(), meta.backbone.quantization
    if held is not None and not meta.backbone.is_stored_so:
        dtype = "bfloat16" if meta.precision == "bf16" else "float32"
        arguments = loading_arguments(held, config.quantization_config.llm_int8_skip_modules, dtype)
        about["backbone"] = {**about["backbone"], "quantization": arguments}
    return about


def _as_stored(config: Any, backbone: BackboneRef) -> Any:
    """The configuration that fits the backbone's files, which hold no quantised weights unless they are stored so."""
    plain = copy.copy(config)
    if backbone.quantization is not None and not backbone.is_stored_so:
        del plain.quantization_config
    return plain


def note_scale(config: Any, scale: Scale | None) -> None:
    """Let a configuration say what the numbers mean that the model predicts: label = mean + deviation x logit."""
    if scale is not None:
        config.label_mean, config.label_deviation = scale.mean, scale.deviation


def _write_tokenizer(tokenizer: Any, draft: Path) -> None:
    with tempfile.TemporaryDirectory(dir=draft) as beside:
        tokenizer.save_pretrained(beside)
        files = [path for path in Path(beside).iterdir() if path.is_file()]
        if sum(path.stat().st_size for path in files) <= LARGEST_TOKENIZER:
            for path in files:
                path.rename(draft / path.name)


def _backbone_json(backbone: BackboneRef) -> Mapping[str, Any]:
    return {"fingerprint": backbone.fingerprint, "architecture": backbone.architecture, "path": backbone.path}
