"""What methods with virtual tokens do alike: trained vectors that PEFT puts before the tokens of every row."""

from __future__ import annotations

import inspect
import itertools
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from automl.errors import TargetError
from automl.lora import Hyperparameters, LinearShape
from automl.methods.base import Stateless
from automl.methods.settings import Setting, Span

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn

TOKENS = Setting(
    name="virtual_tokens",
    default=20,
    meaning="trained vectors before the tokens of every row",
    low=1,
    high=4096,
    tried=Span(4, 128, log=True),
    searched=True,
    sized=True,
)
ENCODER_WIDTH = Setting(
    name="encoder_hidden_size",
    default=0,
    meaning="width of the network that makes the virtual tokens while training; 0: that of the tokens",
    low=0,
    high=65_536,
    sized=True,
)


class VirtualTokens(Stateless):
    """Methods that train virtual tokens, and the head of a classifier; the backbone stays as it is.

    They start as PEFT starts them, each parameter from a stream of its own.
    """

    packable: ClassVar[bool] = False
    shardable: ClassVar[bool] = False
    mergeable: ClassVar[bool] = False
    takes: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def configuration(self, model: nn.Module, hyper: Hyperparameters, options: Mapping[str, Any]) -> PeftConfig:
        """PEFT's configuration. options: those that do not depend on the method."""

    @abstractmethod
    def start(self, encoder: nn.Module, words: nn.Module, hyper: Hyperparameters, seed: int) -> None:
        """Initialise what makes the virtual tokens. words: the backbone's embeddings."""

    @abstractmethod
    def obstacle(self, model: nn.Module, hyper: Hyperparameters) -> str:
        """Why the model cannot be trained so, on one line; empty if it can."""

    def trainable(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
        self._check(model, hyper)
        return self.footprint(model, layers, hyper).parameters

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
        """Attach as the seam says, whatever `modules` are."""
        from automl.methods.attaching import ADAPTER, adapted_model, head_options, renew_head

        self._check(model, hyper)
        options = {"num_virtual_tokens": int(TOKENS.of(hyper)), **_stacks(model), **head_options(model, head)}
        peft_model: Any = adapted_model(model, self.configuration(model, hyper, options))
        self.start(peft_model.prompt_encoder[ADAPTER], peft_model.word_embeddings, hyper, seed)
        renew_head(model, head, seed)
        found: PeftModel = peft_model
        return found

    def exported(
        self, peft_model: PeftModel, saved: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return saved, config

    def _check(self, model: nn.Module, hyper: Hyperparameters) -> None:
        if reason := self.obstacle(model, hyper):
            raise TargetError(reason)


def judges_with_decoder(model: Any) -> str:
    """Why a classifier with an encoder and a decoder cannot have virtual tokens; empty for other models."""
    if not model.config.is_encoder_decoder or model.get_output_embeddings() is not None:
        return ""
    name = type(model).__name__
    return f"virtual tokens are not known for {name}, which judges by an encoder and a decoder; use lora"


def _stacks(model: Any) -> dict[str, Any]:
    """What PEFT has to be told of an encoder with a decoder: it would make a second set of tokens that nobody reads.

    peft 0.21, peft_model.py: PeftModelForSeq2SeqLM takes the first ones, for the encoder.
    """
    return {"num_transformer_submodules": 1} if model.config.is_encoder_decoder else {}


def cannot_embed(model: Any) -> str:
    """Why virtual tokens cannot stand before the embeddings of this model; empty if they can."""
    name = type(model).__name__
    config, words = model.config.get_text_config(), model.get_input_embeddings()
    if reason := judges_with_decoder(model):
        return reason
    if "inputs_embeds" not in inspect.signature(model.forward).parameters:
        return f"{name} takes no embeddings, so that no virtual tokens can be put before them; use lora"
    width = words.weight.shape[1]
    if width != config.hidden_size:
        return f"PEFT makes virtual tokens of {config.hidden_size} numbers, {name} embeds tokens in {width}; use lora"
    return ""


def start_anew(encoder: nn.Module, seed: int) -> None:
    """Start every parameter as torch does: embeddings N(0, 1), linear layers and LSTMs uniform in ±1/sqrt(width).

    Each is drawn on the CPU in float32 from the stream "prompt_encoder.<name>".
    """
    import torch
    from torch import nn

    from automl.methods.seeding import stream

    for path, module in encoder.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            generator = stream(seed, ".".join(part for part in ("prompt_encoder", path, name) if part))
            drawn = torch.empty(parameter.shape)
            if isinstance(module, nn.Embedding):
                drawn.normal_(generator=generator)
            else:
                bound = 1.0 / math.sqrt(_width(module))
                drawn.uniform_(-bound, bound, generator=generator)
            with torch.no_grad():
                parameter.copy_(drawn)


def _width(module: Any) -> int:
    """Inputs of a linear layer, units of an LSTM: what torch scales a start by."""
    return int(module.hidden_size if hasattr(module, "hidden_size") else module.in_features)


def linear_parameters(*widths: int) -> int:
    """Weights and biases of linear layers behind each other; widths: inputs of each, and outputs of the last."""
    return sum((before + 1) * after for before, after in itertools.pairwise(widths))


def kept_by_backbone(layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
    """Numbers kept for the backward pass in every row, since virtual tokens pass through all layers."""
    return int(TOKENS.of(hyper)) * sum(layer.in_features + layer.out_features for layer in layers)
