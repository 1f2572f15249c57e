"""Cuts of a finished trial: the same from the loop over slots, from a bank and from PEFT, whoever shares the pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from automl.outcomes import decoded
from automl.packed.bank import BankSize
from automl.packed.trainer import PackedTrainer
from automl.training.solo import SoloTrial, train
from automl.trial import Cut, Examination, Examined, Measurement, TrialSpec
from tests.architectures import tiny_model
from tests.packed.packed_oracle import spec, workload
from tests.packed.test_importance import runtime

WANTED = Examination("test", cuts=(Cut("small", 400, False), Cut("even", 700, True)), by_row=True)
TRIALS = [
    replace(spec(0, steps=12, evaluate_every=12, rank=4, alpha=8.0, target="all-linear"), examination=WANTED),
    spec(1, steps=12, evaluate_every=12, rank=2, target="qv"),
    replace(
        spec(2, steps=12, evaluate_every=12, rank=6, use_rslora=True, target="attention"),
        examination=WANTED._replace(cuts=WANTED.cuts[:1]),
    ),
]


def by_peft(kind: str, trial: TrialSpec) -> Sequence[Examined]:
    alone = SoloTrial(trial, runtime(tiny_model("bert", kind=kind), kind))
    (found,) = [alone.examine(measurement) for measurement in train(alone)]
    return found.examined


def in_pack(trainer: PackedTrainer) -> dict[int, Sequence[Examined]]:
    found: dict[int, Sequence[Examined]] = {}
    for event in trainer.train(TRIALS, slots=len(TRIALS)):
        assert isinstance(event, Measurement), event
        before = trainer.members[event.trial].adapter.parameters()
        found[event.trial] = trainer.examine(event).examined
        after = trainer.members[event.trial].adapter.parameters()
        assert all(torch.equal(before[name], after[name]) for name in before)
    return found


@pytest.mark.parametrize("bank", [None, BankSize(3, 6, ("all-linear", "qv", "attention"))], ids=["loop", "bank"])
def test_what_is_found_does_not_depend_on_the_trainer(bank: BankSize | None) -> None:
    trainer = PackedTrainer(tiny_model("bert", kind="classification"), workload("classification"), bank=bank)
    found = in_pack(trainer)
    trainer.close()
    assert found[1] == ()
    for trial in (TRIALS[0], TRIALS[2]):
        alone = by_peft("classification", trial)
        mine = found[trial.number]
        assert [each.name for each in mine] == [each.name for each in alone] != []
        for ours, theirs in zip(mine, alone, strict=True):
            assert dict(ours.metrics) == pytest.approx(dict(theirs.metrics), rel=1e-3)
            assert len(decoded(ours.outcomes).rows) == len(workload("classification").evaluation_rows)
    losses = {each.name: each.metrics["loss"] for each in found[0]}
    assert len(set(losses.values())) == len(losses) == 3
