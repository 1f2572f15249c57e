"""Sequence to sequence from `automl init` to a verified report, through the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.sweep.test_search_end_to_end import answer, automl, query
from tests.training.preference_cases import lively_llama, write
from tests.training.seq2seq_cases import Rows, lively, mirrored
from tests.training.training_cases import write_backbone

SMALL = {
    r"\n  trials: \d+": "\n  squeeze: false\n  trials: 2",
    r"\n  (?:epochs|examples): \S+": "\n  steps: 10\n  evaluate_every: 5",
    "executor: ray": "executor: inline",
    "\nrun:\n": "\nverify: {seeds: 3, squeeze: false}\nrun:\n  precision: fp32\n",
    "\n  metric: loss": "\n  max_new_tokens: 8\n  metrics: [bleu, exact_match]\n  metric: loss",
}


def begun(folder: Path, name: str, cache: Path, rows: Rows, *options: str) -> str:
    """Text of the space file that `automl init` writes for this model and these rows."""
    write_backbone(folder / "model", name, model=lively(name))
    write(folder / "rows.jsonl", rows)
    made = automl(folder, "init", "./model", "rows.jsonl", "-o", "space.yaml", *options, cache=cache)
    assert made.returncode == 0, made.stderr
    return (folder / "space.yaml").read_text(encoding="utf-8")


def small(folder: Path, text: str) -> str:
    for pattern, new in SMALL.items():
        text, count = re.subn(pattern, new, text)
        assert count == 1, pattern
    (folder / "space.yaml").write_text(text, encoding="utf-8")
    return str(folder / "space.yaml")


def as_instructions(rows: Rows) -> Rows:
    return [{"prompt": row["source"], "response": row["target"]} for row in rows]


@pytest.mark.parametrize("name", ["t5", pytest.param("mt5", marks=pytest.mark.full)])
def test_it_is_searched_verified_and_reported(tmp_path: Path, shared_cache: Path, name: str) -> None:
    rows = mirrored(90) if name == "t5" else as_instructions(mirrored(90))
    text = begun(tmp_path, name, shared_cache, rows)
    assert "  type: seq2seq\n" in text
    assert "  max_target_length: 16  # tokens of a target" in text
    assert ("columns: {source: prompt, target: response}" in text) == (name == "mt5")
    space = small(tmp_path, text)
    checked = automl(tmp_path, "validate", space, cache=shared_cache)
    assert checked.returncode == 0, checked.stderr
    plan = automl(tmp_path, "plan", space, cache=shared_cache)
    assert plan.returncode == 0, plan.stderr
    assert "trials packed" in plan.stdout + plan.stderr
    outcome = answer(automl(tmp_path, "search", space, "--json", cache=shared_cache))
    measured = {name for (name,) in query(tmp_path, "SELECT DISTINCT metric FROM automl_metric_values")}
    assert measured == {"loss", "perplexity", "exact_match", "rouge_l", "bleu"}
    scores = query(tmp_path, "SELECT arm, COUNT(*) FROM automl_verification_scores GROUP BY arm")
    assert f"trial-{outcome['best']['number']}" in dict(scores)
    report = next(tmp_path.glob("automl-output/*/report.html")).read_text(encoding="utf-8")
    assert outcome["metric"] in report
    exported = answer(automl(tmp_path, "export", "-o", "adapter", "--json", cache=shared_cache))  # a fresh process
    assert exported["measured"] == pytest.approx(outcome["best"]["value"], rel=1e-5)
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["task_type"] == "SEQ_2_SEQ_LM"


@pytest.mark.full
def test_classes_are_searched_as_words(tmp_path: Path, shared_cache: Path) -> None:
    rows = [{"text": row["source"], "label": "w5" if n % 2 else "w9"} for n, row in enumerate(mirrored(90))]
    text = begun(tmp_path, "t5", shared_cache, rows, "--task", "seq2seq", "--method", "prompt")
    assert "columns: {source: text, target: label}" in text
    small(tmp_path, text)
    space = tmp_path / "space.yaml"
    chosen = space.read_text(encoding="utf-8").replace(
        "metrics: [bleu, exact_match]\n  metric: loss", "metric: exact_match"
    )
    space.write_text(chosen, encoding="utf-8")
    outcome = answer(automl(tmp_path, "search", str(space), "--json", cache=shared_cache))
    assert outcome["metric"] == "exact_match"
    exported = answer(automl(tmp_path, "export", "-o", "adapter", "--json", cache=shared_cache))
    assert exported["measured"] == pytest.approx(outcome["best"]["value"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "task", "expected"),
    [
        (
            "t5",
            "instruction",
            "task.type: 't5' is an encoder with a decoder, and task instruction trains a decoder alone",
        ),
        ("bart", "preference", "task.type: 'bart' is an encoder with a decoder, and task preference trains a decoder"),
        ("llama", "seq2seq", "task.type: 'llama' has no encoder with a decoder behind it, which is what task seq2seq"),
    ],
)
def test_validate_knows_which_models_a_task_is_for(
    tmp_path: Path, shared_cache: Path, name: str, task: str, expected: str
) -> None:
    write_backbone(tmp_path / "model", name, model=lively_llama() if name == "llama" else lively(name))
    text = f"version: 1\nstudy: s\nmodel: ./model\ntask: {{type: {task}, data: none.jsonl}}\nspace: {{rank: auto}}\n"
    (tmp_path / "space.yaml").write_text(text, encoding="utf-8")
    found = automl(tmp_path, "validate", "space.yaml", cache=shared_cache)
    assert found.returncode == 2
    assert expected in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
