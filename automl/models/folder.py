"""What a model folder's JSON files say, read without torch: whether it is a model that can be adapted at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from automl.errors import ModelError
from automl.space.spec import ModelSettings, Quantization

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_DESCRIBED_BY = ("config.json", "adapter_config.json")

QUANTISED_FILES = ("quantize_config.json", "quant_config.json", "quantization_config.json", "hf_quant_config.json")
"""What tools of GPTQ, AWQ, ModelOpt and the like leave beside a config.json that may say nothing of it."""

_QUANTISED_TENSORS = re.compile(
    r"\.(qweight|qzeros|weight_packed|weight_scale(_inv)?|SCB"
    r"|weight\.(absmax|quant_map|quant_state\..*|nested_absmax|nested_quant_map))$"
)
"""Names of tensors that only quantised checkpoints have: GPTQ and AWQ, compressed-tensors, FP8, bitsandbytes."""


def folder_at_hand(settings: ModelSettings) -> Path | None:
    """The folder with the model's files, None if they are not on this machine; no network is asked.

    Of a GGUF file that is not converted yet nothing is known: None as well.
    """
    try:
        match settings.kind:
            case "hub":
                folder = _cached_snapshot(settings.location, settings.revision)
            case "package":
                folder = inside_package(settings.location, settings.path)
            case _:
                folder = Path(settings.location)
    except ModelError:
        return None
    return folder if folder is not None and folder.is_dir() else None


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, once it is sure that the folder holds a whole model: in full precision, or as
    bitsandbytes holds it.

    Raises ModelError if it holds an adapter, another quantised checkpoint, or models in folders below it.
    """
    _refuse_adapter(folder)
    if not (folder / "config.json").is_file() and (inside := sorted(_models_inside(folder))):
        raise ModelError(
            f"{folder}: config.json is missing; there is a model in '{inside[0]}' below it: name that folder"
        )
    config = read_json(folder / "config.json")
    if stored_quantization(config) is None:
        _refuse_quantised(folder, config)
    return config


def stored_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """How bitsandbytes holds the checkpoint of this configuration; None if it does not."""
    marker = config.get("quantization_config")
    if not isinstance(marker, Mapping) or marker.get("quant_method") != "bitsandbytes":
        return None
    if marker.get("load_in_8bit"):
        return Quantization(kind="int8")
    kind = marker.get("bnb_4bit_quant_type", "fp4")
    if not marker.get("load_in_4bit") or kind not in ("nf4", "fp4"):
        return None
    return Quantization(kind=kind, double=bool(marker.get("bnb_4bit_use_double_quant")))


def inside_package(name: str, inside: str) -> Path:
    """Path of a file or folder of an installed package, found without importing it."""
    try:
        spec = find_spec(name)
    except (ModuleNotFoundError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"package '{name}' is not installed in this environment; install it, or name a folder")
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (root / inside).resolve()
    if not path.is_relative_to(root):
        raise ModelError(f"path '{inside}' leaves the package '{name}'; name a folder or file inside it")
    return path


def _cached_snapshot(model_id: str, revision: str | None) -> Path | None:
    """Where the hub's own client keeps this revision."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = [try_to_load_from_cache(model_id, name, revision=revision) for name in _DESCRIBED_BY]
    except HFValidationError:
        return None
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


def is_of_quantisation(name: str) -> bool:
    """Whether a tensor of this name is part of how weights are quantised."""
    return _QUANTISED_TENSORS.search(name) is not None


def not_quantised_after_all(folder: Path, config: Mapping[str, Any]) -> ModelError:
    """What to raise if only config.json says that bitsandbytes holds the weights."""
    how = _method(config["quantization_config"])
    return ModelError(
        f"{folder}: is a quantised checkpoint by its config.json ({how}), but its tensors are not quantised: take"
        " quantization_config out of config.json, and say quantization in the space file"
    )


def refuse_quantised_tensors(file: Path, names: Iterator[str]) -> Iterator[str]:
    """The names of a file's tensors, passed on. Raises ModelError at one that only quantised checkpoints have."""
    for name in names:
        if is_of_quantisation(name):
            raise _quantised(file.parent, "as its tensors say", read_json(file.parent / "config.json"))
        yield name


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a model folder. Raises ModelError in one line if it is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{file.parent}: {file.name} is missing; a model folder needs it") from error
    except (OSError, ValueError, RecursionError) as error:
        line = str(error).strip().split("\n", maxsplit=1)[0]
        raise ModelError(f"{file}: not readable as JSON: {line}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file}: should hold a JSON object, holds {type(content).__name__}")
    return content


def _refuse_adapter(folder: Path) -> None:
    if not (folder / "adapter_config.json").is_file():
        if (folder / "adapter_model.safetensors").is_file() and not _has_weights(folder):
            raise ModelError(
                f"{folder}: this is a PEFT adapter without its adapter_config.json; name the model it is for"
            )
        return
    adapter = read_json(folder / "adapter_config.json")
    if _has_weights(folder):
        raise ModelError(
            f"{folder}: holds a model and, in adapter_config.json, an adapter, which transformers would load in its"
            " place; move the adapter's files elsewhere"
        )
    kind = str(adapter.get("peft_type") or "PEFT")
    named = "LoRA" if kind == "LORA" else kind
    base = adapter.get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder}: this is a {named} adapter and no model; name the model it was trained on")
    raise ModelError(f"{folder}: this is a {named} adapter of {base}: name {base} as the model")


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _WEIGHTS)


def _models_inside(folder: Path) -> Iterator[str]:
    """Folders one or two levels down that look like models: checkpoints of a trainer, snapshots of a hub's cache."""
    for pattern in ("*/config.json", "*/*/config.json"):
        for file in folder.glob(pattern):
            if _has_weights(file.parent):
                yield str(file.parent.relative_to(folder))


def _refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    text = config.get("text_config")
    for part in (config, text if isinstance(text, Mapping) else {}):
        for key in ("quantization_config", "quantization", "compression_config"):
            if part.get(key):
                raise _quantised(folder, _method(part[key]), config)
    for name in QUANTISED_FILES:
        if (folder / name).is_file():
            raise _quantised(folder, f"as {name} says", config)


def _method(marker: Any) -> str:
    """`bitsandbytes, 4 bit` of what a configuration says."""
    if not isinstance(marker, Mapping):
        return str(marker)
    bits = 4 if marker.get("load_in_4bit") else 8 if marker.get("load_in_8bit") else marker.get("bits")
    method = str(marker.get("quant_method") or marker.get("quant_algo") or "method unknown")
    return f"{method}, {bits} bit" if bits else method


def _quantised(folder: Path, how: str, config: Mapping[str, Any]) -> ModelError:
    source = _source(folder, config)
    which = f"name {source}, from which it was made" if source else "name the one it was made from"
    return ModelError(
        f"{folder}: is a quantised checkpoint ({how}); adapters are trained on weights in full precision, or"
        f" as bitsandbytes holds them: {which}"
    )


def _source(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The model that a quantised one was made from, as its card or its configuration names it."""
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text("utf-8", errors="replace")
        found = re.search(r"^base_model:[ \t]*(?:\n\s*-\s*)?[\"']?([A-Za-z0-9][\w./-]*)", text, re.M)
        if found:
            return found[1]
    name = config.get("_name_or_path")
    return name if isinstance(name, str) and name and Path(name).name != folder.name else None
