"""All slots in one batched product: the same curves as slot by slot, and padding that stays zero."""

from __future__ import annotations

import pytest
import torch
from architectures import tiny_model
from packed_oracle import spec, workload

from automl.errors import OutOfMemory
from automl.packed.bank import Bank
from automl.packed.trainer import BankSize, PackedTrainer
from automl.trial import TrialSpec

TARGETS = ("qv", "mlp", "all-linear")
ROOM = BankSize(slots=4, rank=20, targets=TARGETS)
TRIALS = [
    spec(0, rank=4, target="qv", batch_size=4, learning_rate=3e-3, weight_decay=0.5),
    spec(1, rank=16, dropout=0.1, batch_size=4, learning_rate=3e-3, use_rslora=True),
    spec(2, rank=3, dropout=0.2, target="mlp", batch_size=2, learning_rate=3e-3),
    spec(3, rank=20, target="mlp", batch_size=4, learning_rate=3e-3, schedule="cosine"),
]


def trainer_after(name: str, kind: str, trials: list[TrialSpec], rounds: int, bank: BankSize | None) -> PackedTrainer:
    trainer = PackedTrainer(tiny_model(name, kind=kind), workload(kind), bank=bank)
    for trial in trials:
        trainer.admit(trial)
    for _ in range(rounds):
        assert trainer.round(list(trainer.members.values())) == []
    return trainer


@pytest.mark.parametrize(("name", "kind"), [("bert", "classification"), ("gpt2", "causal-lm")])
def test_batched_and_looped_slots_follow_the_same_curves(name: str, kind: str) -> None:
    looped, batched = (trainer_after(name, kind, TRIALS, 20, bank) for bank in (None, ROOM))
    for trial in TRIALS:
        one, other = looped.members[trial.number], batched.members[trial.number]
        # A batched product adds up in another order.
        assert other.loss == pytest.approx(one.loss, rel=1e-6)
        assert looped.evaluate(one, 512) == pytest.approx(batched.evaluate(other, 512), rel=1e-6)
        mine, theirs = looped.snapshot(trial.number), batched.snapshot(trial.number)
        assert mine.params.keys() == theirs.params.keys()
        assert mine.moments.keys() == theirs.moments.keys()
        assert all(torch.allclose(mine.params[key], theirs.params[key], atol=2e-6) for key in mine.params)


def test_padding_stays_zero() -> None:
    trainer = trainer_after("bert", "classification", TRIALS, 20, ROOM)
    for member in trainer.members.values():
        storage = member.adapter.storage
        own = torch.zeros(storage.layout.size, dtype=torch.bool)
        rank = member.spec.hyper.rank
        for name, view in storage.layout.views(own).items():
            path = name.removeprefix("base_model.model.").partition(".lora_")[0]
            if "modules_to_save" in name:
                view.fill_(True)
            elif path in member.adapter.low_rank:
                (view[:rank] if "lora_A" in name else view[:, :rank]).fill_(True)
        for vector in (storage.params, storage.gradient, storage.exp_avg, storage.exp_avg_sq):
            assert not vector[~own].any()
        assert storage.exp_avg_sq[own].any()


def test_a_row_is_clean_when_it_is_taken_again() -> None:
    fresh = trainer_after("bert", "classification", [TRIALS[2]], 3, ROOM)
    trainer = trainer_after("bert", "classification", [TRIALS[1], TRIALS[3]], 3, ROOM)
    trainer.evict(1)
    trainer.evict(3)
    trainer.admit(TRIALS[2])
    for _ in range(3):
        trainer.round(list(trainer.members.values()))

    one, other = fresh.snapshot(2), trainer.snapshot(2)
    assert all(torch.equal(one.params[key], other.params[key]) for key in one.params)
    assert all(torch.equal(one.moments[key], other.moments[key]) for key in one.moments)


def test_a_slot_moves_between_a_bank_and_a_loop() -> None:
    undisturbed = trainer_after("bert", "classification", [TRIALS[1]], 6, None).snapshot(1)
    half = trainer_after("bert", "classification", [TRIALS[1]], 3, None).snapshot(1)
    trainer = trainer_after("bert", "classification", [TRIALS[0]], 1, ROOM)
    trainer.admit(TRIALS[1], half)
    for _ in range(3):
        trainer.round(list(trainer.members.values()))

    moved = trainer.snapshot(1)
    assert all(torch.allclose(moved.params[key], undisturbed.params[key], atol=1e-6) for key in moved.params)


def test_a_bank_says_what_it_has_no_room_for() -> None:
    layers = PackedTrainer(tiny_model("bert"), workload()).layers("qv")
    bank = Bank(layers, {}, slots=1, rank=8, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="rank 9 is above the 8"):
        bank.take(9)
    storage = bank.take(8)
    with pytest.raises(OutOfMemory, match="all 1 slots"):
        bank.take(2)
    bank.give_back(storage)
    assert bank.take(2).row == storage.row
