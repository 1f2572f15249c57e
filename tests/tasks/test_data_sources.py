from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest

from automl.errors import DataError
from automl.space.spec import DataSettings
from automl.tasks.fields import Record
from automl.tasks.formats import read_file, read_text_folder
from automl.tasks.read import hub_splits, package_path, read_splits, table_records

ROWS = [{"text": "good film", "label": "a"}, {"text": 'bad,\n"awful" film', "label": "b"}, {"text": "ö", "label": "a"}]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def write_csv(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    datasets.Dataset.from_list(ROWS).to_parquet(path)


FORMATS = {
    "rows.jsonl": (write_jsonl, [1, 2, 3]),
    "rows.JSON": (write_jsonl, [1, 2, 3]),
    "rows.ndjson": (write_jsonl, [1, 2, 3]),
    "rows.csv": (write_csv, [2, 3, 5]),  # the second row spans two lines
    "rows.parquet": (write_parquet, [1, 2, 3]),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_reads_the_same_rows(name: str, tmp_path: Path) -> None:
    write, numbers = FORMATS[name]
    path = tmp_path / name
    datasets.disable_progress_bars()
    write(path)
    records = list(read_file(path))
    assert [record.values for record in records] == ROWS
    assert [record.row for record in records] == numbers
    assert {record.file for record in records} == {str(path)}


TOLERATED = {
    "byte order mark": b"\xef\xbb\xbf" + b'{"text": "x"}\n',
    "CRLF": b'{"text": "x"}\r\n',
    "no line break at the end": b'{"text": "x"}',
    "blank lines": b'\n{"text": "x"}\n \n\n',
}


@pytest.mark.parametrize("content", TOLERATED.values(), ids=TOLERATED)
def test_what_jsonl_tolerates(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert [record.values for record in read_file(path)] == [{"text": "x"}]


TOLERATED_CSV = {
    "byte order mark": b"\xef\xbb\xbftext,label\nx,a\n",
    "CRLF": b"text,label\r\nx,a\r\n",
    "no line break at the end": b"text,label\nx,a",
    "blank lines": b"text,label\n\nx,a\n\n",
}


@pytest.mark.parametrize("content", TOLERATED_CSV.values(), ids=TOLERATED_CSV)
def test_what_csv_tolerates(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    assert [record.values for record in read_file(path)] == [{"text": "x", "label": "a"}]


def test_a_csv_field_may_be_longer_than_the_csv_module_allows_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "x" * 200_000 + ",a\n")
    assert [len(record.values["text"]) for record in read_file(path)] == [200_000]


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    data = tmp_path / "news"
    for label in ("sport", "tech"):
        (data / label).mkdir(parents=True)
        (data / label / "1.txt").write_text(f"\nHeadline of {label}\n\nBody.\n")
    (data / "README").write_text("not an example")
    (data / ".git").mkdir()
    (data / "__pycache__").mkdir()
    (data / "tech" / ".hidden").write_bytes(b"\xff")
    return data


def test_a_text_folder_names_its_classes(text_folder: Path) -> None:
    records = list(read_text_folder(text_folder))
    assert [record.values["label"] for record in records] == ["sport", "tech"]
    assert [record.values["headline"] for record in records] == ["Headline of sport", "Headline of tech"]
    assert records[0].values["text"] == "Headline of sport\n\nBody."
    assert records[0].file == str(text_folder / "sport" / "1.txt")


def test_a_package_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    package = tmp_path / "automl_test_corpus"
    for label in ("a", "b"):
        (package / "data" / label).mkdir(parents=True)
        (package / "data" / label / "1.txt").write_text(label)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "data" / "b" / "2.txt").write_bytes(b"costs \xa35")
    (package / "rows.jsonl").write_text('{"text": "x"}\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert package_path("automl_test_corpus", "data") == package / "data"
    # Nobody can mend a file of an installed package, so one bad byte in it does not stop the search.
    records = list(read_splits(DataSettings(kind="package", location="automl_test_corpus", path="data"))["train"])
    assert [record.values["text"] for record in records] == ["a", "b", "costs \ufffd5"]
    assert "not valid UTF-8 and mended: 1 of the files" in caplog.text
    file = read_splits(DataSettings(kind="package", location="automl_test_corpus", path="rows.jsonl"))
    assert [record.values for record in file["train"]] == [{"text": "x"}]


def test_class_numbers_of_a_hub_table_become_names() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": [1, 0, -1]}, features=features)
    records: Iterator[Record] = table_records("hub:some/set/train", table)
    assert [record.values["label"] for record in records] == ["yes", "no", None]


def test_splits_of_the_hub_go_by_our_names() -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})

    def table(labels: list[int]) -> Any:
        return datasets.Dataset.from_dict({"text": ["x"] * len(labels), "label": labels}, features=features)

    tables = {"train": table([0, 1, -1]), "dev": table([1]), "test": table([-1, -1]), "unsupervised": table([-1])}
    streams = hub_splits("some/set", tables)
    # Benchmarks publish a test split without classes: it is no use here, so one is cut from train.
    assert set(streams) == {"train", "validation"}
    assert [record.file for record in streams["validation"]] == ["hub:some/set/validation"]
    with pytest.raises(DataError, match="hub data set 'some/set' has no train split; it has dev"):
        hub_splits("some/set", {"dev": table([0])})


def test_files_come_as_splits(tmp_path: Path) -> None:
    files: dict[str, Any] = {}
    for split in ("test", "train"):
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text(json.dumps({"text": split}) + "\n")
    streams = read_splits(DataSettings(kind="files", files=files))
    assert {split: [record.values["text"] for record in rows] for split, rows in streams.items()} == {
        "train": ["train"],
        "test": ["test"],
    }
