"""What completion and instruction tuning share: token rows with a loss mask, their loss and metrics.

A text is a list of parts, each with or without loss. Each part has tokens of its own, so the mask is a matter of
position and never of token ids (pad may be the end-of-turn token), no token spans a boundary, and a prompt has the
same tokens in training as in generation. Legend: N rows, T tokens, C columns with a target, V vocabulary, M targets.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from automl.errors import DataError
from automl.outcomes import Outcomes
from automl.space.extraction import extracted
from automl.space.spec import TaskSettings
from automl.tasks import metrics
from automl.tasks.base import IGNORED, Batch, LossParts, Row
from automl.tasks.batches import evaluation_rows
from automl.tasks.generation import generate, generate_sorted, plain_text
from automl.tasks.harness import harness_scores
from automl.tasks.joining import attention_of
from automl.tasks.prepare import Encode, Encoded, Recipe
from automl.tasks.read import source_name
from automl.tasks.split import Example
from automl.tasks.text_metrics import generating, text_scores
from automl.tasks.virtual import call, has_virtual_tokens


class TextPart(NamedTuple):
    """A piece of text and whether its tokens carry loss."""

    text: str
    has_loss: bool


class MaskedText(NamedTuple):
    """One example as text. is_closed: an end-of-text token with loss follows. Templates bring their own.

    is_chunked: what `max_length` cuts off becomes further rows.
    """

    parts: tuple[TextPart, ...]
    is_closed: bool
    is_opened: bool = True  # the tokens that the tokenizer puts before a text come first
    is_chunked: bool = False


def make_recipe(
    as_text: Callable[[Example], MaskedText], tokenizer: Any, settings: TaskSettings, *, version: int
) -> Recipe:
    """The recipe of rows `input_ids`, `labels` (IGNORED where no loss is); rows without any target are dropped.

    Rows that judge have a `reference` too: all tokens of the first response if it is cut, else none.
    """
    return Recipe(
        encode=_encoder(as_text, tokenizer, settings),
        version=version,
        columns={"input_ids": True, "labels": True},
        baseline={},
        judging=("reference",) if settings.rules > 1 else (),
        joins=settings.short_texts == "join",
    )


def _encoder(as_text: Callable[[Example], MaskedText], tokenizer: Any, settings: TaskSettings) -> Encode:
    opening = leading_tokens(tokenizer)
    closing = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    tokenise = _in_context if settings.rules > 1 and _marks_first_word(tokenizer) else _one_by_one

    def encode(chunk: Sequence[Example]) -> list[Encoded]:
        texts = [_text_of(as_text, example) for example in chunk]
        tokens = tokenise([text.parts for text in texts if isinstance(text, MaskedText)], tokenizer)
        return [row for text in texts for row in rows_of(text, tokens)]

    def rows_of(text: MaskedText | DataError, tokens: Iterator[list[list[int]]]) -> list[Encoded]:
        if isinstance(text, DataError):
            return [Encoded(None, 0, error=text)]
        encoded = _chunked if text.is_chunked else _encoded
        return encoded(text, next(tokens), opening, closing, settings.max_length)

    return encode


def _text_of(as_text: Callable[[Example], MaskedText], example: Example) -> MaskedText | DataError:
    try:
        return as_text(example)
    except DataError as error:
        return error


def _one_by_one(texts: Sequence[Sequence[TextPart]], tokenizer: Any) -> Iterator[list[list[int]]]:
    """Tokens of every part of every text, each tokenised by itself."""
    flat = [part.text for parts in texts for part in parts]
    # verbose: no warning about texts longer than the model's limit, which are cut later
    tokens = iter(tokenizer(flat, add_special_tokens=False, verbose=False)["input_ids"] if flat else ())
    for parts in texts:
        yield [next(tokens) for _ in parts]


def _in_context(texts: Sequence[Sequence[TextPart]], tokenizer: Any) -> Iterator[list[list[int]]]:
    """Tokens of every part of every text, as they are in the whole text up to the part's end.

    That is what serving makes of a conversation so far. A part of which the tokens before it do not survive, since
    one spans the boundary, is tokenised by itself after a text that ends in a line break.
    """
    for parts in texts:
        ends = [end for _, end in _spans_of(parts)]
        whole = "".join(part.text for part in parts)
        prefixes = tokenizer([whole[:end] for end in ends], add_special_tokens=False, verbose=False)["input_ids"]
        before: list[int] = []
        pieces = []
        for part, ids in zip(parts, prefixes, strict=True):
            is_clean = ids[: len(before)] == before
            pieces.append(ids[len(before) :] if is_clean else _continued(part.text, tokenizer))
            before = [*before, *pieces[-1]]
        yield pieces


def _spans_of(parts: Sequence[TextPart]) -> Iterator[tuple[int, int]]:
    """Where each part begins and ends in the whole text."""
    start = 0
    for part in parts:
        yield start, start + len(part.text)
        start += len(part.text)


_BREAK = "a\n"


def _continued(text: str, tokenizer: Any) -> list[int]:
    """Tokens of a text that does not begin anything."""
    before, both = tokenizer([_BREAK, _BREAK + text], add_special_tokens=False, verbose=False)["input_ids"]
    return list(both[len(before) :])


def _marks_first_word(tokenizer: Any) -> bool:
    """Whether a text is tokenised differently at the beginning, as by Llama-2, which puts a space before it."""
    alone = tokenizer("b", add_special_tokens=False)["input_ids"]
    return list(alone) != _continued("b", tokenizer)


def _encoded(
    text: MaskedText, pieces: Sequence[list[int]], opening: list[int], closing: list[int], max_length: int
) -> list[Encoded]:
    """One example from the tokens of its parts; without a row if `max_length` leaves no target."""
    ids = list(opening) if text.is_opened else []
    labels = [IGNORED] * len(ids)
    for part, piece in zip(text.parts, pieces, strict=True):
        ids += piece
        labels += piece if part.has_loss else [IGNORED] * len(piece)
    if text.is_closed:
        ids += closing
        labels += closing
    kept = labels[:max_length]
    has_target = any(label != IGNORED for label in kept[1:])  # the first token is predicted from nothing
    lost = labels[max_length:]
    start, end = first_response(labels)
    reference = labels[start:end] if end > max_length else []
    row = {"input_ids": ids[:max_length], "labels": kept, "reference": reference}
    is_unfinished = bool(lost) and lost[0] != IGNORED  # not at the end of a turn
    return [Encoded(row if has_target else None, len(ids), is_unfinished)]


def _chunked(
    text: MaskedText, pieces: Sequence[list[int]], opening: list[int], closing: list[int], max_length: int
) -> list[Encoded]:
    """Rows of at most `max_length` tokens in which every token but the first is predicted once.

    A row begins as a text does; if the tokenizer puts nothing before a text, with the last token of the row before it.
    """
    ids = [*itertools.chain.from_iterable(pieces), *(closing if text.is_closed else [])]
    fresh = max_length - max(1, len(opening))
    if fresh < 1:
        return [Encoded(None, len(opening) + len(ids))]
    rows = []
    for start in range(0 if opening else 1, len(ids), fresh):
        lead = opening or ids[start - 1 : start]
        part = ids[start : start + fresh]
        row = {"input_ids": [*lead, *part], "labels": [IGNORED] * len(lead) + part, "reference": []}
        rows.append(Encoded(row, len(lead) + len(part)))
    return rows or [Encoded(None, len(ids))]


def first_response(labels: Sequence[int]) -> tuple[int, int]:
    """Where the first run of labels with loss begins and ends; twice the length if there is none."""
    start = next((place for place, label in enumerate(labels) if label != IGNORED), len(labels))
    return start, next((place for place in range(start, len(labels)) if labels[place] == IGNORED), len(labels))


def generation_notes(rows: Sequence[Row], settings: TaskSettings, tokenizer: Any) -> list[str]:
    """What there is to say of answers that generated ones are compared with; rows: the judging ones.

    That they are longer than what is generated, or hold no answer to take out. Raises DataError if none holds one.
    """
    if not (generated := generating(settings)):
        return []
    picked = [rows[place] for place in evaluation_rows(settings.seed, len(rows), settings.evaluate_rows)]
    return [*_longer(picked, settings, generated[0]), *_without_answer(picked, settings, tokenizer)]


def _longer(picked: Sequence[Row], settings: TaskSettings, metric: str) -> Iterator[str]:
    longer = sum(_answer_length(row) > settings.max_new_tokens for row in picked)
    if not longer:
        return
    what = f"of {longer} of {len(picked)} validation rows the answer is longer than max_new_tokens"
    yield f"{what} {settings.max_new_tokens}, so that {metric} cannot be at its best there"


def _without_answer(picked: Sequence[Row], settings: TaskSettings, tokenizer: Any) -> Iterator[str]:
    if not settings.extract:
        return
    texts = [plain_text(tokenizer, _answer(row)) for row in picked]
    without = sum(extracted(settings.extract, text) is None for text in texts)
    if without == len(texts):
        what = f"task.extract {settings.extract!r} finds nothing in any of {without} validation answers"
        raise DataError(f"{source_name(settings.data)}: {what}, such as {texts[0][:60]!r}")
    if without:
        yield f"task.extract finds nothing in {without} of {len(texts)} validation answers, which are compared whole"


def _answer(row: Row) -> Sequence[int]:
    """Tokens of the first answer, which may be cut in the row itself."""
    start, end = first_response(row["labels"])
    reference: Sequence[int] = row.get("reference", ())
    return reference or row["labels"][start:end]


def _answer_length(row: Row) -> int:
    """Tokens of the first answer without the one that ends it, which need not be generated."""
    return len(_answer(row)) - 1


def leading_tokens(tokenizer: Any) -> list[int]:
    """The tokens a tokenizer puts before every text, such as begin-of-text; found by asking it."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return list(full[:start])
    return []


def target_losses(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Cross-entropy of every target token of the batch, (M,) float32, rows in order.

    Logits are computed at targets alone, and where the output layer is frozen in a pack never as a whole. The sum over
    M equals the model's own loss times M.
    """
    columns = target_columns(batch["labels"])  # (C,)
    targets = batch["labels"][:, columns + 1].flatten()  # (N * C,); column t is predicted at position t
    chosen = (targets != IGNORED).nonzero().squeeze(1)  # (M,)
    # virtual tokens are positions before the first token: columns are counted from the end then
    places = columns - batch["labels"].shape[1] if has_virtual_tokens(model) else columns
    losses = _losses_at(model, batch, places, chosen, targets[chosen])
    if losses is not None:
        return losses
    logits = _logits_at(model, batch, places, chosen)  # (M, V)
    return functional.cross_entropy(logits.float(), targets[chosen], reduction="none")


def target_columns(labels: torch.Tensor) -> torch.Tensor:
    """Positions at which some row predicts a target, ascending, (C,) int64. labels: (N, T)."""
    return (labels[:, 1:] != IGNORED).any(dim=0).nonzero().squeeze(1)


def losses_by_row(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Sum of the target losses of every row, (N,) float32, with static shapes.

    batch: instead of the labels of all tokens the `columns` (C,) in which some row predicts a target, the places of the
    targets among the N * C of these, row by row, as `chosen` (M,), and their `labels` (M,). IGNORED fills up to M.
    """
    labels, chosen, columns = batch["labels"], batch["chosen"], batch["columns"]
    losses = functional.cross_entropy(
        _logits_at(model, batch, columns, chosen).float(), labels, ignore_index=IGNORED, reduction="none"
    )
    rows = batch["input_ids"].shape[0]
    beyond = rows * len(columns)
    places = chosen.where(labels != IGNORED, beyond)
    # Not a sum into the rows at once: on a GPU its order would vary.
    return losses.new_zeros(beyond + 1).index_copy(0, places, losses)[:-1].view(rows, -1).sum(dim=1)


def _losses_at(
    model: torch.nn.Module, batch: Batch, columns: torch.Tensor, chosen: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor | None:
    """Cross-entropy of these targets at the places that `_logits_at` is given, if the output layer computes it itself.

    A frozen one in a pack does (`automl.packed.linear`), so that there are never logits of all places at once. None if
    it does not, or if the model changes what the layer says, as by a cap: seen when it is asked first.
    """
    inner = _inner(model)
    if not _can_choose_places(inner):
        return None
    output = inner.get_output_embeddings()
    layer: Any = getattr(output, "forward", None)
    if not getattr(layer, "gives_logits", False):
        return None
    told: list[torch.Tensor] = []

    def losses(x: torch.Tensor) -> torch.Tensor:
        told.append(layer.losses(_picked(x, chosen), targets))
        # what the model has instead of logits: of their shape and layout, without numbers
        told.append(torch.empty(1, len(chosen), output.out_features, device="meta"))
        return told[-1]

    output.forward = losses
    try:
        found = call(model, **_inputs(inner, batch), logits_to_keep=columns).logits
    except RuntimeError:
        if not told:
            raise
        found = None  # the model wants their numbers
    finally:
        output.forward = layer
    layer.gives_logits = bool(told) and found is told[-1] and not told[-1]._version
    return told[0] if layer.gives_logits else None


def _can_choose_places(model: torch.nn.Module) -> bool:
    """Whether a language model can compute the logits of single columns."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _inputs(inner: Any, batch: Batch) -> dict[str, Any]:
    """What a language model is called with."""
    return {"input_ids": batch["input_ids"], **attention_of(inner, batch), "use_cache": False}


def _logits_at(model: torch.nn.Module, batch: Batch, columns: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Logits at chosen ones, (M,), of the N * C places at these columns of all rows, (M, V).

    They are the largest tensor of a step, and of places at which some row has a target a fifth may be targets. So the
    output layer is given these alone, where the model can compute single columns and asks its layer for them.
    """
    inner = _inner(model)
    inputs = _inputs(inner, batch)
    if not _can_choose_places(inner):
        return _picked(call(model, **inputs).logits[:, columns], chosen)
    asked = []

    def narrowed(layer: object, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        asked.append(layer)
        return (_picked(given[0], chosen).unsqueeze(0), *given[1:])

    output = inner.get_output_embeddings()
    handle = output.register_forward_pre_hook(narrowed) if output is not None else nullcontext()
    with handle:
        logits: torch.Tensor = call(model, **inputs, logits_to_keep=columns).logits
    return logits.flatten(0, 1) if asked else _picked(logits, chosen)


def _picked(at_columns: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(N, C, ·) at the chosen of the N * C places, (M, ·)."""
    return at_columns.flatten(0, 1).index_select(0, chosen)


def _inner(model: Any) -> Any:
    """The language model below a PEFT wrapper. It may compute the logits of chosen positions alone."""
    get_base = getattr(model, "get_base_model", None)
    return get_base() if get_base else model


def loss_parts(model: torch.nn.Module, batch: Batch) -> LossParts:
    """Sum of the target losses and their number."""
    losses = target_losses(model, batch)
    return LossParts(losses.sum(), losses.numel())


def target_counts(batch: Batch) -> list[int]:
    """Number of target tokens of every row."""
    counts: list[int] = (batch["labels"][:, 1:] != IGNORED).sum(dim=1).tolist()
    return counts


class Prompt(NamedTuple):
    """Token ids before the first response of a row, and the ids of that response."""

    ids: tuple[int, ...]
    response: tuple[int, ...]


class Language(NamedTuple):
    """How models of a kind are asked what they know of texts, and for texts.

    losses: cross-entropy of every target token of a batch, (M,) float32, rows in order. counts: number of them in each
    row. prompts: of every row that has one. generate: greedy answers to prompts of a batch.
    """

    losses: Callable[[torch.nn.Module, Batch], torch.Tensor]
    counts: Callable[[Batch], Sequence[int]]
    prompts: Callable[[Batch], Iterator[Prompt]]
    generate: Callable[..., list[str]]


class JudgedText(NamedTuple):
    """What is known of a batch. total: of its losses. count: of their terms. by_row: sums of every row's, (N,) float64.

    prompts: those of its rows, if texts are to be generated.
    """

    total: torch.Tensor
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody calls here
    by_row: torch.Tensor
    prompts: Sequence[Prompt]


def judge_text(
    model: torch.nn.Module, batch: Batch, settings: TaskSettings, language: Language | None = None
) -> JudgedText:
    """What loss and generated texts are made of. language: None is a decoder's."""
    language = language or _CAUSAL
    losses = language.losses(model, batch)
    rows = torch.split(losses, list(language.counts(batch)))
    prompts = list(language.prompts(batch)) if generating(settings) else []
    by_row = torch.stack([part.double().sum() for part in rows])
    return JudgedText(losses.double().sum(), losses.numel(), by_row, prompts)


def text_outcome(
    judged: Sequence[JudgedText],
    model: torch.nn.Module,
    tokenizer: Any,
    settings: TaskSettings,
    language: Language | None = None,
) -> tuple[dict[str, float], Outcomes | None]:
    """loss (nats per target token) and perplexity; scores of generated texts too if one is to be measured.

    And each row's part in loss or perplexity: to first order, as a mean over rows. language: as it was judged in.
    """
    count = sum(each.count for each in judged)
    loss = sum(each.total.item() for each in judged) / count
    by_row = [part for each in judged for part in each.by_row.tolist()]
    result = {"loss": loss, "perplexity": metrics.perplexity(loss)}
    if generating(settings):
        sample = sample_prompts([prompt for each in judged for prompt in each.prompts], settings.generate_rows)
        write = (language or _CAUSAL).generate
        result |= _generation_scores(model, sample, tokenizer, settings, write=write)
    result |= harness_scores(_inner(model), tokenizer, settings)
    return result, _outcomes([len(by_row) * part / count for part in by_row], result, settings.metric)


def _outcomes(losses: Sequence[float], result: Mapping[str, float], metric: str) -> Outcomes | None:
    """losses: shares of the loss, whose mean it is."""
    if metric == "loss":
        return Outcomes("values", losses)
    if metric == "perplexity" and math.isfinite(result[metric]):
        return Outcomes("values", [result[metric] * (1.0 + part - result["loss"]) for part in losses])
    return None


def prompts_of(batch: Batch) -> Iterator[Prompt]:
    """The prompt and first response of every row that has a prompt; the response whole, though the row may be cut."""
    lengths = batch["attention_mask"].sum(dim=1).tolist()
    rows = zip(batch["input_ids"].tolist(), batch["labels"].tolist(), references(batch), lengths, strict=True)
    for ids, labels, reference, length in rows:
        start, end = first_response(labels[:length])
        if start:
            yield Prompt(tuple(ids[:start]), reference or tuple(labels[start:end]))


def references(batch: Batch) -> list[tuple[int, ...]]:
    """All tokens of the response of every row whose own is cut, else nothing."""
    if "reference" not in batch:
        return [()] * len(batch["labels"])
    return [tuple(token for token in row if token != IGNORED) for row in batch["reference"].tolist()]


def sample_prompts(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """At most `limit` prompts, chosen by content, so that the choice does not depend on batches or their order."""
    return sorted(prompts, key=lambda prompt: hashlib.sha256(json.dumps(prompt).encode()).digest())[:limit]


def _generation_scores(
    model: torch.nn.Module,
    prompts: Sequence[Prompt],
    tokenizer: Any,
    settings: TaskSettings,
    *,
    write: Callable[..., list[str]],
) -> dict[str, float]:
    asked_for = [prompt.ids for prompt in prompts]
    predictions = generate_sorted(model, asked_for, tokenizer, max_new_tokens=settings.max_new_tokens, write=write)
    right = [plain_text(tokenizer, prompt.response) for prompt in prompts]
    asked = [plain_text(tokenizer, prompt.ids) for prompt in prompts] if settings.own_metrics else []
    return text_scores(right, predictions, settings, asked)


_CAUSAL = Language(target_losses, target_counts, prompts_of, generate)
