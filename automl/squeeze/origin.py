"""Whether a folder's adapter is of this model and these classes, and what may be said of it: ours, or anybody's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from automl import durable
from automl.errors import CheckpointError, DataError, ModelError
from automl.head import about_head
from automl.models.backbone import resolve_model
from automl.results.folders import cache_folder
from automl.space.spec import ModelSettings
from automl.tasks import make_task
from automl.training.cut import read_config
from automl.training.runtime import HostSettings
from automl.training.stranger import class_names


def about_adapter(folder: Path, settings: HostSettings) -> dict[str, Any]:
    """What the manifest says of an adapter of ours; of another, what is known, if it may be of this model."""
    backbone, labels = settings.backbone, settings.prepared.labels
    if (folder / durable.MANIFEST).is_file():
        about = durable.verify_folder(folder)
        if about.get("kind") != "adapter":
            raise CheckpointError(f"{folder}: holds {about.get('kind', 'something else')}, not adapter")
        trained, names = about["backbone"]["fingerprint"], tuple(about["labels"])
        if trained != backbone.fingerprint:
            raise ModelError(f"{folder}: was trained on model {trained[:12]}, not on {backbone.fingerprint[:12]}")
    else:
        about, names = _about_stranger(folder, settings), class_names(folder)
    if labels and names and names != labels:
        raise DataError(f"{folder}: its classes are {', '.join(names)}; those of the data are {', '.join(labels)}")
    return about


def _about_stranger(folder: Path, settings: HostSettings) -> dict[str, Any]:
    backbone, head = settings.backbone, make_task(settings.task).head(settings.prepared)
    base = Path(str(read_config(folder).get("base_model_name_or_path") or ""))
    if (base / "config.json").is_file():
        other = resolve_model(ModelSettings(kind="folder", location=str(base)), cache_folder())
        if other.fingerprint != backbone.fingerprint:
            raise ModelError(f"{folder}: was trained on {base}, which is not the model in {backbone.path}")
    return {
        "kind": "adapter",
        "trial": None,
        "step": None,
        "hyperparameters": {},
        "backbone": {"fingerprint": backbone.fingerprint, "architecture": backbone.architecture, "path": backbone.path},
        "data": {"fingerprint": settings.prepared.fingerprint},
        "precision": settings.precision,
        "labels": list(head.labels),
        **about_head(head.kind, head.scale),
    }
