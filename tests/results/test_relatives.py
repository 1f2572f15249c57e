"""Which earlier studies a search may learn from: those with a complete trial, on such a model, for such a task."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from automl.results.recorded import GROUND
from automl.results.relatives import MOST, relatives
from automl.storage.lease import StudyLease
from automl.storage.sql import Database, open_database
from tests.study.driving import Loop, open_study, settings

TEXT = "version: 1\nstudy: {name}\nmodel: some/model\ntask: {{type: {task}, data: ./d.jsonl}}\n"
OURS = {"model": "abc", "family": "bert"}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(f"sqlite:///{tmp_path / 'studies.db'}", create=True) as opened:
        yield opened


def searched(
    database: Database, name: str, *, task: str = "classification", trials: int = 1, text: str = TEXT, **ground: str
) -> None:
    """A study that a search has left, and what it remembers of its model."""
    with StudyLease(database, name) as lease:
        lease.take(text.format(name=name, task=task), "0" * 64, {})
        store = database.store(name, guard=lease.verify)
        if ground:
            store.add_event(GROUND, ground)
        study = open_study(database, name=name, store=store, settings=settings(trials=max(1, trials), pruner="none"))
        if trials:
            Loop(study).run()


def test_models_and_tasks_of_the_same_types_are_learnt_from_the_newest_first(database: Database) -> None:
    searched(database, "same family", model="other", family="bert")
    searched(database, "another task", task="regression", **OURS)
    searched(database, "another family", model="other", family="llama")
    searched(database, "an old one on the same model", model="abc")
    searched(database, "an old one on another model", model="other")
    searched(database, "remembers nothing")
    searched(database, "has no complete trial", trials=0, **OURS)
    searched(database, "cannot be read any more", text="version: 99\n# {name} {task}\n", **OURS)
    searched(database, "ours", **OURS)
    found = relatives(database, "ours", task="classification", ground=OURS)
    assert found == ["an old one on the same model", "same family"]


def test_only_some_are(database: Database) -> None:
    for number in range(MOST + 2):
        searched(database, f"study {number}", **OURS)
    assert relatives(database, "ours", task="classification", ground=OURS) == [
        f"study {MOST + 1 - place}" for place in range(MOST)
    ]
