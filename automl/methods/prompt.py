"""Prompt tuning (Lester et al. 2021) through PEFT: virtual tokens before the embeddings of every row are trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from automl.lora import Hyperparameters, LinearShape
from automl.methods.base import Footprint
from automl.methods.settings import Setting
from automl.methods.virtual import TOKENS, VirtualTokens, cannot_embed, kept_by_backbone

if TYPE_CHECKING:
    from peft import PromptTuningConfig
    from torch import nn

TEXT = Setting(
    name="prompt_text",
    default="",
    meaning="text whose tokens' embeddings virtual tokens start from, repeated or cut; empty: tokens drawn at random",
)


class Prompt(VirtualTokens):
    """Virtual tokens that start as embeddings of tokens of the vocabulary, or of a text as the tokenizer reads it."""

    settings: ClassVar[tuple[Setting, ...]] = (TOKENS, TEXT)

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        tokens = int(TOKENS.of(hyper))
        width: int = model.config.get_text_config().hidden_size  # type: ignore[operator, union-attr]
        return Footprint(tokens * width, 0, kept_by_backbone(layers, hyper), tokens)

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        """Around 3e-2 with AdamW (PEFT's examples); 0.3 with Adafactor, whose steps are smaller (Lester et al.)."""
        return 1e-3, 3e-1

    def obstacle(self, model: nn.Module, hyper: Hyperparameters) -> str:
        text = str(TEXT.of(hyper))
        if text and not text.strip():
            return f"prompt_text {text!r} has no tokens; write a text, or leave it out to start from the vocabulary"
        return cannot_embed(model)

    def configuration(self, model: nn.Module, hyper: Hyperparameters, options: Mapping[str, Any]) -> PromptTuningConfig:
        from peft import PromptTuningConfig, PromptTuningInit

        if not (text := str(TEXT.of(hyper))):
            return PromptTuningConfig(prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB, **options)
        folder: Any = model.name_or_path
        return PromptTuningConfig(
            prompt_tuning_init=PromptTuningInit.TEXT,
            prompt_tuning_init_text=text,
            tokenizer_name_or_path=folder,
            **options,
        )

    def start(self, encoder: nn.Module, words: nn.Module, hyper: Hyperparameters, seed: int) -> None:
        """PEFT has put the embeddings of a text there; those of the vocabulary are drawn again, from the seed."""
        import torch

        from automl.methods.seeding import stream

        if TEXT.of(hyper):
            return
        rows: Any = encoder.embedding.weight  # type: ignore[union-attr]
        known: Any = words.weight
        drawn = torch.randint(len(known), (len(rows),), generator=stream(seed, "virtual_tokens"))
        with torch.no_grad():
            rows.copy_(words(drawn.to(known.device)))
