"""Models with an encoder and a decoder: the loss of targets, and targets that they write.

Legend: N rows, T tokens of a source, U tokens of a target, V vocabulary, M target tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.nn import functional

from automl.tasks.base import IGNORED, Batch
from automl.tasks.causal import Language, Prompt, references
from automl.tasks.generation import end_tokens, greedy_config, plain_text
from automl.tasks.virtual import call, continued, has_virtual_tokens


def target_losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of every target token of the batch, (M,) float32, rows in order.

    batch: input_ids and attention_mask (N, T), labels (N, U). The sum over M equals the model's own loss times M.
    """
    labels = batch["labels"]
    is_target = labels != IGNORED
    logits = call(model, **_inputs(model, batch)).logits  # (N, U, V)
    # logits are the largest tensor of a step: nothing is copied where no target is padded
    chosen = logits.flatten(0, 1) if bool(is_target.all()) else logits[is_target]
    return functional.cross_entropy(chosen.float(), labels[is_target], reduction="none")


def target_counts(batch: Batch) -> list[int]:
    """Number of target tokens of every row."""
    counts: list[int] = (batch["labels"] != IGNORED).sum(dim=1).tolist()
    return counts


def prompts_of(batch: Batch) -> Iterator[Prompt]:
    """Source and target of every row; the target whole, though the row may be cut."""
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    rows = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), references(batch), lengths, strict=True)
    for ids, labels, reference, length in rows:
        yield Prompt(tuple(ids[:length]), reference or tuple(label for label in labels if label != IGNORED))


def generate(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], tokenizer: Any, *, max_new_tokens: int
) -> list[str]:
    """The most probable targets as text without special tokens. Sources are padded on the right."""
    device = next(model.parameters()).device
    width, pad = max(map(len, prompts)), tokenizer.pad_token_id
    ids = [[*prompt, *[pad] * (width - len(prompt))] for prompt in prompts]
    mask = [[*[1] * len(prompt), *[0] * (width - len(prompt))] for prompt in prompts]
    source = {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}
    ends = end_tokens(model, tokenizer)
    if _has_prefix(model):
        return [plain_text(tokenizer, row) for row in _behind_prefix(model, source, max_new_tokens, ends)]
    config = greedy_config(ends, pad, max_new_tokens, use_cache=_has_cache(_base_of(model).config))
    found: torch.Tensor = model.generate(**source, generation_config=config)  # type: ignore[operator]
    return [plain_text(tokenizer, row) for row in found.tolist()]


ENCODER_DECODER = Language(target_losses, target_counts, prompts_of, generate)


def _inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """What the model is called with: the decoder reads the target shifted to the right, as the model itself does it.

    Those that do not offer that (M2M-100, Blenderbot) are given the labels, and compute a loss that nobody reads.
    """
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    base = _base_of(model)
    shift = getattr(base, "prepare_decoder_input_ids_from_labels", None)
    if shift is None:
        return {**inputs, "labels": batch["labels"]}
    return {**inputs, "decoder_input_ids": _begun(shift(batch["labels"]), batch["labels"], base.config)}


def _begun(shifted: torch.Tensor, labels: torch.Tensor, config: Any) -> torch.Tensor:
    """Shifted targets (N, U), of which those that are cut begin with the model's own first token, as all of a T5 do.

    mBART begins a target with its last token, which names the language or is the end; of a cut one it is any word.
    """
    if config.eos_token_id is None:
        return shifted
    ends = torch.tensor(config.eos_token_id, device=labels.device).reshape(-1)
    is_cut = ~torch.isin(labels, ends).any(dim=1)
    starts = shifted[:, 0].masked_fill(is_cut, config.decoder_start_token_id)
    return torch.cat([starts[:, None], shifted[:, 1:]], dim=1)


def _base_of(model: Any) -> Any:
    """The model itself, below a wrapper of PEFT's."""
    get_base = getattr(model, "get_base_model", None)
    return get_base() if get_base else model


def _has_cache(config: Any) -> bool:
    """Whether generation can keep keys and values.

    transformers 5.24 makes room for as many layers as a T5's encoder has, whatever its decoder.
    """
    return getattr(config, "num_decoder_layers", None) in (None, config.num_hidden_layers)


def _has_prefix(model: Any) -> bool:
    return has_virtual_tokens(model) and model.active_peft_config.peft_type == "PREFIX_TUNING"


def _behind_prefix(model: Any, source: Batch, most: int, ends: Sequence[int]) -> Iterator[list[int]]:
    """Targets, each token by one pass: PEFT 0.21 hands a prefix to generation under a name of before transformers 5."""
    start = torch.full((len(source["input_ids"]), 1), _base_of(model).config.decoder_start_token_id)

    def next_logits(rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = call(model, **source, decoder_input_ids=rows, use_cache=False).logits
        return found[:, -1]

    return continued(next_logits, start.to(source["input_ids"].device), most, ends)
