"""The folder of a finished adapter: where it lies, what its manifest says, and what lies beside the adapter's files.

Every trainer writes adapter_model.safetensors and adapter_config.json in its own way; PEFT is not needed here.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from automl import durable
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
    class names in the order of their ids, empty for text tasks. targets: the user's target sets.
    """

    measurement: Measurement
    metric: str
    hyper: Hyperparameters
    backbone: BackboneRef
    data: str
    precision: str
    labels: tuple[str, ...] = ()
    targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The `about` of the manifest."""
        return {
            "kind": "adapter",
            "trial": self.measurement.trial,
            "step": self.measurement.step,
            "metric": {"name": self.metric, "value": self.measurement.metrics[self.metric]},
            "metrics": dict(self.measurement.metrics),
            "hyperparameters": self.hyper.as_dict(),
            "backbone": _backbone_json(self.backbone),
            "data": {"fingerprint": self.data},
            "precision": self.precision,
            "labels": list(self.labels),
            **({"targets": {name: list(patterns) for name, patterns in self.targets.items()}} if self.targets else {}),
        }


def adapter_meta(settings: HostSettings, task: Task, spec: TrialSpec, measurement: Measurement) -> AdapterMeta:
    """Describe the adapter of a trial that has made its last step. task: the one of the settings."""
    return AdapterMeta(
        measurement=measurement,
        metric=settings.task.metric,
        hyper=spec.hyper,
        backbone=settings.backbone,
        data=settings.prepared.fingerprint,
        precision=settings.precision,
        labels=task.head(settings.prepared).labels,
        targets=settings.targets,
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
            _as_stored(config, meta.backbone).to_json_file(draft / "config.json")
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


def _write_tokenizer(tokenizer: Any, draft: Path) -> None:
    with tempfile.TemporaryDirectory(dir=draft) as beside:
        tokenizer.save_pretrained(beside)
        files = [path for path in Path(beside).iterdir() if path.is_file()]
        if sum(path.stat().st_size for path in files) <= LARGEST_TOKENIZER:
            for path in files:
                path.rename(draft / path.name)


def _backbone_json(backbone: BackboneRef) -> Mapping[str, Any]:
    return {"fingerprint": backbone.fingerprint, "architecture": backbone.architecture, "path": backbone.path}
