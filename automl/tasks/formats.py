"""Streams of records out of one file or folder: JSON, CSV, Parquet, and text folders. Knows nothing of tasks.

Memory is bounded by the longest line, or by the size that a JSON list may have. What cannot be read becomes a DataError
of one line naming file and row: inside the record if the rows after it can still be read.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa  # type: ignore[import-untyped]  # comes with datasets, without type hints
import pyarrow.parquet as pq  # type: ignore[import-untyped]

from automl.errors import DataError
from automl.nearest import did_you_mean
from automl.tasks.fields import Record, fault, place, shown
from automl.tasks.json_document import LIST_KEYS, DocumentError, items
from automl.tasks.passages import Line, passages

LONGEST_LINE = 10_000_000
"""Bytes a line, a CSV row or a text file may have. Far above any example; a longer one is another kind of file."""

LONGEST_DOCUMENT = 500_000_000
"""Bytes of a JSON list, which is held in memory as a whole while its rows are read."""

_BOM = b"\xef\xbb\xbf"
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_PARQUET_BATCH = 1000


def read_file(path: Path, *, class_names: bool = True) -> Iterator[Record]:
    """Records of one data file, by its suffix; raises DataError at once if it is not a file of a known format.

    class_names: numbers of classes in Parquet become their names, where the file holds names.
    """
    check_file(path)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _not_empty(path, _read_parquet(path, class_names=class_names))
    reader = _READERS.get(suffix)
    if reader is None:
        known = ", ".join([*_READERS, ".parquet"])
        raise DataError(f"{path}: unknown suffix {path.suffix!r}; known: {known}{did_you_mean(path.suffix, _READERS)}")
    _check_plain(path)
    return _not_empty(path, reader(path))


def _check_plain(path: Path) -> None:
    """Raise DataError for a file of text that begins as a compressed or binary one."""
    with _open(path) as stream:
        start = stream.read(8)
    for mark, name in _COMPRESSED.items():
        if start.startswith(mark):
            raise DataError(f"{path}: is compressed ({name}); unpack it first")
    if start.startswith(b"PAR1"):
        raise DataError(f"{path}: is a Parquet file; name it .parquet")


def check_file(path: Path) -> None:
    """Raise DataError unless `path` is a regular, readable file that is not empty. Never opens a pipe or device."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file{did_you_mean(path.name, _neighbours(path))}") from None
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


def read_texts(folder: Path, *, lenient: bool = False) -> Iterator[Record]:
    """Records as of `read_text_folder`, or of the text files of a folder that has no sub-folder."""
    if any(entry.is_dir() for entry in _entries_of(folder, "a folder of text files is needed")):
        return read_text_folder(folder, lenient=lenient)
    return _label_folder(folder, lenient=lenient)


def _sub_folders(folder: Path) -> list[Path]:
    needed = "a folder with one sub-folder of text files per class is needed"
    found = [entry for entry in _entries_of(folder, needed) if entry.is_dir()]
    if not found:
        raise DataError(f"{folder}: has no sub-folder; {needed} (completion reads the files of the folder itself)")
    return found


def _entries_of(folder: Path, needed: str) -> list[Path]:
    try:
        return _entries(folder)
    except FileNotFoundError:
        raise DataError(f"{folder}: no such folder{did_you_mean(folder.name, _neighbours(folder))}; {needed}") from None
    except NotADirectoryError:
        raise DataError(f"{folder}: is not a folder; {needed}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{_clipped(folder)}: cannot be read: {_reason(error)}") from None


def _entries(folder: Path) -> list[Path]:
    names = (entry for entry in folder.iterdir() if not entry.name.startswith(".") and entry.name != "__pycache__")
    return sorted(names, key=lambda entry: entry.name)


def _label_folder(folder: Path, *, lenient: bool) -> Iterator[Record]:
    try:
        files = _entries(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {_reason(error)}") from None
    if not files:
        raise DataError(f"{folder}: holds no text file")
    for file in files:
        if file.is_dir():
            raise DataError(f"{file}: is a folder inside the folder of class {folder.name!r}; text files are needed")
        yield _text_or_error(file, lenient=lenient)


def _text_or_error(file: Path, *, lenient: bool) -> Record:
    try:
        return _text_record(file, lenient=lenient)
    except DataError as error:
        return Record(str(file), 0, {}, error)


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


def _read_json(path: Path) -> Iterator[Record]:
    """Objects one per line; or a list of objects, or objects over several lines, if the first line is none."""
    first = next((line for line in _lines(path) if line.text.strip() or line.error), None)
    if first is None:
        return
    if first.error is not None:
        raise first.error
    if _is_document(path, first):
        yield from _read_document(path)
        return
    for line in _lines(path):
        if line.error is not None:
            yield Record(str(path), line.number, {}, line.error)
        elif line.text.strip():
            yield _json_record(path, line)


def _is_document(path: Path, first: Line) -> bool:
    """Whether the file is one JSON document: its first line opens a list, is cut short, or holds the list of rows."""
    text = first.text.strip()
    if text.startswith("["):
        return True
    if not text.startswith("{"):
        return False
    try:
        value = json.loads(text)
    except (RecursionError, ValueError):
        return text == "{" or (path.suffix.lower() == ".json" and not text.endswith("}"))
    holds_rows = any(
        isinstance(value.get(key), list) and value[key] and isinstance(value[key][0], dict) for key in LIST_KEYS
    )
    return holds_rows and sum(1 for line in _lines(path) if line.text.strip()) == 1


def _read_document(path: Path) -> Iterator[Record]:
    size = path.stat().st_size
    if size > LONGEST_DOCUMENT:
        limit = f"{size:,} bytes as one JSON document, which may have {LONGEST_DOCUMENT:,}"
        raise DataError(f"{path}: {limit}; JSONL, one object per line, has no such limit")
    with _open(path) as stream:
        raw = stream.read(LONGEST_DOCUMENT + 1)
    start = len(_BOM) if raw.startswith(_BOM) else 0
    text = _decode(raw[start:], place(str(path), 1), offset=start)
    try:
        for item in items(text):
            yield _checked_object(path, item.line, item.value)
    except DocumentError as error:
        raise DataError(f"{place(str(path), error.line)}: {error}") from None


def _json_record(path: Path, line: Line) -> Record:
    where = place(str(path), line.number)
    try:
        value = json.loads(line.text)
    except json.JSONDecodeError as error:
        message = f"not JSON: {error.msg} at column {error.colno}"
        return Record(str(path), line.number, {}, DataError(f"{where}: {message}; one JSON object per line is needed"))
    except (RecursionError, ValueError):
        message = "JSON too deep, or a number too long; a flat object is needed"
        return Record(str(path), line.number, {}, DataError(f"{where}: {message}"))
    return _checked_object(path, line.number, value)


def _checked_object(path: Path, line: int, value: object) -> Record:
    if isinstance(value, dict):
        return Record(str(path), line, value)
    message = f"is {type(value).__name__} {shown(value)}; a JSON object is needed"
    return Record(str(path), line, {}, DataError(f"{place(str(path), line)}: {message}"))


def _read_csv(path: Path) -> Iterator[Record]:
    # The limit is global to the process. csv's own (131,072) is below many real texts.
    csv.field_size_limit(LONGEST_LINE)
    separator = _separator(path)
    rows = _csv_rows(path, separator)
    header = next((row for row in rows if not _is_hint(row)), None)
    if header is None:
        raise DataError(f"{path}: holds no header line")
    names = [name if name.strip() else "" for name in header.values["fields"]]
    for name in names:
        if name and names.count(name) > 1:
            raise DataError(f"{path}, row {header.row}: column {name!r} is there twice in the header")
    for row in rows:
        yield _csv_record(row, names, separator)


def _csv_record(row: Record, names: list[str], separator: str) -> Record:
    """The row's fields by the names of the header; what has neither name nor content is left out."""
    fields = row.values["fields"]
    while len(fields) > len(names) and not fields[-1].strip():
        fields = fields[:-1]
    fields = [*fields, *([""] * sum(not name for name in names[len(fields) :]))]
    if len(fields) != len(names):
        found = f"{len(row.values['fields'])} field{'s' * (len(row.values['fields']) != 1)}"
        message = f"{found}, but the header has {len(names)} columns, separated by {_SEPARATORS[separator]}"
        return row._replace(values={}, error=DataError(f"{row.file}, row {row.row}: {message}"))
    pairs = enumerate(zip(names, fields, strict=True), start=1)
    values = {name or f"unnamed column {place}": field for place, (name, field) in pairs if name or field.strip()}
    return row._replace(values=values)


def _separator(path: Path) -> str:
    """What separates the columns: tabs in a .tsv file; else commas, unless the header has none but another."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    first = next((text for text in _texts(path) if text.strip() and not text.startswith("sep=")), "")
    for separator in _SEPARATORS:
        if separator in re.sub(r'"[^"]*"', "", first):
            return separator
    return ","


def _is_hint(row: Record) -> bool:
    """Whether this is the line `sep=;` that spreadsheets write for each other."""
    return row.row == 1 and "".join(row.values["fields"])[:4] == "sep="


def _csv_rows(path: Path, separator: str) -> Iterator[Record]:
    """Rows as records with the one value `fields`; row is the line on which it starts. Blank lines are left out."""
    reader = csv.reader(_texts(path), strict=True, delimiter=separator)
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}, row {start}: not CSV: {_csv_reason(error)}") from None
        if fields:
            yield Record(str(path), start, {"fields": fields})


def _csv_reason(error: csv.Error) -> str:
    """What csv says, which for a lone carriage return is advice to programmers."""
    return (
        "a carriage return without a line feed; end lines with a line feed" if "new-line" in str(error) else str(error)
    )


def _read_parquet(path: Path, *, class_names: bool) -> Iterator[Record]:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            for name in names:
                if names.count(name) > 1:
                    raise DataError(f"{path}: column {name!r} is there twice")
            yield from _parquet_rows(path, file, _class_names(file) if class_names else {})
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: a text is not UTF-8: {error.reason}") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {_reason(error)}") from None


def _class_names(file: Any) -> dict[str, list[str]]:
    """Names of the classes of every column that `datasets` wrote as numbers of a ClassLabel."""
    try:
        about = json.loads((file.schema_arrow.metadata or {})[b"huggingface"])
        features = about["info"]["features"].items()
        return {name: list(kind["names"]) for name, kind in features if kind.get("_type") == "ClassLabel"}
    except (KeyError, TypeError, ValueError, AttributeError):  # written by something else
        return {}


def _parquet_rows(path: Path, file: Any, classes: dict[str, list[str]]) -> Iterator[Record]:
    number = itertools.count(1)
    for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
        for values in batch.to_pylist():
            yield named_classes(Record(str(path), next(number), values), classes)


def named_classes(record: Record, classes: Mapping[str, Sequence[str]]) -> Record:
    """The record with numbers of classes as names, -1 (unlabelled) as null; with an error for a number beyond them."""
    values = dict(record.values)
    for column in classes.keys() & values.keys():
        code, names = values[column], classes[column]
        if code is not None and code >= len(names):
            message = f"class number {code}, but the file names {len(names)} classes"
            return record._replace(values={}, error=fault(record, column, message))
        values[column] = names[code] if code is not None and code >= 0 else None
    return record._replace(values=values)


_READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".txt": lambda path: passages(path, _lines(path)),
}


def _not_empty(path: Path, records: Iterator[Record]) -> Iterator[Record]:
    first = next(records, None)
    if first is None:
        what = "only a header and no rows" if path.suffix.lower() in (".csv", ".tsv") else "no rows"
        raise DataError(f"{path}: holds {what}")
    yield first
    yield from records


def _lines(path: Path) -> Iterator[Line]:
    """Lines with their endings, decoded; a line that is no UTF-8 holds an error that names the byte."""
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
            try:
                yield Line(number, _decode(raw[start:], where, offset=offset + start))
            except DataError as error:
                yield Line(number, "", error)
            offset += len(raw)


def _texts(path: Path) -> Iterator[str]:
    """Lines as `_lines`, where one that is no text spoils the rest."""
    for line in _lines(path):
        if line.error is not None:
            raise line.error
        yield line.text


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
