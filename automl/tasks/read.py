"""Where examples come from: data files, a text folder, an installed package, or the Hugging Face hub.

Turns DataSettings into one stream of records per split. What a record must hold is the tasks' business.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import datasets
from datasets.exceptions import DatasetsError

from automl.errors import DataError
from automl.nearest import did_you_mean
from automl.space.spec import DATA_RULES, DataSettings
from automl.tasks.fields import Record, shown
from automl.tasks.formats import named_classes, read_file, read_text_folder, read_texts
from automl.tasks.quiet import quiet_datasets

logger = logging.getLogger(__name__)

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_HUB_SPLITS: dict[str, Split] = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "dev": "validation",
    "val": "validation",
    "test": "test",
}
"""What splits are called elsewhere -> here."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def read_splits(
    data: DataSettings, rules: int = DATA_RULES, *, has_classes: bool = True
) -> dict[Split, Iterator[Record]]:
    """One stream of records per split the data brings; `train` is always among them.

    Raises DataError here for what can be seen without reading, and while streaming for the rest. A record that cannot
    be read, where the next ones can, holds its error. rules: see `TaskSettings`. has_classes: a
    folder has one of its own for every class; otherwise all texts in it are read.
    """
    if data.kind == "mixture":
        raise DataError(f"{source_name(data)}: this task reads one place, not a mixture; see `reading.read_examples`")
    if data.kind == "files":
        return _from_files(data, rules)
    if data.kind == "hub":
        return _from_hub(data)
    read_folder = read_text_folder if has_classes else read_texts
    if data.kind == "folder":
        return {"train": read_folder(Path(data.location))}
    path = package_path(data.location, data.path)
    if path.is_dir():
        return {"train": _log_repairs(read_folder(path, lenient=True))}
    return {"train": read_file(path, class_names=rules > 1)}


def source_name(data: DataSettings) -> str:
    """How messages about the data as a whole name it."""
    if data.kind == "mixture":
        return " + ".join(map(source_name, data.places))
    if data.kind == "files":
        return data.files.get("train", "data.files")
    if data.kind == "folder":
        return data.location
    return f"{data.kind} {data.location!r}" + (f" {data.path!r}" if data.path else "")


def _from_files(data: DataSettings, rules: int) -> dict[Split, Iterator[Record]]:
    for name in data.files:
        if name not in SPLITS:
            raise DataError(
                f"data.files: unknown split {name!r}; known: {', '.join(SPLITS)}{did_you_mean(name, SPLITS)}"
            )
    if "train" not in data.files:
        raise DataError(f"data.files: no train file; given: {', '.join(data.files) or 'none'}")
    given = [split for split in SPLITS if split in data.files]
    return {split: read_file(Path(data.files[split]), class_names=rules > 1) for split in given}


def package_path(package: str, path: str) -> Path:
    """`path` inside an installed package, found without importing it; raises DataError if it is not there."""
    if not package.isidentifier():  # a dotted name would import the parent package
        raise DataError(f"package {shown(package)}: not the import name of a top-level package")
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a module that is running, without a spec
        spec = None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    if not folders:
        raise DataError(f"package {package!r} is not installed; its data {path!r} cannot be read")
    for folder in folders:
        found = (folder / path).resolve()
        if not found.is_relative_to(folder.resolve()):
            raise DataError(f"package {package!r}: {path!r} leads out of the package")
        if found.exists():
            return found
    raise DataError(f"package {package!r} has no {path!r} in {folders[0]}")


def _log_repairs(records: Iterator[Record]) -> Iterator[Record]:
    repaired: list[str] = []
    for record in records:
        if record.values.get("repaired"):
            repaired.append(record.file)
        yield record
    if repaired:
        logger.warning("not valid UTF-8 and mended: %d of the files, the first is %s", len(repaired), repaired[0])


def _from_hub(data: DataSettings) -> dict[Split, Iterator[Record]]:
    """Splits of a hub data set; validation may be called valid, val or dev there."""
    if not _HUB_ID.fullmatch(data.location):
        raise DataError(f"data.hub: {shown(data.location)} is not a data set id such as 'stanfordnlp/sst2'")
    try:
        with quiet_datasets():
            found = datasets.load_dataset(data.location, data.path or None)
    # Errors of hub, builder and files have no common root. A hub out of reach is a ConnectionError.
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"hub data set {data.location!r} cannot be loaded: {reason}") from error
    return hub_splits(data.location, found)


def hub_splits(location: str, found: Mapping[str, Any]) -> dict[Split, Iterator[Record]]:
    """Streams over the tables of a loaded data set; raises DataError if it has no train split."""
    tables = usable_splits(found)
    if "train" not in tables:
        raise DataError(f"hub data set {location!r} has no train split; it has {', '.join(map(str, found))}")
    return {split: table_records(f"hub:{location}/{split}", table) for split, table in tables.items()}


def usable_splits(found: Mapping[str, Any]) -> dict[Split, Any]:
    """The splits by our names; those without classes are left out: benchmarks publish such test splits (all -1)."""
    return {
        _HUB_SPLITS[name]: table for name, table in found.items() if name in _HUB_SPLITS and not _lacks_classes(table)
    }


def _lacks_classes(table: Any) -> bool:
    return any(table.unique(column) == [-1] for column in _class_columns(table))


def _class_columns(table: Any) -> dict[str, Any]:
    if not isinstance(table, datasets.Dataset):
        return {}
    return {column: kind for column, kind in table.features.items() if isinstance(kind, datasets.ClassLabel)}


def table_records(name: str, table: Any) -> Iterator[Record]:
    """Records of a `datasets.Dataset`; numbers of a ClassLabel column become class names, -1 (unlabelled) null."""
    classes = {column: kind.names for column, kind in _class_columns(table).items()}
    for number, values in enumerate(table, start=1):
        yield named_classes(Record(name, number, values), classes)
