"""Values out of records: the one place that says what a usable text, label or list of messages is.

A record is one line, row or file of the user's data. Everything that is wrong with it becomes a DataError naming the
file, the row and the column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from automl.errors import DataError
from automl.nearest import did_you_mean
from automl.space.spec import DataSettings

LONGEST_LABEL = 200
"""Characters a class name may have; more means that the label column holds texts."""

LARGEST_NUMBER = 1e30
"""Largest size of a number that is to be predicted; beyond it squares leave the range of floats."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MISSING_WORDS = frozenset({"", "nan", "null"})
_SHOWN = 40


class Record(NamedTuple):
    """One example as the user wrote it. row counts from 1 (the line of a text file); 0 = the file is one example.

    error: why it could not even be read; then there are no values.
    """

    file: str
    row: int
    values: Mapping[str, Any]
    error: DataError | None = None


def column_name(data: DataSettings, name: str) -> str:
    """The user's name of our column `name`."""
    return data.columns.get(name, name)


def fault(record: Record, column: str, message: str) -> DataError:
    """The error that names this record and column."""
    return DataError(f"{place(record.file, record.row)}, column {column!r}: {message}")


def place(file: str, row: int) -> str:
    """How messages name a record."""
    return f"{file}, row {row}" if row else file


def shown(value: object) -> str:
    """`value` as it appears in a message: at most 40 characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def missing_column(file: str, row: int, column: str, existing: Iterable[str]) -> DataError:
    """The error for a column that is not there; lists those that are."""
    names = list(existing)
    listed = ", ".join(shown(name) for name in names[:12]) + (", ..." if len(names) > 12 else "")
    return DataError(
        f"{place(file, row)}: no column {column!r}; columns are {listed or 'none'}{did_you_mean(column, names)}"
    )


def take(record: Record, column: str) -> Any:
    """The value in `column`; raises DataError if there is no such column."""
    if column not in record.values:
        raise missing_column(record.file, record.row, column, record.values)
    return record.values[column]


def take_text(record: Record, column: str) -> str:
    """The text in `column`; raises DataError if it is missing, empty, not a text, or not encodable as UTF-8."""
    return check_text(record, column, take(record, column))


def take_optional_text(record: Record, column: str) -> str:
    """The text in `column` as from `take_text`, but empty if the column is absent, null or blank."""
    value = record.values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return ""
    return check_text(record, column, value)


def check_text(record: Record, column: str, value: object, *, what: str = "text") -> str:
    """`value` as text that a tokenizer can read; `what` names it in the message."""
    if value is None:
        raise fault(record, column, f"{what} is null; every row needs one")
    if not isinstance(value, str):
        raise fault(record, column, f"{what} is {type(value).__name__} {shown(value)}; a string is needed")
    if not value.strip():
        raise fault(record, column, f"{what} is empty; every row needs one")
    if "\0" in value:
        raise fault(record, column, f"{what} holds a NUL character at position {value.index(chr(0))}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise fault(record, column, f"{what} holds half a surrogate pair at position {error.start}") from None
    return value


class Label(NamedTuple):
    """A class name, and whether the user wrote it as text, number or truth value."""

    name: str
    kind: str


def take_label(record: Record, column: str) -> Label:
    """The class in `column`; raises DataError if it is missing, null, NaN, empty, a fraction or far too long."""
    return check_label(record, column, take(record, column))


def check_label(record: Record, column: str, value: object) -> Label:
    """`value` as a class; raises as `take_label` does."""
    if is_missing(value):
        raise fault(record, column, f"label is {shown(value)}; every row needs a class")
    if isinstance(value, bool):
        return Label(str(value).lower(), "truth value")
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return Label(str(int(value)), "number")
    if not isinstance(value, str):
        what = f"{type(value).__name__} {shown(value)}"
        raise fault(record, column, f"label is {what}; a string or a whole number is needed")
    if len(value) > LONGEST_LABEL:
        raise fault(record, column, f"label has {len(value)} characters; is {column!r} really the column of the class?")
    return Label(check_text(record, column, value, what="label").strip(), "text")


def check_one_kind(record: Record, column: str, labels: Iterable[Label], kinds: dict[str, int]) -> None:
    """Raise DataError if these labels of one row are not all of the kind that rows before it have.

    kinds: those seen so far, with the row in which each was seen first; what is refused is not kept in it.
    """
    for label in labels:
        kinds.setdefault(label.kind, record.row)
    first, *others = kinds or [""]
    for kind in others:
        kinds.pop(kind)
    if others:
        what = f"holds a {others[0]}, but row {kinds[first]} a {first}; one type in a file is needed"
        raise fault(record, column, what)


def take_number(record: Record, column: str) -> float:
    """The number in `column`, which CSV has as text; raises DataError if it is missing, none, or not finite.

    Digits are ASCII's, with a decimal point and without separators of thousands.
    """
    value = take(record, column)
    if is_missing(value):
        raise fault(record, column, f"label is {shown(value)}; every row needs a number")
    if isinstance(value, str):
        text, value = value, parsed_number(value)
        if value is None:
            raise fault(record, column, f"label is {shown(text)}; a number such as 3 or -0.25 is needed")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise fault(record, column, f"label is {_kind_of(value)} {shown(value)}; a number is needed")
    if not abs(value) <= LARGEST_NUMBER:
        raise fault(record, column, f"label is {shown(value)}; numbers of at most {LARGEST_NUMBER:g} can be learnt")
    return float(value)


def parsed_number(text: str) -> float | None:
    """The number that a text writes; None if it is no number, or infinite."""
    return float(text) if _NUMBER.fullmatch(text.strip()) else None


def _kind_of(value: object) -> str:
    return "a truth value" if isinstance(value, bool) else type(value).__name__


def is_missing(value: object) -> bool:
    """Whether it says that there is no value."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value.strip().lower() in _MISSING_WORDS)
