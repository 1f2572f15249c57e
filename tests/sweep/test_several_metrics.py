"""Metrics beside the objective: measured once for each trial, and shown wherever its value is."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

import automl
from automl.cli.main import main
from tests.training.preference_cases import lively_llama
from tests.training.training_cases import write_backbone, write_rows

SEARCH: dict[str, Any] = {
    "space": {"learning_rate": automl.Float(1e-3, 3e-2, log=True)},
    "fixed": {"target": "all-linear", "batch_size": 8, "max_length": 16},
    "sampler": "random",
    "pruner": "none",
    "trials": 2,
    "steps": 6,
    "evaluate_every": 3,
    "run": {"executor": "inline", "threads": 1, "precision": "fp32"},
    "squeeze": False,
    "show_progress": False,
}


def said(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(command))
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_metrics_beside_the_objective(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_backbone(tmp_path / "model", "llama", kind="causal-lm", model=lively_llama())
    write_rows(tmp_path / "rows.jsonl", rows=60)
    monkeypatch.chdir(tmp_path)
    task = {"type": "completion", "metrics": ["rouge_l", "perplexity"], "max_new_tokens": 3, "generate_rows": 8}
    study = automl.search("./model", "rows.jsonl", study="several", task=task, **SEARCH)
    with sqlite3.connect(tmp_path / "automl.db") as database:
        steps = "SELECT metric, GROUP_CONCAT(DISTINCT step) FROM automl_metric_values GROUP BY metric"
        assert dict(database.execute(steps)) == {
            "loss": "3,6",
            "perplexity": "3,6",
            "rouge_l": "6",
            "exact_match": "6",  # comes with what is written
        }
        written = dict(
            database.execute("SELECT trial, value FROM automl_metric_values WHERE metric = 'rouge_l' AND step = 6")
        )
    assert {trial.number: trial.metrics["rouge_l"] for trial in study.trials} == written
    assert all(set(trial.metrics) == {"rouge_l", "perplexity"} for trial in study.trials)
    assert [record["metrics_rouge_l"] for record in study.trials.records()] == [written[0], written[1]]
    status = json.loads(said(capsys, "status", "several", "--json"))
    assert status["metrics"] == ["rouge_l", "perplexity"]
    assert status["best"]["metrics"]["rouge_l"] == written[status["best"]["number"]]
    assert "rouge_l" in said(capsys, "trials", "several")
    page = study.report(tmp_path / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert "| loss | rouge_l | perplexity |" in page
