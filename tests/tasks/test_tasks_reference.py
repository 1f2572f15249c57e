"""The reference page names everything that exists, and nothing of the tables' first columns is missing from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from automl.errors import ConfigError
from automl.metric import METRICS
from automl.space.entries import TASKS
from automl.space.spec import DataSettings, TaskSettings
from automl.tasks import make_task
from automl.tasks.conversation import FORMATS

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "tasks.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*TASKS.built_in, *METRICS.built_in])
def test_the_page_names(name: str) -> None:
    assert f"`{name}`" in PAGE


@pytest.mark.parametrize("name", FORMATS)
def test_the_page_names_the_format(name: str) -> None:
    assert f"`format: {name}`" in PAGE


@pytest.mark.parametrize("name", METRICS.built_in)
def test_the_page_says_the_direction_of(name: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
    assert METRICS[name].direction in row
    assert ("all" in row) or all(task in row for task in METRICS[name].tasks)


def test_an_unknown_task_lists_the_known_ones() -> None:
    settings = TaskSettings(type="clasification", data=DataSettings(kind="files"), metric="loss")
    expected = (
        r"unknown task 'clasification'; known: classification, completion, instruction, multi_label,"
        r" token_classification, regression, seq2seq, preference, table \(did you"
    )
    with pytest.raises(ConfigError, match=expected):
        make_task(settings)
