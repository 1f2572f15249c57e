"""Prefix tuning (Li & Liang 2021), and P-tuning v2 (Liu et al. 2022) for classifiers, through PEFT.

Keys and values of virtual tokens before every layer are trained, either themselves or as what a small network makes of
an embedding (`prefix_projection`).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from automl.lora import Hyperparameters, LinearShape
from automl.methods.base import Footprint
from automl.methods.settings import Setting
from automl.methods.virtual import (
    ENCODER_WIDTH,
    TOKENS,
    VirtualTokens,
    judges_with_decoder,
    linear_parameters,
    start_anew,
)

if TYPE_CHECKING:
    from peft import PrefixTuningConfig
    from torch import nn

PROJECTION = Setting(
    name="prefix_projection",
    default=False,
    meaning="a network of two layers makes the keys and values while training (reparametrisation)",
    tried=(False, True),
    sized=True,
)


class Prefix(VirtualTokens):
    """Keys and values before those of the tokens in every layer; only they are kept when training ends."""

    settings: ClassVar[tuple[Setting, ...]] = (TOKENS, PROJECTION, ENCODER_WIDTH)

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        """Keys and values are repeated for every row, and put before those of its tokens."""
        tokens, (width, depth) = int(TOKENS.of(hyper)), _shape(model)
        numbers = 2 * depth * width
        kept = 2 * tokens * numbers
        if not PROJECTION.of(hyper):
            return Footprint(tokens * numbers, 0, kept, tokens)
        hidden = int(ENCODER_WIDTH.of(hyper)) or width
        return Footprint(tokens * width + linear_parameters(width, hidden, numbers), 0, kept, tokens)

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        """5e-5 with reparametrisation (Li & Liang 2021), 5e-3 to 1e-2 without (P-tuning v2, Liu et al. 2022)."""
        return 5e-5, 3e-2

    def obstacle(self, model: nn.Module, hyper: Hyperparameters) -> str:
        """A classifier is called by PEFT, and not by its own forward pass, if that does not take a cache itself."""
        name, any_model = type(model).__name__, _as_any(model)
        if reason := judges_with_decoder(model):
            return reason
        head = any_model.get_output_embeddings()
        if head is None and not _takes_past(model) and not _takes_past(any_model.base_model):
            return f"PEFT cannot put a prefix before the layers of {name}; use prompt, p-tuning or lora"
        return ""

    def configuration(self, model: nn.Module, hyper: Hyperparameters, options: Mapping[str, Any]) -> PrefixTuningConfig:
        from peft import PrefixTuningConfig

        return PrefixTuningConfig(
            prefix_projection=bool(PROJECTION.of(hyper)),
            encoder_hidden_size=ENCODER_WIDTH.of(hyper) or None,
            **{**options, **_of_decoder(model)},
        )

    def start(self, encoder: nn.Module, words: nn.Module, hyper: Hyperparameters, seed: int) -> None:
        start_anew(encoder, seed)


def _as_any(model: Any) -> Any:
    """The model, whose attributes are transformers' own."""
    return model


def _takes_past(module: nn.Module) -> bool:
    """Whether PEFT 0.21 finds that this forward pass takes keys and values from outside."""
    return "past_key_values" in inspect.signature(module.forward).parameters


def _of_decoder(model: Any) -> dict[str, Any]:
    """What PEFT has to be told of a model with an encoder: it reads some of the encoder's numbers for the decoder's."""
    if not model.config.is_encoder_decoder:
        return {}
    width, layers = _shape(model)
    heads = _heads(model.config)
    return {"num_transformer_submodules": 2, "token_dim": width, "num_layers": layers, "num_attention_heads": heads}


def _heads(config: Any) -> int:
    """Attention heads of a decoder that stands behind an encoder."""
    return int(getattr(config, "decoder_attention_heads", None) or config.num_attention_heads)


def _shape(model: Any) -> tuple[int, int]:
    """Numbers of a key in all heads of a layer, and layers, as PEFT reads them from the configuration.

    Of a model with an encoder those of the decoder, whose attention to itself a prefix is for.
    """
    if model.config.is_encoder_decoder:
        config = model.config
        layers = getattr(config, "decoder_layers", None) or getattr(config, "num_decoder_layers", None)
        size = getattr(config, "d_kv", None) or config.hidden_size // _heads(config)
        return size * _heads(config), int(layers or config.num_hidden_layers)
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None)
    if heads is None:
        return config.hidden_size, config.num_hidden_layers
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return size * heads, config.num_hidden_layers
