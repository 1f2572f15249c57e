"""Which example belongs to train, validation or test: a function of the seed and the example's own text.

The same text lands in the same split, whatever the order or number of rows, so a copy of a training row never shows up
in the rows that judge it. Only where a class would be missing from a split does a text move, the nearest to the cut.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from automl.errors import DataError
from automl.space.spec import TaskSettings
from automl.tasks.batches import evaluation_rows
from automl.tasks.fields import shown
from automl.tasks.read import SPLITS, Split, source_name

_NAMED = 5


class Example(NamedTuple):
    """One checked example. text: the input side alone, which decides the split. content: JSON values to tokenise.

    file, row: where it came from, row 0 = the whole file. label: the class name, None for other tasks. part: of a
    mixture, counted from 0.
    """

    file: str
    row: int
    text: str
    content: tuple[Any, ...]
    label: str | None = None
    part: int = 0


Examples = dict[Split, list[Example]]


def split_examples(given: Mapping[Split, Sequence[Example]], settings: TaskSettings) -> Examples:
    """All three splits. A split the data brings is kept as it is; a missing one is cut from train by its share.

    A share of 0 cuts nothing; if that of validation is 1, all rows are there. Every class has a training row, and, as
    far as its texts suffice, one in validation and one in test. Raises DataError if train or validation would be empty.
    """
    if settings.validation_share == 1:
        return {"train": [], "validation": _all_rows(given, settings), "test": []}
    shares: dict[Split, float] = {"test": settings.test_share, "validation": settings.validation_share}
    shares = {split: share for split, share in shares.items() if split not in given and share > 0}
    result: Examples = {split: list(given.get(split, ())) for split in SPLITS}
    rows = len(result["train"])
    if shares:
        cut = _cut(result["train"], settings.seed, shares)
        if settings.rules > 1:
            _spread_classes(cut, settings.seed, [split for split in ("validation", "test") if split in shares])
        result.update({split: cut[split] for split in ("train", *shares)})
    _check_sizes(source_name(settings.data), result, rows, shares)
    check_parts(settings, [example.part for example in result["train"]])
    return result


def check_parts(settings: TaskSettings, parts: Iterable[int]) -> None:
    """Raise DataError if a part of a mixture is not among these, those of the rows that are left for training."""
    seen = set(parts)
    for number, data in enumerate(settings.data.places):
        if number not in seen:
            what = f"no row of part {number + 1} of the mixture is left for training"
            raise DataError(f"{source_name(data)}: {what}; more rows, or data without this part, is needed")


def _all_rows(given: Mapping[Split, Sequence[Example]], settings: TaskSettings) -> list[Example]:
    found = [row for split in SPLITS for row in given.get(split, ())]
    if not found:
        raise DataError(f"{source_name(settings.data)}: no row that can be used")
    return found


def split_notes(examples: Examples, settings: TaskSettings) -> list[str]:
    """What a person should know of these splits: no test rows, copies of training rows, classes that are missing."""
    notes = []
    if not examples["test"] and settings.validation_share < 1:
        source = source_name(settings.data)
        notes.append(f"{source}: no test rows; nothing can be verified on data the search has not seen")
    return [*notes, *_copies(examples), *_missing_classes(examples, settings)]


def position(text: str, seed: int) -> float:
    """Where the text lies in [0, 1) under this seed: sha256 of both, runs of white space counting as one space."""
    digest = hashlib.sha256(f"{seed}\n{' '.join(text.split())}".encode()).digest()
    return int.from_bytes(digest[:7]) / 2**56


def contents_hash(examples: Mapping[Split, Sequence[Example]]) -> str:
    """sha256 over what every split holds, in order; files and row numbers do not count."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for example in examples[split]:
            digest.update(json.dumps([split, example.content, example.label]).encode())
            digest.update(b"\n")
    return digest.hexdigest()


def _cut(rows: Sequence[Example], seed: int, shares: Mapping[Split, float]) -> Examples:
    drawn = [_draw(example, seed, shares) for example in rows]
    trained = {example.label for example, split in zip(rows, drawn, strict=True) if split == "train"}
    kept = {_normal(example) for example in rows if example.label not in trained}
    parts: Examples = {split: [] for split in SPLITS}
    for example, split in zip(rows, drawn, strict=True):
        is_kept = bool(kept) and example.label is not None and _normal(example) in kept
        parts["train" if is_kept else split].append(example)
    return parts


def _spread_classes(parts: Examples, seed: int, splits: Sequence[Split]) -> None:
    """Give each of these splits a text of every class that it lacks, from train or from another of them.

    Nobody gives away the last text of a class, and a split that the shares leave without any row stays empty.
    """
    trained = {example.label for example in parts["train"]} - {None}
    for split in (split for split in splits if parts[split]):
        for donor in ("train", *(other for other in splits if other != split)):
            lacking = trained - {example.label for example in parts[split]}
            moved = _spare_texts(parts[donor], lacking, seed) if lacking else set()
            parts[split] += [example for example in parts[donor] if _normal(example) in moved]
            parts[donor] = [example for example in parts[donor] if _normal(example) not in moved]


def _spare_texts(rows: Sequence[Example], lacking: set[str | None], seed: int) -> set[str]:
    """A text of every lacking class of which the rows have another text: the one that lies nearest to the cut."""
    labels_of: dict[str, set[str | None]] = defaultdict(set)
    for example in rows:
        labels_of[_normal(example)].add(example.label)
    texts = Counter(label for labels in labels_of.values() for label in labels)
    spare: set[str] = set()
    for text in sorted(labels_of, key=lambda text: position(text, seed)):
        labels = labels_of[text]
        if labels & lacking and all(texts[label] > 1 for label in labels):
            spare.add(text)
            lacking = lacking - labels
            texts.subtract(labels)
    return spare


def _draw(example: Example, seed: int, shares: Mapping[Split, float]) -> Split:
    where = position(example.text, seed)
    for split, share in shares.items():
        if where < share:
            return split
        where -= share
    return "train"


def _normal(example: Example) -> str:
    return " ".join(example.text.split())


def _check_sizes(source: str, examples: Examples, rows: int, shares: Mapping[Split, float]) -> None:
    for split in ("train", "validation"):
        if not examples[split]:
            wanted = ", ".join(f"{name} {share:g}" for name, share in shares.items()) or "nothing"
            message = f"{rows} rows leave none for {split} (cut off: {wanted})"
            texts = len({_normal(example) for each in examples.values() for example in each})
            if texts < min(rows, 3):
                message += f"; distinct inputs: {texts}, and rows with the same input land together"
            raise DataError(f"{source}: {message}; more rows, other shares or an own file for it are needed")


def _copies(examples: Examples) -> Iterator[str]:
    trained = {_normal(example) for example in examples["train"]}
    for split in ("validation", "test"):
        copies = sum(_normal(example) in trained for example in examples[split])
        if copies:
            yield f"{copies} of {len(examples[split])} {split} rows have a text that is also in train"


def _missing_classes(examples: Examples, settings: TaskSettings) -> Iterator[str]:
    """A line for each kind of rows that lacks classes of train; those that trials are measured on come first."""
    judged = examples["validation"]
    picked = evaluation_rows(settings.seed, len(judged), settings.evaluate_rows)
    if lacking := _lacking(examples["train"], judged):
        yield f"validation holds no row of {lacking}; no trial is judged by them"
    elif lacking := _lacking(examples["train"], [judged[place] for place in picked]):
        yield f"the {len(picked)} validation rows that evaluations use hold none of {lacking}; see task.evaluate_rows"
    if examples["test"] and (lacking := _lacking(examples["train"], examples["test"])):
        yield f"test holds no row of {lacking}"


def _lacking(trained: Sequence[Example], rows: Sequence[Example]) -> str:
    """'2 of 9 classes: ...' for the classes that the rows lack, empty if they lack none."""
    known = dict.fromkeys(example.label for example in trained if example.label is not None)
    absent = known.keys() - {example.label for example in rows}
    if not absent:
        return ""
    named = ", ".join(map(shown, sorted(absent)[:_NAMED])) + (", ..." if len(absent) > _NAMED else "")
    return f"{len(absent)} of {len(known)} classes ({named})"
