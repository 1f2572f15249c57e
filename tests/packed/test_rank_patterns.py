"""Trials whose layers have ranks of their own: the curve of PEFT, the parameters they claim, an adapter PEFT loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from automl.errors import TargetError
from automl.lora import lora_parameters
from automl.models.inventory import head_parameters, resolve_targets
from automl.packed.trainer import BankSize, PackedTrainer
from automl.trial import Measurement, TrialSpec
from tests.architectures import tiny_model
from tests.packed.packed_oracle import PeftRun, spec, workload


def patterned(model: torch.nn.Module, number: int, target: str, **hyper: object) -> TrialSpec:
    """A trial at rank 4 whose layers have ranks 1 to 6 in turn."""
    trial = spec(number, steps=20, evaluate_every=20, rank=4, alpha=6.0, target=target, batch_size=4, **hyper)
    layers = resolve_targets(model, target)
    ranks = {layer.path: 1 + (number + place) % 6 for place, layer in enumerate(layers)}
    return replace(trial, hyper=trial.hyper.with_ranks(ranks))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked for by peft 0.21
@pytest.mark.parametrize("with_bank", [False, True], ids=["one by one", "in a bank"])
@pytest.mark.parametrize(("name", "kind"), [("bert", "classification"), ("gpt2", "causal-lm")])
def test_a_trial_follows_peft_with_the_same_pattern(name: str, kind: str, with_bank: bool, tmp_path: Path) -> None:
    model = tiny_model(name, kind=kind)
    trials = [
        patterned(model, 0, "qv"),
        patterned(model, 1, "all-linear", use_rslora=True),
        spec(2, steps=20, evaluate_every=20, rank=2, alpha=2.0, batch_size=4),
    ]
    oracles = [PeftRun(model, workload(kind), trial) for trial in trials]
    bank = BankSize(slots=3, rank=6, targets=("all-linear",)) if with_bank else None
    trainer = PackedTrainer(model, workload(kind), bank=bank)
    for event in trainer.train(trials, slots=3):
        assert isinstance(event, Measurement)
        trial, oracle = trials[event.trial], oracles[event.trial]
        assert event.metrics == pytest.approx(oracle.metrics, rel=1e-5)
        layers = resolve_targets(model, trial.hyper.target)
        trained = trainer.snapshot(event.trial).params
        claimed = lora_parameters(layers, trial.hyper.rank_of) + head_parameters(model)
        assert sum(tensor.numel() for tensor in trained.values()) == claimed
        folder = tmp_path / str(event.trial)
        folder.mkdir()
        trainer.export(event.trial, folder, base=str(folder))
        loaded = PeftModel.from_pretrained(tiny_model(name, kind=kind), str(folder)).eval()
        found = {path: each for path, each in loaded.get_base_model().named_modules() if isinstance(each, LoraLayer)}
        assert {path: each.r["default"] for path, each in found.items()} == {
            layer.path: trial.hyper.rank_of(layer.path) for layer in layers
        }
        load = workload(kind)
        with torch.no_grad():
            batches = load.evaluation_batches(load.evaluation_rows, 64, torch.device("cpu"))
            assert load.task.evaluate(loaded, batches, load.tokenizer) == pytest.approx(event.metrics, rel=1e-5)
    trainer.close()


def test_a_pattern_for_a_layer_that_is_not_adapted_is_refused() -> None:
    model = tiny_model("bert", kind="classification")
    trial = spec(0, target="qv")
    mlp = resolve_targets(model, "mlp")[0].path
    trainer = PackedTrainer(model, workload())
    with pytest.raises(TargetError, match="is not a layer of target set 'qv'"):
        trainer.admit(replace(trial, hyper=trial.hyper.with_ranks({mlp: 2})))
    assert not trainer.members
    trainer.close()
