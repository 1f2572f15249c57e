"""Preferences in a pack: pairs stay together, each trial has its loss, all follow PEFT; the reference is the pack's."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from automl.packed.build import build_packed_host, disagreement, packed_host
from automl.packed.host import PackedHost
from automl.packed.kernels import KERNELS, choose_kernel
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload
from automl.training.runtime import HostSettings, Runtime, load_runtime
from automl.training.solo import SoloTrial, train
from automl.trial import Measurement, TrialSpec
from tests.packed.packed_oracle import PeftRun
from tests.packed.test_exactness import distance
from tests.training.preference_cases import pairs, preference_settings, preference_spec, singles
from tests.training.test_preference_training import reference_file

STEPS = 12
CPU = torch.device("cpu")

TRIALS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.5, "label_smoothing": 0.1, "sft_weight": 0.3},
    "ipo": {"loss": "ipo", "beta": 0.4},
    "kto": {"loss": "kto", "beta": 0.7, "undesirable_weight": 0.5},
    "orpo": {"loss": "orpo", "beta": 0.3},
    "simpo": {"loss": "simpo"},
    "cpo": {"loss": "cpo", "cpo_alpha": 0.2},
    "per token": {"length_normalization": True},
}


def specs(names: list[str]) -> list[TrialSpec]:
    """Trials that differ in loss, rank, rate and batch."""
    found = []
    for number, name in enumerate(names):
        one = preference_spec(
            STEPS, learning_rate=2e-3 * (1 + number % 3), batch_size=2 + 2 * (number % 2), **TRIALS[name]
        )
        hyper = replace(one.hyper, rank=2 + number, dropout=0.1 * (number % 2))
        found.append(replace(one, number=number, seed=30 + number, hyper=hyper))
    return found


def workload(runtime: Runtime) -> Workload:
    return Workload(
        task=runtime.task,
        train_rows=runtime.train_rows,
        evaluation_rows=runtime.evaluation_rows,
        tokenizer=runtime.tokenizer,
        evaluation_tokens=runtime.evaluation_tokens,
    )


def hold_against_peft(runtime: Runtime, trials: list[TrialSpec]) -> None:
    load = workload(runtime)
    with closing(PackedTrainer(runtime.model, load)) as trainer:
        for trial in trials:
            trainer.admit(trial)
        members = list(trainer.members.values())
        losses: dict[int, list[float]] = {member.number: [] for member in members}
        for _ in range(STEPS):
            assert trainer.round(members) == []
            for member in members:
                losses[member.number].append(member.loss)
        assert not trainer.parted
        params = {member.number: dict(trainer.snapshot(member.number).params) for member in members}
        metrics = {member.number: trainer.evaluate(member, member.evaluation_tokens) for member in members}
    for trial in trials:
        oracle = PeftRun(runtime.model, load, trial)
        # a log-probability of 20 nats is rounded to 2e-6 by float32 before two of them are compared
        assert losses[trial.number] == pytest.approx(oracle.losses, rel=1e-6, abs=2e-6), trial.hyper.own
        moved = distance(oracle.before, oracle.parameters)  # Adam divides such roundings by roots of small moments
        assert distance(params[trial.number], oracle.parameters) <= 1e-4 * moved
        assert metrics[trial.number] == pytest.approx(oracle.metrics, rel=1e-5, abs=1e-5)
        assert metrics[trial.number]["kl"] > 1e-4


def test_every_loss_of_pairs_follows_peft_in_one_pack(tmp_path: Path) -> None:
    runtime = load_runtime(preference_settings(tmp_path, pairs(12)))
    hold_against_peft(runtime, specs(list(TRIALS)))


def test_single_labels_follow_peft(tmp_path: Path) -> None:
    runtime = load_runtime(preference_settings(tmp_path, singles(24)))
    hold_against_peft(runtime, specs(["kto", "kto", "kto"]))


def test_a_parked_trial_goes_on_to_the_bit(tmp_path: Path) -> None:
    runtime = load_runtime(preference_settings(tmp_path, pairs(12)))
    trials = specs(["dpo", "ipo", "kto", "orpo"])

    def finished(trainer: PackedTrainer) -> dict[int, Any]:
        found = {}
        for event in trainer.train([], slots=4):
            assert isinstance(event, Measurement)
            found[event.trial] = (dict(event.metrics), dict(trainer.snapshot(event.trial).params))
        return found

    with closing(PackedTrainer(runtime.model, workload(runtime))) as trainer:
        for trial in trials:
            trainer.admit(trial)
        expected = finished(trainer)
    with closing(PackedTrainer(runtime.model, workload(runtime))) as trainer:
        for trial in trials:
            trainer.admit(trial)
        for _ in range(5):
            trainer.round(list(trainer.members.values()))
        states = {number: trainer.snapshot(number) for number in list(trainer.members)}
    with closing(PackedTrainer(runtime.model, workload(runtime))) as trainer:  # another process: in another order
        for trial in reversed(trials):
            trainer.admit(trial, states[trial.number])
        found = finished(trainer)
    for number, (metrics, params) in expected.items():
        assert found[number][0] == metrics
        assert all(torch.equal(tensor, found[number][1][name]) for name, tensor in params.items())


def test_pairs_stay_together_when_memory_is_short(tmp_path: Path) -> None:
    runtime = load_runtime(preference_settings(tmp_path, pairs(12)))
    trial = specs(["dpo", "ipo"])[1]
    ended = []
    for micro_batch in (4, 1):
        with closing(PackedTrainer(runtime.model, workload(runtime))) as trainer:
            trainer.admit(replace(trial, hyper=replace(trial.hyper, dropout=0.0)))
            (member,) = trainer.members.values()
            member.micro_batch = micro_batch
            for _ in range(STEPS):
                assert trainer.round([member]) == []
            ended.append(dict(trainer.snapshot(trial.number).params))
    assert distance(*ended) < 1e-5


def test_packing_is_proven_and_draws_few_rows(tmp_path: Path) -> None:
    settings = replace(preference_settings(tmp_path, pairs(60)), choices=("all-linear",))
    runtime = load_runtime(settings)
    assert disagreement(settings, runtime.model, runtime=lambda: runtime) == ""
    numbers = np.fromfile(reference_file(settings, "train"), np.float32)
    assert 0.0 < float((~np.isnan(numbers)).mean()) < 0.3


def test_a_model_that_mixes_rows_is_not_packed(tmp_path: Path) -> None:
    """A hundredth of what the first row says in every other is enough, wide as the tolerance is."""
    settings = replace(preference_settings(tmp_path, pairs(60)), choices=("all-linear",))
    runtime = load_runtime(settings)
    layer = runtime.model.get_submodule("model.layers.0.mlp")
    layer.register_forward_hook(lambda module, given, found: found + 0.01 * found[:1])
    assert "differs from PEFT's by" in (disagreement(settings, runtime.model, runtime=lambda: runtime) or "")


def test_a_host_trains_what_a_solo_trial_does(tmp_path: Path) -> None:
    settings = replace(preference_settings(tmp_path, pairs(12)), packed=True, capacity=2)
    host = build_packed_host(settings)
    assert isinstance(host, PackedHost)
    trials = specs(["dpo", "orpo"])
    for trial in trials:
        host.open(trial)
    found = {event.trial: event for event in host.advance()}
    host.shutdown()
    for trial in trials:
        alone = list(train(SoloTrial(trial, load_runtime(settings))))[-1]
        assert found[trial.number].metrics == pytest.approx(dict(alone.metrics), abs=1e-5)  # type: ignore[union-attr]


@pytest.fixture
def half(tmp_path: Path) -> HostSettings:
    settings = replace(preference_settings(tmp_path, pairs(12)), packed=True, capacity=1, precision="bf16h")
    assert choose_kernel("bf16h", CPU) in KERNELS
    return settings


def test_the_reference_of_rounded_products_is_rounded_too(half: HostSettings) -> None:
    """Whatever rounding does to log-probabilities, it does to both."""
    host = build_packed_host(half)
    assert isinstance(host, PackedHost)
    assert host.baseline() == pytest.approx(
        {"loss": np.log(2), "preference_accuracy": 0.5, "margin": 0.0, "kl": 0.0}, abs=1e-4
    )
    host.open(preference_spec(STEPS, **TRIALS["dpo"]))
    (event,) = host.advance()
    host.shutdown()
    exact = list(
        train(SoloTrial(preference_spec(STEPS, **TRIALS["dpo"]), load_runtime(replace(half, precision="fp32"))))
    )
    assert isinstance(event, Measurement)
    assert event.metrics["margin"] == pytest.approx(exact[-1].metrics["margin"], rel=0.05)
    files = sorted(half.prepared.path.parent.glob(f"{half.prepared.fingerprint}.reference/*/validation.f32"))
    one, other = (np.fromfile(file, np.float32) for file in files)
    assert 1e-5 < np.abs(one - other).max() < 0.1


def test_what_is_not_trained_in_a_pack_has_the_exact_reference(half: HostSettings) -> None:
    load_runtime(half)
    before = reference_file(half, "validation").read_bytes()
    host = packed_host(half, load_runtime(half, is_judging=False))
    host.shutdown()
    load_runtime(replace(half, precision="fp32"))
    assert before in [
        file.read_bytes()
        for file in half.prepared.path.parent.glob(f"{half.prepared.fingerprint}.reference/*/validation.f32")
    ]
    assert len(list(half.prepared.path.parent.glob(f"{half.prepared.fingerprint}.reference/*/validation.f32"))) == 2
