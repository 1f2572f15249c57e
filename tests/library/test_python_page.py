"""Every block of docs/python.md runs, one after the other, in the folder of a user with a model and a data file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.architectures import save_tiny
from tests.sweep.tiny_world import make_world

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
TASKS = re.findall(r"^## (\d+\. .*?)$.*?^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the blocks share."""
    folder = tmp_path_factory.mktemp("a reader")
    make_world(folder)
    save_tiny(folder / "model", "llama", kind="classification")  # reads texts of the usual length
    (folder / "data.jsonl").rename(folder / "reviews.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("AUTOML_CACHE", str(folder / "cache"))
        yield {}


@pytest.mark.parametrize(("title", "block"), TASKS, ids=[title for title, _ in TASKS])
def test_a_task_of_the_page_runs(title: str, block: str, names: dict[str, Any]) -> None:
    exec(compile(block, f"docs/python.md, {title}", "exec"), names)


def test_the_page_has_eleven_tasks_and_the_last_ones_left_what_they_say(names: dict[str, Any]) -> None:
    assert [title.split(".")[0] for title, _ in TASKS] == [str(number) for number in range(1, 12)]
    assert len(names["raw"].trials) == 5
    written = {"reviews.html", "reviews.yaml", "my-adapter", "my-model", "mixture"}
    assert written <= {path.name for path in Path.cwd().iterdir()}
    assert json.loads(Path("my-adapter/adapter_config.json").read_text(encoding="utf-8"))["peft_type"] == "LORA"


def test_the_index_of_the_documents_names_each_of_them() -> None:
    text = (PAGE.parent / "index.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\]\(([\w./-]+\.md)\)", text))
    there = {
        path.relative_to(PAGE.parent).as_posix() for path in PAGE.parent.rglob("*.md") if path.parent.name != "adr"
    }
    assert there - {"index.md"} <= named
    assert all((PAGE.parent / name).is_file() for name in named)
