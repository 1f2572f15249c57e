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
    """Records (text) that together are the whole text; row is the line where each begins.

    Parts that are white space alone are left out, as nothing is learnt from them; all other white space is kept.
    Lines that are no text become records with their error, and end the passage before them.
    """
    kept: list[Line] = []
    size = 0
    for line in lines:
        if line.error is not None:
            yield from _records(path, kept)
            kept, size = [], 0
            yield Record(str(path), line.number, {}, line.error)
            continue
        kept.append(line)
        size += len(line.text)
        if size >= _MOST or (size >= PASSAGE and not line.text.strip()):
            yield from _records(path, kept)
            kept, size = [], 0
    yield from _records(path, kept)


def is_passage(record: Record) -> bool:
    """Whether the record is a passage of a longer text, which need not be over where the passage is."""
    return record.row > 0 and Path(record.file).suffix.lower() == ".txt"


def _records(path: Path, lines: list[Line]) -> Iterator[Record]:
    text = "".join(line.text for line in lines)
    for part in _parts(text):
        if part.strip():
            yield Record(str(path), lines[0].number, {"text": part})


def _parts(text: str) -> Iterator[str]:
    """The text in parts of at most four times `PASSAGE` characters, cut after blanks where there are some."""
    start = 0
    while len(text) - start > _MOST:
        end = max(text.rfind(blank, start + PASSAGE, start + _MOST) for blank in " \t\n") + 1 or start + _MOST
        yield text[start:end]
        start = end
    yield text[start:]
