"""Regression and its neighbours from `automl init` to a verified report, through the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.test_search_end_to_end import answer, automl, query
from tests.training.judged_cases import ROWS, lively_bert
from tests.training.preference_cases import write
from tests.training.training_cases import write_backbone

SMALL = {
    "  trials: 24": "  squeeze: false\n  trials: 2",
    "executor: ray": "executor: inline",
    "low: 0.0001": "low: 0.005",
    "learning_rate: 0.0014": "learning_rate: 0.01",
    "run:\n": "verify: {seeds: 3, squeeze: false}\nrun:\n  precision: fp32\n",
}
METRICS = {
    "regression": {"loss", "mse", "rmse", "mae", "r2", "pearson", "spearman"},
    "token_classification": {"loss", "tag_accuracy", "entity_f1"},
    "multi_label": {"loss", "micro_f1", "macro_f1", "subset_accuracy"},
}


def begun(folder: Path, kind: str, cache: Path, rows: list[dict[str, Any]] | None = None) -> str:
    """Text of the space file that `automl init` writes for rows of this task, which it finds out by itself."""
    write_backbone(folder / "model", "bert", model=lively_bert())
    write(folder / "rows.jsonl", rows or ROWS[kind](90))
    made = automl(folder, "init", "./model", "rows.jsonl", "-o", "space.yaml", cache=cache)
    assert made.returncode == 0, made.stderr
    text = (folder / "space.yaml").read_text(encoding="utf-8")
    assert f"type: {kind}\n" in text
    return text


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.full) for kind in ROWS if kind != "regression"] + ["regression"]
)
def test_it_is_searched_verified_and_reported(tmp_path: Path, shared_cache: Path, kind: str) -> None:
    text = begun(tmp_path, kind, shared_cache)
    text, count = re.subn(r"\n  (?:epochs|examples): \S+", "\n  steps: 10\n  evaluate_every: 5", text)
    assert count == 1
    for old, new in SMALL.items():
        assert old in text
        text = text.replace(old, new)
    space = tmp_path / "space.yaml"
    space.write_text(text, encoding="utf-8")
    plan = automl(tmp_path, "plan", str(space), cache=shared_cache)
    assert plan.returncode == 0, plan.stderr
    assert "trials packed" in plan.stdout + plan.stderr
    outcome = answer(automl(tmp_path, "search", str(space), "--json", cache=shared_cache))
    assert {name for (name,) in query(tmp_path, "SELECT DISTINCT metric FROM automl_metric_values")} == METRICS[kind]
    scores = query(tmp_path, "SELECT arm, COUNT(*) FROM automl_verification_scores GROUP BY arm")
    assert f"trial-{outcome['best']['number']}" in dict(scores)
    report = next(tmp_path.glob("automl-output/*/report.html")).read_text(encoding="utf-8")
    assert outcome["metric"] in report
    if kind == "regression":  # in a fresh process, by the lines that a user is told; of the others in tests/training
        exported = answer(automl(tmp_path, "export", "-o", "adapter", "--json", cache=shared_cache))
        assert exported["measured"] == pytest.approx(outcome["best"]["value"], rel=1e-5)
