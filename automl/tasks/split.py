"""Which example belongs to train, validation or test: a function of the seed and the example's own text.

The same text lands in the same split, whatever the order or number of rows, so a copy of a training row never shows up
in the rows that judge it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from automl.errors import DataError
from automl.space.spec import TaskSettings
from automl.tasks.read import SPLITS, Split, source_name

logger = logging.getLogger(__name__)


class Example(NamedTuple):
    """One checked example. text: the input side alone, which decides the split. content: JSON values to tokenise.

    file, row: where it came from, row 0 = the whole file. label: the class name, None for other tasks.
    """

    file: str
    row: int
    text: str
    content: tuple[Any, ...]
    label: str | None = None


Examples = dict[Split, list[Example]]


def split_examples(given: Mapping[Split, Sequence[Example]], settings: TaskSettings) -> Examples:
    """All three splits. A split the data brings is kept as it is; a missing one is cut from train by its share.

    A share of 0 cuts nothing. A class that the cut would leave without a training row keeps all its rows in train.
    Raises DataError if train or validation would be empty; an empty test split is logged.
    """
    shares: dict[Split, float] = {"test": settings.test_share, "validation": settings.validation_share}
    shares = {split: share for split, share in shares.items() if split not in given and share > 0}
    result: Examples = {split: list(given.get(split, ())) for split in SPLITS}
    rows = len(result["train"])
    if shares:
        cut = _cut(result["train"], settings.seed, shares)
        result.update({split: cut[split] for split in ("train", *shares)})
    _check_sizes(source_name(settings.data), result, rows, shares)
    _warn_of_copies(result)
    return result


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
            raise DataError(f"{source}: {message}; more rows, other shares or an own file for it are needed")
    if not examples["test"]:
        logger.warning("%s: no test rows; nothing can be verified on data the search has not seen", source)


def _warn_of_copies(examples: Examples) -> None:
    trained = {_normal(example) for example in examples["train"]}
    for split in ("validation", "test"):
        copies = sum(_normal(example) in trained for example in examples[split])
        if copies:
            logger.warning("%d of %d %s rows have a text that is also in train", copies, len(examples[split]), split)
