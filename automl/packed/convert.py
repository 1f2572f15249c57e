"""Between a trial in a pack and the two files of a PEFT adapter, without PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from automl.errors import CheckpointError
from automl.head import peft_task
from automl.lora import Hyperparameters, peft_patterns
from automl.models.inventory import made_anew
from automl.packed.layout import file_name

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def write_adapter(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> None:
    """Write what `PeftModel.from_pretrained(backbone, folder)` reads. tensors: by PEFT's names in files."""
    stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")


def made_anew_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Frozen parameters that are in no checkpoint and belong into the file of every adapter, by PEFT's names."""
    return {
        f"base_model.model.{path}.{name}": tensor
        for path in made_anew(model)
        for name, tensor in model.get_submodule(path).named_parameters()
    }


def read_adapter(folder: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """The trainable tensors of an adapter that PEFT or `write_adapter` has written, by PEFT's names for parameters.

    names: parameters that are expected. Raises CheckpointError if the file has others.
    """
    found = load_file(folder / WEIGHTS)
    wanted = {file_name(name): name for name in names}
    if odd := sorted(wanted.keys() ^ found.keys()):
        raise CheckpointError(f"{folder / WEIGHTS}: {len(odd)} tensors are missing or unknown, {odd[0]} among them")
    return {name: found[key] for key, name in wanted.items()}


def adapter_config(
    model: nn.Module, hyper: Hyperparameters, modules: Sequence[str], heads: Sequence[str], *, base: str
) -> dict[str, Any]:
    """PEFT's LoraConfig for inference, as JSON; what is left out has PEFT's default.

    modules: full paths of the adapted layers. heads: modules trained in full; parts that were made anew are saved
    beside them. base: folder or id of the backbone.
    """
    # PEFT adds these two itself for SEQ_CLS (peft/peft_model.py, PeftModelForSequenceClassification), and writes them.
    saved = sorted({*heads, *made_anew(model), *(("classifier", "score") if heads else ())}) or None
    ranks, alphas = peft_patterns(hyper)
    return {
        "peft_type": "LORA",
        "task_type": peft_task(model, has_head=bool(heads)),
        "base_model_name_or_path": base,
        "r": hyper.rank,
        "lora_alpha": hyper.alpha,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "lora_dropout": hyper.dropout,
        "use_rslora": hyper.use_rslora,
        "target_modules": sorted(modules),
        "modules_to_save": saved,
        "fan_in_fan_out": isinstance(model.get_submodule(modules[0]), Conv1D),
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
