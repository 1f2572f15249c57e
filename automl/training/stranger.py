"""An adapter that plain PEFT has saved, on its model: what can be known of it without a manifest, and no more.

Its tensors are read from safetensors alone. Of its configuration nothing is followed that leads to other files, to a
pickle, or to code.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from automl.errors import ModelError
from automl.head import WRITERS, Kind
from automl.models.backbone import BackboneRef, load_backbone, load_tokenizer, model_files, skeleton
from automl.models.inventory import head_modules, made_anew
from automl.training.cut import CONFIG, WEIGHTS, read_config, tensor_shapes
from automl.training.export import has_tokenizer, saved_names, with_adapter

_UNNAMED = "LABEL_"
_PREFIX, _PREFIX_OF_TOKENS = "base_model.model.", "base_model."
"""What PEFT puts before names of the model; the second where virtual tokens alone are trained."""
_KINDS: Mapping[Any, Kind] = {
    "SEQ_CLS": "classification",
    "TOKEN_CLS": "token-classification",
    "CAUSAL_LM": "causal-lm",
    "SEQ_2_SEQ_LM": "seq2seq-lm",
    None: "causal-lm",
}
_TYPES = (
    *("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "HRA", "VERA", "RANDLORA", "FOURIERFT", "LN_TUNING"),
    *("MISS", "GRALORA", "DELORA", "ROAD", "C3A", "SHIRA", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"),
)
"""Tuners of PEFT that are their own tensors alone; XLORA loads other adapters, multitask prompts may name a pickle."""


def is_stranger(folder: Path) -> bool:
    """Whether the folder looks like one that plain PEFT has saved."""
    return (folder / CONFIG).is_file()


def base_of(folder: Path) -> str:
    """The folder of the model that the adapter names as its base. Raises ModelError unless it is on this machine."""
    named = str(_checked(folder).get("base_model_name_or_path") or "")
    if not (Path(named) / "config.json").is_file():
        said = f"is {named!r}, which is no folder here" if named else "is not named"
        raise ModelError(f"{folder}: its base model {said}; say where it is: load_adapter({str(folder)!r}, model=…)")
    return named


def kind_of_stranger(folder: Path) -> Kind:
    """The kind of model that the adapter is of. Raises ModelError if it is of a kind that cannot be loaded."""
    return _KINDS[_checked(folder).get("task_type")]


def load_stranger(folder: Path, backbone: BackboneRef) -> tuple[Any, Any]:
    """The frozen model with the adapter, in float32 on the CPU and in eval mode, and the tokenizer.

    Raises ModelError in a line if it is of a kind that cannot be loaded or not of this model, CheckpointError if its
    tensors cannot be read.
    """
    config = _checked(folder)
    kind, names = _KINDS[config.get("task_type")], tensor_shapes(folder / WEIGHTS)
    labels = _labels(folder, backbone, names, kind) if kind not in WRITERS else ()
    base = load_backbone(backbone, kind, labels)
    if lost := [path for path in made_anew(base) if not any(_of_model(name).startswith(f"{path}.") for name in names)]:
        raise ModelError(
            f"{folder}: {backbone.path} has no {lost[0]}, and the adapter has not kept that of its training"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")  # which are an error below
        model = with_adapter(base, folder)
    _check_complete(folder, model, names)
    given = replace(backbone, path=str(folder), copy="") if has_tokenizer(folder) else backbone
    return model.requires_grad_(False).eval(), load_tokenizer(given)


def class_names(folder: Path) -> tuple[str, ...]:
    """Names of the classes in the order of their ids, if a model's configuration that names them lies in the folder."""
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["id2label"]
        names = tuple(str(named[key]) for key in sorted(named, key=int))
    except (OSError, ValueError, KeyError, TypeError):
        return ()
    return () if all(name.startswith(_UNNAMED) for name in names) else names


def _checked(folder: Path) -> dict[str, Any]:
    """PEFT's configuration, of an adapter that can be loaded from its own tensors alone."""
    config = read_config(folder)
    if config["peft_type"] not in _TYPES:
        raise ModelError(f"{folder}: peft_type {config['peft_type']} is not loaded; known: {', '.join(_TYPES)}")
    if config.get("megatron_config"):
        raise ModelError(f"{folder}: megatron_config names code to import; adapters without it are loaded")
    if config.get("task_type") not in _KINDS:
        known = ", ".join(name for name in _KINDS if name)
        raise ModelError(f"{folder}: task_type {config['task_type']} is not loaded; known: {known}")
    if not (folder / WEIGHTS).is_file():
        pickled = next((file.name for file in sorted(folder.glob("adapter_model.*"))), None)
        said = f"has {pickled} but no {WEIGHTS}; pickled weights are not read" if pickled else f"{WEIGHTS} is missing"
        raise ModelError(f"{folder}: {said}")
    return config


def _labels(folder: Path, backbone: BackboneRef, names: Mapping[str, tuple[int, ...]], kind: Kind) -> tuple[str, ...]:
    """Names of as many classes as the trained head has, wherever they are said; `LABEL_0` … if nowhere."""
    output = _output(skeleton(backbone, kind))
    own = next((shape for name, shape in names.items() if _of_model(name) == output), None)
    shape = own or _shape_in(backbone, output)
    if shape is None:
        raise ModelError(f"{folder}: neither the adapter nor {backbone.path} has a trained head ({output})")
    known = [class_names(folder), class_names(Path(backbone.folder))]
    return next(
        (each for each in known if len(each) == shape[0]), tuple(f"{_UNNAMED}{index}" for index in range(shape[0]))
    )


def _of_model(name: str) -> str:
    """A tensor's name in the model, from that in PEFT's file."""
    return name.removeprefix(_PREFIX).removeprefix(_PREFIX_OF_TOKENS)


def _output(model: nn.Module) -> str:
    """Name of the weight that the logits come from: the last linear layer of the last head."""
    heads = ((head, model.get_submodule(head)) for head in reversed(head_modules(model)))
    parts = (
        ".".join(filter(None, (head, path, "weight")))
        for head, module in heads
        for path, part in reversed(list(module.named_modules()))
        if isinstance(part, nn.Linear)
    )
    return next(parts, "")


def _shape_in(backbone: BackboneRef, name: str) -> tuple[int, ...] | None:
    """Shape of a tensor in the model's files, None if it is in none of them."""
    files = (file for file in model_files(Path(backbone.folder)) if file.suffix == ".safetensors")
    return next((shapes[name] for shapes in map(tensor_shapes, files) if name in shapes), None)


def _check_complete(folder: Path, model: Any, names: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ModelError unless PEFT has found a place for each tensor, and a tensor for each place."""
    places = saved_names(model)
    if missing := sorted(places - names.keys()):
        raise ModelError(f"{folder}: {len(missing)} tensors are missing for this model, {missing[0]} among them")
    if strange := sorted(names.keys() - places - model.state_dict().keys()):
        raise ModelError(f"{folder}: {len(strange)} tensors have no place in this model, {strange[0]} among them")
