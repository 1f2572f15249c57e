"""What all methods of PEFT's LoRA family do alike when they put an adapter on a backbone."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft import PeftConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from automl.errors import TargetError
from automl.head import peft_task
from automl.lora import Hyperparameters
from automl.methods.seeding import SeededDropout, initialise_head, stream

ADAPTER = "default"  # PEFT's own name for a single adapter


def adapted_model(model: nn.Module, config: PeftConfig) -> PeftModel:
    """PEFT's model around the backbone; torch's global generators are as they were afterwards."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # PEFT draws too, before we draw again
        # peft 0.21 (peft_model.py, PeftModel.__init__) asks transformers 5.23 for is_gradient_checkpointing,
        # which has been renamed; the answer is the same. Goes away with the PEFT release that follows the rename.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return get_peft_model(model, config)


def adapted_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """Adapted layers by their path in the backbone, in module order. model: the backbone, not PEFT's model."""
    return {path: layer for path, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def common_options(model: nn.Module, modules: Sequence[str], head: Sequence[str]) -> dict[str, Any]:
    """Options that every configuration of the family has: where the adapter is put and what is trained beside it."""
    return {
        "target_modules": list(modules),
        "fan_in_fan_out": isinstance(model.get_submodule(modules[0]), Conv1D),
        "bias": "none",
        **head_options(model, head),
    }


def head_options(model: nn.Module, head: Sequence[str]) -> dict[str, Any]:
    """Options of every configuration of PEFT: what kind of task it is, and what is trained beside the adapter."""
    # PEFT adds `classifier` and `score` to modules_to_save itself for SEQ_CLS (peft/peft_model.py,
    # PeftModelForSequenceClassification); naming them twice would put them twice into adapter_config.json.
    own_head = [name for name in head if name not in ("classifier", "score")]
    return {
        "task_type": TaskType(peft_task(model, has_head=bool(head))),
        "modules_to_save": own_head if head else None,
    }


def check_anchored(model: nn.Module, modules: Sequence[str]) -> None:
    """PEFT matches names at the end of a path, at a dot: full paths are exact unless one of them ends another path.

    Raises TargetError if PEFT would adapt other layers than `modules`.
    """
    wanted, endings = set(modules), tuple(f".{path}" for path in modules)
    also = [path for path, _ in model.named_modules() if path not in wanted and path.endswith(endings)]
    if also:
        raise TargetError(f"PEFT would adapt '{also[0]}' too, whose path ends with that of a target; target both")


def check_adapted(peft_model: PeftModel, modules: Sequence[str]) -> None:
    """Raise TargetError, the backbone as it was, if PEFT has adapted other layers than it was told."""
    others = sorted(adapted_layers(peft_model.get_base_model()).keys() ^ set(modules))
    if others:
        peft_model.unload()
        raise TargetError(f"PEFT adapts other layers than those of the target set, '{others[0]}' among them")


def renew_head(model: nn.Module, head: Sequence[str], seed: int) -> None:
    """Start the copies of the heads that are trained afresh, in float32."""
    std = float(getattr(model.config, "initializer_range", 0.02))
    for name in head:
        fresh = model.get_submodule(f"{name}.modules_to_save.{ADAPTER}")
        fresh.to(torch.float32)
        initialise_head(fresh, seed=seed, path=name, std=std)


def seed_dropout(layers: Iterable[LoraLayer], hyper: Hyperparameters, seed: int, device: torch.device) -> None:
    """Let all dropout masks of the adapter come from one generator of the trial."""
    if hyper.dropout > 0.0:
        generator = stream(seed, "dropout", device)
        for layer in layers:
            layer.lora_dropout[ADAPTER] = SeededDropout(hyper.dropout, generator)
