"""Texts that are judged as a whole, one or a pair for each row: how they are read and become tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from automl.errors import DataError
from automl.space.spec import TaskSettings
from automl.tasks.fields import Record, column_name, take_text
from automl.tasks.read import Split
from automl.tasks.reading import Reading
from automl.tasks.split import Example

Texts = tuple[str, ...]
"""One text, or two."""


class Tokens(NamedTuple):
    """A text or pair as a model takes it. length: tokens before any cut."""

    row: dict[str, list[int]]
    length: int


def text_reader(settings: TaskSettings, reading: Reading, *answers: str) -> Callable[[Record], Texts]:
    """Checked texts of the records of one file, pairs if the data names or has a column `text_pair`.

    answers: our names of the columns that are read beside them.
    """
    data = settings.data
    text, pair, *others = (column_name(data, name) for name in ("text", "text_pair", *answers))
    is_pair = "text_pair" in data.columns

    def read(record: Record) -> Texts:
        nonlocal is_pair
        is_pair = is_pair or pair in record.values
        content = (take_text(record, text), take_text(record, pair)) if is_pair else (take_text(record, text),)
        if record.row:  # otherwise the file is one example, and its columns are ours
            known = (text, pair, *others)
            reading.unused((name, value) for name, value in record.values.items() if name not in known)
        return content

    return read


def check_pairs(given: Mapping[Split, Sequence[Example]]) -> None:
    """Raise DataError if some training rows are pairs and others single texts, as parts of a mixture can be."""
    first = given["train"][0] if given["train"] else None
    for example in given["train"]:
        if first is not None and len(example.content) != len(first.content):
            what = "either all rows or none of a mixture have a text_pair"
            raise DataError(f"{example.file}: its rows are not of as many texts as those of {first.file}; {what}")


def text_example(record: Record, texts: Texts, answer: tuple[Any, ...] = (), label: str | None = None) -> Example:
    """The example of a record; answer: what is to be said of the texts, where that is no class."""
    return Example(record.file, record.row, "\n".join(texts), (*texts, *answer), label)


class TextTokenizer:
    """Tokenises texts and pairs, cut at `max_length`; columns: names of the lists that a row has."""

    def __init__(self, tokenizer: Any, settings: TaskSettings, *, is_pair: bool) -> None:
        self._tokenizer = tokenizer
        self._limit = settings.max_length
        self.columns = ("input_ids", *(("token_type_ids",) if is_pair and _has_segments(tokenizer) else ()))

    def __call__(self, texts: Sequence[Texts]) -> list[Tokens]:
        found = self._tokenizer(*_columns_of(texts), truncation=True, max_length=self._limit)
        values = zip(*(found[name] for name in self.columns), strict=True)
        rows = [dict(zip(self.columns, row, strict=True)) for row in values]
        counts = [len(row["input_ids"]) for row in rows]
        full = [place for place, count in enumerate(counts) if count >= self._limit]
        whole = full_lengths(self._tokenizer, [texts[place] for place in full])
        for place, count in zip(full, whole, strict=True):
            counts[place] = count
        return [Tokens(row, count) for row, count in zip(rows, counts, strict=True)]


def full_lengths(tokenizer: Any, texts: Sequence[Texts]) -> list[int]:
    """Tokens of each text or pair before any cut."""
    if not texts:
        return []
    # verbose: no warning about texts longer than the model's limit, which are cut
    return list(map(len, tokenizer(*_columns_of(texts), verbose=False)["input_ids"]))


def _columns_of(texts: Sequence[Texts]) -> list[list[str]]:
    """The first texts, and the second ones of pairs."""
    return [list(column) for column in zip(*texts, strict=True)]


def _has_segments(tokenizer: Any) -> bool:
    """Whether the model tells two texts apart by numbered segments, as BERT does.

    Some decoders' tokenizers name `token_type_ids` too, and their models refuse them or (GPT-2) read them as words.
    Only tokenizers of the BERT family have a separator.
    """
    return "token_type_ids" in tokenizer.model_input_names and tokenizer.sep_token is not None
