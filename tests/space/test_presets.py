"""Every preset is valid, for the loader and for an editor, and refers to what is really there."""

from __future__ import annotations

import json
import runpy
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml

from automl.space.assemble import assemble
from automl.space.defaults import resolve
from automl.space.load import json_schema, load_space

FOLDER = Path(__file__).parents[2] / "search_spaces"
PRESETS = sorted(FOLDER.glob("*.yaml"))


def test_there_are_presets() -> None:
    assert {path.stem for path in PRESETS} >= {"bbc-topics", "smollm2-instruct", "gpu-7b-instruct", "nightly"}


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_is_valid(path: Path) -> None:
    spec = load_space(path)
    assert spec.study == path.stem
    space = resolve(spec.space, 100_000_000, spec.search.steps)
    for entry in space.enqueue:
        assemble(space, entry)


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_follows_the_schema(path: Path) -> None:
    # An editor reads YAML 1.1: numbers such as 1e-4 would be texts to it, so presets write 1.0e-4.
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_preset_refers_to_what_is_there(path: Path) -> None:
    spec = load_space(path)
    data = spec.task.data
    for file in data.files.values():
        assert Path(file).is_file()
    for kind, location, inner in (
        (spec.model.kind, spec.model.location, spec.model.path),
        (data.kind, data.location, data.path),
    ):
        if kind == "package":
            package = find_spec(location)
            assert package is not None
            assert (Path(next(iter(package.submodule_search_locations or []))) / inner).exists()


def test_the_instructions_are_what_their_script_writes() -> None:
    script = runpy.run_path(str(FOLDER / "data" / "make_instructions.py"))
    written = (FOLDER / "data" / "instructions.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in written]
    assert [row._asdict() for row in script["rows"]()] == rows
    assert len({(row["instruction"], row["input"]) for row in rows}) >= 195
    assert all(row["output"] for row in rows)
