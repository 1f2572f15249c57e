"""Whoever is asked which trial is the best names the same one, ties and second objectives included."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from sqlalchemy import text

import automl
from automl.cli.main import main
from automl.errors import SearchError
from automl.metric import METRICS
from automl.ranking import best
from automl.report.document import document
from automl.report.findings import findings
from automl.report.write import study_frame
from automl.results.suggestion import suggestion_of
from automl.results.summary import markdown, summarise
from automl.setup.prepare import Derivation
from automl.space.load import parse_space
from automl.space.spec import SweepSpec
from automl.storage.lease import StudyLease
from automl.storage.overview import study_totals
from automl.storage.sql import Database, open_database
from automl.storage.squeezes import store_squeeze
from automl.storage.trial_pages import list_page
from automl.storage.trials import best_trials, list_trials
from automl.study.study import Study
from automl.study.warm_start import best_of_earlier
from automl.sweep.export import export_trial
from automl.trial import Measurement, StopReason, TrialFailure, TrialSpec
from automl.verify.arms import Candidates
from tests.architectures import tiny_model
from tests.dashboards.serving import site
from tests.databases import fresh_sqlite
from tests.results.test_suggestion import MODULES, modules, squeezed
from tests.study.driving import derive

# The first value of a row is the accuracy, its rank decides about the size; 1 diverges after a value beyond all others.
TRIALS = ((0.7, 5), (0.99, 6), (0.9, 8), (0.9, 4), (0.9, 4), (0.8, 3), (0.85, 7))
DIVERGED = 1
SPACE = """
version: 1
study: {study}
model: ./model
task: {{type: classification, data: rows.jsonl, metric: {metric}}}
space:
  rank: {{type: int, low: 1, high: 16}}
  learning_rate: {{type: float, low: 1.0e-5, high: 1.0e-1, log: true}}
fixed: {{alpha_ratio: 2, target: all-linear}}
enqueue: [{configurations}]
search: {{trials: 7, steps: 40, evaluate_every: 20, sampler: random, pruner: none{second}}}
"""


@dataclass(frozen=True)
class Case:
    study: str
    metric: str
    second: str
    best: int


CASES = [
    Case("one", "accuracy", "", 2),
    Case("least", "loss", "", 2),
    Case("two", "accuracy", "trainable_params", 3),
]


def value(case: Case, number: int) -> float:
    accuracy = TRIALS[number][0]
    return accuracy if case.metric == "accuracy" else 1.0 - accuracy


def spec_of(case: Case, folder: Path) -> SweepSpec:
    configurations = ", ".join(f"{{rank: {rank}, learning_rate: {1e-4 * 2**n}}}" for n, (_, rank) in enumerate(TRIALS))
    second = f", also_minimize: {case.second}" if case.second else ""
    given = {"study": case.study, "metric": case.metric, "configurations": configurations, "second": second}
    return parse_space(SPACE.format(**given), "space.yaml", folder)


def drive(database: Database, spec: SweepSpec, case: Case) -> Study:
    """The study as a driver leaves it; a second call opens it again, and has nothing left to do."""
    study = Study(
        name=spec.study,
        storage=database.optuna_storage(),
        store=database.store(spec.study),
        space=spec.space,
        settings=spec.search,
        metric=spec.task.metric,
        run=1,
        derive=derive,
        space_sha256=spec.sha256,
    )
    while not study.finished:
        trial = study.next(0)
        assert trial is not None
        for step in (20, 40):
            study.report([measured(case, trial, step)])
            study.decide([trial.number])
            if trial.number == DIVERGED:
                study.fail(TrialFailure(trial=DIVERGED, step=step, reason=StopReason.DIVERGED, message=""))
                break
    study.close()
    return study


def measured(case: Case, trial: TrialSpec, step: int) -> Measurement:
    metrics = {"accuracy": 0.5, "loss": 0.5, case.metric: value(case, trial.number)}
    carried = modules(list(MODULES), trial.hyper.rank, seed=trial.number) if step == trial.steps else ()
    return Measurement(trial=trial.number, step=step, metrics=metrics, seconds=1.0, tokens=9, importances=carried)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database with one study of each kind."""
    folder = tmp_path_factory.mktemp("ranked")
    url = fresh_sqlite(folder)
    with open_database(url, create=False) as database:
        for case in CASES:
            spec = spec_of(case, folder)
            with StudyLease(database, spec.study) as lease:
                lease.take(spec.text, spec.sha256, {"folder": str(folder)})
            drive(database, spec, case)
    return url


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    with open_database(url, create=False) as opened:
        yield opened


pytestmark = pytest.mark.parametrize("case", CASES, ids=lambda case: case.study)


def test_the_driver_names_it_while_it_runs_and_when_it_is_back(database: Database, case: Case, tmp_path: Path) -> None:
    again = drive(database, spec_of(case, tmp_path), case).best()
    assert again is not None
    assert (again.number, again.value) == (case.best, value(case, case.best))


def test_lists_and_summary_name_it(database: Database, case: Case, tmp_path: Path) -> None:
    direction = METRICS[case.metric].direction
    rows = list_trials(database, case.study)
    found = best(rows, direction)
    assert found is not None
    assert found.number == case.best
    assert best_trials(database, case.study, direction, 1) == [found]
    assert [row.number for row in list_page(database, case.study, order="best")] == [
        row.number for row in best_trials(database, case.study, direction, 99)
    ], "the order of pages, which is made in SQL, is that of Python"
    (totals,) = study_totals(database, [case.study])
    assert (totals.best, totals.direction) == (found.value, direction)
    summary = summarise(database, spec_of(case, tmp_path))
    assert summary.best == found
    assert f"Trial {case.best} is the best" in markdown(summary)
    assert (case.best in [row.number for row in summary.front]) == bool(case.second)


def test_the_ready_view_puts_it_first(database: Database, case: Case) -> None:
    query = text("SELECT trial FROM automl_leaderboard WHERE study_name = :study AND place = 1 ORDER BY trial")
    with database.reading("ask") as connection:
        assert connection.execute(query, {"study": case.study}).scalars().first() == case.best


def test_the_report_names_it(database: Database, case: Case, tmp_path: Path) -> None:
    frame = study_frame(database, spec_of(case, tmp_path))
    said = document(frame, findings(frame))
    assert said["best"] == case.best
    assert f"Trial {case.best} is the best on validation rows" in " ".join(said["findings"])
    assert case.best in said["pareto"] or not case.second


def test_verification_starts_from_it(database: Database, case: Case, tmp_path: Path) -> None:
    derivation = Derivation(tiny_model("bert", kind="classification"), {})
    rows = list_trials(database, case.study)
    found = Candidates(rows, spec_of(case, tmp_path).space, derivation, metric=case.metric, rows=100)
    assert found.finalists(3)[0].trial == case.best
    assert found.best_value == value(case, case.best)


def test_ranks_are_suggested_for_it(database: Database, case: Case) -> None:
    for number in range(len(TRIALS)):
        row = squeezed(number, rank=4, names=list(MODULES))
        store_squeeze(database, case.study, row, guard=lambda connection: None)
    assert suggestion_of(database, case.study).trial == case.best


def test_another_study_begins_with_it(database: Database, case: Case, tmp_path: Path) -> None:
    loan = best_of_earlier(database.optuna_storage(), case.study, spec_of(case, tmp_path).space)
    assert loan.configurations[0]["learning_rate"] == pytest.approx(1e-4 * 2**case.best)


def test_it_is_what_is_exported(database: Database, case: Case, tmp_path: Path) -> None:
    spec = replace(spec_of(case, tmp_path), study=case.study)
    with pytest.raises(SearchError, match=f"the adapter of trial {case.best} is not on this machine"):
        export_trial(database, spec, tmp_path / "out", None, merged=False, check=False)


def test_the_commands_name_it(url: str, case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    named = {}
    for command in ("best", "status", "trials"):
        with pytest.raises(SystemExit):
            main([command, case.study, "--db", url, "--json"])
        answer = json.loads(capsys.readouterr().out)
        named[command] = answer[0]["number"] if isinstance(answer, list) else answer["best"]["number"]
    assert named == dict.fromkeys(named, case.best)


def test_python_names_it(url: str, case: Case) -> None:
    study = automl.open_study(case.study, url)
    assert study.best.number == case.best
    assert (case.best in [trial.number for trial in study.front]) == bool(case.second)
    if not case.second:
        assert study.optuna.best_trial.number == case.best, "Optuna's own rule, where it has one"


def test_the_dashboard_shows_it_first(url: str, case: Case) -> None:
    with site(url) as served:
        detail = served.ask(f"/api/v1/studies/{case.study}").json
        page = served.ask(f"/api/v1/studies/{case.study}/trials?order=best").json
    assert detail["best_trials"][0]["number"] == page["trials"][0]["number"] == case.best
    assert detail["best"] == pytest.approx(value(case, case.best))
