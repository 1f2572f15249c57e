"""Importances of packed trials: those of the solo trainer, whoever else is in the pack, and the same after a move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from automl.importance.heldout import in_batches
from automl.models.inventory import resolve_targets
from automl.packed.trainer import PackedTrainer
from automl.training.runtime import Runtime
from automl.training.solo import SoloTrial, train
from automl.trial import Measurement, ModuleImportance, TrialSpec
from tests.architectures import tiny_model
from tests.packed.packed_oracle import spec, workload

TRIALS = [
    spec(0, steps=16, evaluate_every=8, rank=4, alpha=8.0, batch_size=4, target="all-linear"),
    spec(1, steps=16, evaluate_every=8, rank=2, alpha=2.0, batch_size=4, dropout=0.1, target="qv"),
    spec(2, steps=16, evaluate_every=8, rank=6, use_rslora=True, batch_size=4, clip=0.05, target="attention"),
]


def runtime(model: nn.Module, kind: str = "classification") -> Runtime:
    load = workload(kind)
    return Runtime(
        model=model,
        tokenizer=load.tokenizer,
        task=load.task,
        train_rows=load.train_rows,
        evaluation_rows=load.evaluation_rows,
        device=torch.device("cpu"),
        importance=True,
    )


def packed(model: nn.Module, kind: str = "classification", **options: Any) -> PackedTrainer:
    return PackedTrainer(model, workload(kind), importance=True, **options)


def solo_run(model: nn.Module, trial: TrialSpec, kind: str = "classification") -> list[Measurement]:
    """With what held-out rows say, on the last measurement."""
    alone = SoloTrial(trial, runtime(model, kind))
    found = []
    for measurement in train(alone):
        is_last = measurement.step == trial.steps
        found.append(alone.measure_held_out(measurement) if is_last else measurement)
    return found


def packed_run(trainer: PackedTrainer, trials: Sequence[TrialSpec]) -> dict[int, list[Measurement]]:
    found: dict[int, list[Measurement]] = {trial.number: [] for trial in trials}
    for event in trainer.train(trials, slots=len(trials)):
        assert isinstance(event, Measurement)
        is_last = event.step == trainer.members[event.trial].spec.steps
        found[event.trial].append(trainer.measure_held_out(event) if is_last else event)
    return found


def assert_close(ours: Sequence[ModuleImportance], theirs: Sequence[ModuleImportance], tolerance: float = 1e-3) -> None:
    assert [module.module for module in ours] == [module.module for module in theirs]
    largest = max(module.sensitivity for module in theirs)
    for our, their in zip(ours, theirs, strict=True):
        for name in ("sensitivity", "uncertainty", "relative_update", "effective_rank"):
            assert getattr(our, name) == pytest.approx(getattr(their, name), rel=tolerance, abs=tolerance * largest)
        assert our.components == pytest.approx(their.components, rel=tolerance, abs=tolerance * largest)
        assert (our.rank, our.step, our.samples, our.in_features) == (
            their.rank,
            their.step,
            their.samples,
            their.in_features,
        )
        if our.held_out is not None:
            assert our.held_out == pytest.approx(their.held_out, rel=10 * tolerance, abs=tolerance)


# float32 products in another order, amplified by 16 steps of training: the curves themselves agree to 1e-5.
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_packed_trials_have_the_importances_of_solo_trials(architecture: str) -> None:
    together = packed_run(packed(tiny_model(architecture)), TRIALS)
    for trial in TRIALS:
        alone = solo_run(tiny_model(architecture), trial)
        assert [measurement.step for measurement in alone] == [8, 16]
        assert [measurement.importances[0].samples for measurement in alone] == [1, 3]
        for ours, theirs in zip(together[trial.number], alone, strict=True):
            assert_close(ours.importances, theirs.importances)
        last = together[trial.number][-1]
        names = [layer.path for layer in resolve_targets(tiny_model(architecture), trial.hyper.target)]
        assert [module.module for module in last.importances] == names
        assert all(module.held_out is not None for module in last.importances)


def test_neighbours_do_not_change_a_bit() -> None:
    together = packed_run(packed(tiny_model("bert")), TRIALS)
    alone = packed_run(packed(tiny_model("bert")), TRIALS[:1])
    assert [m.importances for m in together[0]] == [m.importances for m in alone[0]]


def test_measuring_changes_no_bit_of_training() -> None:
    with_it = packed_run(packed(tiny_model("bert")), TRIALS)
    plain = PackedTrainer(tiny_model("bert"), workload())
    without = {trial.number: [] for trial in TRIALS}
    for event in plain.train(TRIALS, slots=3):
        assert isinstance(event, Measurement)
        assert event.importances == ()
        without[event.trial].append(event.metrics)
    assert {number: [m.metrics for m in found] for number, found in with_it.items()} == without


def test_looking_at_held_out_rows_changes_neither_the_trial_nor_its_neighbours() -> None:
    looked, left = packed(tiny_model("bert")), packed(tiny_model("bert"))
    states = []
    for trainer in (looked, left):
        for trial in TRIALS:
            trainer.admit(replace(trial, steps=24))
        events = trainer.advance()
        if trainer is looked:
            for event in events:
                assert isinstance(event, Measurement)
                trainer.measure_held_out(event)
        trainer.advance()
        states.append([trainer.snapshot(trial.number) for trial in TRIALS])
    for one, other in zip(*states, strict=True):
        assert all(torch.equal(one.params[name], other.params[name]) for name in one.params)
        assert all(torch.equal(one.moments[name], other.moments[name]) for name in one.moments)
        assert all(torch.equal(one.importance[name], other.importance[name]) for name in one.importance)


def test_a_parked_trial_continues_to_the_bit() -> None:
    whole = packed_run(packed(tiny_model("bert")), TRIALS[:2])
    first, second = packed(tiny_model("bert")), packed(tiny_model("bert"))
    for trial in TRIALS[:2]:
        first.admit(trial)
    first.advance()
    for trial in TRIALS[:2]:
        second.admit(trial, first.snapshot(trial.number))
    for event in second.advance():
        assert isinstance(event, Measurement)
        assert second.measure_held_out(event).importances == whole[event.trial][-1].importances


def test_a_solo_trial_goes_on_in_a_pack_with_what_it_has_gathered() -> None:
    trial = TRIALS[0]
    alone = SoloTrial(trial, runtime(tiny_model("bert")))
    generator = train(alone)
    next(generator)
    state = alone.snapshot()
    generator.close()
    trainer = packed(tiny_model("bert"))
    trainer.admit(trial, state)
    kept = trainer.snapshot(trial.number).importance
    assert all(torch.equal(kept[name], state.importance[name]) for name in state.importance)
    (event,) = trainer.advance()
    assert isinstance(event, Measurement)
    assert_close(event.importances, solo_run(tiny_model("bert"), trial)[-1].importances)


def test_what_removal_would_do_is_what_the_gradient_says() -> None:
    """Against autograd on PEFT's own tensors: -<ΔW, G> = -Σ B ⊙ ∂L/∂B, batch by batch."""
    trial = replace(TRIALS[0], steps=8)
    alone = SoloTrial(trial, runtime(tiny_model("bert")))
    for measurement in train(alone):
        found = alone.measure_held_out(measurement).importances
        rows = alone.runtime.evaluation_rows
        batches = in_batches(rows)
        effects = []
        alone.model.eval()
        weights = [(name, tensor) for name, tensor in alone.model.named_parameters() if "lora_B" in name]
        for batch in batches:
            parts = alone.runtime.task.loss(alone.model, alone.runtime.batch(batch))
            grads = torch.autograd.grad(parts.total / parts.count, [tensor for _, tensor in weights])
            effects.append([-float((t.detach() * g).sum()) for (_, t), g in zip(weights, grads, strict=True)])
        means = torch.tensor(effects).mean(dim=0).tolist()
        assert [module.held_out for module in found] == pytest.approx(means, rel=1e-4, abs=1e-7)
        assert all(module.held_out_error is None for module in found) == (len(batches) == 1)
