"""LoRA (Hu et al. 2021) through PEFT, with rank-stabilised scaling as an option (Kalajdzievski 2023)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from automl.lora import Hyperparameters, LinearShape, check_pattern, lora_parameters, peft_patterns
from automl.methods.base import Footprint, LowRank, Method

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor, nn


SMALL, LARGE = 500_000_000, 4_000_000_000
"""Models with fewer parameters need higher learning rates, those with more need lower ones."""
SHORT_STEPS = 300


def learning_rates(model_parameters: int, steps: int) -> tuple[float, float]:
    """What is known of low-rank updates; the table of `automl.space.defaults` has the sources."""
    if model_parameters >= LARGE:
        return 2e-5, 1e-3
    if model_parameters >= SMALL:
        return 1e-5, 2e-3
    return (1e-4, 2e-2) if steps <= SHORT_STEPS else (5e-5, 1e-2)


def low_rank_footprint(layers: Sequence[LinearShape], rank_of: Callable[[str], int], dropout: float) -> Footprint:
    """Footprint of A x in every layer; dropout adds its mask and the masked input."""
    kept = sum(rank_of(layer.path) + (2 * layer.in_features if dropout > 0.0 else 0) for layer in layers)
    return Footprint(lora_parameters(layers, rank_of), kept)


class Lora(Method):
    """Low-rank updates of linear layers: y = W x + scaling * B A dropout(x), A and B trained."""

    packable: ClassVar[bool] = True
    shardable: ClassVar[bool] = True
    takes_pattern: ClassVar[bool] = True

    def trainable(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
        return lora_parameters(layers, hyper.rank_of)

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        return low_rank_footprint(layers, hyper.rank_of, hyper.dropout)

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
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
        """Attach as the seam says. Raises TargetError if PEFT would adapt others than `modules`, or if the rank pattern
        names others.
        """
        from automl.methods.attaching import (
            ADAPTER,
            adapted_layers,
            adapted_model,
            check_adapted,
            check_anchored,
            renew_head,
            seed_dropout,
        )
        from automl.methods.seeding import initialise_adapter

        check_anchored(model, modules)
        check_pattern(hyper, modules)
        peft_model = adapted_model(model, _config(model, hyper, modules, head))
        adapted = adapted_layers(model)
        check_adapted(peft_model, modules)
        for path, layer in adapted.items():
            initialise_adapter(layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, seed=seed, path=path)
        renew_head(model, head, seed)
        seed_dropout(adapted.values(), hyper, seed, next(model.parameters()).device)
        return peft_model

    def low_rank(self, peft_model: PeftModel) -> list[LowRank]:
        from automl.methods.attaching import ADAPTER, adapted_layers

        layers = adapted_layers(peft_model.get_base_model())
        return [
            LowRank(path, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER])
            for path, layer in layers.items()
        ]

    def penalty(self, peft_model: PeftModel) -> Tensor | None:
        return None

    def after_step(self, peft_model: PeftModel, step: int) -> None:
        """Nothing is left to do."""

    def memory(self, peft_model: PeftModel) -> dict[str, Tensor]:
        return {}

    def load_memory(self, peft_model: PeftModel, memory: Mapping[str, Tensor]) -> None:
        """There is nothing to put back."""


def _config(model: nn.Module, hyper: Hyperparameters, modules: Sequence[str], head: Sequence[str]) -> LoraConfig:
    from peft import LoraConfig

    from automl.methods.attaching import common_options

    ranks, alphas = peft_patterns(hyper)
    return LoraConfig(
        r=hyper.rank,
        lora_alpha=hyper.alpha,  # annotated int, used as a float factor only
        rank_pattern=ranks,
        alpha_pattern=alphas,
        lora_dropout=hyper.dropout,
        use_rslora=hyper.use_rslora,
        **common_options(model, modules, head),
    )
