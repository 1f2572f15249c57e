"""Which task fits data, read off its first rows: the names of the columns, and what is in that of the labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from automl.errors import DataError
from automl.tasks.fields import Record, is_missing, parsed_number

_LABEL_NAMES = ("label", "labels", "class", "category", "target", "intent", "topic", "sentiment", "y")
_SCORE_NAMES = ("score", "scores", "rating", "ratings", "stars", "grade", "similarity")
_TEXT_NAMES = (
    "text",
    "sentence",
    "content",
    "review",
    "question",
    "document",
    "body",
    "message",
    "sentence1",
    "premise",
)
_WORDS_NAMES = ("words", "tokens")
_TAGS_NAMES = ("tags", "ner_tags", "pos_tags", "ner", "pos", "labels")
_SOURCE_NAMES = ("source", "src", "instruction", "prompt", "input", *_TEXT_NAMES, "article", "dialogue")
_TARGET_NAMES = ("target", "tgt", "output", "response", "completion", "answer", "summary", "highlights")
_PAIR_NAMES = ("text_pair", "sentence2", "hypothesis")
_INSTRUCTION_COLUMNS = (
    {"messages"},
    {"conversations"},
    {"instruction", "output"},
    {"prompt", "response"},
    {"prompt", "completion"},
)
PAIR_COLUMNS = {"chosen", "rejected"}
_SEQUENCE_COLUMNS = {"source", "target"}
_PREFERENCE_COLUMNS = (PAIR_COLUMNS, {"prompt", "completion", "label"})
_MANY = 20
"""More different whole numbers than so many are no classes, unless they come again and again."""

_RENAMED = ("classification", "regression", "multi_label", "token_classification", "seq2seq")
"""Tasks whose columns are known by other names too."""


def columns_of(records: Sequence[Record]) -> list[str]:
    """Names of the columns of these rows."""
    return list(dict.fromkeys(name for record in records for name in record.values))


def guess(records: Sequence[Record], columns: Sequence[str], data: str) -> tuple[str, Mapping[str, str]]:
    """Task type that fits, and our column name -> theirs.

    columns: those of the records, by our names where these are known. Raises DataError if they do not tell.
    """
    if any(needed <= set(columns) for needed in _PREFERENCE_COLUMNS):
        return "preference", {}
    if set(columns) >= _SEQUENCE_COLUMNS:
        return "seq2seq", {}
    if any(needed <= set(columns) for needed in _INSTRUCTION_COLUMNS):
        return "instruction", {}
    tagged = renamed(columns, "token_classification")
    if {"words", "tags"} <= tagged.keys():
        return "token_classification", tagged
    names = renamed(columns)
    if {"text", "label"} <= names.keys():
        theirs = dict(zip(columns, columns_of(records), strict=True))
        found = _of_labels([record.values.get(theirs[names["label"]]) for record in records], names["label"])
        return found, renamed(columns, found)
    if "text" in columns:
        return "completion", {}
    raise DataError(
        f"{data}: the columns {', '.join(columns)} do not tell what the task is; choose one (--task, in Python task=)"
        " (classification and regression need text and label, multi_label needs text and labels, token_classification"
        " words and tags, instruction needs instruction and output, prompt and response, or messages; preference needs"
        " prompt, chosen and rejected, or prompt, completion and label; seq2seq source and target; completion needs"
        " text), and name them under task.data.columns"
    )


def fitting(
    task: str, names: Mapping[str, str], columns: Sequence[str], *, is_encoder_decoder: bool
) -> tuple[str, Mapping[str, str]]:
    """The task for this kind of model that learns what the guessed one would, and its column name -> theirs."""
    sequences = renamed(columns, "seq2seq")
    if is_encoder_decoder and task in ("instruction", "completion") and sequences.keys() == _SEQUENCE_COLUMNS:
        return "seq2seq", sequences
    if task == "seq2seq" and not is_encoder_decoder:
        return "completion", {"prompt": "source", "response": "target"}
    return task, names


def renamed(columns: Sequence[str], task: str = "classification") -> dict[str, str]:
    """Our column name -> theirs, for what has one of its usual names; none for tasks without such names."""
    if task not in _RENAMED:
        return {}
    label = "labels" if task == "multi_label" else "label"
    usual: dict[str, tuple[str, ...]] = {
        "text": _TEXT_NAMES,
        "text_pair": _PAIR_NAMES,
        label: (*_LABEL_NAMES, *_SCORE_NAMES),
    }
    if task == "seq2seq":
        usual = {"source": _SOURCE_NAMES, "target": (*_TARGET_NAMES, *_LABEL_NAMES)}
    if task == "token_classification":
        usual = {"words": _WORDS_NAMES, "tags": _TAGS_NAMES}
    by_folded = {column.strip().casefold(): column for column in columns}
    found = {
        ours: next((by_folded[name] for name in names if name in by_folded), None) for ours, names in usual.items()
    }
    return {ours: theirs for ours, theirs in found.items() if theirs is not None}


def _of_labels(values: Sequence[object], column: str) -> str:
    """The task whose labels look like these: numbers that are no ids of classes are predicted as such."""
    if any(_is_list(value) for value in values) or (column == "labels" and any("|" in str(value) for value in values)):
        return "multi_label"
    numbers = list(_numbers([value for value in values if not is_missing(value)]))
    if not numbers or any(number is None for number in numbers):
        return "classification"
    found = {number for number in numbers if number is not None}
    if any(not number.is_integer() for number in found) or column.strip().casefold() in _SCORE_NAMES:
        return "regression"
    return "regression" if len(found) > max(_MANY, len(numbers) // 2) else "classification"


def _is_list(value: object) -> bool:
    """Whether it is a list, which CSV has as JSON text."""
    return isinstance(value, list) or (isinstance(value, str) and value[:1] == "[" and value[-1:] == "]")


def _numbers(values: Sequence[object]) -> Iterator[float | None]:
    for value in values:
        if isinstance(value, str):
            yield parsed_number(value)
        else:
            yield float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
