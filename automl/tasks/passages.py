"""Long texts in passages: what a `.txt` file is split by, so that parts of one text can train, judge and test."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from automl.errors import DataError
from automl.tasks.fields import Record

PASSAGE = 2000
"""Characters after which a passage ends at the next blank line; at four times as many at any line, or blank."""

_MOST = 4 * PASSAGE


class Line(NamedTuple):
    """A line of a file with its ending, from number 1 on; error: why it is no text, which is empty then."""

    number: int
    text: str
    error: DataError | None = None


def passages(path: Path, lines: Iterable[Line]) -> Iterator[Record]:
    """Records (text) that together are the whole text, its white space included; row is the line where each begins.

    Lines that are no text become records with their error, and end the passage before them.
    """
    kept: list[Line] = []
    for line in lines:
        if line.error is not None:
            yield from _records(path, kept)
            kept = []
            yield Record(str(path), line.number, {}, line.error)
            continue
        kept.append(line)
        size = sum(len(each.text) for each in kept)
        if size >= _MOST or (size >= PASSAGE and not line.text.strip()):
            yield from _records(path, kept)
            kept = []
    yield from _records(path, kept)


def is_passage(record: Record) -> bool:
    """Whether the record is a passage of a longer text, which need not be over where the passage is."""
    return record.row > 0 and Path(record.file).suffix.lower() == ".txt"


def _records(path: Path, lines: list[Line]) -> Iterator[Record]:
    text = "".join(line.text for line in lines)
    if text.strip():
        for part in _parts(text):
            yield Record(str(path), lines[0].number, {"text": part})


def _parts(text: str) -> Iterator[str]:
    """The text in parts of at most four times `PASSAGE` characters, cut after blanks where there are some."""
    while len(text) > _MOST:
        end = max((text.rfind(blank, PASSAGE, _MOST) for blank in " \t\n"), default=-1) + 1 or _MOST
        yield text[:end]
        text = text[end:]
    yield text
