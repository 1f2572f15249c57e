"""The notebooks of examples/ run from top to bottom, and are stored with what they gave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["classification", "instruction_tuning"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_ran_and_names_no_folder_of_a_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert any("text/html" in output.get("data", {}) for output in outputs)
    assert "command not found" not in path.read_text(encoding="utf-8")
    assert not any(folder in path.read_text(encoding="utf-8") for folder in ("/home/", "/root/", "/tmp/", "/work/"))


SHORTER = {"classification": ("trials=6,\n    steps=40,", "trials=3,\n    steps=10,")}
"""The same cells on a smaller budget: `scripts/notebooks` runs them as they are."""


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [pytest.param(NOTEBOOKS[0], marks=pytest.mark.full), NOTEBOOKS[1]],  # the second is the quicker one
    ids=lambda path: path.stem,
)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOML_CACHE", str(tmp_path / "cache"))
    copy = tmp_path / path.name
    nbformat.write(shortened(path), copy)  # type: ignore[no-untyped-call]
    command = [sys.executable, str(ROOT / "scripts" / "run_notebooks.py"), "--store", str(copy)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "command not found" not in copy.read_text(encoding="utf-8")


def shortened(path: Path) -> nbformat.NotebookNode:
    notebook = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    if path.stem in SHORTER:
        whole, part = SHORTER[path.stem]
        (cell,) = [cell for cell in notebook.cells if whole in cell.source]
        cell.source = cell.source.replace(whole, part)
    return notebook
