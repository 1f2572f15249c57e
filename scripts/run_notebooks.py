"""Runs notebooks from top to bottom, each in a folder of its own. Usage: run_notebooks.py [--store] NOTEBOOK ...

--store: the outputs are written into the notebook. A cell that fails ends it with exit code 1 and its traceback.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

_CELL_SECONDS = 300


def executed(path: Path, folder: Path) -> Any:
    """The notebook with new outputs; it is run in `folder`. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=_CELL_SECONDS, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
    return notebook


def main(arguments: list[str]) -> int:
    """Run the notebooks named; returns the exit code."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for cells with `!automl`
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm misses widgets, which nobody needs here
    for name in arguments:
        if name == "--store":
            continue
        began = time.monotonic()
        try:
            with tempfile.TemporaryDirectory(prefix="notebook-") as folder:
                notebook = executed(Path(name), Path(folder))
        except CellExecutionError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        if "--store" in arguments:
            text = nbformat.writes(notebook).replace(f"{folder}/", "")
            Path(name).write_text(f"{text}\n", encoding="utf-8")
        print(f"{name}: {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
