"""How a host trains is decided from its settings, its device and the free memory, before anything is allocated."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from automl.lora import Hyperparameters
from automl.models.backbone import BackboneRef
from automl.packed.bank import BankSize
from automl.packed.build import Way, choose_way
from automl.packed.memory import SHARE, pack_bytes
from automl.packed.trainer import PackedTrainer
from automl.tasks.base import LossParts, Prepared
from automl.tasks.classification import Classification
from automl.training.memory import TOKEN_BUDGET
from automl.training.runtime import HostSettings
from tests.architectures import tiny_model
from tests.packed.packed_oracle import SETTINGS, spec, workload

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LARGEST = Hyperparameters(rank=16, target="all-linear", dropout=0.1)
HOST = HostSettings(
    backbone=BackboneRef(path="", fingerprint="", architecture="bert", parameters=1, bytes=4),
    task=SETTINGS,
    prepared=Prepared(path=Path(), fingerprint="", rows={}, longest=20),
    output="",
    capacity=6,
    packed=True,
    largest=LARGEST,
    choices=("qv", "all-linear"),
    tokens=1000,
)
PLENTY = 2**40


def way(device: torch.device, available: int, settings: HostSettings = HOST) -> Way:
    return choose_way(settings, tiny_model("bert"), device, available=available)


def need(slots: int, *, recompute: bool = False, device: torch.device = CUDA) -> int:
    """Least free memory that is enough for so many slots."""
    needed = pack_bytes(
        tiny_model("bert"),
        LARGEST,
        slots=slots,
        tokens=1000,
        token_budget=TOKEN_BUDGET[device.type],
        recompute=recompute,
        device=device.type,
    )
    return int(needed / SHARE) + 16


def test_a_gpu_gets_a_bank_for_all_the_space_and_a_cpu_gets_none() -> None:
    assert way(CUDA, PLENTY) == Way(6, BankSize(6, 16, ("qv", "all-linear")), recompute=False, split=8192)
    assert way(CPU, PLENTY) == Way(6, None, recompute=False, split=4096)
    assert way(CUDA, PLENTY, replace(HOST, choices=())).bank == BankSize(6, 16, ("all-linear",))


def test_batches_that_stay_whole_are_planned_whole() -> None:
    large = replace(HOST, tokens=100_000)
    parted, whole = (way(CUDA, need(6), each) for each in (large, replace(large, whole_batches=True)))
    assert whole.slots < parted.slots


def test_settings_that_name_no_largest_trial_pack_slot_by_slot() -> None:
    assert way(CUDA, PLENTY, replace(HOST, largest=None)) == Way(6, None, recompute=False)


def test_a_gpu_recomputes_activations_when_the_slots_wanted_ask_for_it() -> None:
    assert need(6, recompute=True) < need(6)
    assert not way(CUDA, need(6)).recompute
    short = way(CUDA, need(6) - 1024)
    assert short.recompute
    assert short.slots == 6
    assert way(CUDA, need(3, recompute=True)).slots == 3


def test_a_cpu_recomputes_only_for_its_first_trial() -> None:
    assert not way(CPU, need(2, device=CPU)).recompute
    assert way(CPU, need(1, device=CPU) - 1024).recompute


def test_a_batch_for_which_there_is_no_room_is_planned_in_parts_down_to_a_row() -> None:
    large = replace(HOST, tokens=100_000)
    assert way(CPU, PLENTY, large).split == 4096
    whole = need(1, recompute=True, device=CPU)
    assert way(CPU, whole, HOST).split == 4096
    less = way(CPU, whole - 1024, HOST)
    assert 20 <= less.split < 1000  # type: ignore[operator]
    assert way(CPU, 0, HOST).split == 16  # half of 32, which is above a row of 20


class Strict(Classification):
    """A task whose loss is its own."""

    def loss(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> LossParts:
        parts = super().loss(model, batch)
        return LossParts(2 * parts.total, parts.count)


def test_an_unknown_loss_goes_slot_by_slot(caplog: pytest.LogCaptureFixture) -> None:
    load = replace(workload(), task=Strict(SETTINGS))
    with caplog.at_level(logging.INFO):
        trainer = PackedTrainer(tiny_model("bert"), load, bank=BankSize(2, 4, ("qv",)))
    trainer.admit(spec(0, rank=4, target="qv"))
    assert trainer.round(list(trainer.members.values())) == []
    assert "slots are computed one by one" in caplog.text
