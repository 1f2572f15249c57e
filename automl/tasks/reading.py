"""From records to examples: what becomes of rows that cannot be used, and of what is in the data but not used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, TypeAlias

from automl.errors import DataError
from automl.space.spec import TaskSettings
from automl.tasks.fields import Record, shown
from automl.tasks.read import Split, read_splits
from automl.tasks.split import Example

_NAMED = 3
_LISTED = 12

Reader: TypeAlias = Callable[[Record], Example]
"""Makes a checked example of a record; there is one for each file, which may remember what the first rows were."""


def read_examples(
    settings: TaskSettings,
    reader: Callable[[TaskSettings, Reading], Reader],
    rows: int | None = None,
    *,
    has_classes: bool = True,
) -> tuple[dict[Split, list[Example]], list[str]]:
    """Examples by split (of at most so many rows of each file), and what there is to say of the reading.

    reader: gets the settings with one place as their data; of a mixture it is asked for each part. Raises DataError.
    """

    def examples(part: TaskSettings, reading: Reading, split: Split, records: Iterable[Record]) -> Iterator[Example]:
        return reading.examples(split, records, reader(part, reading))

    return read_parts(settings, examples, rows, has_classes=has_classes)


def read_parts(
    settings: TaskSettings,
    examples: Callable[[TaskSettings, Reading, Split, Iterable[Record]], Iterable[Example]],
    rows: int | None = None,
    *,
    has_classes: bool = True,
) -> tuple[dict[Split, list[Example]], list[str]]:
    """Examples as from `read_examples`, for tasks that look at all those of a file.

    All that a part of a mixture has is yet to be split: of a hub data set its split train.
    """
    given: dict[Split, list[Example]] = {}
    notes: list[str] = []
    for number, data in enumerate(settings.data.places):
        part = replace(settings, data=data)
        reading = Reading(part)
        for split, records in read_splits(data, settings.rules, has_classes=has_classes).items():
            if split == "train" or not settings.data.parts:
                found = examples(part, reading, split, islice(records, rows))
                given.setdefault(split, []).extend(example._replace(part=number) for example in found)
        notes += [note for note in reading.notes if note not in notes]
    return given, notes


class BadRows:
    """Counts rows that cannot be used and remembers the first few. skip: they are left out instead of refused."""

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self._first: list[DataError] = []
        self.count = 0

    def add(self, error: DataError) -> None:
        """Count a row, for this reason."""
        self.count += 1
        if self.count <= _NAMED:
            self._first.append(error)

    def close(self, good: int) -> str:
        """What is to be said of them beside `good` usable rows; empty if there are none.

        Raises DataError if they are refused, or if no row is good.
        """
        if not self.count:
            return ""
        if not good:  # not a matter of single rows
            raise self._first[0]
        named = "; ".join(map(str, self._first))
        share = f"{self.count:,} of {good + self.count:,} rows cannot be used"
        if not self._skip:
            raise DataError(f"{named}; {share}; task.bad_rows: skip leaves them out")
        return f"{share} and are left out: {named}" + ("; ..." if self.count > _NAMED else "")


class Reading:
    """One reading of a task's data, split by split; `notes` is what there is to say of it."""

    def __init__(self, settings: TaskSettings) -> None:
        self._settings = settings
        self._unused: dict[str, None] = {}
        self._notes: list[str] = []

    def examples(self, split: Split, records: Iterable[Record], read: Callable[[Record], Example]) -> Iterator[Example]:
        """The examples that `read` makes of the records. Raises DataError at the end, unless bad rows are skipped."""
        bad = BadRows(skip=self._settings.bad_rows == "skip")
        good = 0
        for record in records:
            try:
                if record.error is not None:
                    raise record.error
                example = read(record)
            except DataError as error:
                bad.add(error)
                continue
            good += 1
            yield example
        if said := bad.close(good):
            self._notes.append(f"{split}: {said}")

    def unused(self, values: Iterable[tuple[str, Any]]) -> None:
        """Remember names whose values are not read, unless they say nothing or are left out on purpose."""
        for name, value in values:
            if name not in self._unused and name not in self._settings.data.ignore and says_something(value):
                self._unused[name] = None

    @property
    def notes(self) -> list[str]:
        """One line for what is not used, one for each split with rows that are left out."""
        if not self._unused:
            return self._notes
        listed = ", ".join(shown(name) for name in list(self._unused)[:_LISTED])
        more = ", ..." if len(self._unused) > _LISTED else ""
        line = f"in the data but not used: {listed}{more}; task.data.ignore: [...] says that this is meant"
        return [line, *self._notes]


def says_something(value: object) -> bool:
    """Whether a value is more than null, blank, or an empty list or object (also as JSON text)."""
    if isinstance(value, str):
        return value.strip() not in ("", "[]", "{}", "null")
    return value is not None and value not in ([], {}, ())
