"""The classes of a classification task: their order, and what is wrong with them before any training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from automl.errors import DataError
from automl.nearest import did_you_mean
from automl.tasks.fields import place, shown
from automl.tasks.read import Split
from automl.tasks.split import Example

MOST_CLASSES = 1000
"""More classes than this are taken for a wrong label column."""

_FEW = 10
_LISTED = 10
_RARE_LISTED = 3
_WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
_DIGITS = re.compile(r"([0-9]{1,18})")


def sort_labels(names: Iterable[str]) -> tuple[str, ...]:
    """Class names without repetition: numbers by value, names as people sort them (`item 2` before `item 10`)."""
    unique = set(names)
    if all(_WHOLE_NUMBER.fullmatch(name) for name in unique):
        return tuple(sorted(unique, key=lambda name: (int(name), name)))
    return tuple(sorted(unique, key=lambda name: (_natural(name), name)))


def limit_classes(examples: Iterable[Example], column: str) -> Iterator[Example]:
    """The examples as they come; raises DataError as soon as there are more than 1,000 classes."""
    seen: set[str | None] = set()
    for example in examples:
        seen.add(example.label)
        if len(seen) > MOST_CLASSES:
            where = f"{place(example.file, example.row)}, column {column!r}"
            raise DataError(f"{where}: more than {MOST_CLASSES:,} classes; is it really the column of the class?")
        yield example


def check_classes(given: Mapping[Split, Sequence[Example]], source: str, column: str) -> tuple[str, ...]:
    """The classes of train, sorted; their places are the ids.

    Raises DataError for a single class, for a class of another split that never occurs in train, and if no class occurs
    twice: then the column holds texts.
    """
    labels = sort_labels(example.label or "" for example in given["train"])
    if len(labels) < 2:
        rows = f"{len(given['train'])} rows"
        raise DataError(f"{source}, column {column!r}: only one class, {shown(labels[0])}, in {rows}; two are needed")
    known = set(labels)
    for split in ("validation", "test"):
        for example in given.get(split, ()):
            if example.label not in known:
                raise unseen(example, example.label or "", split, labels, column)
    if len(labels) == len(given["train"]) > _FEW and len(given) == 1:
        what = f"every one of {len(labels)} rows has a class of its own; is it really the column of the class?"
        raise DataError(f"{source}, column {column!r}: {what}")
    return labels


def unseen(example: Example, name: str, split: str, labels: Sequence[str], column: str) -> DataError:
    """The error for a class of another split that never occurs in train, whose classes these are."""
    listed = ", ".join(shown(name) for name in labels[:_LISTED]) + (", ..." if len(labels) > _LISTED else "")
    what = f"class {shown(name)} of {split} never occurs in train, which has {listed}"
    where = f"{place(example.file, example.row)}, column {column!r}"
    return DataError(f"{where}: {what}{did_you_mean(name, labels)}")


def rare_classes(given: Mapping[Split, Sequence[Example]]) -> list[str]:
    """A line for each of the first classes that occur once in all the data: a stray header row looks like that."""
    examples = [example for split in given.values() for example in split]
    counts = Counter(example.label for example in examples)
    rare = [example for example in examples if counts[example.label] == 1]
    lines = [
        f"{place(example.file, example.row)}: class {shown(example.label)} occurs only once in {len(examples)} rows;"
        " a stray header row, or a class too rare to learn"
        for example in rare[:_RARE_LISTED]
    ]
    return lines + [f"{len(rare)} classes in all occur only once"] * (len(rare) > _RARE_LISTED)


def _natural(name: str) -> list[tuple[int, int, str]]:
    parts = _DIGITS.split(name)
    return [(0, int(part), "") if index % 2 else (1, 0, part.casefold()) for index, part in enumerate(parts) if part]
