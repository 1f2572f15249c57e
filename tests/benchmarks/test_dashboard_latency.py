"""The benchmark of the dashboard runs, and what it fills a database with breaks no invariant that a search keeps."""

from __future__ import annotations

import json
from pathlib import Path

from automl.storage.invariants import check
from automl.storage.sql import open_database
from benchmarks import dashboard_latency
from tests.databases import fresh_sqlite


def test_every_request_is_measured(tmp_path: Path) -> None:
    dashboard_latency.main(["--quick", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["requests"]
    assert [each["name"] for each in found] == list(dashboard_latency.PATHS)
    assert all(0 < each["median"] <= each["p95"] and each["bytes"] > 0 for each in found)


def test_the_study_is_as_a_search_leaves_it(tmp_path: Path) -> None:
    with open_database(fresh_sqlite(tmp_path), create=False) as database:
        dashboard_latency.fill(database, 40)
        broken = {violation.id for violation in check(database, None, finished=False)}
    assert broken <= {"I20"}  # its trials have no attempts
