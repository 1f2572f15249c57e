"""LoHa (Hyeon-Woo et al. 2022, FedPara) through PEFT: the update is the elementwise product of two low-rank ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from automl.lora import Hyperparameters, LinearShape
from automl.methods.base import LOW_RANK, Footprint, LowRank, Method
from automl.methods.settings import Setting, Span

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import nn


DEVIATION = Setting(
    name="init_deviation",
    default=0.1,
    meaning="standard deviation of A₁ at the start",
    low=1e-4,
    high=10.0,
    tried=Span(0.02, 0.5, log=True),
    searched=True,
)


class Hadamard(Method):
    """ΔW = alpha / rank · (A₁ B₁) ∘ (A₂ B₂); A₂ starts as zero, so the update starts as nothing. Without dropout."""

    packable: ClassVar[bool] = False
    shardable: ClassVar[bool] = False

    settings: ClassVar[tuple[Setting, ...]] = (DEVIATION,)
    takes: ClassVar[frozenset[str]] = LOW_RANK - {"dropout", "use_rslora"}

    def trainable(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
        return sum(2 * hyper.rank * (layer.in_features + layer.out_features) for layer in layers)

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        """The update of a layer is a whole matrix while it is used; it is kept once, whatever the tokens."""
        return Footprint(self.trainable(model, layers, hyper), 0)

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        return 1e-3, 5e-2

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
        from peft import LoHaConfig, TaskType

        from automl.methods.attaching import ADAPTER, adapted_model, check_anchored, renew_head

        check_anchored(model, modules)
        config = LoHaConfig(
            task_type=TaskType.SEQ_CLS if head else TaskType.CAUSAL_LM,
            r=hyper.rank,
            alpha=hyper.alpha,
            target_modules=list(modules),
            modules_to_save=list(head) or None,
        )
        peft_model = adapted_model(model, config)
        for path in modules:
            _initialise(model.get_submodule(path), ADAPTER, path, seed, float(DEVIATION.of(hyper)))
        renew_head(model, head, seed)
        return peft_model

    def low_rank(self, peft_model: PeftModel) -> list[LowRank]:
        return []

    def penalty(self, peft_model: PeftModel) -> torch.Tensor | None:
        return None

    def rate(self, name: str, hyper: Hyperparameters) -> float:
        return 1.0

    def after_step(self, peft_model: PeftModel, step: int) -> None:
        """Nothing is left to do."""

    def exported(
        self, peft_model: PeftModel, saved: Mapping[str, torch.Tensor], config: Mapping[str, Any]
    ) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
        return saved, config

    def memory(self, peft_model: PeftModel) -> dict[str, torch.Tensor]:
        return {}

    def load_memory(self, peft_model: PeftModel, memory: Mapping[str, torch.Tensor]) -> None:
        """There is nothing to put back."""


def _initialise(layer: Any, adapter: str, path: str, seed: int, deviation: float) -> None:
    """B₁ and B₂ uniform in ±1/√in, A₁ normal with this deviation, A₂ zero, each from a stream of its own."""
    import torch

    from automl.methods.seeding import stream

    with torch.no_grad():
        for name in ("hada_w1_b", "hada_w2_b"):
            tensor = getattr(layer, name)[adapter]
            bound = 1.0 / math.sqrt(tensor.shape[1])
            drawn = torch.empty(tensor.shape).uniform_(-bound, bound, generator=stream(seed, f"{path}.{name}"))
            tensor.copy_(drawn)
        first = layer.hada_w1_a[adapter]
        first.copy_(torch.empty(first.shape).normal_(0.0, deviation, generator=stream(seed, f"{path}.hada_w1_a")))
        layer.hada_w2_a[adapter].zero_()
