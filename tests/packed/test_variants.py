"""Trials with other starts and frozen parts share a backbone that stays as it is: exact, resumed, exported, small."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from automl.errors import CheckpointError, TargetError
from automl.methods.eva import know_inputs
from automl.methods.registry import METHODS
from automl.models.inventory import head_parameters, resolve_targets
from automl.packed.bank import BankSize
from automl.packed.trainer import PackedTrainer
from automl.space.spec import Quantization
from automl.training.inputs import directions_of_inputs
from automl.trial import TrialSpec
from tests.methods.lively import lively_model
from tests.packed.packed_oracle import PeftRun, spec, workload
from tests.packed.test_exactness import distance, packed
from tests.packed.test_quantised import loaded

WAYS = [("bert", "classification"), ("llama", "causal-lm"), ("gpt2", "causal-lm")]


def variant(number: int, own: dict[str, Any], **hyper: Any) -> TrialSpec:
    usual: dict[str, Any] = {"rank": 3, "alpha": 5.0, "learning_rate": 1e-3, "batch_size": 4}
    return spec(number, **{**usual, **hyper}, own=tuple(sorted(own.items())))


def variants() -> list[TrialSpec]:
    """Constant parts of weights and frozen A beside a plain trial, each with another rank, dropout and target."""
    return [
        variant(0, {}, rank=4),
        variant(1, {"init": "pissa"}, rank=5, dropout=0.1),
        variant(2, {"init": "olora"}, target="attention", batch_size=2, use_rslora=True),
        variant(3, {"freeze_a": True}, dropout=0.2, weight_decay=0.1),
        variant(4, {"freeze_a": True, "init": "pissa"}, target="qv", batch_size=8, clip=0.1),
        variant(5, {"init": "eva"}, rank=7, dropout=0.1),
        variant(6, {"init": "eva", "freeze_a": True}, target="attention", batch_size=2, use_rslora=True),
    ]


def knowing(name: str, kind: str = "classification", *, error: float = 0.0) -> nn.Module:
    """A lively model that knows directions of its layers' inputs. error: relative, as of another machine."""
    model = lively_model(name, kind=kind)
    load, paths = workload(kind), [layer.path for layer in resolve_targets(model, "all-linear")]
    batches = load.evaluation_batches(load.train_rows, 64, torch.device("cpu"))
    found = directions_of_inputs(model, paths, batches, partial(load.task.loss, model), 7)
    know_inputs(model, lambda count: {path: tensor * (1.0 + error) for path, tensor in found.items()})
    return model


@pytest.mark.parametrize(("name", "kind"), WAYS)
def test_forty_steps_follow_peft_and_leave_the_shared_weights(name: str, kind: str) -> None:
    model = knowing(name, kind)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    curves = packed(model, kind, variants())
    after = model.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    assert len({curve.losses[-1] for curve in curves.values()}) == len(variants())
    for trial in variants():
        oracle, curve = PeftRun(model, workload(kind), trial), curves[trial.number]
        assert curve.losses == pytest.approx(oracle.losses, rel=1e-6), trial.number
        assert curve.parameters.keys() == oracle.parameters.keys()
        assert distance(curve.parameters, oracle.parameters) <= 1e-4 * distance(oracle.before, oracle.parameters)
        assert curve.metrics == pytest.approx(oracle.metrics, rel=1e-6)


def test_gradient_checkpointing_changes_no_bit() -> None:
    model = knowing("llama", "causal-lm")
    found = []
    for recompute in (False, True):
        trainer = PackedTrainer(model, workload("causal-lm"), recompute=recompute)
        for trial in variants():
            trainer.admit(trial)
        for _ in range(3):
            assert trainer.round([*trainer.members.values()]) == []
        found.append({trial.number: dict(trainer.snapshot(trial.number).params) for trial in variants()})
        trainer.close()
    for number, params in found[0].items():
        assert all(torch.equal(tensor, found[1][number][name]) for name, tensor in params.items())


def test_a_bank_trains_them_beside_itself() -> None:
    model, room = knowing("bert"), BankSize(slots=7, rank=7, targets=("all-linear",))
    trials = [replace(trial, hyper=replace(trial.hyper, dropout=0.0), steps=10) for trial in variants()]
    looped, banked = (packed(model, "classification", trials, bank=bank) for bank in (None, room))
    for number, curve in looped.items():
        assert banked[number].losses == pytest.approx(curve.losses, rel=1e-5), number


def test_they_go_on_to_the_bit_in_another_pack() -> None:
    """Also where weights are taken apart otherwise in the last bit: the slot file says what was taken away."""
    model, load = knowing("bert"), workload()
    trials = [replace(trial, steps=10) for trial in variants()]
    whole = packed(model, "classification", trials)
    trainer = PackedTrainer(model, load)
    for trial in trials:
        trainer.admit(trial)
    for _ in range(4):
        assert trainer.round([*trainer.members.values()]) == []
    states = {number: trainer.snapshot(number) for number in trainer.members}
    trainer.close()
    assert [bool(state.method) for state in states.values()] == [False, True, True, False, True, False, True]

    model = knowing("bert", error=1e-6)  # another machine
    trainer = PackedTrainer(model, load)
    seen = [layer.path for layer in resolve_targets(model, "all-linear")]
    for how in ("pissa", "olora"):
        for path in seen:
            known = trainer.backbone.first_directions(path, how, 5)
            known.left.mul_(1.0 + 1e-6)
    for trial in reversed(trials):
        trainer.admit(trial, states[trial.number])
    for _ in range(6):
        assert trainer.round([*trainer.members.values()]) == []
    for number, curve in whole.items():
        params = trainer.snapshot(number).params
        assert all(torch.equal(tensor, params[name]) for name, tensor in curve.parameters.items()), number
    trainer.close()


def test_the_state_of_another_start_is_refused() -> None:
    trainer = PackedTrainer(lively_model("bert"), workload())
    trainer.admit(variants()[0])
    state = trainer.snapshot(0)
    with pytest.raises(CheckpointError, match="not of this adapter"):
        trainer.admit(variant(1, {"init": "pissa"}, rank=4), state)
    trainer.close()


def test_a_frozen_matrix_has_no_gradient_no_moments_and_no_place_in_a_slot_file() -> None:
    model = lively_model("bert")
    trial = variant(0, {"freeze_a": True})
    trainer = PackedTrainer(model, workload())
    trainer.admit(trial)
    adapter = trainer.members[0].adapter
    layers = resolve_targets(model, "all-linear")
    claimed = METHODS["lora"].trainable(model, layers, trial.hyper) + head_parameters(model)
    assert adapter.storage.layout.parameters == claimed
    assert all(each.a_grad is None for each in adapter.low_rank.values())
    before = {path: each.a.clone() for path, each in adapter.low_rank.items()}
    for _ in range(3):
        assert trainer.round([*trainer.members.values()]) == []
    assert all(torch.equal(before[path], each.a) for path, each in adapter.low_rank.items())
    assert not any(".lora_A." in name for name in (*trainer.snapshot(0).params, *trainer.snapshot(0).moments))
    trainer.close()


class Decompositions(TorchDispatchMode):
    """Counts the weights that are taken apart."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "linalg_svd" in str(func) or "linalg_qr" in str(func)
        return func(*args, **(kwargs or {}))


def test_each_weight_is_taken_apart_once_for_all_trials_of_no_higher_rank() -> None:
    model = lively_model("bert")
    trainer = PackedTrainer(model, workload())
    layers = len(resolve_targets(model, "all-linear"))
    with Decompositions() as apart:
        for number, rank in enumerate((4, 4, 2, 3)):
            trainer.admit(variant(number, {"init": "pissa"}, rank=rank))
        assert apart.count == layers
        trainer.admit(variant(4, {"init": "olora"}, rank=2))
        trainer.admit(variant(5, {"init": "pissa"}, rank=6))
        assert apart.count == 3 * layers
    trainer.close()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked for by peft 0.21
@pytest.mark.parametrize(("name", "kind"), WAYS)
def test_exported_they_are_plain_lora_on_the_unchanged_weights(name: str, kind: str, tmp_path: Path) -> None:
    model, load = knowing(name, kind), workload(kind)
    trainer = PackedTrainer(model, load)
    for trial in variants():
        trainer.admit(trial)
    for _ in range(5):
        assert trainer.round([*trainer.members.values()]) == []
    expected = {number: trainer.evaluate(member, 64) for number, member in trainer.members.items()}
    for number in expected:
        (tmp_path / str(number)).mkdir()
        trainer.export(number, tmp_path / str(number), base=str(tmp_path))
    trainer.close()
    for number, metrics in expected.items():
        folder = tmp_path / str(number)
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["init_lora_weights"] is True
        assert config["r"] == variants()[number].hyper.rank * (2 if number in (1, 2, 4) else 1)
        peft_model = PeftModel.from_pretrained(lively_model(name, kind=kind), str(folder)).eval()
        with torch.no_grad():
            batches = load.evaluation_batches(load.evaluation_rows, 64, torch.device("cpu"))
            assert load.task.evaluate(peft_model, batches, load.tokenizer) == pytest.approx(metrics, rel=1e-5)


def test_weights_in_few_bits_cannot_be_taken_apart(tmp_path: Path) -> None:
    model = loaded(tmp_path, "llama", "causal-lm", Quantization(kind="nf4"))
    trainer = PackedTrainer(model, workload("causal-lm"))
    with pytest.raises(TargetError, match="init olora takes weights apart, which are quantised here"):
        trainer.admit(variant(0, {"init": "olora"}))
    assert not trainer.members
    trainer.admit(variant(1, {"freeze_a": True}))
    assert trainer.round([*trainer.members.values()]) == []
    trainer.close()
