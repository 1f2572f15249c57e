"""Streams of records out of one file or folder: JSONL, CSV, Parquet, and text folders. Knows nothing of tasks.

Memory is bounded by the longest line, whatever is in the file. Everything that cannot be read becomes a DataError of
one line naming file and row.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa  # type: ignore[import-untyped]  # comes with datasets, without type hints
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from automl.errors import DataError
from automl.tasks.fields import Record, nearest, place, shown

LONGEST_LINE = 10_000_000
"""Bytes a line, a CSV row or a text file may have. Far above any example; a longer one is another kind of file."""

_BOM = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_PARQUET_BATCH = 1000


class _Line(NamedTuple):
    number: int  # from 1
    text: str


def read_file(path: Path) -> Iterator[Record]:
    """Records of one data file, by its suffix; raises DataError at once if it is not a file of a known format."""
    check_file(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(_READERS)
        raise DataError(f"{path}: unknown suffix {path.suffix!r}; known: {known}{nearest(path.suffix, _READERS)}")
    return _not_empty(path, reader(path))


def check_file(path: Path) -> None:
    """Raise DataError unless `path` is a regular, readable file that is not empty. Never opens a pipe or device."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{nearest(path.name, _neighbours(path))}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{_clipped(path)}: cannot be read: {_reason(error)}") from None
    if stat.S_ISDIR(status.st_mode):
        raise DataError(f"{path}: is a folder; a data file is needed here (a folder of texts goes under data.folder)")
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: is a {_kind(status.st_mode)}; a regular file is needed")
    if status.st_size == 0:
        raise DataError(f"{path}: is empty (0 bytes)")


def read_text_folder(folder: Path, *, lenient: bool = False) -> Iterator[Record]:
    """Records (text, headline, label) of a folder with one sub-folder of text files per class.

    text: the whole file; headline: its first line that is not blank; label: the name of the sub-folder. Hidden files
    and `__pycache__` are left out. lenient: bytes that are no UTF-8 become U+FFFD instead of an error, for files of an
    installed package, which the user cannot mend; the value `repaired` in the record says that it happened.
    """
    labels = _sub_folders(folder)
    return itertools.chain.from_iterable(_label_folder(label, lenient=lenient) for label in labels)


def _sub_folders(folder: Path) -> list[Path]:
    needed = "a folder with one sub-folder of text files per class is needed"
    try:
        found = [entry for entry in _entries(folder) if entry.is_dir()]
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder{nearest(folder.name, _neighbours(folder))}; {needed}") from None
    except NotADirectoryError:
        raise DataError(f"{folder}: is not a folder; {needed}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{_clipped(folder)}: cannot be read: {_reason(error)}") from None
    if not found:
        raise DataError(f"{folder}: has no sub-folder; {needed}")
    return found


def _entries(folder: Path) -> list[Path]:
    names = (entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__pycache__")
    return sorted(names, key=lambda entry: entry.name)


def _label_folder(folder: Path, *, lenient: bool) -> Iterator[Record]:
    try:
        files = _entries(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {_reason(error)}") from None
    if not files:
        raise DataError(f"{folder}: holds no text file; every class needs some")
    for file in files:
        if file.is_dir():
            raise DataError(f"{file}: is a folder inside the folder of class {folder.name!r}; text files are needed")
        yield _text_record(file, lenient=lenient)


def _text_record(file: Path, *, lenient: bool) -> Record:
    check_file(file)
    with _open(file) as stream:
        raw = stream.read(LONGEST_LINE + 1)
    if len(raw) > LONGEST_LINE:
        raise DataError(f"{file}: longer than {LONGEST_LINE:,} bytes; one short text per file is needed")
    values: dict[str, Any] = {"label": file.parent.name}
    try:
        text = _decode(raw.removeprefix(_BOM), str(file), offset=len(_BOM) if raw.startswith(_BOM) else 0)
    except DataError:
        if not lenient:
            raise
        text = raw.removeprefix(_BOM).decode("utf-8", errors="replace")
        values["repaired"] = True
    text = text.strip()
    return Record(str(file), 0, values | {"text": text, "headline": text.partition("\n")[0].strip()})


def _read_jsonl(path: Path) -> Iterator[Record]:
    for line in _lines(path):
        if line.text.strip():
            yield Record(str(path), line.number, _json_object(path, line))


def _json_object(path: Path, line: _Line) -> dict[str, Any]:
    where = place(str(path), line.number)
    if line.text.lstrip().startswith("["):
        raise DataError(f"{where}: starts a JSON list; JSONL is needed, one object per line")
    try:
        value = json.loads(line.text)
    except json.JSONDecodeError as error:
        message = f"not JSON: {error.msg} at column {error.colno}"
        raise DataError(f"{where}: {message}; one JSON object per line is needed") from None
    except (RecursionError, ValueError):
        raise DataError(f"{where}: JSON too deep, or a number too long; a flat object is needed") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: is {type(value).__name__} {shown(value)}; a JSON object is needed")
    return value


def _read_csv(path: Path) -> Iterator[Record]:
    # The limit is global to the process. csv's own (131,072) is below many real texts.
    csv.field_size_limit(LONGEST_LINE)
    rows = _csv_rows(path)
    header = next(rows, None)
    if header is None:
        raise DataError(f"{path}: holds no header line")
    names = header.values["fields"]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{path}, row {header.row}: column {name!r} is there twice in the header")
    for row in rows:
        fields = row.values["fields"]
        if len(fields) != len(names):
            found = f"{len(fields)} field{'s' * (len(fields) != 1)}"
            raise DataError(f"{path}, row {row.row}: {found}, but the header has {len(names)} columns")
        yield row._replace(values=dict(zip(names, fields, strict=True)))


def _csv_rows(path: Path) -> Iterator[Record]:
    """Rows as records with the one value `fields`; row is the line on which it starts. Blank lines are left out."""
    reader = csv.reader((line.text for line in _lines(path)), strict=True)
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, row {start}: not CSV: {error}") from None
        if fields:
            yield Record(str(path), start, {"fields": fields})


def _read_parquet(path: Path) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for name in names:
                if names.count(name) > 1:
                    raise DataError(f"{path}: column {name!r} is there twice")
            yield from _parquet_rows(path, file)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a text is not UTF-8: {error.reason}") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {_reason(error)}") from None


def _parquet_rows(path: Path, file: Any) -> Iterator[Record]:
    number = itertools.count(1)
    for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
        for values in batch.to_pylist():
            yield Record(str(path), next(number), values)


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_jsonl,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _not_empty(path: Path, records: Iterator[Record]) -> Iterator[Record]:
    first = next(records, None)
    if first is None:
        what = "only a header and no rows" if path.suffix.lower() == ".csv" else "no rows"
        raise DataError(f"{path}: holds {what}")
    yield first
    yield from records


def _lines(path: Path) -> Iterator[_Line]:
    """Lines with their endings, decoded; raises DataError with the byte where decoding fails."""
    offset = 0
    with _open(path) as stream:
        for number in itertools.count(1):
            raw = stream.readline(LONGEST_LINE + 1)
            if not raw:
                return
            where = place(str(path), number)
            if len(raw) > LONGEST_LINE:
                raise DataError(f"{where}: line longer than {LONGEST_LINE:,} bytes; one example per line is needed")
            start = len(_BOM) if number == 1 and raw.startswith(_BOM) else 0
            yield _Line(number, _decode(raw[start:], where, offset=offset + start))
            offset += len(raw)


def _decode(raw: bytes, where: str, *, offset: int) -> str:
    if offset == 0 and raw.startswith(_UTF16_MARKS):
        raise DataError(f"{where}: is UTF-16; UTF-8 is needed")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"0x{raw[error.start]:02x} at byte {offset + error.start}"
        raise DataError(f"{where}: invalid UTF-8: {byte}; UTF-8 is needed") from None
    if "\0" in text:
        raise DataError(f"{where}: NUL byte at byte {offset + raw.index(0)}; is this a text file?")
    return text


def _open(path: Path) -> BinaryIO:
    try:
        # O_NONBLOCK: should a pipe have taken the file's place since it was checked, opening it does not hang.
        return cast(BinaryIO, os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {_reason(error)}") from None


def _clipped(path: Path) -> str:
    """A path as it appears where it may be no path at all: unprintable, or longer than any."""
    text = str(path)
    return text if len(text) <= 250 and text.isprintable() else shown(text)


def _neighbours(path: Path) -> list[str]:
    try:
        return [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return []


def _kind(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "pipe (FIFO)"
    return "socket" if stat.S_ISSOCK(mode) else "device"


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).partition("\n")[0]
