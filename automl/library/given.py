"""What is given in memory, kept as files: rows as JSON lines, a model as a folder, each named by its content.

Workers, a later run and the written space file find them there. They lie in `given/` of the cache folder, which
`automl gc` leaves alone, since nobody else could make them again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date, time
from pathlib import Path
from typing import Any

from automl import durable
from automl.errors import DataError

_FOLDER = "given"
_DIGITS = 24
_PLACES = frozenset({"file", "folder", "package", "hub"})


def holds_rows(data: object) -> bool:
    """Whether these are rows, or splits of rows, and not the place, or the weighted places, where rows are found."""
    if is_mixture(data):
        return False
    if isinstance(data, Mapping):
        return bool(data) and all(_is_table(part) for part in data.values())
    return _is_table(data)


def is_mixture(data: object) -> bool:
    """Whether these are the parts of a mixture: entries of a list that name a place and a weight."""
    if not isinstance(data, list):
        return False
    return any(isinstance(part, Mapping) and "weight" in part and not _PLACES.isdisjoint(part) for part in data)


def keep_rows(data: Any, cache: Path) -> dict[str, Any]:
    """Write rows to the cache folder; returns the `data:` section of a space file for them.

    data: a `datasets.Dataset`, a frame of pandas, or a list of mappings, yet to be split; or a mapping (a
    `DatasetDict`) from names of splits to these. Names of classes stand for their numbers. Raises DataError naming row
    and column of a value that JSON does not have.
    """
    if not isinstance(data, Mapping):
        return {"file": _kept(data, "data", cache)}
    from automl.tasks.read import usable_splits

    splits = usable_splits(data)
    if "train" not in splits:
        raise DataError(f"data: no split 'train'; given: {', '.join(map(repr, data))}")
    return {"files": {name: _kept(splits[name], f"data[{name!r}]", cache) for name in splits}}


def keep_model(model: Any, tokenizer: Any, cache: Path) -> dict[str, str]:
    """Save a loaded model of transformers with its tokenizer; returns the `model:` section of a space file for it.

    tokenizer: None looks for the one of the folder or hub id that the model was loaded from. Raises ModelError if there
    is none, or if the model is something else, such as one that holds an adapter already.
    """
    from automl.models.saving import save_model

    return {"folder": str(save_model(model, tokenizer, cache / _FOLDER / "models"))}


def _is_table(data: object) -> bool:
    if isinstance(data, list):
        return all(isinstance(row, Mapping) for row in data)
    return type(data).__module__.partition(".")[0] in ("datasets", "pandas") and not isinstance(data, Mapping)


def _kept(table: Any, name: str, cache: Path) -> str:
    folder = cache / _FOLDER / "rows"
    with durable.disk_errors_named(folder):
        durable.make_folder(folder)
        descriptor, draft = tempfile.mkstemp(prefix=durable.DRAFT, dir=folder)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                digest = _write(_rows(table, name), name, stream.write)
                stream.flush()
                os.fsync(stream.fileno())
            path = folder / f"{digest[:_DIGITS]}.jsonl"
            os.replace(draft, path)
            durable.sync(folder)
        finally:
            Path(draft).unlink(missing_ok=True)
    return str(path)


def _write(rows: Iterable[Mapping[Any, Any]], name: str, write: Callable[[bytes], object]) -> str:
    """Write a line for each row; returns the sha256 (hex) of all of them."""
    digest = hashlib.sha256()
    count = 0
    for count, row in enumerate(rows, start=1):
        plain = {str(column): _json(value, f"{name}, row {count}, column {column!r}") for column, value in row.items()}
        line = (json.dumps(plain, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "surrogatepass")
        digest.update(line)
        write(line)
    if not count:
        raise DataError(f"{name}: has no rows")
    return digest.hexdigest()


def _rows(table: Any, name: str) -> Iterator[Mapping[Any, Any]]:
    if isinstance(table, list):
        return iter(table)
    if hasattr(table, "to_dict") and hasattr(table, "columns"):  # a frame of pandas
        return iter(table.to_dict("records"))
    if not getattr(table, "features", None):
        raise DataError(
            f"{name}: a {type(table).__name__} is not supported; give a Dataset, a frame, or a list of rows"
        )
    from automl.tasks.read import table_records

    return (record.values for record in table_records(name, table))


def _json(value: Any, where: str) -> Any:
    """The value as JSON has it; what is not a number becomes null."""
    if hasattr(value, "tolist"):  # a number or an array of numpy
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _json(item, where) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item, where) for item in value]
    if _is_missing(value):
        return None
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise DataError(f"{where}: {value!r:.40} cannot be written as JSON; leave the column out")


def _is_missing(value: Any) -> bool:
    """Whether it is a NaN of any library, or NaT or NA of pandas."""
    if isinstance(value, float):
        return math.isnan(value)
    return type(value).__name__ in ("NaTType", "NAType")
