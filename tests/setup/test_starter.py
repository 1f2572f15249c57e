"""`automl init` says when a trial by the file it writes would see too little of the data."""

from __future__ import annotations

from pathlib import Path

import pytest

from automl.errors import ConfigError
from automl.setup.starter import starting_advice, starting_space
from automl.space.template import commented_space


@pytest.mark.parametrize(
    ("rows", "classes", "said"),
    [
        (4510, 150, "sees 960 of 2,706 training rows (0.4 epochs), about 6.4 of each of 150 classes"),
        (1000, 2, ""),
    ],
)
def test_rows_and_classes_of_the_training_data_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, classes: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = (f'{{"text": "row {row}", "label": "class {row % classes}"}}\n' for row in range(rows))
    Path("data.jsonl").write_text("".join(lines), encoding="utf-8")
    found = starting_advice(commented_space("s", "org/name", "data.jsonl", "classification"))
    assert len(found) == bool(said)
    assert said in "".join(found)


def test_a_task_that_nobody_has_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"--task: unknown task 'tabel'; known: .*, table \(did you mean 'table'\?\)"):
        starting_space("./model", "data.jsonl", task_type="tabel", study=None)
