"""A space file made from another one: for another study, readable from any folder, with first configurations.

The result is written as JSON, which is YAML, so that every value is read back as exactly what it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from automl.errors import ConfigError
from automl.space.load import parse_space
from automl.space.spec import DataSettings, ModelSettings, SweepSpec
from automl.space.yaml_nodes import read_document
from automl.trial import Scalar


def derived_text(
    spec: SweepSpec, *, study: str, heading: str, folder: Path, first: Sequence[Mapping[str, Scalar]] = ()
) -> str:
    """Text of a space file for `study` that means otherwise the same as the one `spec` was loaded from.

    Paths are absolute; a relative `run.output` begins at `folder`. `storage.url` is left out, so that AUTOML_DB_URL
    decides. first: configurations to be tried before all others; those the space does not allow are left out.
    heading: what the first line says, as a comment.
    """
    document: dict[str, Any] = dict(_written(spec))
    document["study"] = study
    if (model := _model(spec.model)) is not None:
        document["model"] = model
    if (data := _data(spec.task.data)) is not None:
        written = document["task"]["data"]
        columns = written.get("columns") if isinstance(written, Mapping) else None
        document["task"] = {**document["task"], "data": {**data, **({"columns": columns} if columns else {})}}
    output = folder / spec.run.output.expanduser()
    document["run"] = {**(document.get("run") or {}), "output": str(output)}
    document["storage"] = {key: value for key, value in (document.get("storage") or {}).items() if key != "url"}
    plain = _text(heading, document)
    allowed = [values for values in first if _is_allowed(document, values, folder)]
    if not allowed:
        return plain
    known = list(document.get("enqueue") or [])
    fresh = [dict(values) for values in allowed if dict(values) not in known]
    return _text(heading, {**document, "enqueue": [*fresh, *known]})


def _written(spec: SweepSpec) -> Mapping[str, Any]:
    value = read_document(spec.text, spec.source).value
    if not isinstance(value, Mapping):
        raise AssertionError("a space file that was loaded is a mapping")
    return value


def _model(model: ModelSettings) -> dict[str, Any] | None:
    """None: as it was written, for there is no path in it."""
    if model.kind in ("folder", "gguf"):
        return {model.kind: model.location}
    if model.kind == "hub":  # explicit, lest a folder of that name where the new file lies be taken for it
        return {"hub": model.location, **({"revision": model.revision} if model.revision else {})}
    return None


def _data(data: DataSettings) -> dict[str, Any] | None:
    if data.kind == "files":
        return {"files": dict(data.files)}
    if data.kind == "folder":
        return {"folder": data.location}
    return None


def _is_allowed(document: Mapping[str, Any], values: Mapping[str, Scalar], folder: Path) -> bool:
    try:
        parse_space(_text("", {**document, "enqueue": [dict(values)]}), "first configurations", folder)
    except ConfigError:
        return False
    return True


def _text(heading: str, document: Mapping[str, Any]) -> str:
    body = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return f"# {' '.join(heading.split())}\n{body}" if heading else body
