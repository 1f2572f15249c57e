"""A study that an older version has begun: its database, folder and slot files are upgraded, continued and reported.

`tests/recorded/begun-870b605` was written by commit 870b605: a search by halving of 12 trials, stopped when two had
ended and two were parked. It lay in /begun.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.test_search_end_to_end import answer, automl, query

RECORDED = Path(__file__).resolve().parent.parent / "recorded" / "begun-870b605"
CURVES = """
    SELECT m.trial, m.step, v.metric, v.value FROM automl_measurements m
    JOIN automl_metric_values v ON v.study_name = m.study_name AND v.trial = m.trial AND v.step = m.step
    ORDER BY 1, 2, 3
"""


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Path, list[Any], Any]:
    """The folder, its curves before, and what the search says that has gone on with it."""
    folder = tmp_path_factory.mktemp("begun")
    shutil.copytree(RECORDED, folder, dirs_exist_ok=True)
    moved_to(folder)
    upgraded = automl(folder, "db", "upgrade", cache=shared_cache)
    assert upgraded.returncode == 0, upgraded.stderr
    before = query(folder, CURVES)
    return folder, before, answer(automl(folder, "search", "space.yaml", "--json", cache=shared_cache))


def moved_to(folder: Path) -> None:
    """Let every path in the database lead into `folder`, as if the study had begun there."""
    (folder / "study.sqlite").rename(folder / "automl.db")
    with sqlite3.connect(folder / "automl.db") as connection:
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            for column in [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]:
                moved = f"UPDATE {table} SET {column} = replace({column}, :old, :new) WHERE instr({column}, :old)"
                connection.execute(moved, {"old": "/begun", "new": str(folder)})


def test_it_is_continued_to_its_end(continued: tuple[Path, list[Any], Any]) -> None:
    folder, before, outcome = continued
    counts = outcome["counts"]
    assert counts["COMPLETE"] + counts["PRUNED"] == 12
    assert counts["FAIL"] == counts["RUNNING"] == 0
    assert outcome["best"]["value"] >= 0.98, "the best of before is not lost"
    kept = set(before)
    assert kept <= set(query(folder, CURVES)), "a value that was recorded is not measured again, nor changed"


def test_what_was_parked_goes_on_from_its_slot_file_and_steps_stay_comparable(
    continued: tuple[Path, list[Any], Any],
) -> None:
    folder, _, outcome = continued
    assert query(folder, "SELECT DISTINCT step FROM automl_measurements ORDER BY step") == [(10,), (20,), (30,), (40,)]
    # No step is trained twice: the steps that were spent are those of every trial's last measurement.
    (spent,) = query(folder, "SELECT SUM(last) FROM (SELECT MAX(step) AS last FROM automl_measurements GROUP BY trial)")
    assert outcome["spent_steps"] == spent[0]


def test_it_is_reported_and_whole(continued: tuple[Path, list[Any], Any], shared_cache: Path) -> None:
    folder, _, outcome = continued
    assert answer(automl(folder, "doctor", "--json", cache=shared_cache))["violations"] == []
    report = json.loads((folder / "out" / "tiny" / "report.json").read_text(encoding="utf-8"))
    assert report["best"] == outcome["best"]["number"]
    exported = answer(
        automl(
            folder,
            "export",
            "tiny",
            "--trial",
            "2",
            "--no-check",
            "-o",
            str(folder / "x"),
            "--json",
            cache=shared_cache,
        )
    )
    assert (folder / "x" / "adapter_model.safetensors").is_file()
    assert exported["trial"] == 2
