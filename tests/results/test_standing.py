"""Parked is not running: what is said from outside about a search that parks most of its trials."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from typer.testing import CliRunner

from automl.cli.main import app
from automl.errors import SearchError
from automl.results.standing import outlook_of
from automl.schedule.metrics import ServiceCollector
from automl.space.load import load_space
from automl.space.spec import SweepSpec
from automl.storage.lease import StudyLease
from automl.storage.overview import study_totals
from automl.storage.sql import open_database
from automl.storage.trial_pages import list_page, standing
from automl.sweep.run import run_sweep
from dashboards.api import StudyAnswer, _study
from dashboards.views import Views

SPACE = """version: 1
study: recorded
task: {{type: table, file: curves.npz, log: [lr]}}
search: {{sampler: random, trials: 24, steps: 8, evaluate_every: 1, seed: 3, max_failed_trials: 1}}
run: {{slots: 2, output: {folder}/out}}
storage: {{url: "sqlite:///{folder}/automl.db"}}
"""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> SweepSpec:
    """A search that ended in the middle: its table has 16 rows, and the 17th trial failed."""
    folder = tmp_path_factory.mktemp("standing")
    rates = np.logspace(-5, -1, 16)
    curves = 0.1 * np.abs(np.log10(rates) + 3)[:, None] + np.exp(-np.arange(8) / 2)
    np.savez(folder / "curves.npz", names=np.array(["lr"]), configurations=rates[:, None], curves=curves)
    (folder / "space.yaml").write_text(SPACE.format(folder=folder), encoding="utf-8")
    spec = load_space(folder / "space.yaml")
    with pytest.raises(SearchError):
        run_sweep(spec, folder / "cache")
    return spec


def test_parked_trials_are_counted_as_parked(stopped: SweepSpec) -> None:
    with open_database(stopped.storage_url, create=False) as database:
        (totals,) = study_totals(database, ["recorded"])
        parked = totals.counts["PARKED"]
        assert parked > 4
        assert totals.counts.get("RUNNING", 0) <= 2
        assert len(list_page(database, "recorded", states=("PARKED",))) == parked
        assert sum(each.trials for each in standing(database, "recorded") if each.state == "PARKED") == parked
        found = outlook_of(database, totals)
        assert found is not None
        assert found.steps == totals.steps
        assert 0 < found.left < 24 * 8
        assert totals.ended / totals.planned < found.share < 1


def test_pages_api_metrics_and_status_say_the_same(stopped: SweepSpec) -> None:
    with (
        open_database(stopped.storage_url, create=False) as database,
        StudyLease(database, "recorded") as lease,
    ):
        lease.take(stopped.text, stopped.sha256, {"folder": str(Path(stopped.source).parent)})
        (totals,) = study_totals(database, ["recorded"])
        found = outlook_of(database, totals)
        assert found is not None
        view = Views(database).study("recorded")
        answer = StudyAnswer(**_study(view.line))
        assert (answer.progress, answer.steps_left) == (round(found.share, 4), found.left)
        assert answer.trials["PARKED"] == totals.counts["PARKED"]
        assert all(trial.state == "RUNNING" for trial in view.running)
        assert view.eta is not None, "although not three trials have ended"
        registry = CollectorRegistry(auto_describe=False)
        registry.register(ServiceCollector(database))
        said = generate_latest(registry).decode()
        assert f'automl_study_trials{{state="PARKED",study="recorded"}} {totals.counts["PARKED"]:.1f}' in said
        assert f'automl_study_steps_left{{study="recorded"}} {found.left:.1f}' in said
    listed = CliRunner().invoke(app, ["trials", stopped.source])
    assert listed.stdout.count("PARKED") == totals.counts["PARKED"]
    shown = CliRunner().invoke(app, ["status", stopped.source])
    assert f"{totals.steps:,} of about {found.expected:,} training steps" in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["status", stopped.source, "--json"]).stdout)
    assert (told["parked"], told["steps_left"]) == (totals.counts["PARKED"], found.left)


def test_a_finished_search_has_nothing_left(tmp_path: Path, stopped: SweepSpec) -> None:
    url = f"sqlite:///{tmp_path}/automl.db"
    run = replace(stopped.run, output=tmp_path / "out")
    search = replace(stopped.search, trials=12)
    run_sweep(replace(stopped, storage_url=url, run=run, search=search), tmp_path / "cache")
    with open_database(url, create=False) as database:
        (totals,) = study_totals(database, ["recorded"])
        found = outlook_of(database, totals)
        assert found is not None
        assert (found.left, found.share) == (0, 1.0)
        assert set(totals.counts) == {"COMPLETE", "PRUNED"}
