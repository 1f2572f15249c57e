"""The space file of `automl init` has a budget by the rows and classes of the training data, and says why."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from automl.errors import ConfigError, DataError
from automl.setup.fitness import model_remarks
from automl.setup.starter import starting_space
from automl.space.load import parse_space
from tests.training.training_cases import write_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starter")
    write_backbone(folder / "model", "bert")
    write_backbone(folder / "decoder", "llama", kind="causal-lm")
    return folder


@pytest.mark.parametrize(
    ("rows", "classes", "batch_size", "epochs", "meaning"),
    [
        (4510, 150, 16, "3", "508 steps of 16 rows: 3 passes over 2,706 training rows"),
        (1000, 2, 8, "3", "225 steps of 8 rows: 3 passes over 600 training rows"),
        (60, 2, 8, "20", "90 steps of 8 rows: 20 passes over 36 training rows; as fewer steps teach little"),
        (330, 150, 8, "15.2", "377 steps of 8 rows: 15.2 passes over 198 training rows; 20 rows of each class"),
    ],
)
def test_rows_and_classes_of_the_training_data_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int, classes: int, batch_size: int, epochs: str, meaning: str
) -> None:
    monkeypatch.chdir(folder)
    lines = (f'{{"text": "w{row} w{row % 7}", "label": "class {row % classes}"}}\n' for row in range(rows))
    Path("data.jsonl").write_text("".join(lines), encoding="utf-8")
    start = starting_space("./model", "data.jsonl", task_type=None, study=None)
    assert f"  epochs: {epochs}  # of a full trial, {meaning}\n" in start.text
    assert parse_space(start.text, "space.yaml", folder).space.fixed["batch_size"] == batch_size
    assert start.advice == []
    assert "learning_rate: 0.0014}  # best on small models in sweeps of our own\n" in start.text


def test_a_trial_sees_a_part_of_what_is_too_much(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    rows = (json.dumps({"prompt": f"w{row}", "response": "w1 w2"}) for row in range(100_000))
    Path("data.jsonl").write_text("\n".join(rows), encoding="utf-8")
    start = starting_space("./decoder", "data.jsonl", task_type=None, study=None)
    seen = "32,000 of 60,000 training rows, enough to tell configurations apart; 3 passes take 5,625 steps"
    assert f"  examples: 32000  # of a full trial, 1,000 steps of 32 rows: {seen}\n" in start.text
    assert start.advice == [
        "a trial of 1,000 steps of 32 rows sees 32,000 of 60,000 training rows (0.5 epochs); 3 epochs take 5,625 steps"
    ]


def test_a_text_counts_as_the_pieces_it_is_cut_into(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    Path("book.txt").write_text("w1 w2 w3 w4\n" * 5_000, encoding="utf-8")
    start = starting_space("./decoder", "book.txt", task_type=None, study=None)
    longest = int(re.search(r"max_length: (\d+)", start.text)[1])
    rows = int(re.search(r"passes over (\d+) training rows", start.text)[1])
    assert 0.6 * 20_000 <= rows * longest <= 0.6 * 30_000, "20,000 words and the breaks of their lines"


def test_a_task_that_nobody_has_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--task: unknown task 'tabel'; known: .*, table \(did you mean 'table'\?\)"):
        starting_space("./model", "data.jsonl", task_type="tabel", study=None)


def test_what_is_no_name_of_a_study_is_refused_and_not_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError, match="study: 'a/b' is not a name"):
        starting_space("./model", "few.jsonl", task_type=None, study="a/b")


@pytest.mark.parametrize(
    ("place", "model", "data"),
    [(".", "model", "few.jsonl"), ("sub/deep", "../../model", "../../few.jsonl"), ("..", None, None)],
)
def test_paths_start_from_where_the_file_will_lie(
    folder: Path, monkeypatch: pytest.MonkeyPatch, place: str, model: str | None, data: str | None
) -> None:
    monkeypatch.chdir(folder)
    Path("few.jsonl").write_text('{"text": "w1 w2", "label": "a"}\n{"text": "w3", "label": "b"}\n', encoding="utf-8")
    start = starting_space("model", "few.jsonl", task_type=None, study=None, folder=Path(place))
    assert f"\nmodel: {model or f'./{folder.name}/model'}  #" in start.text.replace('"', "")
    assert f"\n  data: {data or f'./{folder.name}/few.jsonl'}  #" in start.text.replace('"', "")
    spec = parse_space(start.text, "space.yaml", folder / place)
    assert (spec.model.location, spec.task.data.files["train"]) == (str(folder / "model"), str(folder / "few.jsonl"))


def test_texts_leave_virtual_tokens_their_positions(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "model", "model")
    config = json.loads(Path("model/config.json").read_text(encoding="utf-8"))
    Path("model/config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}), encoding="utf-8")
    row = " ".join(f"w{number % 50}" for number in range(600))
    Path("data.jsonl").write_text(
        "".join(f'{{"text": "{row}", "label": {label}}}\n' for label in (0, 1) * 5), encoding="utf-8"
    )
    start = starting_space("./model", "data.jsonl", task_type=None, study=None, methods=("prompt", "lora"))
    spec = parse_space(start.text, "space.yaml", tmp_path)
    assert spec.task.max_length == 384
    assert model_remarks(spec) == []
    start = starting_space("./model", "data.jsonl", task_type=None, study=None)
    assert parse_space(start.text, "space.yaml", tmp_path).task.max_length == 512


@pytest.mark.parametrize(
    ("row", "task", "message"),
    [
        ('{"text": "w1 w2", "label": "a"}', None, "data.jsonl, column 'label': only one class, 'a', in the training"),
        ('{"text": "w1 w2", "label": "a"}', "classification", "column 'label': only one class, 'a'"),
        ('{"tokens": ["w1", "w2"], "tags": ["O", "O"]}', "token_classification", "column 'tags': only one class, 'O'"),
    ],
)
def test_data_of_one_class_is_refused_before_a_file_is_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, row: str, task: str | None, message: str
) -> None:
    monkeypatch.chdir(folder)
    Path("data.jsonl").write_text(f"{row}\n" * 40, encoding="utf-8")
    with pytest.raises(DataError) as refused:
        starting_space("./model", "data.jsonl", task_type=task, study=None)
    assert message in str(refused.value)


def test_of_data_that_is_not_read_to_its_end_nothing_is_said_of_classes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("sorted.csv").write_text("text,label\n" + "w1,a\n" * 200_000 + "w2,b\n", encoding="utf-8")
    start = starting_space("./model", "sorted.csv", task_type="classification", study=None)
    assert parse_space(start.text, "space.yaml", Path.cwd()).task.type == "classification"


def test_tags_are_no_classes_of_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    tags = [f"T{number}" for number in range(50)]
    row = json.dumps({"tokens": ["w1"] * len(tags), "tags": tags})
    Path("data.jsonl").write_text(f"{row}\n" * 40, encoding="utf-8")
    start = starting_space("./model", "data.jsonl", task_type="token_classification", study=None)
    assert "\n  epochs: 20  # of a full trial, 60 steps of 8 rows: 20 passes over 24 training rows; as" in start.text
    assert list(start.advice) == []
