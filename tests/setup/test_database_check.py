"""What the database holds against a file is said by `validate` and `plan`, and by a search before it prepares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from automl.cli.main import main
from automl.errors import ConfigError
from automl.setup.plan import make_plan
from automl.space.load import parse_space
from automl.space.spec import SweepSpec
from automl.storage.lease import StudyLease
from automl.storage.sql import open_database
from automl.sweep.run import run_sweep


def spec_in(folder: Path, *, warm_start: str | None = "earlier") -> SweepSpec:
    """A file whose model does not exist, so that preparing anything would raise ModelError."""
    search = {"warm_start": warm_start} if warm_start else {}
    text = (
        "version: 1\nstudy: new\nmodel: {folder: nowhere}\n"
        f"task: {{type: classification, data: nothing.csv}}\nsearch: {json.dumps(search)}\n"
        f"run: {{executor: inline, output: {folder}/output}}\nstorage: {{url: 'sqlite:///{folder}/automl.db'}}\n"
    )
    (folder / "space.yaml").write_text(text, encoding="utf-8")
    return parse_space(text, "space.yaml", folder)


def test_a_study_that_is_not_there_is_missed_before_anything_is_prepared_or_recorded(tmp_path: Path) -> None:
    spec = spec_in(tmp_path)
    for attempt in (lambda: make_plan(spec, tmp_path, probe=False), lambda: run_sweep(spec, tmp_path)):
        with pytest.raises(ConfigError, match=r"search\.warm_start: there is no study 'earlier'"):
            attempt()
    with open_database(spec.storage_url, create=False) as database:
        assert database.studies() == []


@pytest.mark.parametrize("has_database", [True, False])
def test_validate_misses_it_too(tmp_path: Path, has_database: bool, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_in(tmp_path)
    if has_database:
        open_database(spec.storage_url, create=True).close()
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(tmp_path / "space.yaml")])
    assert ended.value.code == 2
    assert "search.warm_start: there is no study 'earlier'" in capsys.readouterr().err
    assert (tmp_path / "automl.db").exists() is has_database


def test_validate_says_that_the_study_was_started_with_another_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = spec_in(tmp_path, warm_start=None)
    with open_database(spec.storage_url, create=True) as database, StudyLease(database, "new") as lease:
        lease.take("another", "sha256 of another", {})
    with pytest.raises(SystemExit) as ended:
        main(["validate", str(tmp_path / "space.yaml"), "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["advice"][0].startswith("study: 'new' was started with another space")
