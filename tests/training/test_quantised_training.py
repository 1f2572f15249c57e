"""Trials on a backbone in 8 or 4 bits: PEFT's on the same bitsandbytes layers, and stopped as often as one likes."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest
import torch

from automl.models.inventory import quantised_layers
from automl.packed.workload import Workload
from automl.space.spec import Quantization
from automl.training.checkpoint import slot_files
from automl.training.runtime import Runtime, load_runtime
from automl.training.solo import SoloTrial, train
from tests.packed.packed_oracle import PeftRun
from tests.training.quantised_cases import DOUBLE, FP4, INT8, NF4, plainly_loaded, quantised_settings
from tests.training.training_cases import curve, run, trial_spec

CASES = [("llama", "causal-lm", DOUBLE), ("bert", "classification", FP4), ("gpt2", "causal-lm", INT8)]
IDS = ["llama-nf4-double", "bert-fp4", "gpt2-int8"]


def workload(runtime: Runtime) -> Workload:
    return Workload(
        task=runtime.task,
        train_rows=runtime.train_rows,
        evaluation_rows=runtime.evaluation_rows,
        tokenizer=runtime.tokenizer,
    )


@pytest.mark.parametrize(("name", "kind", "quantization"), CASES, ids=IDS)
def test_forty_steps_follow_peft_on_the_same_layers(
    tmp_path: Path, name: str, kind: str, quantization: Quantization
) -> None:
    settings = quantised_settings(tmp_path, name, quantization, kind=kind)
    runtime = load_runtime(settings)
    spec = trial_spec(steps=40, evaluate_every=10, learning_rate=3e-3, use_rslora=True)
    plain = plainly_loaded(tmp_path / "model", quantization, kind=kind).requires_grad_(False)
    oracle = PeftRun(plain, workload(runtime), spec)

    trial = SoloTrial(spec, runtime)
    trial.attach()
    losses = []
    for step in range(spec.steps):
        trial.take_step()
        losses.append(trial.loss)
        if step == 3:  # an evaluation between two steps changes nothing
            trial.measure()
    trial.detach()

    assert losses == pytest.approx(oracle.losses, rel=1e-5)
    assert min(losses[-8:]) < losses[0]  # the trial learns: there is something to compare


@pytest.mark.parametrize("quantization", [DOUBLE, INT8], ids=str)
def test_a_resumed_trial_is_the_undisturbed_one_bit_for_bit(tmp_path: Path, quantization: Quantization) -> None:
    settings = quantised_settings(tmp_path, "bert", quantization)
    spec = trial_spec(steps=14, evaluate_every=4)
    undisturbed = run(load_runtime(settings), spec)
    trial = SoloTrial(spec, load_runtime(settings))
    generator = train(trial)
    measurements = [next(generator)]
    state = trial.snapshot()
    next(generator)  # what comes after the snapshot is lost with the process
    generator.close()
    measurements += list(train(SoloTrial(spec, load_runtime(settings), state)))
    assert curve(measurements) == curve(undisturbed)


def test_closing_gives_the_backbone_back_untouched(tmp_path: Path) -> None:
    model = load_runtime(quantised_settings(tmp_path, "llama", NF4, kind="causal-lm"))
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    run(model, trial_spec(steps=4))
    after = model.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_adalora_trains_on_it_too(tmp_path: Path) -> None:
    runtime = load_runtime(quantised_settings(tmp_path, "bert", NF4))
    first, *_, last = run(runtime, trial_spec(steps=40, evaluate_every=10, method="adalora", learning_rate=5e-3))
    assert last.metrics["loss"] < first.metrics["loss"]


def test_dora_on_8_bits_is_the_same_on_a_backbone_that_was_used(tmp_path: Path) -> None:
    runtime = load_runtime(quantised_settings(tmp_path, "bert", INT8))
    spec = trial_spec(steps=2, evaluate_every=2, own=(("use_dora", True),))
    first, again = run(runtime, spec), run(runtime, spec)
    assert curve(first) == curve(again)


@pytest.mark.parametrize("quantization", [DOUBLE, INT8], ids=str)
def test_a_dense_weight_is_not_kept_for_the_backward_pass(tmp_path: Path, quantization: Quantization) -> None:
    """So that beside the weights in few bits one layer's buffer is needed, and not that of every layer."""
    runtime = load_runtime(quantised_settings(tmp_path, "llama", quantization, kind="causal-lm"))
    layers = quantised_layers(runtime.model)
    shapes = {shape for each in layers for shape in permutations((each.out_features, each.in_features))}
    shapes.remove(
        tuple(runtime.model.get_parameter("lm_head.weight").shape)
    )  # which is as wide, and kept as it is whole
    trial = SoloTrial(trial_spec(rank=3), runtime)
    trial.attach()
    kept: list[tuple[int, ...]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trial.take_step()
    trial.detach()
    assert kept
    assert not shapes & set(kept)


def test_an_unfinished_trial_is_another_one_once_the_backbone_is_quantised(tmp_path: Path) -> None:
    plain = quantised_settings(tmp_path, "bert", None)
    spec = trial_spec()
    held = {
        quantization: slot_files(replace(plain, backbone=replace(plain.backbone, quantization=quantization)), spec)
        for quantization in (None, NF4, DOUBLE)
    }
    assert len({str(files.identity) for files in held.values()}) == 3
    assert "quantization" not in held[None].identity
