"""A loaded model as a model folder, named by its content, so that the same one is saved once."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedModel

from automl import durable
from automl.errors import ModelError
from automl.models.calling import quietly

_DIGITS = 24
_NO_CONTENT = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
"""Entries of a configuration that loading and saving change."""


def save_model(model: object, tokenizer: Any, models: Path) -> Path:
    """Save the model (safetensors) and its tokenizer in a folder of `models`, unless it is there; returns the folder.

    tokenizer: None looks for that of the folder or hub id the model was loaded from. Raises ModelError if there is none
    or if it is no plain model of transformers, ResourceError if the disk refuses.
    """
    if not isinstance(model, PreTrainedModel) or hasattr(model, "peft_config"):
        what = "holds an adapter already; load the base model anew and give that"
        wrong = (
            what if hasattr(model, "peft_config") else "is not a model of transformers; give one, a folder or a hub id"
        )
        raise ModelError(f"model: a {type(model).__name__} {wrong}")
    tokenizer = _tokenizer_of(model) if tokenizer is None else tokenizer
    folder = models / _digest(model, tokenizer)[:_DIGITS]
    if not (folder / durable.MANIFEST).is_file():
        with durable.sealed_folder(folder, {"kind": "given"}) as draft, quietly(f"{folder}: cannot save the model"):
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
    return folder


def _tokenizer_of(model: PreTrainedModel) -> Any:
    origin = model.name_or_path
    if not origin:
        raise ModelError("model: says nothing of where it was loaded from; give its tokenizer with tokenizer=")
    with quietly(f"model: no tokenizer is found at {origin!r}; give it with tokenizer="):
        return AutoTokenizer.from_pretrained(origin, trust_remote_code=False)


def _digest(model: PreTrainedModel, tokenizer: Any) -> str:
    """sha256 (hex) over configuration, tokenizer and weights."""
    digest = hashlib.sha256()
    with tempfile.TemporaryDirectory(prefix="automl-") as place, quietly("model: cannot save its tokenizer"):
        tokenizer.save_pretrained(place)
        for file in sorted(Path(place).rglob("*")):
            if file.is_file():
                digest.update(f"{file.name}\0".encode() + file.read_bytes())
    settings = {name: value for name, value in model.config.to_dict().items() if name not in _NO_CONTENT}
    digest.update(repr(sorted(settings.items())).encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
