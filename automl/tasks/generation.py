"""Greedy answers of models that write: batches of like lengths, a cache of keys and values, tokens that end a text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from automl.tasks.virtual import greedy, has_virtual_tokens
from automl.watchdog import beat

_GENERATION_BATCH = 16


def generate_sorted(
    model: torch.nn.Module,
    prompts: Sequence[Sequence[int]],
    tokenizer: Any,
    *,
    max_new_tokens: int,
    write: Callable[..., list[str]] | None = None,
) -> list[str]:
    """Greedy answers to any number of prompts, in their order: those of like lengths share a batch.

    write: answers those of one batch; None: `generate`.
    """
    write = write or generate
    places = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    found: dict[int, str] = {}
    for start in range(0, len(places), _GENERATION_BATCH):
        beat()
        chunk = places[start : start + _GENERATION_BATCH]
        written = write(model, [prompts[place] for place in chunk], tokenizer, max_new_tokens=max_new_tokens)
        found |= zip(chunk, written, strict=True)
    return [found[place] for place in range(len(prompts))]


def generate(
    model: torch.nn.Module, prompts: Sequence[Sequence[int]], tokenizer: Any, *, max_new_tokens: int
) -> list[str]:
    """Greedy continuations as text without special tokens. Prompts are padded on the left, if anywhere."""
    ends = end_tokens(model, tokenizer)
    if has_virtual_tokens(model):
        return [plain_text(tokenizer, row) for row in greedy(model, prompts, most=max_new_tokens, ends=ends)]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else ends[0]
    width = max(map(len, prompts))
    ids = [[*[pad] * (width - len(prompt)), *prompt] for prompt in prompts]
    mask = [[*[0] * (width - len(prompt)), *[1] * len(prompt)] for prompt in prompts]
    device = next(model.parameters()).device
    found: torch.Tensor = model.generate(  # type: ignore[operator]  # of every causal language model, and of PEFT's
        input_ids=torch.tensor(ids, device=device),
        attention_mask=torch.tensor(mask, device=device),
        generation_config=greedy_config(ends, pad, max_new_tokens),
    )
    return [plain_text(tokenizer, row) for row in found[:, width:].tolist()]


def greedy_config(ends: Sequence[int], pad: int, max_new_tokens: int, *, use_cache: bool = True) -> GenerationConfig:
    """Generation of the most probable tokens.

    Every option that would make the choice of tokens anything but greedy is set: what is left out here is taken from
    the model's own generation settings.
    """
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        max_length=None,
        min_length=0,
        do_sample=False,
        num_beams=1,
        early_stopping=False,
        length_penalty=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=list(ends),
        pad_token_id=pad,
        use_cache=use_cache,
    )


def end_tokens(model: torch.nn.Module, tokenizer: Any) -> list[int]:
    """Ids that end a response: the tokenizer's end-of-text and what the model names itself (end of turn)."""
    get_base = getattr(model, "get_base_model", None)
    inner = get_base() if get_base else model
    own = getattr(getattr(inner, "generation_config", None), "eos_token_id", None)
    named = own if isinstance(own, list) else [own]
    ids = dict.fromkeys(itertools.chain([tokenizer.eos_token_id], named))
    return [token for token in ids if token is not None]


def plain_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of these tokens, special ones and white space around it left out."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=True)
    return text.strip()
