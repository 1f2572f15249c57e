"""What only a GPU can show: CUDA graphs are recorded, replayed for whichever adapters take part, and change no number.

Everything else of the GPU's way is tested on CPUs (test_lora_batched.py, test_recompute.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from automl.packed.bank import BankSize
from automl.packed.bank_step import RECORD_AT
from automl.packed.trainer import PackedTrainer
from automl.training.state import TrainState
from automl.trial import TrialSpec
from tests.architectures import tiny_model
from tests.packed.packed_oracle import PeftRun, spec, workload

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

ROOM = BankSize(slots=4, rank=20, targets=("qv", "mlp", "all-linear"))
TRIALS = [
    spec(0, rank=4, target="qv", batch_size=4, learning_rate=1e-3, weight_decay=0.5),
    spec(1, rank=16, dropout=0.1, batch_size=4, learning_rate=1e-3, use_rslora=True),
    spec(2, rank=3, dropout=0.2, target="mlp", batch_size=3, learning_rate=1e-3),
    spec(3, rank=20, target="mlp", batch_size=4, learning_rate=1e-3, schedule="cosine", clip=0.0),
]
MODELS = [("bert", "classification"), ("llama", "causal-lm"), ("gpt2", "causal-lm")]


def trainer_of(name: str, kind: str, device: str = "cuda", **options: Any) -> PackedTrainer:
    model = tiny_model(name, kind=kind).to(device)
    if options.get("precision") == "bf16":
        model = model.to(torch.bfloat16)
    return PackedTrainer(model, workload(kind), **options)


def advance(trainer: PackedTrainer, rounds: int) -> None:
    for _ in range(rounds):
        assert trainer.round(list(trainer.members.values())) == []


def states(trainer: PackedTrainer, rounds: int, trials: list[TrialSpec] | None = None) -> dict[int, TrainState]:
    for trial in trials or TRIALS:
        trainer.admit(trial)
    advance(trainer, rounds)
    return {number: trainer.snapshot(number) for number in trainer.members}


def graphs(trainer: PackedTrainer) -> int:
    assert trainer.bank_step is not None
    return trainer.bank_step.graphs


def assert_close(one: TrainState, other: TrainState, tolerance: float) -> None:
    for key, tensor in one.params.items():
        torch.testing.assert_close(tensor, other.params[key], atol=tolerance, rtol=0.0)


@pytest.mark.parametrize(("name", "kind"), MODELS)
def test_graphs_change_no_number(name: str, kind: str) -> None:
    recorded, eager = trainer_of(name, kind, bank=ROOM), trainer_of(name, kind, bank=ROOM, graphs=False)
    mine, theirs = states(recorded, RECORD_AT + 10), states(eager, RECORD_AT + 10)
    assert graphs(recorded) > 0
    assert graphs(eager) == 0
    for number in mine:
        assert_close(mine[number], theirs[number], 1e-5)


@pytest.mark.parametrize(("name", "kind"), MODELS)
def test_a_gpu_follows_peft_on_a_cpu(name: str, kind: str) -> None:
    trainer = trainer_of(name, kind, bank=ROOM)
    trials = [trial for trial in TRIALS if not trial.hyper.dropout]
    found = states(trainer, 20, trials)
    for trial in trials:
        oracle = PeftRun(tiny_model(name, kind=kind), workload(kind), trial, steps=20)
        assert trainer.members[trial.number].loss == pytest.approx(oracle.losses[-1], rel=1e-4)
        for key, tensor in oracle.parameters.items():
            torch.testing.assert_close(found[trial.number].params[key], tensor, atol=2e-4, rtol=0.0)


def test_dropout_masks_are_the_same_on_both_devices() -> None:
    gpu = states(trainer_of("bert", "classification", bank=ROOM), 6)
    cpu = states(trainer_of("bert", "classification", "cpu", bank=ROOM), 6)
    for number in gpu:
        assert_close(gpu[number], cpu[number], 1e-4)


def test_a_slot_is_swapped_without_another_recording() -> None:
    trainer = trainer_of("bert", "classification", bank=ROOM)
    states(trainer, RECORD_AT + 6)
    before = graphs(trainer)
    trainer.evict(0)
    new = spec(7, rank=8, dropout=0.1, target="qv", batch_size=4, learning_rate=1e-3)
    trainer.admit(new)
    advance(trainer, 6)
    assert graphs(trainer) == before > 0
    alone = states(trainer_of("bert", "classification", bank=ROOM, graphs=False), 6, [new])
    assert_close(trainer.snapshot(7), alone[7], 1e-5)


def test_recomputed_activations_and_bf16_can_be_recorded() -> None:
    plain = states(trainer_of("llama", "causal-lm", bank=ROOM), 10)
    trainer = trainer_of("llama", "causal-lm", bank=ROOM, recompute=True)
    again = states(trainer, 10)
    assert graphs(trainer) > 0
    for number in plain:
        assert_close(plain[number], again[number], 1e-5)
    half = trainer_of("llama", "causal-lm", bank=ROOM, precision="bf16")
    states(half, 10)
    assert graphs(half) > 0


def test_slots_one_by_one_run_on_a_gpu() -> None:
    trainer = trainer_of("gpt2", "causal-lm")
    states(trainer, 3)
    assert all(trainer.evaluate(member, 512)["loss"] > 0 for member in trainer.members.values())
