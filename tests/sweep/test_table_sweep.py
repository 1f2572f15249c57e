"""A space file over a table of curves: the whole command without a model, its end, and its refusals."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from automl.cli.main import main
from automl.errors import ConfigError, InterruptedSearch, SearchError, SpaceChangedError
from automl.space.load import load_space, parse_space
from automl.space.spec import SweepSpec
from automl.storage.overview import study_totals
from automl.storage.sql import open_database
from automl.storage.trials import list_trials
from automl.sweep.run import run_sweep

SPACE = """version: 1
study: recorded
task: {{type: table, file: curves.npz, log: [lr]}}
search: {{sampler: random, trials: 12, steps: 8, evaluate_every: 1, seed: 3}}
run: {{slots: 2, output: {folder}/out}}
storage: {{url: "sqlite:///{folder}/automl.db"}}
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    write_table(tmp_path / "curves.npz", offset=0.0)
    path = tmp_path / "space.yaml"
    path.write_text(SPACE.format(folder=tmp_path), encoding="utf-8")
    return path


def write_table(path: Path, *, offset: float) -> None:
    rates = np.logspace(-5, -1, 40)
    floor = 0.1 * np.abs(np.log10(rates) + 3)[:, None] + offset
    curves = floor + np.exp(-np.arange(8) / 2)
    np.savez(path, names=np.array(["lr"]), configurations=rates[:, None], curves=curves)


def test_a_table_is_searched_without_a_model(space: Path) -> None:
    summary = run_sweep(load_space(space), space.parent / "cache")
    assert summary.counts["COMPLETE"] >= 3
    assert summary.counts["COMPLETE"] + summary.counts["PRUNED"] == 12
    assert summary.spent_steps < summary.full_steps
    assert summary.configuration is not None
    assert set(summary.configuration) == {"lr"}


def test_an_interrupted_replay_continues(space: Path) -> None:
    spec = load_space(space)
    with pytest.raises(InterruptedSearch):
        run_sweep(replace(spec, search=replace(spec.search, max_seconds=1e-6)), space.parent / "cache")
    summary = run_sweep(spec, space.parent / "cache")
    assert summary.counts["COMPLETE"] + summary.counts["PRUNED"] == 12
    with open_database(spec.storage_url, create=False) as database:
        assert database.store("recorded").sweep().runs == 2


def test_a_search_that_failed_too_often_goes_on_where_it_stopped(space: Path) -> None:
    """A trial beyond the table's 40 rows fails; what was parked before is neither ended nor lost."""
    spec = load_space(space)
    many = replace(spec, search=replace(spec.search, trials=60, max_failed_trials=3))
    with pytest.raises(SearchError, match=r"3 trials failed .* the same command goes on"):
        run_sweep(many, space.parent / "cache")
    with open_database(spec.storage_url, create=False) as database:
        store = database.store("recorded")
        left = {trial.number for trial in list_trials(database, "recorded") if trial.state == "RUNNING"}
        assert left, "parked trials are still there"
        assert "finished" not in {kind for _, kind, _ in store.events()}
    enough = replace(many, search=replace(many.search, trials=40))
    summary = run_sweep(enough, space.parent / "cache")
    assert summary.counts == {
        "COMPLETE": summary.counts["COMPLETE"],
        "PRUNED": summary.counts["PRUNED"],
        "FAIL": 3,
        "RUNNING": 0,
    }
    went_on = {trial.number for trial in summary.trials if trial.state == "COMPLETE"} & left
    assert went_on, "some of what was parked was trained to its end"


def last_of(spec: SweepSpec) -> tuple[str, str | None, int]:
    """State of the study, why its last run ended, and trials asked for."""
    with open_database(spec.storage_url, create=False) as database:
        (totals,) = study_totals(database, [spec.study])
        run = totals.last_run
        assert run is not None
        return totals.state, run.ended, run.trials


# Each of these ends with trials left by the space file; only what stopped before its end can be continued.
@pytest.mark.parametrize(
    ("changed", "state", "ended"),
    [
        ({"trials": 5}, "finished", "finished"),
        ({"patience": 3}, "finished", "finished"),
        ({"max_steps": 24}, "finished", "finished"),
        ({"max_seconds": 1e-6}, "stopped", "time"),
    ],
    ids=["fewer trials", "patience", "max_steps", "time"],
)
def test_whether_a_study_is_finished_is_said_by_how_its_last_run_ended(
    changed: dict[str, Any], state: str, ended: str, space: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = load_space(space)
    short = replace(spec, search=replace(spec.search, **changed))
    with nullcontext() if state == "finished" else pytest.raises(InterruptedSearch):
        run_sweep(short, space.parent / "cache")
    assert last_of(spec) == (state, ended, short.search.trials)
    with pytest.raises(SystemExit):
        main(["status", str(space), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert (said["state"], said["ended"], said["planned"]) == (state, ended, short.search.trials)
    # A run that is refused before any trial starts changes nothing of that.
    write_table(space.parent / "curves.npz", offset=1.0)
    with pytest.raises(SpaceChangedError):
        run_sweep(spec, space.parent / "cache")
    assert last_of(spec) == (state, ended, short.search.trials)


def test_another_table_is_refused(space: Path) -> None:
    run_sweep(load_space(space), space.parent / "cache")
    write_table(space.parent / "curves.npz", offset=1.0)
    with pytest.raises(SpaceChangedError, match="another table"):
        run_sweep(load_space(space), space.parent / "cache")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("model: ./somewhere", "model: is not used by a task of type table"),
        ("space: {rank: {type: int, low: 2, high: 8}}", "space: is not used by a task of type table"),
        ("constraints: ['rank <= 8']", "constraints: is not used by a task of type table"),
    ],
)
def test_what_a_table_does_not_need_is_refused(line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_space(SPACE.format(folder="/there") + line + "\n", "space.yaml", Path("/there"))


def test_a_table_spends_nothing_and_has_no_budget() -> None:
    text = SPACE.format(folder="/there").replace("{sampler: random", "{budget: {gpu_hours: 1}, sampler: random")
    with pytest.raises(ConfigError, match=r"search.budget: is not used by a task of type table, which trains nothing"):
        parse_space(text, "space.yaml", Path("/there"))


def test_every_other_task_needs_a_model() -> None:
    text = "version: 1\nstudy: a\nmodel:\ntask: {type: completion, data: a.jsonl}\n"
    for document in (text, text.replace("model:\n", "")):
        with pytest.raises(ConfigError, match="model: is missing; write a hub id"):
            parse_space(document, "space.yaml", Path("/there"))
