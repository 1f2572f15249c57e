"""Preferences from `automl init` to a verified report, through the command line; what does not fit is one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.test_search_end_to_end import answer, automl, query
from tests.training.preference_cases import TEMPLATE, lively_llama, pairs, singles, write
from tests.training.training_cases import write_backbone


def made(folder: Path, rows: list[dict[str, Any]], cache: Path, changes: dict[str, str]) -> Path:
    """The space file that `automl init` writes for these rows, with some of its text changed."""
    write_backbone(folder / "model", "llama", kind="causal-lm", model=lively_llama())
    (folder / "model" / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    write(folder / "rows.jsonl", rows)
    begun = automl(folder, "init", "./model", "rows.jsonl", "-o", "space.yaml", cache=cache)
    assert begun.returncode == 0, begun.stderr
    text = re.sub(
        r"  (?:epochs|examples): \S+ .*",
        "  steps: 10\n  evaluate_every: 5",
        (folder / "space.yaml").read_text(encoding="utf-8"),
    )
    for old, new in {**SMALL, **changes}.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "space.yaml").write_text(text, encoding="utf-8")
    return folder / "space.yaml"


SMALL = {
    "  trials: 24": "  squeeze: false\n  trials: 3",
    "executor: ray": "executor: inline",
    "low: 1.0e-05, high: 0.002": "low: 0.002, high: 0.02",
    "run:\n": "verify: {seeds: 3, squeeze: false}\nrun:\n",
}


def test_pairs_are_searched_verified_and_reported(tmp_path: Path, shared_cache: Path) -> None:
    losses = "  loss: {type: categorical, choices: [dpo, simpo, orpo]}\n  simpo_gamma: auto\n"
    rows = pairs(80, prompt=4)
    space = made(tmp_path, rows, shared_cache, {"  rank:": f"{losses}  rank:"} | NO_LOSS)
    plan = automl(tmp_path, "plan", str(space), cache=shared_cache)
    assert plan.returncode == 0, plan.stderr
    assert "trials packed" in plan.stdout + plan.stderr
    outcome = answer(automl(tmp_path, "search", str(space), "--json", cache=shared_cache))
    assert outcome["baseline"] == pytest.approx(0.5, abs=0.01)
    assert outcome["best"]["value"] > 0.6
    names = {name for (name,) in query(tmp_path, "SELECT DISTINCT metric FROM automl_metric_values")}
    assert names == {"loss", "preference_accuracy", "margin", "kl"}
    searched = {name for (name,) in query(tmp_path, "SELECT DISTINCT param_name FROM trial_params")}
    assert {"loss", "learning_rate"} <= searched
    report = next(tmp_path.glob("automl-output/*/report.html")).read_text(encoding="utf-8")
    assert "preference_accuracy" in report
    verified = query(tmp_path, "SELECT arm, COUNT(*) FROM automl_verification_scores GROUP BY arm")
    assert {"default", f"trial-{outcome['best']['number']}"} <= dict(verified).keys()
    assert all(count >= 3 for _, count in verified)
    exported = answer(automl(tmp_path, "export", "-o", "adapter", "--json", cache=shared_cache))
    assert exported["measured"] == pytest.approx(outcome["best"]["value"], abs=1e-6)


NO_LOSS = {"  loss: dpo  #": "  # loss: dpo  #"}


def test_single_labels_are_learnt_by_kto_alone(tmp_path: Path, shared_cache: Path) -> None:
    space = made(tmp_path, singles(60), shared_cache, {})
    assert "\n  loss: kto" in space.read_text(encoding="utf-8")
    space.write_text(space.read_text(encoding="utf-8").replace("  loss: kto", "  loss: ipo"), encoding="utf-8")
    for command in ("plan", "search"):
        refused = automl(tmp_path, command, str(space), cache=shared_cache)
        assert refused.returncode == 2
        said = refused.stderr.strip().splitlines()
        assert said[-1].endswith(
            "loss: ipo compares answers in pairs, and the data holds single labels; fixed: {loss: kto} learns them"
        )


def test_several_processes_for_a_trial_are_refused(tmp_path: Path, shared_cache: Path) -> None:
    space = made(tmp_path, pairs(30), shared_cache, {"executor: inline": "executor: ray\n  shards: 2"})
    refused = automl(tmp_path, "validate", str(space), cache=shared_cache)
    assert refused.returncode == 2
    assert "task.type: 'preference' is not known with shards: 2" in refused.stderr
