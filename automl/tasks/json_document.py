"""Rows out of a JSON document that is not one object per line: a list, a list under a key, or objects in a row."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

LIST_KEYS = ("data", "rows", "examples", "instances", "records", "items", "train")
"""Keys under which an object may hold the list of rows."""

_SPACE = re.compile(r"[ \t\n\r]*")
_LIST_OF_OBJECTS = re.compile(r"\[[ \t\n\r]*\{")
_DECODER = json.JSONDecoder()


class Item(NamedTuple):
    """One value of the document and the line, from 1, on which it starts."""

    line: int
    value: Any


class DocumentError(Exception):
    """The text is no such document; `line` is where that shows."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


def items(text: str) -> Iterator[Item]:
    """The values of the list, or the objects one after the other, as they are asked for.

    Raises DocumentError where the text ends too early or is not JSON.
    """
    reader = _Reader(text)
    if reader.next() == "[":
        yield from _elements(reader)
    elif reader.next() == "{" and _finds_rows(reader):
        yield from _elements(reader)
        return  # what follows the list inside its object is not a row
    else:
        while reader.next():
            yield reader.value()
    if reader.next():
        raise DocumentError(reader.line, f"{reader.next()!r} after the end of the list")


def _elements(reader: _Reader) -> Iterator[Item]:
    reader.take("[")
    if reader.next() != "]":
        yield reader.value()
    while reader.next() == ",":
        reader.take(",")
        yield reader.value()
    reader.take("]")


def _finds_rows(reader: _Reader) -> bool:
    """Whether this object has a list of objects under a known key, which then comes next; if not, nothing is taken."""
    start = reader.place
    reader.take("{")
    while reader.next() == '"':
        key = reader.value().value
        reader.take(":")
        if reader.next() == "[" and key in LIST_KEYS and _LIST_OF_OBJECTS.match(reader.text, reader.place):
            return True
        reader.value()
        if reader.next() == ",":
            reader.take(",")
    reader.place = start
    return False


class _Reader:
    """A text and how far it has been read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self._counted = (0, 1)  # a place, and the line it is on

    @property
    def line(self) -> int:
        """The line of the next character."""
        place, line = self._counted
        if self.place < place:
            place, line = 0, 1
        self._counted = (self.place, line + self.text.count("\n", place, self.place))
        return self._counted[1]

    def next(self) -> str:
        """The next character that is not white space, without taking it; empty at the end."""
        space = _SPACE.match(self.text, self.place)
        self.place = space.end() if space else self.place
        return self.text[self.place : self.place + 1]

    def take(self, expected: str) -> None:
        """Take this one character. Raises DocumentError if another is next."""
        found = self.next()
        if found != expected:
            raise DocumentError(self.line, f"not JSON: {expected!r} is needed, not {found or 'the end of the file'!r}")
        self.place += 1

    def value(self) -> Item:
        """Take the next JSON value."""
        self.next()
        line = self.line
        try:
            value, self.place = _DECODER.raw_decode(self.text, self.place)
        except json.JSONDecodeError as error:
            self.place = error.pos
            raise DocumentError(self.line, f"not JSON: {error.msg} at column {error.colno}") from None
        except (RecursionError, ValueError):
            raise DocumentError(line, "JSON too deep, or a number too long") from None
        return Item(line, value)
