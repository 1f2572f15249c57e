"""Continued training on long texts: `.txt` files, folders of texts, and rows of whatever max_length would cut off."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from automl.errors import DataError
from automl.space.load import parse_space
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks import make_task
from automl.tasks.base import IGNORED, Row
from automl.tasks.formats import read_file
from automl.tasks.passages import PASSAGE

STORY = [
    f"Chapter {number}\n\n" + f"In year {number} the crew of ship {number} went on. " * 30 + "\n\n"
    for number in range(60)
]


@pytest.fixture
def story(tmp_path: Path) -> Path:
    path = tmp_path / "story.txt"
    path.write_text("".join(STORY), encoding="utf-8")
    return path


def completion(data: DataSettings, **values: Any) -> Any:
    return make_task(TaskSettings(type="completion", data=data, metric="loss", **values))


def file_of(path: Path) -> DataSettings:
    return DataSettings(kind="files", files={"train": str(path)})


def learnt(rows: list[Row]) -> list[int]:
    """Tokens that are predicted: the first of a row never is."""
    return [label for row in rows for label in row["labels"][1:] if label != IGNORED]


def test_passages_are_the_whole_text_and_end_at_blank_lines(story: Path) -> None:
    records = list(read_file(story))
    texts = [record.values["text"] for record in records]
    assert "".join(texts) == story.read_text(encoding="utf-8")
    assert all(text.endswith("\n\n") and len(text) < 4 * PASSAGE for text in texts)
    assert 10 < len(texts) < 60
    lines = story.read_text(encoding="utf-8").splitlines()
    assert all(text.startswith(lines[record.row - 1]) for text, record in zip(texts, records, strict=True))


@pytest.mark.parametrize("text", ["x" * 30_000, "word " * 8_000, "line\n" * 9_000, "ä\r\n\r\n" * 3_000])
def test_a_text_without_blank_lines_is_cut_all_the_same(tmp_path: Path, text: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(text.encode())
    parts = [record.values["text"] for record in read_file(path)]
    assert "".join(parts) == text
    assert max(map(len, parts)) <= 4 * PASSAGE + 5
    assert all(part[-1].isspace() for part in parts[:-1]) or " " not in text


def test_long_white_space_is_no_passage(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(" " * 50_000 + "one\n" + "\n" * 9_000 + "two", encoding="utf-8")
    texts = [record.values["text"] for record in read_file(path)]
    assert [text.strip() for text in texts] == ["one", "two"]


def test_every_token_of_a_text_file_is_predicted_once(story: Path, plain_tokenizer: Any, tmp_path: Path) -> None:
    task = completion(file_of(story), max_length=48)
    prepared = task.prepare(plain_tokenizer, tmp_path / "cache")
    assert prepared.longest == 48
    assert not [note for note in prepared.notes if "cuts" in note]
    found: list[int] = []
    for split in ("train", "validation", "test"):
        rows = list(task.rows(prepared, split))
        assert rows
        assert max(len(row["input_ids"]) for row in rows) <= 48
        found += learnt(rows)
    passages = plain_tokenizer([record.values["text"] for record in read_file(story)], add_special_tokens=False)[
        "input_ids"
    ]
    assert sorted(found) == sorted(itertools.chain.from_iterable(ids[1:] for ids in passages))


def test_long_rows_become_rows_if_that_is_asked_for(plain_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in STORY), encoding="utf-8")
    cut, chunked = (completion(file_of(path), max_length=32, long_texts=how) for how in ("cut", "chunk"))
    kept, whole = (task.prepare(plain_tokenizer, tmp_path / "cache") for task in (cut, chunked))
    assert sum(kept.rows.values()) == len(STORY)
    assert any("max_length 32 cuts 60 of 60 rows" in note for note in kept.notes)
    assert sum(whole.rows.values()) > 5 * len(STORY)
    rows = [row for split in ("train", "validation", "test") for row in chunked.rows(whole, split)]
    tokens = [
        [*ids, plain_tokenizer.eos_token_id] for ids in plain_tokenizer(STORY, add_special_tokens=False)["input_ids"]
    ]
    assert sorted(learnt(rows)) == sorted(itertools.chain.from_iterable(ids[1:] for ids in tokens))


def test_a_study_without_the_setting_means_what_it_meant(tmp_path: Path) -> None:
    space = (
        "version: 1\nstudy: s\nmodel: ./m\ntask: {type: completion, data: rows.jsonl}\nspace: {learning_rate: auto}\n"
    )
    assert parse_space(space, "space.yaml", tmp_path).sha256.startswith(
        "29c9860278db0047"
    )  # as before there was the setting


def test_a_folder_of_texts_is_read_without_classes(plain_tokenizer: Any, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(STORY):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    task = completion(DataSettings(kind="folder", location=str(folder)), max_length=32, long_texts="chunk")
    prepared = task.prepare(plain_tokenizer, tmp_path / "cache")
    assert sum(prepared.rows.values()) > 5 * len(STORY)
    (folder / "60.txt").write_bytes(b"\xff\xfe broken")
    with pytest.raises(DataError, match=r"60\.txt: is UTF-16; UTF-8 is needed; 1 of 61 rows cannot be used"):
        task.prepare(plain_tokenizer, tmp_path / "cache")


BAD = {
    "blank": (b" \n\n \n", {}, "no rows"),
    "empty": (b"", {}, "is empty"),
    "not UTF-8": (b"good line\n\nbad \xff line\n\nand on\n", {}, "row 3: invalid UTF-8: 0xff at byte 15"),
    "NUL": (b"good line\n\nbad \0 line\n", {}, "row 3: NUL byte at byte 15"),
    "UTF-16": ("text".encode("utf-16"), {}, "is UTF-16"),
    "zip": (b"PK\x03\x04 and so on", {}, r"is compressed \(zip\)"),
    "one word": (b"word", {}, "leave none for"),
    "generation": (b"word\n\n" * 3000, {"metric": "exact_match"}, "compares responses, but the data is plain text"),
}


@pytest.mark.parametrize(("content", "values", "message"), BAD.values(), ids=BAD)
def test_a_bad_text_file_is_one_line(
    content: bytes, values: dict[str, Any], message: str, plain_tokenizer: Any, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    settings = TaskSettings(**{"type": "completion", "data": file_of(path), "metric": "loss", **values})
    with pytest.raises(DataError, match=message) as caught:
        make_task(settings).prepare(plain_tokenizer, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert "text.txt" in str(caught.value)


def test_prompts_are_not_cut_into_rows(plain_tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "response": "b"}\n' * 9, encoding="utf-8")
    with pytest.raises(DataError, match=r"long_texts: chunk is for plain texts, but the data is prompts and responses"):
        completion(file_of(path), long_texts="chunk").prepare(plain_tokenizer, tmp_path / "cache")


def test_a_classifier_cannot_be_trained_on_a_text_file(story: Path, plain_tokenizer: Any, tmp_path: Path) -> None:
    settings = TaskSettings(type="classification", data=file_of(story), metric="accuracy")
    with pytest.raises(DataError, match=r"story\.txt, row 1: no column 'label'; columns are 'text'"):
        make_task(settings).prepare(plain_tokenizer, tmp_path / "cache")
