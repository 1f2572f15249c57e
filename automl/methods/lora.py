"""LoRA (Hu et al. 2021) through PEFT, with its variants as settings that are off unless asked for.

Rank-stabilised scaling (Kalajdzievski 2023), LoRA+ (Hayou et al. 2024), DoRA (Liu et al. 2024), LoRA-FA (Zhang et al.
2023), and other starts: orthogonal, OLoRA (Büyükakyüz 2024), PiSSA (Meng et al. 2024), EVA (Paischer et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from automl.lora import Hyperparameters, LinearShape, check_pattern, lora_parameters, peft_patterns
from automl.methods.base import Footprint, LowRank, Method, check_exclusions
from automl.methods.settings import Exclusion, Setting, Span

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor, nn


SMALL, LARGE = 500_000_000, 4_000_000_000
"""Models with fewer parameters need higher learning rates, those with more need lower ones."""
SHORT_STEPS = 300


PLUS = Setting(
    name="lora_plus_ratio",
    default=1.0,
    meaning="learning rate of B as a multiple of that of A (LoRA+)",
    low=1.0,
    high=64.0,
    tried=Span(1.0, 16.0, log=True),
    shardable=True,
)
DORA = Setting(
    name="use_dora",
    default=False,
    meaning="train the norms of the weight's rows beside their directions (DoRA)",
    tried=(False, True),
    sized=True,
    packable=(False,),
)
FREEZE = Setting(
    name="freeze_a",
    default=False,
    meaning="train B alone (LoRA-FA)",
    tried=(False, True),
    sized=True,
    shardable=True,
)
_DRAWN = ("default", "gaussian", "orthogonal")
PARTS = ("olora", "pissa")
"""Starts that are a part of the weight, which is taken away from what the layer returns."""
EVA = "eva"
"""The start that needs to know the inputs of the layers."""
INIT = Setting(
    name="init",
    default="default",
    meaning="where A and B start; olora and pissa: as a part of the weight; eva: from inputs of the layer",
    choices=(*_DRAWN, *PARTS, EVA),
    tried=(*_DRAWN, *PARTS),  # studies that search `auto` go on with what they began with
    shardable=_DRAWN,
    quantizable=(*_DRAWN, EVA),
)


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
    settings: ClassVar[tuple[Setting, ...]] = (PLUS, DORA, FREEZE, INIT)
    exclusions: ClassVar[tuple[Exclusion, ...]] = (
        Exclusion({DORA.name: (True,), INIT.name: PARTS}, "DoRA scales the whole weight, of which init takes a part"),
    )

    def trainable(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
        frozen = sum(hyper.rank_of(layer.path) * layer.in_features for layer in layers) if FREEZE.of(hyper) else 0
        return lora_parameters(layers, hyper.rank_of) - frozen + _norms(layers, hyper)

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        """Footprint of A x; with DoRA of the layer's output before it is scaled, too."""
        kept = low_rank_footprint(layers, hyper.rank_of, hyper.dropout).per_token
        return Footprint(self.trainable(model, layers, hyper), kept + _norms(layers, hyper))

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
        """Attach as the seam says. Raises TargetError if PEFT would adapt others than `modules`, if the rank pattern
        names others, or for settings that exclude each other.
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
        from automl.methods.eva import starting_matrices
        from automl.methods.principal import check_whole

        how = str(INIT.of(hyper))
        check_exclusions(self, hyper)
        check_anchored(model, modules)
        check_pattern(hyper, modules)
        if how in PARTS:
            check_whole(model, modules, how)
        starts = starting_matrices(model, hyper, modules) if how == EVA else {}
        peft_model = adapted_model(model, _config(model, hyper, modules, head))
        adapted = adapted_layers(model)
        check_adapted(peft_model, modules)
        for path, layer in adapted.items():
            _start(layer, path, starts.get(path), seed=seed, how=how)
            layer.lora_A[ADAPTER].weight.requires_grad_(not FREEZE.of(hyper))
        renew_head(model, head, seed)
        seed_dropout(adapted.values(), hyper, seed, next(model.parameters()).device)
        return peft_model

    def low_rank(self, peft_model: PeftModel) -> list[LowRank]:
        """None if the update is more than a product: scaled by DoRA, or less a part of the weight."""
        from automl.methods.attaching import ADAPTER, adapted_layers
        from automl.methods.principal import parts_of

        layers = adapted_layers(peft_model.get_base_model())
        if peft_model.peft_config[ADAPTER].use_dora or parts_of(layers):
            return []
        return [
            LowRank(path, layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight, layer.scaling[ADAPTER])
            for path, layer in layers.items()
        ]

    def penalty(self, peft_model: PeftModel) -> Tensor | None:
        return None

    def rate(self, name: str, hyper: Hyperparameters) -> float:
        """B is `lora_plus_ratio` times as fast. Source: Hayou et al. 2024, algorithm 1."""
        return float(PLUS.of(hyper)) if ".lora_B." in name else 1.0

    def after_step(self, peft_model: PeftModel, step: int) -> None:
        """Nothing is left to do."""

    def memory(self, peft_model: PeftModel) -> dict[str, Tensor]:
        """What was taken away from the weights at the start, or an A that is not trained and began from inputs."""
        from automl.methods.principal import memory_of

        return memory_of(_remembered(peft_model))

    def load_memory(self, peft_model: PeftModel, memory: Mapping[str, Tensor]) -> None:
        """Put back what was taken away, and with it an A that is never trained."""
        from automl.methods.attaching import ADAPTER, adapted_layers
        from automl.methods.principal import parts_of, put_back

        layers = adapted_layers(peft_model.get_base_model())
        put_back(_remembered(peft_model), memory)
        for path, part in parts_of(layers).items():
            if not (a := layers[path].lora_A[ADAPTER].weight).requires_grad:
                a.copy_(part.a)

    def exported(
        self, peft_model: PeftModel, saved: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        """What PEFT would write, unless A and B began as a part of the weight: then plain LoRA of twice the rank."""
        from automl.methods.attaching import adapted_layers
        from automl.methods.principal import as_plain_lora, parts_of

        return as_plain_lora(parts_of(adapted_layers(peft_model.get_base_model())), saved, config)


def _norms(layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
    """Numbers that DoRA trains: a norm for each output."""
    return sum(layer.out_features for layer in layers) if DORA.of(hyper) else 0


def _remembered(peft_model: PeftModel) -> dict[str, Tensor]:
    """What follows from the weights or the data and is not trained, by the name it is kept under."""
    from automl.methods.attaching import adapted_layers
    from automl.methods.eva import frozen_starts
    from automl.methods.principal import kept_names, parts_of

    layers = adapted_layers(peft_model.get_base_model())
    return kept_names(parts_of(layers), frozen_starts(layers))


def _start(layer: Any, path: str, start: Tensor | None, *, seed: int, how: str) -> None:
    """start: A as it begins, if that follows from inputs."""
    from automl.methods.attaching import ADAPTER
    from automl.methods.eva import start_from_inputs
    from automl.methods.principal import start_from_weight
    from automl.methods.seeding import initialise_adapter

    if start is not None:
        start_from_inputs(layer, start)
    elif how in PARTS:
        start_from_weight(layer, how)
    else:
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        initialise_adapter(a, b, seed=seed, path=path, how=how)


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
        use_dora=bool(DORA.of(hyper)),
        **common_options(model, modules, head),
    )
