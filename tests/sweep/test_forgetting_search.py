"""Searches that measure what trials forget: what is stored, what a constraint does to the winner, what is drawn."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from automl.errors import SpaceChangedError
from automl.library.study import Study
from automl.results.summary import Summary
from automl.space.load import load_space
from automl.storage.invariants import check
from automl.storage.sql import open_database
from automl.sweep.run import run_sweep
from tests.sweep.test_search_end_to_end import answer, automl, query
from tests.training.preference_cases import lively_llama, write
from tests.training.training_cases import write_backbone

RATES = (0.0003, 0.003, 0.01, 0.03)
SPACE = f"""\
version: 1
study: STUDY
model: ./model
task: {{type: completion, data: rows.jsonl, metric: loss, seed: 3, evaluate_rows: 0}}
keep: {{data: general.jsonl}}
space:
  rank: {{type: int, low: 1, high: 8, log: true}}
  learning_rate: {{type: float, low: 1.0e-4, high: 1.0e-1, log: true}}
fixed: {{target: all-linear, batch_size: 4, max_length: 16, schedule: constant, warmup: 0.0}}
enqueue: [{", ".join(f"{{rank: 4, learning_rate: {rate}}}" for rate in RATES)}]
search: {{sampler: tpe, pruner: none, trials: {len(RATES)}, steps: 12, evaluate_every: 6, seed: 3, keep: 1,
  squeeze: false}}
verify: {{automatic: false, seeds: 3, squeeze: false}}
run: {{executor: inline, threads: 1, precision: fp32, slots: 2}}
"""


@torch.no_grad()
def own_texts(model: torch.nn.Module) -> list[dict[str, Any]]:
    """What the model itself says after each of some words, so that it has something to forget."""
    first, texts = 4, []  # the tokens before are no words
    for start in range(24):
        ids = [1, first + start]
        for _ in range(8):
            ids.append(first + int(model(torch.tensor([ids])).logits[0, -1, first:].argmax()))
        texts.append({"text": " ".join(f"w{token - first}" for token in ids[1:])})
    return texts


def world(folder: Path) -> Path:
    """A model, rows of a few of its words to learn, and what the model says by itself to keep."""
    model = lively_llama().eval()
    write_backbone(folder / "model", "llama", kind="causal-lm", model=model)
    rng = random.Random(4)
    pairs = [(rng.randrange(30, 50), rng.randrange(30, 50)) for _ in range(90)]
    write(folder / "rows.jsonl", [{"text": f"w{one} w{one} w{other} w{other}"} for one, other in pairs])
    write(folder / "general.jsonl", own_texts(model))
    return folder


def search(folder: Path, cache: Path, study: str, changes: dict[str, str] | None = None) -> Summary:
    text = SPACE.replace("STUDY", study)
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    path = folder / f"{study}.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return run_sweep(load_space(path), cache)


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> tuple[Path, Summary]:
    """The folder of a search that measures forgetting and is free to forget, and its summary."""
    folder = world(tmp_path_factory.mktemp("forgetting"))
    return folder, search(folder, shared_cache, "free")


def forgotten(summary: Summary) -> list[float]:
    """What each trial has forgotten, by number; all are known."""
    found = [row.forgetting for row in summary.trials]
    return [value for value in found if value is not None]


def test_every_finished_trial_knows_what_it_forgot(free: tuple[Path, Summary]) -> None:
    folder, summary = free
    values = forgotten(summary)
    assert len(values) == len(RATES)
    assert abs(values[0]) < 0.1 < 0.3 < max(values[2:]), "small steps forget nothing, large ones much"
    stored = query(folder, "SELECT trial, step, metric, value FROM automl_metric_values WHERE study_name = 'free'")
    kept = {trial: value for trial, step, metric, value in stored if metric == "kept" and step == 12}
    told = {trial: value for trial, step, metric, value in stored if metric == "forgetting" and step == 12}
    assert [told[number] for number in range(4)] == values
    untuned = {round(kept[number] - told[number], 6) for number in kept}
    assert len(untuned) == 1, "one untuned model, measured once"
    assert {metric for _, step, metric, _ in stored if step == 6} == {"loss", "perplexity"}


def test_a_constraint_changes_the_winner(free: tuple[Path, Summary], shared_cache: Path) -> None:
    folder, summary = free
    assert summary.best is not None
    worst = summary.best.forgetting
    others = sorted(value for value in forgotten(summary) if worst is not None and value < worst)
    assert worst is not None
    assert others, "the best one is not the one that forgot least"
    limit = (others[-1] + worst) / 2
    changes = {"search:": f'constraints: ["forgetting <= {limit}"]\nsearch:'}
    bound = search(folder, shared_cache, "bound", changes)
    assert forgotten(bound) == forgotten(summary), "the same trials were trained"
    assert bound.best is not None
    assert bound.best.number != summary.best.number
    assert bound.best.forgetting is not None
    assert bound.best.forgetting <= limit
    out = bound.trials[summary.best.number]
    assert (out.state, out.stop_reason, out.steps, out.adapter) == ("PRUNED", "infeasible", 12, None)
    kept = [path.name for path in (folder / "automl-output/bound/adapters").iterdir()]
    assert kept == [f"trial-{bound.best.number:05d}"], "those of trials that do not count are gone"
    violated = query(folder, "SELECT value_json FROM trial_system_attributes WHERE key LIKE '%:measured'")
    assert [json.loads(value) for (value,) in violated] == [pytest.approx(worst - limit)]
    with open_database(f"sqlite:///{folder / 'automl.db'}", create=False) as database:
        assert check(database, "bound", finished=True, max_trials=len(RATES)) == []


def test_forgetting_is_minimised_beside_the_metric(free: tuple[Path, Summary], shared_cache: Path) -> None:
    """Trained alone, by PEFT, where the others were packed: both forget alike."""
    folder, summary = free
    changes = {"pruner: none": "also_minimize: forgetting", "slots: 2": "slots: 1"}
    both = search(folder, shared_cache, "both", changes)
    assert forgotten(both) == pytest.approx(forgotten(summary), rel=1e-3, abs=1e-4)
    assert [row.size for row in both.trials] == forgotten(both)
    front = [(row.size or 0.0, row.value or 0.0) for row in both.front]
    assert front == sorted(front)
    assert len(front) > 1
    assert both.best == both.front[-1]


def test_commands_and_reports_show_it(free: tuple[Path, Summary], shared_cache: Path) -> None:
    folder, summary = free
    assert summary.best is not None
    listed = automl(folder, "trials", "free", cache=shared_cache)
    assert "forgetting" in listed.stdout
    assert f"{summary.best.forgetting:.4f}" in listed.stdout
    rows: Any = answer(automl(folder, "trials", "free", "--json", cache=shared_cache))
    assert {row["forgetting"] for row in rows} == set(forgotten(summary))
    assert "on other text it forgets" in automl(folder, "status", "free", cache=shared_cache).stdout
    shown = query(folder, "SELECT forgetting FROM automl_leaderboard WHERE study_name = 'free' ORDER BY trial")
    assert [value for (value,) in shown] == forgotten(summary)
    assert [trial.forgetting for trial in Study("free", f"sqlite:///{folder / 'automl.db'}").trials] == forgotten(
        summary
    )
    report: Any = json.loads((folder / "automl-output/free/report.json").read_text(encoding="utf-8"))
    assert report["forgetting"]["metric"] == "loss"
    assert report["forgetting"]["front"][-1] == summary.best.number
    page = (folder / "automl-output/free/report.html").read_text(encoding="utf-8")
    assert 'data-for="chart-forgetting"' in page


def test_a_verification_measures_it_on_fresh_seeds(free: tuple[Path, Summary], shared_cache: Path) -> None:
    folder, summary = free
    assert summary.best is not None
    assert summary.best.forgetting is not None
    verified: Any = answer(automl(folder, "verify", "free", "--seeds", "3", "--json", cache=shared_cache))
    arm = next(arm for arm in verified["arms"] if arm["trial"] == summary.best.number)
    found = arm["forgetting"]
    assert found["seeds"] == 3
    assert found["low"] <= found["mean"] <= found["high"]
    assert found["mean"] == pytest.approx(summary.best.forgetting, rel=0.5), "other seeds of the same configuration"
    assert f"forgets {found['mean']:+.4f} [" in verified["headline"]


@pytest.mark.full
def test_a_study_that_goes_on_may_begin_to_measure(free: tuple[Path, Summary], shared_cache: Path) -> None:
    folder, with_keep = free
    without = search(folder, shared_cache, "later", {"keep: {data: general.jsonl}\n": ""})
    assert [row.value for row in without.trials] == [row.value for row in with_keep.trials], "to the bit"
    assert {row.forgetting for row in without.trials} == {None}
    names = query(folder, "SELECT DISTINCT metric FROM automl_metric_values WHERE study_name = 'later'")
    assert {name for (name,) in names} == {"loss", "perplexity"}
    changed = {f"trials: {len(RATES)}": f"trials: {len(RATES) + 1}"}
    summary = search(folder, shared_cache, "later", changed)
    assert [row.forgetting is None for row in summary.trials] == [True] * len(RATES) + [False]
    with pytest.raises(SpaceChangedError, match="measures forgetting on other data, or by another metric"):
        search(folder, shared_cache, "later", {**changed, "{data: general.jsonl}": "{data: rows.jsonl}"})
