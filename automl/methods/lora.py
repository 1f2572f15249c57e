"""LoRA (Hu et al. 2021) through PEFT, with rank-stabilised scaling as an option (Kalajdzievski 2023)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import ClassVar

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from automl.errors import TargetError
from automl.lora import Hyperparameters, check_pattern, peft_patterns
from automl.methods.base import Method
from automl.methods.seeding import SeededDropout, initialise_adapter, initialise_head, stream

_ADAPTER = "default"  # PEFT's own name for a single adapter


class Lora(Method):
    """Low-rank updates of linear layers: y = W x + scaling * B A dropout(x), A and B trained."""

    name: ClassVar[str] = "lora"
    packable: ClassVar[bool] = True

    def attach(
        self, model: nn.Module, hyper: Hyperparameters, modules: Sequence[str], head: Sequence[str], seed: int
    ) -> PeftModel:
        """As the seam says; raises TargetError if PEFT would adapt other layers than `modules`, or if the rank pattern
        names others.
        """
        _check_anchored(model, modules)
        check_pattern(hyper, modules)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # PEFT draws too, before we draw again
            # peft 0.21 (peft_model.py, PeftModel.__init__) asks transformers 5.23 for is_gradient_checkpointing,
            # which has been renamed; the answer is the same. Goes away with the PEFT release that follows the rename.
            warnings.filterwarnings(
                "ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning
            )
            peft_model = get_peft_model(model, _config(model, hyper, modules, head))
        adapted = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
        for path, layer in adapted.items():
            initialise_adapter(layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight, seed=seed, path=path)
        _renew_head(model, head, seed)
        if hyper.dropout > 0.0:
            generator = stream(seed, "dropout", next(model.parameters()).device)
            for layer in adapted.values():
                layer.lora_dropout[_ADAPTER] = SeededDropout(hyper.dropout, generator)
        return peft_model


def _config(model: nn.Module, hyper: Hyperparameters, modules: Sequence[str], head: Sequence[str]) -> LoraConfig:
    # PEFT adds `classifier` and `score` to modules_to_save itself for SEQ_CLS (peft/peft_model.py,
    # PeftModelForSequenceClassification); naming them twice would put them twice into adapter_config.json.
    own_head = [name for name in head if name not in ("classifier", "score")]
    ranks, alphas = peft_patterns(hyper)
    return LoraConfig(
        task_type=TaskType.SEQ_CLS if head else TaskType.CAUSAL_LM,
        r=hyper.rank,
        lora_alpha=hyper.alpha,  # annotated int, used as a float factor only
        rank_pattern=ranks,
        alpha_pattern=alphas,
        lora_dropout=hyper.dropout,
        use_rslora=hyper.use_rslora,
        target_modules=list(modules),
        modules_to_save=own_head if head else None,
        fan_in_fan_out=isinstance(model.get_submodule(modules[0]), Conv1D),
        bias="none",
    )


def _check_anchored(model: nn.Module, modules: Sequence[str]) -> None:
    """PEFT matches names at the end of a path, at a dot: full paths are exact unless one of them ends another path."""
    wanted, endings = set(modules), tuple(f".{path}" for path in modules)
    also = [path for path, _ in model.named_modules() if path not in wanted and path.endswith(endings)]
    if also:
        raise TargetError(f"PEFT would adapt '{also[0]}' too, whose path ends with that of a target; target both")


def _renew_head(model: nn.Module, head: Sequence[str], seed: int) -> None:
    std = float(getattr(model.config, "initializer_range", 0.02))
    for name in head:
        fresh = model.get_submodule(f"{name}.modules_to_save.{_ADAPTER}")
        fresh.to(torch.float32)
        initialise_head(fresh, seed=seed, path=name, std=std)
