"""Drivers die by SIGKILL; the study ends as if they had not. More of it, and Ray's workers: `scripts/faults --ci`."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tests.faults.drive import SETTINGS
from tests.faults.kill import Outcome, check, run


@pytest.mark.slow
def test_killed_drivers_lose_nothing_inline(tmp_path: Path) -> None:
    outcome = run(tmp_path, "inline", kills=3, seed=20)
    assert outcome.problems == []
    assert outcome.kills  # at most 3: a fast machine may be done before
    # The checker can fail: a value that was acknowledged and is gone, a trial that was counted and is not.
    with sqlite3.connect(tmp_path / "search.db") as database:
        database.execute("DELETE FROM automl_metric_values WHERE step = 2 AND trial = 0")
        database.execute("DELETE FROM automl_measurements WHERE step = 2 AND trial = 0")
        database.execute("UPDATE trials SET state = 'FAIL' WHERE number = 1")
    problems = check(tmp_path, Outcome(seed=20, kills=outcome.kills))
    assert any(problem.startswith("acknowledged, but not in SQL: (0, ") for problem in problems)
    assert f"{SETTINGS.trials - 1} trials counted, {SETTINGS.trials} asked for" in problems
