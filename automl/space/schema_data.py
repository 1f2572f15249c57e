"""The `data:` of a task: a place where rows lie, or a mixture of such places, each with its share of training."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationInfo,
    WrapValidator,
    model_validator,
)

from automl.space.messages import shown
from automl.space.schema_base import Section, Text, mistake

DATA_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")

ColumnName = Literal[
    "text",
    "text_pair",
    "label",
    "labels",
    "words",
    "tags",
    "prompt",
    "response",
    "source",
    "target",
    "chosen",
    "rejected",
    "instruction",
    "input",
    "output",
    "messages",
    "conversations",
    "system",
    "history",
    "tools",
]


def _hub_id(value: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", value, re.ASCII) and ".." not in value:
        return value
    raise mistake("value", "is not a hub id such as 'org/name'; a folder is written as './name'")


def _package(value: str) -> str:
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", value, re.ASCII):
        return value
    raise mistake("value", "is not the import name of a package, such as 'my_models'")


def _inside(value: str) -> str:
    parts = re.split(r"[/\\]", value)
    if value.startswith(("/", "\\", "~")) or ".." in parts or ":" in parts[0]:
        raise mistake("section", f"{shown(value)} must be a relative path inside the package, without '..'")
    return value


HubId = Annotated[Text, AfterValidator(_hub_id)]
PackageName = Annotated[Text, AfterValidator(_package)]
InnerPath = Annotated[str, StringConstraints(max_length=1000), AfterValidator(_inside)]


def exactly_one(section: BaseModel, names: tuple[str, ...]) -> None:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        found = f"{' and '.join(given)} are given" if given else "none is given"
        raise mistake("section", f"needs exactly one of {', '.join(names)}; {found}")


def exists(value: str, folder: Path) -> bool:
    try:
        return (folder / value).exists()
    except (OSError, ValueError):  # a name too long, or with a NUL, is no path
        return False


def _is_folder(value: str, folder: Path) -> bool:
    try:
        return (folder / Path(value).expanduser()).is_dir()
    except (OSError, ValueError, RuntimeError):  # RuntimeError: '~name' of a user there is not
        return False


def folder_of(info: ValidationInfo) -> Path:
    return Path(info.context["folder"]) if info.context else Path()


class FilesSection(Section):
    """Data files by split: JSON, JSONL, CSV, TSV, Parquet, or plain text, relative to this file."""

    train: Text
    validation: Text | None = None
    test: Text | None = None


def _widen_files(value: object) -> object:
    return {"train": value} if isinstance(value, str) else value


class PlaceSection(Section):
    """Where rows lie: what a place alone and a part of a mixture may both say."""

    file: Text | None = None
    """One data file, split into train, validation and test; inside the package if one is given."""
    folder: Text | None = None
    """Folder with one sub-folder of text files per label (completion: any text files); inside the package if given."""
    package: PackageName | None = None
    """Import name of an installed Python package that contains the data."""
    hub: HubId | None = None
    """Id of a data set on the Hugging Face hub."""
    name: Text | None = None
    """Configuration of the hub data set."""
    columns: dict[ColumnName, Text] = Field(default_factory=dict)
    """Our column name -> the name in the data."""
    # Like bad_rows and thinking below, no part of what a study means: the rows' own fingerprint says what came of it.
    ignore: Annotated[list[Text], Field(default_factory=list, max_length=100, exclude=True)]
    """Columns that are left out on purpose, and of which nothing is said."""

    def _check_place(self, *names: str) -> None:
        """Raise if not exactly one place is given. names: of a place without a package."""
        given = [name for name in ("files", *names) if getattr(self, name, None) is not None]
        if self.package is None:
            exactly_one(self, names)
        elif given not in (["file"], ["folder"]):
            raise mistake("section", "package needs exactly one of folder, file beside it")
        else:
            _inside(self.file or self.folder or "")
        if self.name is not None and self.hub is None:
            raise mistake("section", "name belongs to hub; remove it")


class DataSection(PlaceSection):
    """Where the examples come from: exactly one of files, file, folder, hub, or package with folder or file."""

    files: Annotated[FilesSection, BeforeValidator(_widen_files, json_schema_input_type=Text | FilesSection)] | None = (
        None
    )
    """Data files by split; those not given are split off train."""

    @model_validator(mode="after")
    def _one_source(self) -> DataSection:
        self._check_place("files", "file", "folder", "hub")
        return self


class PartSection(PlaceSection):
    """A part of a mixture: exactly one of file, folder, hub, or package with folder or file, and a weight."""

    weight: Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
    """How much of what is trained on comes from here, beside the weights of the others."""

    @model_validator(mode="after")
    def _one_source(self) -> PartSection:
        self._check_place("file", "folder", "hub")
        return self


def _widen_data(value: object, info: ValidationInfo) -> object:
    return source_of_data(value, folder_of(info)) if isinstance(value, str) and value else value


def _refuse_parts(value: object) -> object:
    if isinstance(value, list):
        raise mistake("section", "is one place, not a list of parts; weights are for what is trained on")
    return value


def source_of_data(text: str, folder: Path) -> dict[str, str]:
    """What a text alone means as `data:`; relative paths begin in `folder`."""
    if text.endswith(DATA_SUFFIXES):
        return {"file": text}
    if text.startswith((".", "/", "~", "\\")) or exists(text, folder):
        return {"folder": text} if _is_folder(text, folder) else {"file": text}
    return {"hub": text}


Data = Annotated[
    DataSection, BeforeValidator(_refuse_parts), BeforeValidator(_widen_data, json_schema_input_type=Text | DataSection)
]

MOST_PARTS = 100
LEAST_SHARE = 1e-9
"""What a part of a mixture has of what is trained on, at least: with less, no search would ever draw from it."""


def _part(value: object) -> object:
    if isinstance(value, str):
        raise mistake("section", f"{shown(value)} has no weight; a part is written {{file: {value}, weight: 0.5}}")
    if isinstance(value, Mapping) and "files" in value:
        raise mistake("section", "files: belongs to data without a list; a part is one file, and the split is ours")
    return value


_ONE: TypeAdapter[DataSection] = TypeAdapter(Data)
_PARTS: TypeAdapter[list[PartSection]] = TypeAdapter(list[Annotated[PartSection, BeforeValidator(_part)]])


def _one_or_parts(value: object, _: object, info: ValidationInfo) -> DataSection | list[PartSection]:
    """Either is read alone, so that problems are those of what was meant."""
    if not isinstance(value, list):
        if isinstance(value, Mapping) and "weight" in value:
            raise mistake("section", "weight belongs to the parts of a list: data: [{file: a.jsonl, weight: 0.8}, ...]")
        return _ONE.validate_python(value, strict=True, context=info.context)
    if not 2 <= len(value) <= MOST_PARTS:
        raise mistake("section", f"a mixture has 2 to {MOST_PARTS} parts, not {len(value)}; one alone needs no list")
    parts = _PARTS.validate_python(value, strict=True, context=info.context)
    _check_distinct(parts, folder_of(info))
    _check_shares(parts)
    return parts


def _check_distinct(parts: list[PartSection], folder: Path) -> None:
    first: dict[tuple[str, ...], int] = {}
    for number, part in enumerate(parts, start=1):
        path = part.file or part.folder or ""
        where = path if part.package else os.path.normpath(folder.absolute() / path) if path else ""
        place = (part.package or "", part.hub or "", part.name or "", where)
        if first.setdefault(place, number) != number:
            what = f"parts {first[place]} and {number} are both {shown(part.hub or path)}"
            raise mistake("section", f"{what}; name it once, with the sum of the weights")


def _check_shares(parts: list[PartSection]) -> None:
    total = math.fsum(part.weight for part in parts)
    for number, part in enumerate(parts, start=1):
        if part.weight < LEAST_SHARE * total:
            what = f"part {number} has a weight of {part.weight:g} of {total:g} in all"
            raise mistake("section", f"{what}; a part has a share of {LEAST_SHARE:g} at least: leave it out")


TaskData = Annotated[
    DataSection | list[PartSection],
    WrapValidator(_one_or_parts, json_schema_input_type=Text | DataSection | list[PartSection]),
]
