"""A quantised backbone under many trials: exact, proven, made dense once for all of them, and small."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from automl.models.backbone import load_backbone
from automl.models.inventory import quantised_layers
from automl.models.quantised import is_quantised
from automl.packed.bank import BankSize
from automl.packed.proof import disproof
from automl.packed.trainer import PackedTrainer
from automl.space.spec import Quantization
from automl.training.runtime import load_runtime
from tests.architectures import LABELS
from tests.packed.packed_oracle import PeftRun, spec, workload
from tests.packed.test_exactness import distance, mixed_trials, packed
from tests.training.quantised_cases import DOUBLE, FP4, INT8, NF4, quantised_settings

CASES = [("bert", "classification", DOUBLE), ("llama", "causal-lm", FP4), ("gpt2", "causal-lm", INT8)]
IDS = ["bert-nf4-double", "llama-fp4", "gpt2-int8"]


def loaded(folder: Path, name: str, kind: str, quantization: Quantization) -> nn.Module:
    settings = quantised_settings(folder, name, quantization, kind=kind)
    labels = LABELS if kind == "classification" else ()
    return load_backbone(settings.backbone, kind, labels)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "kind", "quantization"), CASES, ids=IDS)
def test_forty_steps_of_mixed_trials_follow_peft_on_the_same_layers(
    tmp_path: Path, name: str, kind: str, quantization: Quantization
) -> None:
    trials = mixed_trials(3e-3)[1::2]
    model = loaded(tmp_path, name, kind, quantization)
    curves = packed(model, kind, trials)
    for trial in trials:
        oracle, curve = PeftRun(model, workload(kind), trial), curves[trial.number]
        assert curve.losses == pytest.approx(oracle.losses, rel=1e-5), trial.number
        assert distance(curve.parameters, oracle.parameters) <= 1e-4 * distance(oracle.before, oracle.parameters)
        assert curve.metrics == pytest.approx(oracle.metrics, rel=1e-5)


@pytest.mark.parametrize("bank", [False, True], ids=["loop", "bank"])
def test_packing_is_proven_on_the_quantised_backbone(tmp_path: Path, bank: bool) -> None:
    runtime = load_runtime(quantised_settings(tmp_path, "llama", DOUBLE, kind="causal-lm"))
    assert disproof(runtime, ["all-linear"], bank=bank, recompute=False) == ""


def test_the_proof_finds_layers_that_compute_otherwise(tmp_path: Path) -> None:
    """Layers of some checkpoints multiply in bfloat16, whatever they are given."""
    runtime = load_runtime(quantised_settings(tmp_path, "llama", NF4, kind="causal-lm"))
    for module in runtime.model.modules():
        if is_quantised(module):
            module.compute_dtype = torch.bfloat16  # type: ignore[assignment]
    assert "differs from PEFT's" in disproof(runtime, ["all-linear"], bank=False, recompute=False)


class Made(TorchDispatchMode):
    """Counts the dense weights that are made, and how many of them are there at once."""

    def __init__(self) -> None:
        super().__init__()
        self.count = self.most = 0
        self._alive: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if "dequantize_4bit" in str(func):
            self._alive = [each for each in self._alive if each() is not None] + [weakref.ref(found)]
            self.count, self.most = self.count + 1, max(self.most, len(self._alive))
        return found


@pytest.mark.parametrize("trials", [1, 4])
def test_weights_are_made_dense_once_in_each_direction_whatever_the_number_of_trials(
    tmp_path: Path, trials: int
) -> None:
    model = loaded(tmp_path, "llama", "causal-lm", NF4)
    trainer = PackedTrainer(model, workload("causal-lm"), token_budget=10**6)
    for number in range(trials):
        trainer.admit(spec(number, batch_size=2))
    with Made() as made:
        assert trainer.micro_step([*trainer.members.values()]) == []
    trainer.close()
    layers = quantised_layers(model)
    lowest = 3  # query, key and value of the first layer: nothing below them needs a gradient
    assert made.count == 2 * len(layers) - lowest
    assert made.most == 1


def held_tensors(layer: Any) -> Iterator[torch.Tensor]:
    state, kernel = layer.weight.quant_state, layer.forward.kernel
    yield from (each for each in vars(kernel).values() if isinstance(each, torch.Tensor))
    yield layer.weight.data
    yield state.absmax
    if state.nested:
        yield from (state.state2.absmax, state.offset)


@pytest.mark.parametrize("quantization", [NF4, DOUBLE], ids=str)
def test_resident_weights_take_little_more_than_half_a_byte(tmp_path: Path, quantization: Quantization) -> None:
    model = loaded(tmp_path, "llama", "causal-lm", quantization)
    trainer = PackedTrainer(model, workload("causal-lm"))
    layers = [module for module in model.modules() if is_quantised(module)]
    weights = sum(layer.in_features * layer.out_features for layer in layers)  # type: ignore[operator]
    held = {tensor.data_ptr(): tensor.nbytes for layer in layers for tensor in held_tensors(layer)}
    assert sum(held.values()) <= 0.60 * weights
    trainer.close()


@pytest.mark.parametrize("quantization", [NF4, INT8], ids=str)
def test_packing_keeps_no_dense_copies(tmp_path: Path, quantization: Quantization) -> None:
    model = loaded(tmp_path, "llama", "causal-lm", quantization)
    before = bytes_alive()
    trainer = PackedTrainer(model, workload("causal-lm"))
    smallest = min(layer.in_features * layer.out_features for layer in quantised_layers(model))
    output = 2 * 4 * model.lm_head.weight.numel()  # type: ignore[operator, union-attr]  # its kernel's two layouts
    assert bytes_alive() - before < output + 4 * smallest
    trainer.close()


def bytes_alive() -> int:
    """Bytes of all tensors that Python can see, each storage once; fake ones, of plans, have none."""
    import gc

    gc.collect()
    found = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    tensors = [each for each in found if not isinstance(each, FakeTensor)]
    dense = {each.data_ptr(): each.nbytes for each in tensors if each.layout == torch.strided}
    hidden = sum(4 * each.numel() for each in tensors if each.layout != torch.strided)
    return sum(dense.values()) + hidden


def test_a_bank_follows_the_loop(tmp_path: Path) -> None:
    model, room = loaded(tmp_path, "bert", "classification", NF4), BankSize(3, 4, ("all-linear",))
    trials = [spec(number, rank=4, batch_size=4, learning_rate=3e-3, steps=10) for number in range(3)]
    looped, banked = (packed(model, "classification", trials, bank=bank) for bank in (None, room))
    for number, curve in looped.items():
        assert banked[number].losses == pytest.approx(curve.losses, rel=1e-5)


def test_half_precision_stays_near(tmp_path: Path) -> None:
    """bf16h makes weights dense in bfloat16."""
    model = loaded(tmp_path, "bert", "classification", NF4)
    trials = mixed_trials(3e-3)[:1]
    fp32, half = (packed(model, "classification", trials, kernel=f"torch-{kind}") for kind in ("fp32", "bf16h"))
    assert fp32[0].losses != half[0].losses
    assert half[0].losses == pytest.approx(fp32[0].losses, rel=0.05)


def test_the_output_over_the_vocabulary_is_rounded_like_the_layers_and_not_copied(tmp_path: Path) -> None:
    model = loaded(tmp_path, "llama", "causal-lm", NF4)
    trials = mixed_trials(3e-3)[:1]
    fp32, half = (packed(model, "causal-lm", trials, kernel=f"torch-{kind}") for kind in ("fp32", "bf16h"))
    assert fp32[0].losses != half[0].losses
    assert half[0].losses == pytest.approx(fp32[0].losses, rel=0.05)
    trainer = PackedTrainer(model, workload("causal-lm"), precision="bf16h")
    kernel: Any = model.lm_head.forward.kernel  # type: ignore[union-attr]
    assert kernel.weight.data_ptr() == model.lm_head.weight.data_ptr()  # type: ignore[union-attr, operator]
    trainer.close()
