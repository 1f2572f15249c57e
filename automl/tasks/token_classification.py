"""Token classification: a tag for each word, as of entities or of parts of speech."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch.nn import functional

from automl.errors import DataError
from automl.outcomes import Outcomes
from automl.space.spec import TaskSettings
from automl.tasks import tags as scheme
from automl.tasks.base import IGNORED, Batch, BatchTask, Head, LossParts, Prepared, Row, Task
from automl.tasks.collate import columns, pad_rows
from automl.tasks.fields import Record, check_label, check_one_kind, check_text, column_name, fault, place, shown, take
from automl.tasks.labels import MOST_CLASSES, sort_labels, unseen
from automl.tasks.metrics import mean
from automl.tasks.prepare import Encoded, Recipe, lengths, load_rows, prepare
from automl.tasks.read import SPLITS, Split, source_name
from automl.tasks.reading import Reader, Reading, read_examples
from automl.tasks.split import Example, Examples, split_examples, split_notes
from automl.tasks.texts import full_lengths
from automl.tasks.virtual import call

VERSION = 1
"""Version of the way words become tokens; a change makes old caches unused."""

_ENTITIES = "entity_f1"


class TokenClassification(BatchTask):
    """`words` to `tags`, lists of one length. Loss: cross-entropy per word, at its first token.

    Metrics: loss, tag_accuracy, and of tags in IOB2 entity_f1.
    """

    _tags: tuple[str, ...] = ()
    """Names of the tags by id, once the data is known."""

    def on(self, prepared: Prepared) -> Task:
        task = TokenClassification(self.settings)
        task._tags = prepared.labels
        return task

    def prepare(self, tokenizer: Any, cache: Path) -> Prepared:
        given, notes = self._examples()
        column = column_name(self.settings.data, "tags")
        where = f"{source_name(self.settings.data)}, column {column!r}"
        tags = _check_tags(given, where, column)
        has_entities = scheme.has_entities(tags, where)
        if self.settings.metric == _ENTITIES and not has_entities:
            listed = ", ".join(map(shown, tags[:5]))
            raise DataError(
                f"{where}: tags are {listed}; {_ENTITIES} needs O, B-… and I-… (metric: tag_accuracy does not)"
            )
        examples = split_examples(given, self.settings)
        notes += [*_notes(examples, tags), *split_notes(examples, self.settings)]
        recipe = _recipe(tags, tokenizer, self.settings)
        return prepare(examples, self.settings, recipe, tokenizer=tokenizer, cache=cache, notes=notes)

    def lengths(self, tokenizer: Any, rows: int) -> list[int]:
        given, _ = self._examples(rows)
        tags = sort_labels(tag for example in given["train"] for tag in example.content[1])
        return lengths(_recipe(tags, tokenizer, self.settings).encode(given["train"]))

    def head(self, prepared: Prepared) -> Head:
        return Head("token-classification", prepared.labels)

    def rows(self, prepared: Prepared, split: Literal["train", "validation", "test"]) -> Sequence[Row]:
        return load_rows(prepared, split)

    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        return pad_rows(rows, pad_id)

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        labels = batch["labels"]
        losses = functional.cross_entropy(
            _logits(model, batch).float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        return LossParts(losses, int((labels != IGNORED).sum()))

    def judge(self, model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, ...]:
        is_word = batch["labels"] != IGNORED
        said, wanted = _logits(model, batch)[is_word].double(), batch["labels"][is_word]
        losses = functional.cross_entropy(said, wanted, reduction="none")
        return losses, wanted, said.argmax(dim=-1), is_word.sum(dim=1)

    def scores(
        self, judged: Sequence[Any], model: torch.nn.Module, tokenizer: Any
    ) -> tuple[dict[str, float], Outcomes | None]:
        losses, *tags, counts = columns(judged)
        truth, predicted = (_by_row([self._tags[tag] for tag in each], counts) for each in tags)
        right = [
            float(a == b) for row, other in zip(truth, predicted, strict=True) for a, b in zip(row, other, strict=True)
        ]
        found = {"loss": mean(losses), "tag_accuracy": mean(right)}
        is_iob = any(tag.startswith(("B-", "I-")) for tag in self._tags)
        return {**found, _ENTITIES: scheme.entity_f1(truth, predicted)} if is_iob else found, None

    def _examples(self, rows: int | None = None) -> tuple[dict[Split, list[Example]], list[str]]:
        """Examples by split (of at most so many rows each), and what there is to say of the reading."""
        return read_examples(self.settings, _reader, rows)


def _logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """What the model says of every token of the rows, (N, T, tags), without that of trained tokens before them."""
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    logits: torch.Tensor = call(model, **inputs).logits
    return logits[:, -batch["input_ids"].shape[1] :]


def _by_row(tags: Sequence[str], counts: Sequence[int]) -> list[list[str]]:
    """The tags of all words, row by row."""
    rest = iter(tags)
    return [list(islice(rest, count)) for count in counts]


def _reader(settings: TaskSettings, reading: Reading) -> Reader:
    words, tags = (column_name(settings.data, name) for name in ("words", "tags"))
    return partial(_read, reading, words, tags, {})


def _read(reading: Reading, words: str, tags: str, kinds: dict[str, int], record: Record) -> Example:
    """The words and tags of a record. kinds: of tags, with the row in which they were first seen."""
    texts = [_word(record, words, number, value) for number, value in enumerate(_listed(record, words), 1)]
    labels = [check_label(record, tags, value) for value in _listed(record, tags)]
    if len(texts) != len(labels):
        raise fault(record, tags, f"{len(labels)} tags for {len(texts)} words; each word needs one")
    check_one_kind(record, tags, labels, kinds)
    reading.unused((name, value) for name, value in record.values.items() if name not in (words, tags))
    return Example(record.file, record.row, " ".join(texts), (texts, [label.name for label in labels]))


def _listed(record: Record, column: str) -> list[Any]:
    """The list in `column`, which CSV has as JSON text."""
    value = take(record, column)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise fault(record, column, f"is {shown(value)}; a list is needed, in CSV as JSON text") from None
    if not isinstance(value, list):
        raise fault(record, column, f"is {type(value).__name__} {shown(value)}; a list is needed")
    if not value:
        raise fault(record, column, "is an empty list; every row needs a word")
    return value


def _word(record: Record, column: str, number: int, value: object) -> str:
    word = check_text(record, column, value, what=f"word {number}")
    if word != word.strip():
        raise fault(record, column, f"word {number} is {shown(word)}; words have no blanks around them")
    return word


def _check_tags(given: Mapping[Split, Sequence[Example]], where: str, column: str) -> tuple[str, ...]:
    """The tags of train, sorted; their places are the ids.

    Raises DataError if there is one only or far too many, and for a tag of another split that never occurs in train.
    """
    counts = Counter(tag for example in given["train"] for tag in example.content[1])
    if len(counts) < 2:
        raise DataError(
            f"{where}: only one tag, {shown(next(iter(counts)))}, in {len(given['train'])} rows; two are needed"
        )
    if len(counts) > MOST_CLASSES:
        raise DataError(f"{where}: more than {MOST_CLASSES:,} tags; is it really the column of the tags?")
    tags = sort_labels(counts)
    for split in ("validation", "test"):
        for example in given.get(split, ()):
            for tag in (tag for tag in example.content[1] if tag not in counts):
                raise unseen(example, tag, split, tags, column)
    return tags


def _notes(examples: Examples, tags: Sequence[str]) -> Iterator[str]:
    """Tags that begin an entity in the middle, and tags that other splits lack."""
    rows = [example for split in SPLITS for example in examples[split]]
    odd = [example for example in rows if scheme.orphans(example.content[1])]
    if odd:
        first = place(odd[0].file, odd[0].row)
        of_all = f"as in {len(odd)} of {len(rows)} rows"
        yield f"{first}: an I- tag continues nothing of its kind, {of_all}; it begins an entity"
    for split in ("validation", "test"):
        found = {tag for example in examples[split] for tag in example.content[1]}
        if found and (lacking := [tag for tag in tags if tag not in found]):
            listed = ", ".join(map(shown, lacking[:5])) + (", ..." if len(lacking) > 5 else "")
            yield f"{split} holds no word of {len(lacking)} of {len(tags)} tags ({listed})"


def _recipe(tags: Sequence[str], tokenizer: Any, settings: TaskSettings) -> Recipe:
    ids = {name: number for number, name in enumerate(tags)}
    limit = settings.max_length

    def encode(chunk: Sequence[Example]) -> list[Encoded]:
        if not tokenizer.is_fast:
            raise DataError("the model's tokenizer does not tell which word a token is of; tokenizer.json is needed")
        texts = [example.text for example in chunk]
        found = tokenizer(texts, truncation=True, max_length=limit, return_offsets_mapping=True)
        tokens = found["input_ids"]
        full = [place for place, row in enumerate(tokens) if len(row) >= limit]
        whole = dict(zip(full, full_lengths(tokenizer, [(texts[place],) for place in full]), strict=True))
        rows = enumerate(zip(chunk, tokens, found["offset_mapping"], strict=True))
        return [_encoded(example, row, spans, ids, whole.get(place, len(row))) for place, (example, row, spans) in rows]

    return Recipe(
        encode=encode,
        version=VERSION,
        columns={"input_ids": True, "labels": True},
        labels=tuple(tags),
        baseline={},
    )


def _encoded(
    example: Example, tokens: list[int], spans: Sequence[tuple[int, int]], ids: Mapping[str, int], length: int
) -> Encoded:
    """The row, each word's tag at its first token. length: tokens before the cut."""
    words, tags = example.content
    first = scheme.first_tokens(words, spans)
    kept = max(first) + 1 if length > len(tokens) and first else len(words)
    if lost := [number for number in range(kept) if number not in first]:
        if length > len(tokens) and not first:
            return Encoded(None, length)
        what = f"word {lost[0] + 1}, {shown(words[lost[0]])}, is no token of this model; take it out, and its tag"
        return Encoded(None, length, error=DataError(f"{place(example.file, example.row)}: {what}"))
    labels = [IGNORED] * len(tokens)
    for number, token in first.items():
        labels[token] = ids[tags[number]]
    return Encoded({"input_ids": tokens, "labels": labels}, length)
