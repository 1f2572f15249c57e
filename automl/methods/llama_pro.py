"""LLaMA-Pro (Wu et al. 2024, 2401.02415): copies of blocks between the blocks of a decoder, and only these are trained.

A copy starts with output projections of zero, so that it adds nothing to what passes it, and the model says what it
said before. What comes out is an ordinary model of more layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from automl.errors import TargetError
from automl.lora import Hyperparameters, LinearShape
from automl.methods.base import Footprint, Stateless
from automl.methods.settings import Setting, Span

if TYPE_CHECKING:
    from torch import Tensor, nn

BLOCKS = Setting(
    name="added_blocks",
    default=4,
    meaning="blocks that are added and trained",
    low=1,
    high=64,
    tried=Span(1, 8, log=True),
    searched=True,
    sized=True,
)
WHERE = Setting(
    name="added_where",
    default="spread",
    meaning="spread: evenly between the blocks, as in the paper; bottom, top: behind the first or the last one",
    choices=("spread", "bottom", "top"),
    tried=("spread", "top"),
    sized=True,
)

_SMALL, _LARGE = 500_000_000, 4_000_000_000
_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_MORE_NORMS = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
"""Norms that Gemma has beside: what they make of zero is zero."""


class LlamaPro(Stateless):
    """Blocks of decoders like Llama: x + attention(norm(x)), then x + mlp(norm(x))."""

    packable: ClassVar[bool] = False
    shardable: ClassVar[bool] = False
    quantizable: ClassVar[bool] = False
    settings: ClassVar[tuple[Setting, ...]] = (BLOCKS, WHERE)
    takes: ClassVar[frozenset[str]] = frozenset()

    def trainable(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
        return sum(parameter.numel() for block in _copied(model, hyper) for parameter in block.parameters())

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        """With what the linear layers of the added blocks read and write."""
        parts: list[Any] = [part for block in _copied(model, hyper) for part in block.modules()]
        kept = sum(part.in_features + part.out_features for part in parts if hasattr(part, "in_features"))
        return Footprint(self.trainable(model, layers, hyper), kept)

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        """Around the 2e-4 of the paper for 7B parameters (section 4.1); below, a rule of ours: between those of full
        fine-tuning and of LoRA.
        """
        if model_parameters >= _LARGE:
            return 1e-5, 5e-4
        return (2e-5, 1e-3) if model_parameters >= _SMALL else (5e-5, 5e-3)

    def attach(
        self,
        model: nn.Module,
        hyper: Hyperparameters,
        modules: Sequence[str],
        head: Sequence[str],
        seed: int,
        *,
        steps: int | None = None,
    ) -> nn.Module:
        """Attach as the seam says; nothing is drawn but heads. modules: not looked at."""
        from automl.methods.growing import grow
        from automl.methods.in_place import fresh_heads

        blocks = blocks_of(model)
        grow(model, blocks, sources(len(blocks), hyper))
        fresh_heads(model, head, seed)
        return model

    def exported(
        self, peft_model: nn.Module, saved: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return saved, config


def sources(count: int, hyper: Hyperparameters) -> list[int]:
    """Index of the block, of `count`, that each added block is a copy of and stands behind; ascending.

    Spread: behind the last block of each of as many groups of equal size (section 3.2 of the paper). More added blocks
    than there are stand behind one another.
    """
    added, where = int(BLOCKS.of(hyper)), WHERE.of(hyper)
    if where == "spread":
        return [math.ceil(number * count / added) - 1 for number in range(1, added + 1)]
    return [count - 1 if where == "top" else 0] * added


def blocks_of(model: Any) -> Sequence[nn.Module]:
    """The blocks of the decoder, which are `layers` of its backbone.

    Raises TargetError if it is not like Llama's, or quantised.
    """
    body = getattr(model, getattr(model, "base_model_prefix", ""), None)
    blocks: Sequence[nn.Module] = getattr(body, "layers", ())
    if not blocks or len(blocks) != getattr(model.config, "num_hidden_layers", 0) or not all(map(_is_known, blocks)):
        raise TargetError(
            f"method llama-pro: {type(model).__name__} is not a decoder of blocks like Llama's (self_attn.o_proj and"
            " mlp.down_proj, each behind a norm); use adapter or lora"
        )
    if not all(parameter.is_floating_point() for block in blocks for parameter in block.parameters()):
        raise TargetError(
            f"method llama-pro: blocks of {type(model).__name__} are held in few bits; quantization: none"
        )
    return blocks


def _is_known(block: Any) -> bool:
    """Whether a block of these parts adds nothing if its two output projections are zero."""
    parts = {name for name, part in block.named_children() if next(part.parameters(), None) is not None}
    ends = (
        getattr(getattr(block, "self_attn", None), "o_proj", None),
        getattr(getattr(block, "mlp", None), "down_proj", None),
    )
    return parts >= _PARTS and parts - _PARTS <= _MORE_NORMS and all(hasattr(end, "in_features") for end in ends)


def _copied(model: nn.Module, hyper: Hyperparameters) -> list[nn.Module]:
    blocks = blocks_of(model)
    return [blocks[index] for index in sources(len(blocks), hyper)]
