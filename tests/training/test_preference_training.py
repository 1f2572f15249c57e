"""The reference is computed once and shared, by the weights as they were; formulas; metrics; settings of a trial."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automl.lora import Hyperparameters
from automl.space.schema_preference import PreferenceTask
from automl.tasks import metrics
from automl.tasks.base import Row, Share
from automl.tasks.mixture import MixedRows
from automl.tasks.preference_losses import Said, kto_of_pairs, pair_loss
from automl.tasks.reference import LOGPS, Numbers, ReferredRows
from automl.training.export import evaluate_export, evaluate_merged, merge_adapter
from automl.training.host import SoloHost
from automl.training.runtime import HostSettings, Runtime, load_runtime
from automl.training.solo import SoloTrial, train
from automl.trial import Measurement
from tests.training.preference_cases import pairs, preference_settings, preference_spec, singles


@pytest.fixture
def settings(tmp_path: Path) -> HostSettings:
    return preference_settings(tmp_path, pairs(12))


def reference_file(settings: HostSettings, split: str) -> Path:
    (found,) = settings.prepared.path.parent.glob(f"{settings.prepared.fingerprint}.reference/*/{split}.f32")
    return found


def known(settings: HostSettings, split: str) -> int:
    """How many numbers of the reference have been computed."""
    return int((~np.isnan(np.fromfile(reference_file(settings, split), np.float32))).sum())


def last(settings: HostSettings, **own: Any) -> Measurement:
    return list(train(SoloTrial(preference_spec(4, **own), load_runtime(settings))))[-1]


def plain_logps(runtime: Runtime, row: Any) -> list[float]:
    """Sums over the answers of both texts, each text alone and without padding."""
    found = []
    for part in (slice(None, row["first"]), slice(row["first"], None)):
        ids, labels = torch.tensor([row["input_ids"][part]]), torch.tensor(row["labels"][part])
        with torch.no_grad():
            logps = runtime.model(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
        learnt = labels[1:] != -100
        found.append(float(logps[learnt].gather(1, labels[1:][learnt, None]).sum()))
    return found


def test_the_reference_is_what_the_model_says_of_each_answer(settings: HostSettings) -> None:
    runtime = load_runtime(settings)
    for place in range(4):
        row = runtime.train_rows[place]
        numbers = np.split(row[LOGPS], [row["first"]])
        assert [float(part.sum()) for part in numbers] == pytest.approx(plain_logps(runtime, row), abs=1e-5)


def test_rows_are_computed_when_they_are_drawn_and_once(settings: HostSettings) -> None:
    runtime = load_runtime(settings)
    assert known(settings, "train") == 0
    spec = preference_spec(1)
    trial = SoloTrial(spec, runtime)
    trial.attach()
    first = known(settings, "train")
    drawn = [runtime.train_rows[place] for place in range(12) if not np.isnan(raw(runtime, place)).any()]
    assert first == sum(len(row["input_ids"]) for row in drawn)
    assert len(drawn) == spec.hyper.batch_size
    trial.detach()
    broken = replace(load_runtime(settings), model=torch.nn.Identity())  # nothing can be computed any more
    assert isinstance(broken.train_rows, ReferredRows)
    assert known(settings, "train") == first


def test_a_row_that_a_mixture_has_at_many_places_is_computed_once(tmp_path: Path) -> None:
    rows = [{"input_ids": [number] * (number + 1)} for number in range(12)]
    mixed = MixedRows(rows, [Share(0.5, 2), Share(0.5, 10)], "seed")
    computed: list[int] = []

    def compute(row: Row) -> Numbers:
        computed.append(row["input_ids"][0])
        return np.array([-0.5 * token for token in row["input_ids"]], dtype=np.float32)

    referred = ReferredRows(mixed, tmp_path / "train.f32", compute)
    assert len(referred) == len(mixed) == 20
    for row in referred:
        assert list(row[LOGPS]) == [-0.5 * token for token in row["input_ids"]]
    assert sorted(computed) == list(range(12))
    assert (tmp_path / "train.f32").stat().st_size == 4 * sum(len(row["input_ids"]) for row in rows)


def raw(runtime: Runtime, place: int) -> Any:
    assert isinstance(runtime.train_rows, ReferredRows)
    return runtime.train_rows._part(place)


@pytest.mark.parametrize("method", ["lora", "full", "bitfit"])
def test_no_training_reaches_the_reference(settings: HostSettings, method: str) -> None:
    """The rows that a trial has not drawn are read behind its back, with its adapter on the model."""
    own = {"bitfit_norms": True} if method == "bitfit" else {}
    runtime = load_runtime(settings)
    expected = [plain_logps(runtime, runtime.train_rows[place]) for place in range(12)]
    reference_file(settings, "train").unlink()
    runtime = load_runtime(settings)
    trial = SoloTrial(preference_spec(3, method=method, learning_rate=1e-2, **own), runtime)
    trial.attach()
    for _ in range(3):
        trial.take_step()
    for place in range(12):
        row = runtime.train_rows[place]
        parts = np.split(row[LOGPS], [row["first"]])
        assert [float(part.sum()) for part in parts] == pytest.approx(expected[place], abs=1e-5)
    trial.detach()


def test_a_second_worker_finds_the_reference(settings: HostSettings) -> None:
    before = last(settings)
    stamp = reference_file(settings, "validation").stat().st_ino
    again = last(settings)
    assert again.metrics == before.metrics
    assert reference_file(settings, "validation").stat().st_ino == stamp


def test_a_damaged_reference_is_made_anew(settings: HostSettings) -> None:
    before = last(settings)
    reference_file(settings, "train").write_bytes(b"short")
    assert last(settings).metrics == before.metrics


def test_an_interrupted_trial_goes_on_to_the_bit(settings: HostSettings) -> None:
    spec, runtime = preference_spec(6, loss="ipo", beta=0.4), load_runtime(settings)
    whole = SoloTrial(spec, runtime)
    expected = list(train(whole))[-1]
    trial = SoloTrial(spec, runtime)
    trial.attach()
    for _ in range(3):
        trial.take_step()
    state = trial.snapshot()
    trial.detach()
    assert list(train(SoloTrial(spec, load_runtime(settings), state)))[-1].metrics == expected.metrics


def test_metrics_of_the_untuned_model_are_those_of_chance(settings: HostSettings) -> None:
    found = SoloHost(settings, load_runtime(settings)).baseline()
    assert found == pytest.approx({"loss": math.log(2), "preference_accuracy": 0.5, "margin": 0.0, "kl": 0.0}, abs=1e-4)


def test_metrics_are_those_of_the_definitions(settings: HostSettings) -> None:
    trial = SoloTrial(preference_spec(8), load_runtime(settings))
    trial.attach()
    for _ in range(8):
        trial.take_step()
    found = trial.measure().metrics
    trial.model.eval()
    leads, moved, tokens = [], 0.0, 0
    for row in trial.runtime.evaluation_rows:
        parts = np.split(row[LOGPS], [row["first"]])
        now = plain_logps(replace(trial.runtime, model=trial.model), row)
        ratios = [after - float(before.sum()) for after, before in zip(now, parts, strict=True)]
        leads.append(ratios[0] - ratios[1])
        tokens += sum(label != -100 for label in row["labels"])
        moved += per_token(trial, row)
    assert found["margin"] == pytest.approx(sum(leads) / len(leads), abs=1e-5)
    assert found["preference_accuracy"] == sum(lead > 0 for lead in leads) / len(leads)
    losses = [math.log1p(math.exp(-0.1 * lead)) for lead in leads]
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    assert found["kl"] == pytest.approx(moved / tokens, rel=1e-4)
    assert found["kl"] > 1e-3


def per_token(trial: SoloTrial, row: Any) -> float:
    total = 0.0
    for part in (slice(None, row["first"]), slice(row["first"], None)):
        ids, labels = torch.tensor([row["input_ids"][part]]), torch.tensor(row["labels"][part])
        with torch.no_grad():
            logps = trial.model(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
        learnt = (labels[1:] != -100).nonzero().squeeze(1).tolist()
        for place in learnt:
            total += 0.5 * (float(logps[place, labels[place + 1]]) - float(row[LOGPS][part][place + 1])) ** 2
    return total


def test_single_labels_are_judged_by_all_pairs() -> None:
    found = metrics.label_scores([2.0, 0.5, 0.5, -1.0], [True, True, False, False])
    assert found == {"preference_accuracy": 3.5 / 4, "margin": 1.25 - -0.25}
    assert metrics.label_scores([1.0], [True]) == {"preference_accuracy": 0.5, "margin": 0.0}


def test_single_labels_are_learnt(tmp_path: Path) -> None:
    settings = preference_settings(tmp_path, singles(24))
    runtime = load_runtime(settings)
    before = runtime.evaluate(runtime.model, runtime.evaluation_rows, 512)
    found = list(train(SoloTrial(preference_spec(30, loss="kto", batch_size=8), runtime)))[-1].metrics
    assert before["preference_accuracy"] == pytest.approx(0.5, abs=0.01)
    assert found["preference_accuracy"] > 0.9
    assert found["margin"] > 0.5


def said(*rows: tuple[float, float, int]) -> Said:
    logps, reference, tokens = zip(*rows, strict=True)
    return Said(torch.tensor(logps), torch.tensor(reference), torch.tensor(tokens))


def test_kto_of_pairs_is_that_of_its_first_version() -> None:
    """The formula with numbers by hand: log-ratios 1 and 3 chosen, -1 and 0.5 rejected."""
    chosen, rejected = said((-4.0, -5.0, 2), (-2.0, -5.0, 3)), said((-6.0, -5.0, 2), (-4.5, -5.0, 1))
    beta, points = 0.5, (0.0, 2.0)  # mean of the rejected is below 0, that of the chosen 2
    sigmoid = torch.sigmoid
    expected = (1 - sigmoid(beta * (torch.tensor([1.0, 3.0]) - points[0]))) + (
        1 - sigmoid(beta * (points[1] - torch.tensor([-1.0, 0.5])))
    )
    assert torch.allclose(kto_of_pairs(chosen, rejected, Hyperparameters(own=(("beta", 0.5),))), expected)


def test_label_smoothing_mixes_both_directions() -> None:
    chosen, rejected = said((-4.0, -5.0, 2)), said((-6.0, -5.0, 2))
    plain = float(pair_loss(chosen, rejected, Hyperparameters()))
    wrong = float(pair_loss(rejected, chosen, Hyperparameters()))
    mixed = float(pair_loss(chosen, rejected, Hyperparameters(own=(("label_smoothing", 0.2),))))
    assert mixed == pytest.approx(0.8 * plain + 0.2 * wrong)


def test_an_exported_adapter_measures_as_in_its_trial(settings: HostSettings, tmp_path: Path) -> None:
    """The merged model is compared with the backbone, not with itself, even if nothing has been computed yet."""
    host = SoloHost(settings, load_runtime(settings))
    host.open(preference_spec(8))
    (found,) = host.advance()
    assert isinstance(found, Measurement)
    assert found.adapter is not None
    adapter = Path(found.adapter)
    assert evaluate_export(adapter, settings) == pytest.approx(dict(found.metrics), abs=1e-6)
    assert json.loads((adapter / "manifest.json").read_text())["about"]["metric"]["name"] == "preference_accuracy"
    merge_adapter(adapter, settings, tmp_path / "merged")
    reference_file(settings, "validation").unlink()
    assert evaluate_merged(tmp_path / "merged", settings) == pytest.approx(dict(found.metrics), abs=1e-4)


def test_settings_of_the_task_have_names_of_their_own() -> None:
    from automl.methods.registry import METHODS, TAKEN

    names = [setting.name for setting in PreferenceTask.settings]
    brought = {setting.name for method in METHODS.built_in for setting in METHODS[method].settings}
    assert not set(names) & (brought | TAKEN)
    assert len(set(names)) == len(names)
