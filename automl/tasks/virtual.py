"""What tasks have to know of virtual tokens: trained vectors that PEFT puts before the tokens of every row.

Prompt tuning and P-tuning put them before the embeddings, so that a row has more positions than tokens; prefix tuning
puts them before the keys and values of every layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

from automl.tasks.base import Batch


def has_virtual_tokens(model: Any) -> bool:
    """Whether this is PEFT's model with virtual tokens."""
    config = getattr(model, "active_peft_config", None)
    return config is not None and bool(config.is_prompt_learning)


def call(model: Any, **inputs: Any) -> Any:
    """What the model makes of these inputs."""
    if not has_virtual_tokens(model):
        return model(**inputs)
    with warnings.catch_warnings():
        # peft 0.21 (peft_model.py) hands a prefix over under the name that transformers 5.24 replaces by `cache`.
        warnings.filterwarnings("ignore", message="`past_key_values` is deprecated", category=FutureWarning)
        return model(**inputs)


def class_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Logits of every row, (N, classes). batch: inputs of the model.

    A classifier that reads a row at its last token finds it by the token ids, which it does not see behind virtual
    tokens (transformers 5.24, modeling_layers.py); it is given rows of equal length, so that none is padded.
    """
    if not has_virtual_tokens(model) or type(model.config) in MODEL_FOR_MASKED_LM_MAPPING:
        logits: torch.Tensor = call(model, **batch).logits
        return logits
    embedded = model.word_embeddings(batch["input_ids"])  # together, as whatever is added to them is for the batch
    others = {name: tensor for name, tensor in batch.items() if name != "input_ids"}
    lengths = batch["attention_mask"].sum(dim=1)
    groups = [(lengths == length).nonzero().squeeze(1) for length in torch.unique(lengths)]
    found = [
        call(model, **_rows({"inputs_embeds": embedded, **others}, rows, int(lengths[rows[0]]))).logits
        for rows in groups
    ]
    return torch.cat(found)[torch.cat(groups).argsort()]


def _rows(batch: Batch, rows: torch.Tensor, length: int) -> Batch:
    """Some rows of a batch, cut to this length."""
    return {name: tensor[rows][:, :length] for name, tensor in batch.items()}


def greedy(model: Any, prompts: Sequence[Sequence[int]], *, most: int, ends: Sequence[int]) -> list[list[int]]:
    """The most probable tokens after each prompt, at most so many, up to one of `ends`; in the order of the prompts.

    Prompts of equal length are continued together, each token by one pass over the whole row: PEFT 0.21 puts virtual
    tokens wrongly before rows that transformers 5.24 continues from a cache, or pads on the left.
    """
    found: dict[int, list[int]] = {}
    for length in sorted({len(prompt) for prompt in prompts}):
        places = [place for place, prompt in enumerate(prompts) if len(prompt) == length]
        rows = torch.tensor([list(prompts[place]) for place in places], device=next(model.parameters()).device)
        found |= zip(places, continued(partial(_next_logits, model), rows, most, ends), strict=True)
    return [found[place] for place in range(len(prompts))]


def _next_logits(model: Any, rows: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = call(model, input_ids=rows, attention_mask=torch.ones_like(rows), use_cache=False).logits
    return found[:, -1]


def continued(
    next_logits: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor, most: int, ends: Sequence[int]
) -> Iterator[list[int]]:
    """Most probable continuations of rows of one length, (N, T), of at most so many tokens; each with what ends it.

    next_logits: what the model says of the token after each row, (N, V).
    """
    start, final = rows.shape[1], torch.tensor(list(ends), device=rows.device)
    is_open = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    while rows.shape[1] < start + most and is_open.any():
        chosen = next_logits(rows).argmax(dim=-1)
        is_open &= ~torch.isin(chosen, final)
        rows = torch.cat([rows, chosen[:, None]], dim=1)
    for tokens in rows[:, start:].tolist():
        end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        yield tokens[: end + 1]
