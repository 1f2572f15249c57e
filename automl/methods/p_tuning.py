"""P-tuning (Liu et al. 2021) through PEFT: a small network makes the virtual tokens, and is trained with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from automl.lora import Hyperparameters, LinearShape
from automl.methods.base import Footprint
from automl.methods.settings import Setting
from automl.methods.virtual import (
    ENCODER_WIDTH,
    TOKENS,
    VirtualTokens,
    cannot_embed,
    kept_by_backbone,
    linear_parameters,
    start_anew,
)

if TYPE_CHECKING:
    from peft import PromptEncoderConfig
    from torch import nn

ENCODER = Setting(
    name="prompt_encoder",
    default="mlp",
    meaning="network that makes the virtual tokens: three linear layers, or a two-layer LSTM both ways before two",
    choices=("mlp", "lstm"),
    tried=("mlp", "lstm"),
    sized=True,
)


class PTuning(VirtualTokens):
    """Virtual tokens that a network makes of trained embeddings; only what it makes is kept when training ends."""

    settings: ClassVar[tuple[Setting, ...]] = (TOKENS, ENCODER, ENCODER_WIDTH)

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        width: int = model.config.get_text_config().hidden_size  # type: ignore[operator, union-attr]
        hidden, tokens = int(ENCODER_WIDTH.of(hyper)) or width, int(TOKENS.of(hyper))
        network = (
            _lstm_parameters(width, hidden) + linear_parameters(2 * hidden, 2 * hidden, width)
            if ENCODER.of(hyper) == "lstm"
            else linear_parameters(width, hidden, hidden, width)
        )
        return Footprint(tokens * width + network, 0, kept_by_backbone(layers, hyper), tokens)

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        """From NeMo's 1e-4 over 1e-3 (PEFT's example with RoBERTa-large) to ten times that."""
        return 1e-4, 1e-2

    def obstacle(self, model: nn.Module, hyper: Hyperparameters) -> str:
        return cannot_embed(model)

    def configuration(
        self, model: nn.Module, hyper: Hyperparameters, options: Mapping[str, Any]
    ) -> PromptEncoderConfig:
        from peft import PromptEncoderConfig

        return PromptEncoderConfig(
            encoder_reparameterization_type=str(ENCODER.of(hyper)).upper(),
            encoder_hidden_size=ENCODER_WIDTH.of(hyper) or None,
            **options,
        )

    def start(self, encoder: nn.Module, words: nn.Module, hyper: Hyperparameters, seed: int) -> None:
        start_anew(encoder, seed)


def _lstm_parameters(inputs: int, hidden: int) -> int:
    """Parameters of two layers that read both ways, of four gates with weights for input and state and two biases."""
    return sum(2 * 4 * hidden * (width + hidden + 2) for width in (inputs, 2 * hidden))
