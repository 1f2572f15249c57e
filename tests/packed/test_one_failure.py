"""What is wrong with a trial is said alike, whoever trains it: the packed trainer, or the solo trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from automl.errors import DataError, Diverged
from automl.packed.bank import BankSize
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload
from automl.tasks.base import IGNORED, Row
from automl.training.runtime import Runtime
from automl.training.solo import SoloTrial, train
from automl.trial import LONGEST_TRACEBACK, StopReason, TrialFailure, TrialSpec
from tests.architectures import tiny_model
from tests.packed.packed_oracle import spec, workload

LOAD = workload("causal-lm")


def masked(rows: Sequence[Row]) -> list[Row]:
    return [{**row, "labels": [IGNORED] * len(row["labels"])} for row in rows]


def packed_failure(load: Workload, trial: TrialSpec, bank: BankSize | None = None) -> TrialFailure:
    trainer = PackedTrainer(tiny_model("llama", kind="causal-lm"), load, bank=bank)
    trainer.admit(trial)
    (failure,) = trainer.advance()
    assert isinstance(failure, TrialFailure)
    assert trainer.members == {}
    return failure


def solo_error(load: Workload, trial: TrialSpec, kind: type[Exception]) -> str:
    runtime = Runtime(
        model=tiny_model("llama", kind="causal-lm"),
        tokenizer=load.tokenizer,
        task=load.task,
        train_rows=load.train_rows,
        evaluation_rows=load.evaluation_rows,
        device=torch.device("cpu"),
    )
    with pytest.raises(kind) as caught:
        list(train(SoloTrial(trial, runtime)))
    return str(caught.value)


@pytest.mark.parametrize("bank", [None, BankSize(2, 8, ("qv",))], ids=["loop", "bank"])
def test_a_batch_without_a_target(bank: BankSize | None) -> None:
    load = replace(LOAD, train_rows=masked(LOAD.train_rows))
    said = "the batch of step 1 has no target to learn from: every token is masked"
    assert solo_error(load, spec(0), DataError) == said
    failure = packed_failure(load, spec(0), bank)
    assert (failure.reason, failure.step) == (StopReason.ERROR, 0)
    assert failure.message.startswith("Traceback")
    assert failure.message.endswith(f"DataError: {said}\n")
    assert len(failure.message) <= LONGEST_TRACEBACK


def test_a_loss_that_is_no_number() -> None:
    wild = spec(0, learning_rate=math.inf)
    said = solo_error(LOAD, wild, Diverged)
    failure = packed_failure(LOAD, wild)
    assert (failure.reason, failure.message, failure.step) == (StopReason.DIVERGED, said, 1)
    assert said == "training loss is nan at step 2"


def test_a_micro_batch_without_a_target_adds_nothing_to_its_step() -> None:
    rows = [row for pair in zip(LOAD.train_rows, masked(LOAD.train_rows), strict=True) for row in pair]
    losses = []
    for at_once in (8, 1):
        trainer = PackedTrainer(tiny_model("llama", kind="causal-lm"), replace(LOAD, train_rows=rows))
        trainer.admit(spec(0, batch_size=8))
        (member,) = trainer.members.values()
        member.micro_batch = at_once
        assert trainer.round([member]) == []
        losses.append(member.loss)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
