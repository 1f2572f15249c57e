"""AdaLoRA (Zhang et al. 2023) through PEFT: every layer starts with more ranks than it may keep, and loses the weakest.

ΔW = P diag(λ) Q for each layer. While training, the λ with the lowest scores over all layers are set to zero until
`rank` of them are left per layer on average. PEFT leaves three things to the caller, which are done here: the schedule
(`update_and_allocate` after every step, while the gradients are there), the penalty that keeps P and Q orthogonal (PEFT
adds it only to losses that the model computes itself), and saving what the allocation remembers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from automl.errors import CheckpointError, TargetError
from automl.lora import Hyperparameters, LinearShape, lora_parameters
from automl.methods.base import Footprint, LowRank, Method
from automl.methods.lora import learning_rates, low_rank_footprint

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn

INITIAL_SHARE = 1.5
"""Ranks at the start over those at the end: the usual setting of the paper."""

WARM_SHARE, FINAL_SHARE = 0.1, 0.4
"""Shares of all steps before the first rank is taken away, and after the last one. Source: the author's GLUE runs."""

PENALTY = 0.5
"""Weight of the penalty: PEFT's default."""

_STD = 0.02
_AVERAGES = ("exp_avg_ipt", "exp_avg_unc")
_PATTERN = "rank_pattern"


class AdaLora(Method):
    """Updates in the form of a singular value decomposition; `rank` is the average per layer at the end.

    Scaling is that of LoRA with the same rank and alpha, at every rank. Trained one at a time.
    """

    packable: ClassVar[bool] = False
    shardable: ClassVar[bool] = False
    finds_ranks: ClassVar[bool] = True

    def trainable(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
        """Parameters of the ranks it keeps, `rank` in each layer on average; λ and what it loses are not counted."""
        return lora_parameters(layers, hyper.rank)

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        """With the ranks that it starts with, and λ of each."""
        initial = _initial_rank(hyper.rank)
        found = low_rank_footprint(layers, lambda path: initial, hyper.dropout)
        return found._replace(parameters=found.parameters + initial * len(layers))

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        """LoRA's; its authors train DeBERTa-v3-base on GLUE at 5e-4 to 2.2e-3 (scripts of QingruZhang/AdaLoRA)."""
        return learning_rates(model_parameters, steps)

    def attach(
        self,
        model: nn.Module,
        hyper: Hyperparameters,
        modules: Sequence[str],
        head: Sequence[str],
        seed: int,
        *,
        steps: int | None = None,
    ) -> PeftModel:
        """Attach as the seam says; raises TargetError for a rank pattern, or if PEFT would adapt other layers."""
        from peft import AdaLoraConfig

        from automl.methods.attaching import (
            adapted_layers,
            adapted_model,
            check_adapted,
            check_anchored,
            common_options,
            renew_head,
            seed_dropout,
        )

        if steps is None:
            raise ValueError("adalora: steps is None; the schedule needs the number of steps of the whole trial")
        if hyper.rank_pattern:
            raise TargetError("method adalora finds its own ranks; a rank pattern is for method lora")
        check_anchored(model, modules)
        config = AdaLoraConfig(**_schedule(hyper, steps), **common_options(model, modules, head))
        peft_model = adapted_model(model, config)
        adapted = adapted_layers(model)
        check_adapted(peft_model, modules)
        for path, layer in adapted.items():
            _initialise(layer, path, seed)
        renew_head(model, head, seed)
        seed_dropout(adapted.values(), hyper, seed, next(model.parameters()).device)
        return peft_model

    def low_rank(self, peft_model: PeftModel) -> list[LowRank]:
        """λ is part of a: rows of switched-off components are zero."""
        from automl.methods.attaching import ADAPTER, adapted_layers

        layers: dict[str, Any] = adapted_layers(peft_model.get_base_model())
        return [
            LowRank(
                path,
                (layer.lora_A[ADAPTER] * layer.lora_E[ADAPTER]).detach(),
                layer.lora_B[ADAPTER],
                layer.scaling[ADAPTER] / (float(layer.ranknum[ADAPTER]) + 1e-5),
            )
            for path, layer in layers.items()
        ]

    def penalty(self, peft_model: PeftModel) -> Tensor | None:
        """Mean of ‖PᵀP − I‖ and ‖QQᵀ − I‖ over all layers, Frobenius norms that are not squared, as PEFT has it."""
        import torch

        from automl.methods.attaching import ADAPTER, adapted_layers

        layers: dict[str, Any] = adapted_layers(peft_model.get_base_model())
        grams = [q @ q.mT for layer in layers.values() for q in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER].mT)]
        stacked = torch.stack(grams)  # every layer has the same rank
        identity = torch.eye(stacked.shape[-1], device=stacked.device)
        norms: Tensor = torch.linalg.matrix_norm(stacked - identity)
        return PENALTY * norms.mean()

    def rate(self, name: str, hyper: Hyperparameters) -> float:
        return 1.0

    def after_step(self, peft_model: PeftModel, step: int) -> None:
        peft_model.base_model.update_and_allocate(step)

    def exported(
        self, peft_model: PeftModel, saved: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return saved, config

    def memory(self, peft_model: PeftModel) -> dict[str, Tensor]:
        import torch

        from automl.methods.attaching import ADAPTER

        allocator = peft_model.base_model.rankallocator
        averages = {
            f"{name}/{key}": tensor.detach().to("cpu", copy=True).contiguous()
            for name in _AVERAGES
            for key, tensor in getattr(allocator, name).items()
        }
        pattern = peft_model.peft_config[ADAPTER].rank_pattern or {}
        return averages | {f"{_PATTERN}/{key}": torch.tensor(kept) for key, kept in pattern.items()}

    def load_memory(self, peft_model: PeftModel, memory: Mapping[str, Tensor]) -> None:
        import torch

        from automl.methods.attaching import ADAPTER

        allocator, config = peft_model.base_model.rankallocator, peft_model.peft_config[ADAPTER]
        own = {name: tensor for name, tensor in peft_model.get_base_model().named_parameters() if "lora_" in name}
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in (*_AVERAGES, _PATTERN)}
        for key, tensor in memory.items():
            part, _, name = key.partition("/")
            if part not in parts or name not in own:
                raise CheckpointError(f"{key} is not of this adapter; the slot file is of another trial")
            parts[part][name] = tensor
        for name in _AVERAGES:
            setattr(allocator, name, {key: tensor.to(own[key].device) for key, tensor in parts[name].items()})
        allocator.ipt = {key: torch.zeros_like(own[key]) for key in parts[_AVERAGES[0]]}
        config.rank_pattern = {key: tensor.tolist() for key, tensor in parts[_PATTERN].items()} or None


def _schedule(hyper: Hyperparameters, steps: int) -> dict[str, Any]:
    """Ranks and steps of PEFT's schedule; at least one step is left for taking ranks away."""
    initial = _initial_rank(hyper.rank)
    final = int(FINAL_SHARE * steps)
    return {
        "init_r": initial,
        "target_r": hyper.rank,
        "lora_alpha": hyper.scaling * initial,  # PEFT divides by the initial rank for ever
        "lora_dropout": hyper.dropout,
        "tinit": min(max(1, int(WARM_SHARE * steps)), steps - final - 1),
        "tfinal": final,
        "total_step": steps,
        "orth_reg_weight": PENALTY,
    }


def _initial_rank(rank: int) -> int:
    """Ranks of every layer at the start, more than at the end: PEFT fails if there is nothing to take away."""
    return max(rank + 1, math.ceil(INITIAL_SHARE * rank))


def _initialise(layer: Any, path: str, seed: int) -> None:
    """P, Q ~ N(0, 0.02²) and λ = 0 as in the paper, from streams of their own."""
    import torch

    from automl.methods.attaching import ADAPTER
    from automl.methods.seeding import stream

    with torch.no_grad():
        for name in ("lora_A", "lora_B"):
            tensor = getattr(layer, name)[ADAPTER]
            tensor.copy_(torch.empty(tensor.shape).normal_(0.0, _STD, generator=stream(seed, f"{path}.{name}")))
        layer.lora_E[ADAPTER].zero_()
