"""A space file made from another one: for another study, readable from any folder, started from an earlier study.

The result is written as JSON, which is YAML, so that every value is read back as exactly what it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from automl.space.spec import DataSettings, ModelSettings, SweepSpec
from automl.space.yaml_nodes import read_document


def derived_text(
    spec: SweepSpec,
    *,
    study: str,
    heading: str,
    folder: Path,
    warm_start: str | None = None,
    address: str | None = None,
    verify: bool | None = None,
) -> str:
    """Text of a space file for `study` that means otherwise the same as the one `spec` was loaded from.

    Paths are absolute; a relative `run.output` begins at `folder`. `storage.url` is left out, so that AUTOML_DB_URL
    decides. warm_start, address, verify: take the place of the file's own `search.warm_start`, `run.address` and
    `verify.automatic`. heading: what the first line says, as a comment.
    """
    document: dict[str, Any] = dict(_written(spec))
    document["study"] = study
    if (model := _model(document.get("model"), spec.model)) is not None:
        document["model"] = model
    if spec.task.type == "table":
        document["task"] = {**document["task"], "file": spec.task.data.files["table"]}
    else:
        document["task"] = _with_place(document["task"], spec.task.data)
    if spec.keep is not None:
        keep = document["keep"]
        document["keep"] = _with_place(keep if isinstance(keep, Mapping) else {"data": keep}, spec.keep.data)
    output = folder / spec.run.output.expanduser()
    document["run"] = {
        **(document.get("run") or {}),
        "output": str(output),
        **({"address": address} if address else {}),
    }
    document["storage"] = {key: value for key, value in (document.get("storage") or {}).items() if key != "url"}
    if warm_start is not None:
        document["search"] = {**(document.get("search") or {}), "warm_start": warm_start}
    if verify is not None:
        document["verify"] = {**(document.get("verify") or {}), "automatic": verify}
    body = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    return f"# {' '.join(heading.split())}\n{body}\n"


def demands_verification(spec: SweepSpec) -> bool:
    """Whether the file itself says `verify: {automatic: true}`, which is also the default of a search."""
    section = _written(spec).get("verify")
    return isinstance(section, Mapping) and section.get("automatic") is True


def _written(spec: SweepSpec) -> Mapping[str, Any]:
    value = read_document(spec.text, spec.source).value
    if not isinstance(value, Mapping):
        raise AssertionError("a space file that was loaded is a mapping")
    return value


def _model(written: Any, model: ModelSettings) -> dict[str, Any] | None:
    """What was written of the model, as it reads in any folder; None for a table, which has none."""
    if model.kind == "none":
        return None
    said = written if isinstance(written, Mapping) else {}
    # hub: explicit, or a folder of that name beside the new file would be taken for it
    place = {} if model.kind == "package" else {model.kind: model.location}
    return {**said, **place, **({"adapter": model.adapter} if model.adapter else {})}


def _with_place(section: Mapping[str, Any], data: DataSettings) -> dict[str, Any]:
    """The section with the absolute places of its data."""
    written = section["data"]
    if isinstance(written, list):
        return {**section, "data": [_moved(*pair) for pair in zip(written, data.places, strict=True)]}
    return {**section, "data": _moved(written, data)}


def _moved(written: Any, data: DataSettings) -> Any:
    """What was written of a place, as it reads in any folder."""
    place = _data(data)
    if place is None:
        return written
    said = written if isinstance(written, Mapping) else {}
    return {**place, **{name: said[name] for name in ("columns", "ignore", "weight") if said.get(name)}}


def _data(data: DataSettings) -> dict[str, Any] | None:
    if data.kind == "files":
        return {"file": data.files["train"]} if list(data.files) == ["train"] else {"files": dict(data.files)}
    if data.kind == "folder":
        return {"folder": data.location}
    return None
