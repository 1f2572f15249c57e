"""Memory is counted before a trial is let in."""

from __future__ import annotations

import pytest
import torch

from automl.errors import OutOfMemory
from automl.lora import Hyperparameters
from automl.models.memory import estimate_bytes
from automl.packed.memory import SHARE, available_bytes, capacity
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import padded_length
from tests.architectures import tiny_model
from tests.packed.packed_oracle import spec, workload


def test_capacity_grows_with_memory_and_stops_at_the_last_slot_that_fits() -> None:
    model, largest = tiny_model("bert"), Hyperparameters(rank=16, dropout=0.1)
    one = estimate_bytes(model, largest, tokens=4096)
    for slots in (2, 5, 9):
        room = int((slots * one.adapter + one.step) / SHARE) + 16
        assert capacity(model, largest, tokens=4096, token_budget=4096, available=room) == slots
    assert capacity(model, largest, tokens=4096, token_budget=4096, available=0) == 1


def test_a_trial_that_cannot_fit_is_refused_before_it_allocates() -> None:
    trainer = PackedTrainer(tiny_model("bert"), workload())
    trainer.admit(spec(0, rank=2))
    with pytest.raises(OutOfMemory, match=r"trial 1 needs [\d,]+ MiB for rank 1000000000 on all-linear"):
        trainer.admit(spec(1, rank=10**9))
    assert set(trainer.members) == {0}


def test_free_memory_is_a_sensible_number() -> None:
    assert 2**20 < available_bytes(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(
    ("longest", "limit", "expected"),
    [(1, 64, 4), (12, 64, 12), (13, 64, 16), (33, 64, 40), (61, 64, 64), (61, 62, 62), (129, 512, 160), (90, 64, 90)],
)
def test_rows_are_padded_to_few_lengths(longest: int, limit: int, expected: int) -> None:
    assert padded_length(longest, limit) == expected
