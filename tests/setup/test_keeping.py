"""The data of `keep:`: what is wrong with it is one line, and what it shares with the training data is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from automl.errors import ConfigError, DataError
from automl.models.backbone import load_tokenizer, resolve_model
from automl.setup.keeping import prepare_keep
from automl.space.derive import derived_text
from automl.space.load import parse_space
from automl.space.spec import ModelSettings, SweepSpec
from automl.space.submitted import validated
from automl.tasks import make_task
from automl.training.kept import Keep
from tests.training.training_cases import write_backbone

SPACE = """\
version: 1
study: kept
model: ./model
task: {type: completion, data: rows.jsonl, seed: 3}
keep: general.jsonl
fixed: {max_length: 12}
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_backbone(folder, "llama", kind="causal-lm")
    return load_tokenizer(resolve_model(ModelSettings(kind="folder", location=str(folder)), folder / "cache"))


def text_of(number: int) -> str:
    return " ".join(f"w{number + place}" for place in range(8))


def lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def kept(
    folder: Path, content: bytes, tokenizer: Any, *, space: str = SPACE, trained: range = range(40)
) -> tuple[Keep | None, tuple[str, ...]]:
    """What is prepared of a file of `keep:` beside 40 rows that are trained on, and what is said of it."""
    (folder / "general.jsonl").write_bytes(content)
    label = {"label": "a"} if "classification" in space else {}
    rows = [
        {"text": text_of(number), **label, **({"label": "b"} if label and number % 2 else {})} for number in trained
    ]
    (folder / "rows.jsonl").write_bytes(lines(*rows))
    spec: SweepSpec = parse_space(space, "space.yaml", folder)
    task = make_task(spec.task)
    return prepare_keep(spec, task, task.prepare(tokenizer, folder / "cache"), tokenizer, folder / "cache")


GOOD = [{"text": text_of(number + 3) + " w2"} for number in range(5)]
WRONG = {
    "empty": (b"", ": is empty (0 bytes)"),
    "blank lines": (b"\n \n", ": holds no rows"),
    "no JSON": (lines(*GOOD) + b"{oops\n", ", row 6: "),
    "a list": (lines(*GOOD, ["w1"]), ", row 6: "),
    "another column": (lines({"content": "w1 w2"}), ", row 1: no column 'prompt'; columns are 'content'"),
    "no response": (lines({"prompt": "w1 w2"}), ", row 1: no column 'response'; columns are 'prompt'"),
    "null": (lines(*GOOD, {"text": None}), ", row 6, column 'text': text is null"),
    "a number": (lines(*GOOD, {"text": 4}), ", row 6, column 'text': text is int 4"),
    "a list of words": (lines(*GOOD, {"text": ["w1"]}), ", row 6, column 'text': text is list ['w1']"),
    "no text": (lines(*GOOD, {"text": " "}), ", row 6, column 'text': text is empty"),
    "NUL": (lines(*GOOD, {"text": "a\0b"}), ", row 6, column 'text': text holds a NUL"),
    "half a pair": (lines(*GOOD, {"text": "a\ud800"}), ", row 6, column 'text': text holds half a surr"),
    "UTF-16": ('{"text": "w1"}\n'.encode("utf-16"), ", row 1: is UTF-16"),
    "cut off": (lines({"prompt": text_of(0) * 3, "response": "w1"}), ": max_length 12 cuts off the response of every"),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=list(WRONG))
def test_rows_that_cannot_be_used_are_one_line(content: bytes, said: str, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        kept(tmp_path, content, tokenizer)
    assert str(caught.value).startswith(f"keep: {tmp_path / 'general.jsonl'}{said}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^keep: .*else\.jsonl: "):
        kept(tmp_path, b"", tokenizer, space=SPACE.replace("general", "else"))


def test_a_classifier_has_nothing_to_forget(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keep: a model of task classification writes no text, so what it forgets"):
        kept(tmp_path, lines(*GOOD), tokenizer, space=SPACE.replace("type: completion", "type: classification"))


def test_every_row_judges_whatever_its_split(tokenizer: Any, tmp_path: Path) -> None:
    found, notes = kept(tmp_path, lines(*GOOD), tokenizer)
    assert found is not None
    assert dict(found.prepared.rows) == {"train": 0, "validation": 5, "test": 0}
    assert notes == ()
    skipping = SPACE.replace("keep: general.jsonl", "keep: {data: general.jsonl, bad_rows: skip, rows: 3}")
    some, notes = kept(tmp_path, lines(*GOOD, {"text": None}), tokenizer, space=skipping)
    assert some is not None
    assert (some.prepared.rows["validation"], some.task.evaluate_rows) == (5, 3)
    assert len(notes) == 1
    assert notes[0].startswith("keep: ")


def test_rows_that_are_trained_on_are_counted(tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"text": text_of(number)} for number in range(6)]
    _, notes = kept(tmp_path, lines(*rows, *GOOD), tokenizer)
    (note,) = notes
    shared = int(note.removeprefix("keep: ").split(" ")[0])
    assert 0 < shared <= 6, "those that fell into the training rows"
    assert note == f"keep: {shared} of 11 rows are trained on, too, and say nothing of what is forgotten"


def test_the_text_that_comes_with_the_program_can_be_read(tokenizer: Any, tmp_path: Path) -> None:
    whole = "{data: {package: automl, file: tasks/texts/general.jsonl}}"
    found, notes = kept(tmp_path, b"", tokenizer, space=SPACE.replace("keep: general.jsonl", f"keep: {whole}"))
    assert found is not None
    assert found.prepared.rows["validation"] == 40
    assert all("cuts" in note for note in notes), "of 12 tokens"
    assert replace(found, task=replace(found.task, metric="perplexity")).record() != found.record()


@pytest.mark.parametrize(
    "written", ["general.jsonl", "{data: general.jsonl}", "{data: {files: {train: general.jsonl}}}"]
)
def test_a_space_file_made_from_another_one_keeps_the_same_data(written: str, tmp_path: Path) -> None:
    spec = parse_space(SPACE.replace("keep: general.jsonl", f"keep: {written}"), "space.yaml", tmp_path)
    text = derived_text(spec, study="night", heading="a night", folder=tmp_path)
    derived = parse_space(text, "night.yaml", Path("/elsewhere"))
    assert derived.keep == spec.keep
    assert spec.keep is not None
    assert spec.keep.data.files == {"train": str(tmp_path / "general.jsonl")}


@pytest.mark.parametrize("path", ["/etc/passwd.jsonl", "../up.jsonl", "~/mine.jsonl"])
def test_a_submitted_file_keeps_nothing_outside_its_folder(path: str) -> None:
    inside = validated(SPACE.replace("keep: general.jsonl", "keep: {data: general.jsonl}"))
    assert inside.keep is not None
    with pytest.raises(ConfigError, match=r"keep\.data\.train: a submitted sweep may only name files below"):
        validated(SPACE.replace("keep: general.jsonl", f"keep: {{data: {path}}}"))


def test_keep_is_no_part_of_what_a_study_means(tmp_path: Path) -> None:
    with_keep = parse_space(SPACE, "space.yaml", tmp_path)
    without = parse_space(SPACE.replace("keep: general.jsonl\n", ""), "space.yaml", tmp_path)
    bound = parse_space(SPACE + 'constraints: ["forgetting <= 0.05"]\n', "space.yaml", tmp_path)
    assert with_keep.sha256 == without.sha256 != bound.sha256
    assert [each.expression for each in bound.space.measured] == ["forgetting <= 0.05"]
    assert bound.space.constraints == without.space.constraints
