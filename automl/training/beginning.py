"""The model that a search begins with: as it is stored, or with a trained adapter merged into it.

What is merged becomes part of the frozen weights: new adapters begin at zero on top of it, and the reference of
preference losses is the model with it, as is usual after supervised fine-tuning (Rafailov et al. 2023, section 4).
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from automl import durable
from automl.errors import CheckpointError, ModelError, ResourceError
from automl.head import WRITERS, kind_of
from automl.methods.in_place import is_in_place
from automl.models.backbone import BackboneRef, resolve_model
from automl.models.calling import quietly
from automl.models.fingerprint import combined_digest, file_digest
from automl.space.spec import ModelSettings
from automl.training.cut import CONFIG, WEIGHTS
from automl.training.export import OWN_WEIGHTS, check_mergeable, load_adapter, verify_manifest
from automl.training.stranger import kind_of_stranger, load_stranger

logger = logging.getLogger(__name__)


def resolve_start(settings: ModelSettings, cache: Path) -> BackboneRef:
    """The model that `settings` names, its adapter merged into it in float32, in `cache`, if it is the first time.

    Raises what `resolve_model` raises, and ModelError or CheckpointError in a line for an adapter that is not there, is
    damaged, is of another model, is no language model's, or cannot be merged; ResourceError if the disk is full.
    """
    if not settings.adapter:
        return resolve_model(settings, cache)
    base = resolve_model(replace(settings, adapter="", quantization=None), cache)
    if base.quantization is not None:
        raise ModelError(f"{base.path}: is stored in {base.quantization}; adapters are merged into full precision")
    merged = _merged(base, Path(settings.adapter), cache)
    return resolve_model(ModelSettings(kind="folder", location=str(merged), quantization=settings.quantization), cache)


def _merged(base: BackboneRef, adapter: Path, cache: Path) -> Path:
    digest = combined_digest({"base": base.fingerprint, **_digests(adapter, cache)})
    target = cache / "models" / f"merged-{hashlib.sha256(digest.encode()).hexdigest()}"
    with durable.disk_errors_named(target):
        durable.make_folder(target.parent)
        with durable.locked(target):
            if not _is_whole(target):
                _write(base, adapter, target)
    return target


def _digests(adapter: Path, cache: Path) -> dict[str, str]:
    """Digests of all that the merged weights depend on. Raises ModelError if the folder holds no adapter."""
    names = (durable.MANIFEST, CONFIG, WEIGHTS, OWN_WEIGHTS)
    files = [adapter / name for name in names if (adapter / name).is_file()]
    if not any(file.name in (CONFIG, OWN_WEIGHTS) for file in files):
        raise ModelError(f"{adapter}: no adapter: a folder with {CONFIG} and {WEIGHTS} is needed")
    return {file.name: file_digest(file, cache) for file in files}


def _write(base: BackboneRef, adapter: Path, target: Path) -> None:
    logger.info("merging %s into the model, once", adapter)
    model, tokenizer = _adapted(base, adapter)
    with quietly(f"{adapter}: PEFT cannot merge it"):
        merged = model if is_in_place(model) else model.merge_and_unload(safe_merge=True)
    if not isinstance(merged, PreTrainedModel):
        raise ModelError(f"{adapter}: cannot be merged into the model")
    try:
        with durable.sealed_folder(target, {"kind": "start"}) as draft, quietly(f"{target}: cannot write"):
            merged.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
    except ModelError as error:  # safetensors has its own words for a full disk
        raise ResourceError(str(error)) from error


def _adapted(base: BackboneRef, adapter: Path) -> tuple[Any, Any]:
    """The model with the adapter on it, in float32, and the tokenizer that goes with both."""
    if not (adapter / durable.MANIFEST).exists():
        _check_kind(adapter, kind_of_stranger(adapter))
        return load_stranger(adapter, base)
    about = verify_manifest(adapter)
    if about.get("kind") != "adapter":
        raise CheckpointError(f"{adapter}: holds {about.get('kind', 'something else')}, not adapter")
    _check_kind(adapter, kind_of(about))
    check_mergeable(adapter, about)
    return load_adapter(adapter, base)


def _check_kind(adapter: Path, kind: str) -> None:
    if kind not in WRITERS:
        raise ModelError(f"{adapter}: its head is for {kind}; a search begins with an adapter of a language model")


def _is_whole(folder: Path) -> bool:
    try:
        durable.verify_folder(folder)
    except (CheckpointError, OSError):
        return False
    return True
