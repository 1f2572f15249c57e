"""Tasks that say something else of a text than its class: a pack follows PEFT, and exports say the same again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from automl.lora import Hyperparameters
from automl.packed.proof import disproof
from automl.packed.trainer import PackedTrainer
from automl.tasks.classification import balanced_weights, losses_by_row
from automl.training.export import evaluate_export, evaluate_merged, load_adapter, merge_adapter
from automl.training.host import SoloHost
from automl.training.runtime import HostSettings, load_runtime
from automl.trial import Measurement, TrialSpec
from tests.packed.packed_oracle import PeftRun
from tests.packed.test_exactness import distance
from tests.training.judged_cases import judged_settings, own, workload_of
from tests.training.training_cases import trial_spec

METRIC = {
    "classification": "mcc",
    "regression": "pearson",
    "multi_label": "macro_f1",
    "token_classification": "entity_f1",
}

TRIALS: dict[str, list[dict[str, Any]]] = {
    "regression": [
        {"rank": 4, "learning_rate": 2e-3},
        {"rank": 2, "learning_rate": 3e-3, "batch_size": 4, **own(regression_loss="mae")},
        {"rank": 8, "dropout": 0.2, "target": "attention", **own(regression_loss="huber")},
    ],
    "multi_label": [{"rank": 4}, {"rank": 2, "batch_size": 4}, {"rank": 8, "dropout": 0.2, "target": "attention"}],
    "token_classification": [
        {"rank": 4},
        {"rank": 2, "batch_size": 4},
        {"rank": 8, "dropout": 0.2, "target": "attention"},
    ],
    "classification": [
        {"rank": 4, **own(class_weights="balanced")},
        {"rank": 2, "batch_size": 4},
        {"rank": 8, "dropout": 0.2, "target": "attention", **own(class_weights="balanced")},
    ],
}
"""Trials of a pack that differ in what their task brings, too."""


def specs(kind: str, steps: int) -> list[TrialSpec]:
    return [
        trial_spec(number, steps=steps, **{"dropout": 0.0, "learning_rate": 2e-3, **hyper})
        for number, hyper in enumerate(TRIALS[kind])
    ]


def finished(settings: HostSettings, spec: TrialSpec) -> tuple[Measurement, Path]:
    host = SoloHost(settings, load_runtime(settings))
    host.open(spec)
    news = list(host.advance())
    while not (isinstance(news[-1], Measurement) and news[-1].step == spec.steps):
        assert all(isinstance(item, Measurement) for item in news), news
        news += host.advance()
    host.shutdown()
    return news[-1], Path(news[-1].adapter or "")


@pytest.mark.parametrize("kind", TRIALS)
def test_a_pack_of_it_follows_peft(tmp_path: Path, kind: str) -> None:
    runtime = load_runtime(judged_settings(tmp_path, kind, metric=METRIC[kind]))
    assert disproof(runtime, ["all-linear"], bank=False, recompute=False) == ""
    load, steps = workload_of(runtime), 10
    trials = [replace(spec, steps=steps) for spec in specs(kind, steps)]
    trainer = PackedTrainer(runtime.model, load)
    for trial in trials:
        trainer.admit(trial)
    members = list(trainer.members.values())
    losses = []
    for _ in range(steps):
        assert trainer.round(members) == []
        losses.append([member.loss for member in members])
    found = {
        member.number: (dict(trainer.snapshot(member.number).params), trainer.evaluate(member, 2048))
        for member in members
    }
    trainer.close()
    for place, trial in enumerate(trials):
        oracle, (parameters, metrics) = PeftRun(runtime.model, load, trial), found[trial.number]
        assert [step[place] for step in losses] == pytest.approx(oracle.losses, rel=1e-6)
        # Adam divides by roots of tiny second moments: rounding shows there more than in losses.
        assert distance(parameters, oracle.parameters) <= 1e-4 * distance(oracle.before, oracle.parameters)
        # A correlation divides by the spread of predictions, which after ten steps is little more than their rounding.
        of_spread = {name: 1e-5 if name in {"pearson", "spearman"} else 1e-6 for name in metrics}
        assert metrics.keys() == oracle.metrics.keys()
        assert all(
            value == pytest.approx(oracle.metrics[name], rel=1e-6, abs=of_spread[name])
            for name, value in metrics.items()
        )
        assert oracle.losses[-1] != pytest.approx(oracle.losses[0], rel=1e-2)


@pytest.mark.parametrize("kind", TRIALS)
def test_what_is_exported_measures_the_same(tmp_path: Path, kind: str) -> None:
    settings = judged_settings(tmp_path, kind, metric=METRIC[kind])
    last, folder = finished(settings, specs(kind, 20)[0])
    assert evaluate_export(folder, settings) == pytest.approx(last.metrics, abs=1e-6)
    merge_adapter(folder, settings, tmp_path / "merged")
    assert evaluate_merged(tmp_path / "merged", settings) == pytest.approx(last.metrics, abs=1e-4)


def test_a_reloaded_regression_speaks_in_the_unit_of_its_labels(tmp_path: Path) -> None:
    settings = judged_settings(tmp_path, "regression", metric="mae")
    last, folder = finished(settings, trial_spec(steps=40, dropout=0.0, learning_rate=1e-2))
    model, tokenizer = load_adapter(folder, settings.backbone)
    runtime = load_runtime(settings)
    errors = []
    for row in runtime.evaluation_rows:
        with torch.no_grad():
            said = model(input_ids=torch.tensor([row["input_ids"]])).logits
        errors.append(abs(float(said) - row["labels"]))
    assert sum(errors) / len(errors) == pytest.approx(last.metrics["mae"], rel=1e-4)
    assert last.metrics["mae"] < 60.0  # of labels about 490
    assert tokenizer("w1 w2")["input_ids"] == [1, 5, 6, 2]
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    scale = settings.prepared.scale
    assert scale is not None
    assert (config["label_mean"], config["label_deviation"]) == (scale.mean, scale.deviation)
    assert (config["problem_type"], config["id2label"]) == ("regression", {"0": "label"})


def test_balanced_weights_are_scikit_learns_and_change_the_loss_alone(tmp_path: Path) -> None:
    settings = judged_settings(tmp_path, "classification", metric="mcc")
    runtime = load_runtime(settings)
    labels = [row["labels"] for row in runtime.train_rows]
    expected = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert balanced_weights(labels).tolist() == pytest.approx(expected)
    plain, weighted = (
        runtime.task.for_trial(Hyperparameters(**own(**given))) for given in ({}, {"class_weights": "balanced"})
    )
    assert plain is runtime.task
    batch = runtime.batch(runtime.train_rows)
    with torch.no_grad():
        by_row = losses_by_row(runtime.model, batch)
        found, usual = weighted.loss(runtime.model, batch), plain.loss(runtime.model, batch)
    by_hand = sum(loss * expected[label] for loss, label in zip(by_row.tolist(), labels, strict=True))
    assert float(found.total) == pytest.approx(by_hand, rel=1e-5)
    assert found.count == usual.count == len(labels)
    assert float(usual.total) == pytest.approx(float(by_row.sum()), rel=1e-6) != pytest.approx(by_hand, rel=1e-3)
