"""Rows and models in memory become files that say the same, named by what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from automl.errors import DataError, ModelError
from automl.library.given import holds_rows, keep_model, keep_rows
from automl.models.backbone import load_backbone, reference
from tests.architectures import save_tiny

ROWS: list[Mapping[str, Any]] = [
    {"text": f"text {number} ä", "label": "no" if number % 2 else "yes"} for number in range(6)
]


def read(path: str) -> list[Any]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        datasets.Dataset.from_list(ROWS),
        pd.DataFrame(ROWS),
        datasets.Dataset.from_list(ROWS).cast_column("label", datasets.ClassLabel(names=["yes", "no"])),
    ],
    ids=["list", "dataset", "frame", "class-numbers"],
)
def test_every_kind_of_table_gives_the_same_file(data: Any, tmp_path: Path) -> None:
    assert holds_rows(data)
    assert read(keep_rows(data, tmp_path)["file"]) == ROWS
    assert keep_rows(data, tmp_path) == keep_rows(ROWS, tmp_path)
    assert len(list((tmp_path / "given" / "rows").iterdir())) == 1


def test_another_row_gives_another_file(tmp_path: Path) -> None:
    assert keep_rows(ROWS, tmp_path) != keep_rows(ROWS[:-1], tmp_path)


def test_splits_keep_their_rows_apart(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(ROWS)
    data = datasets.DatasetDict({"train": table, "dev": table.select(range(2)), "extra": table})
    files = keep_rows(data, tmp_path)["files"]
    assert {name: len(read(path)) for name, path in files.items()} == {"train": 6, "validation": 2}
    assert keep_rows({"train": ROWS, "validation": pd.DataFrame(ROWS[:2])}, tmp_path)["files"] == files


def test_a_test_split_without_classes_is_left_out(tmp_path: Path) -> None:
    """As benchmarks publish them."""
    named = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    labelled = datasets.Dataset.from_list([{"text": "a", "label": 1}], features=named)
    unlabelled = datasets.Dataset.from_list([{"text": "b", "label": -1}], features=named)
    files = keep_rows(datasets.DatasetDict({"train": labelled, "test": unlabelled}), tmp_path)["files"]
    assert list(files) == ["train"]


def test_what_is_no_number_is_null_and_dates_are_texts(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "text": ["a", None],
            "score": [np.float64(0.5), np.nan],
            "at": pd.to_datetime(["2026-01-02", None]),
            "ids": [np.array([1, 2]), [3]],
            "flag": pd.array([True, None], dtype="boolean"),
        }
    )
    assert read(keep_rows(frame, tmp_path)["file"]) == [
        {"text": "a", "score": 0.5, "at": "2026-01-02T00:00:00", "ids": [1, 2], "flag": True},
        {"text": None, "score": None, "at": None, "ids": [3], "flag": None},
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data: has no rows"),
        (
            [*ROWS, {"text": b"bytes"}],
            r"data, row 7, column 'text': b'bytes' cannot be written as JSON; leave the column",
        ),
        ([{"text": {"score": float("inf")}}], "data, row 1, column 'text': inf cannot be written as JSON"),
        ({"test": ROWS}, "data: no split 'train'; given: 'test'"),
        ({"train": ROWS, "test": []}, r"data\['test'\]: has no rows"),
    ],
    ids=["empty", "bytes", "infinite", "no-train", "empty-split"],
)
def test_what_cannot_be_kept_is_named_and_nothing_is_left(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        keep_rows(data, tmp_path)
    kept = {path.name for path in (tmp_path / "given" / "rows").glob("*")}
    assert kept <= {Path(keep_rows(ROWS, tmp_path)["file"]).name}


def test_places_of_data_are_no_rows() -> None:
    for place in (
        "data.jsonl",
        Path("data.jsonl"),
        {"file": "a.csv"},
        {"hub": "org/name", "columns": {"text": "t"}},
        {},
    ):
        assert not holds_rows(place)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    save_tiny(folder, "bert", kind="classification")
    return folder


def test_a_loaded_model_is_saved_once_with_its_tokenizer(tiny: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny)
    first = keep_model(model, None, tmp_path)
    assert first == keep_model(model, AutoTokenizer.from_pretrained(tiny), tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(first["folder"])
    assert first == keep_model(again, None, tmp_path)
    assert len(list((tmp_path / "given" / "models").iterdir())) == 1
    kept = load_backbone(reference(Path(first["folder"]), tmp_path), "classification", ["a", "b"])
    for name, tensor in model.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(tensor, kept.state_dict()[name]), name


def test_a_changed_weight_gives_another_folder(tiny: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(tiny)
    first = keep_model(model, None, tmp_path)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] += 1e-3
    assert keep_model(model, None, tmp_path) != first


# peft 0.21 reads an attribute that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_what_is_no_plain_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = AutoModel.from_pretrained(tiny)
    adapted = get_peft_model(AutoModel.from_pretrained(tiny), LoraConfig(r=2, target_modules=["query"]))
    nameless = type(model)(model.config)
    nameless.name_or_path = ""
    with pytest.raises(ModelError, match="model: a PeftModel holds an adapter already; load the base model anew"):
        keep_model(adapted, None, tmp_path)
    with pytest.raises(
        ModelError, match="model: a Linear is not a model of transformers; give one, a folder or a hub id"
    ):
        keep_model(torch.nn.Linear(2, 2), None, tmp_path)
    with pytest.raises(ModelError, match="model: says nothing of where it was loaded from; give its tokenizer"):
        keep_model(nameless, None, tmp_path)
    assert not (tmp_path / "given").exists()
