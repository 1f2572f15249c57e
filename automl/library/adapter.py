"""An exported adapter on its model again, in one call, whatever the method that it was trained by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from automl import durable
from automl.errors import CheckpointError
from automl.results.folders import cache_folder
from automl.space.spec import ModelSettings, Quantization


def load_adapter(path: str | Path, model: str | Path | None = None) -> tuple[Any, Any]:
    """The model with the adapter of a folder that `automl export` or plain PEFT has written, and its tokenizer.

    model: the folder or hub id of the model that it was trained on, if that is not where it was. It is held as it was
    then, on the CPU, in eval mode, with all weights frozen; class names and chat template are in place. Of PEFT's
    folders the safetensors are read, in float32. Raises CheckpointError if the folder is damaged or of another model,
    ModelError if the model is not to be found or the adapter is of a kind that cannot be loaded.
    """
    from automl.models.backbone import resolve_model
    from automl.training import export, stranger

    folder = Path(path)
    if not (folder / durable.MANIFEST).exists() and stranger.is_stranger(folder):
        settings = _settings(str(model) if model is not None else stranger.base_of(folder))
        return stranger.load_stranger(folder, resolve_model(settings, cache_folder()))
    about = export.verify_manifest(folder)
    if about.get("kind") != "adapter":
        raise CheckpointError(f"{folder}: holds {about.get('kind', 'something else')}, not adapter")
    held = about["backbone"].get("quantization")
    settings = _settings(str(model)) if model is not None else _folder(about["backbone"]["path"])
    settings = replace(settings, quantization=None if held is None else _quantization(held))
    return export.load_adapter(folder, resolve_model(settings, cache_folder()))


def _settings(model: str) -> ModelSettings:
    return _folder(model) if Path(model).exists() else ModelSettings(kind="hub", location=model)


def _folder(model: str) -> ModelSettings:
    return ModelSettings(kind="folder", location=model)


def _quantization(arguments: Mapping[str, Any]) -> Quantization:
    """How the model was held, from what bitsandbytes was told."""
    if arguments.get("load_in_8bit"):
        return Quantization(kind="int8")
    return Quantization(kind=arguments["bnb_4bit_quant_type"], double=arguments["bnb_4bit_use_double_quant"])
