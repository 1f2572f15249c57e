"""IA3 (Liu et al. 2022) through PEFT: a factor for each feature of a layer, and nothing else.

The inputs of the last layer of a feed-forward block are scaled, and the outputs of every other layer. Which layers are
the last of their block PEFT knows by the kind of model; where it does not, outputs are scaled everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from automl.errors import TargetError
from automl.lora import Hyperparameters, LinearShape
from automl.methods.base import Footprint, Stateless
from automl.methods.lora import learning_rates

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor, nn

FASTER = 5.0
"""Its learning rates as a multiple of LoRA's, a rule of ours: factors start at 1 and have to move far. T-Few trains IA3
at 3e-3 with Adafactor, a model of 3 B (configs/ia3.json of r-three/t-few), and LoRA at the same."""


class IA3(Stateless):
    """y = l ∘ (W x) or W (l ∘ x), l starting as ones; features of the target set's layers are all it trains."""

    packable: ClassVar[bool] = False
    shardable: ClassVar[bool] = True
    takes: ClassVar[frozenset[str]] = frozenset({"target"})

    def trainable(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
        last = set(_last_of_blocks(model, [layer.path for layer in layers]))
        return sum(layer.in_features if layer.path in last else layer.out_features for layer in layers)

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        """What is scaled is kept once more."""
        features = self.trainable(model, layers, hyper)
        return Footprint(features, features)

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        low, high = learning_rates(model_parameters, steps)
        return FASTER * low, FASTER * high

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
        from peft import IA3Config

        from automl.methods.attaching import adapted_model, check_anchored, common_options, renew_head

        if hyper.rank_pattern:
            raise TargetError("method ia3 has no ranks; a rank pattern is for method lora")
        check_anchored(model, modules)
        options = {name: value for name, value in common_options(model, modules, head).items() if name != "bias"}
        peft_model = adapted_model(model, IA3Config(feedforward_modules=_last_of_blocks(model, modules), **options))
        renew_head(model, head, seed)
        return peft_model

    def exported(
        self, peft_model: PeftModel, saved: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return saved, {**config, "feedforward_modules": sorted(config["feedforward_modules"])}


def _last_of_blocks(model: nn.Module, modules: Sequence[str]) -> list[str]:
    """Those of the modules that are the last of a feed-forward block."""
    from peft.utils import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING

    kind = str(getattr(model.config, "model_type", ""))
    names = tuple(f".{name}" for name in TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind, ()))
    return [path for path in modules if path.endswith(names)] if names else []
