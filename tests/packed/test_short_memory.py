"""Trials in a process that is really short of memory: fewer rows at once, fewer trials at once, the same numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from automl.outcomes import Outcomes
from automl.packed.host import PackedHost
from automl.packed.trainer import PackedTrainer
from automl.tasks.base import Batch, LossParts
from automl.tasks.classification import Classification
from automl.trial import Measurement, StopReason, TrialFailure
from tests.architectures import tiny_model
from tests.fresh import run_python
from tests.packed.packed_oracle import workload
from tests.packed.test_best_checkpoint import OVERFITS, small
from tests.packed.test_host import TRIALS as DROPPING
from tests.packed.test_host import host, run

TRIALS = [replace(trial, hyper=replace(trial.hyper, dropout=0.0)) for trial in DROPPING]
"""Masks are drawn for the rows that are computed at once, so that split rows have others."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Any]:
    said = run_python("-m", "tests.packed.short_of_memory", tmp_path_factory.mktemp("short"), cwd=Path.cwd())
    assert said.returncode == 0, said.stderr
    return dict(json.loads(said.stdout))


def test_a_batch_that_does_not_fit_is_split_and_the_curve_stays(found: Mapping[str, Any]) -> None:
    assert found["solo"]["rows"] == 1024
    assert found["solo short"]["rows"] < 1024
    assert found["solo short"]["losses"] == pytest.approx(found["solo"]["losses"], rel=1e-6)


def test_in_a_pack_too_and_the_neighbour_does_not_notice(found: Mapping[str, Any]) -> None:
    short, calm = found["packed short"], found["packed"]
    assert short["rows"]["0"] == calm["rows"]["0"] == 2
    assert short["rows"]["1"] < calm["rows"]["1"] == 1024
    assert short["losses"]["1"] == pytest.approx(calm["losses"]["1"], rel=1e-6)
    assert short["losses"]["0"] == calm["losses"]["0"]


def test_who_does_not_fit_at_all_waits_for_the_neighbour_and_then_fails_as_such(found: Mapping[str, Any]) -> None:
    beside = found["beside huge"]
    assert beside["losses"]["0"] == found["packed"]["losses"]["0"]
    assert beside["most"] == 1
    reason, message = beside["losses"]["2"]
    assert reason == "oom"
    assert "trial 2 needs 5,469 MiB" in message


class Narrow(Classification):
    """A task for whose step there is memory beside at most `most` trials of the pack, this one included."""

    most = 1
    trainer: PackedTrainer

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        parts = super().loss(model, batch)
        if len(self.trainer.members) > self.most:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")
        return parts


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("most", [1, 2])
def test_a_pack_without_room_for_all_becomes_smaller_and_curves_stay(tmp_path: Path, most: int, ahead: bool) -> None:
    plain = host(tmp_path / "calm", tiny_model("bert"))
    for trial in TRIALS:
        plain.open(trial)
    calm = run(plain)
    packed = host(tmp_path / "short", tiny_model("bert"), ahead=ahead)
    crowd(packed.trainer, most)
    for trial in TRIALS:
        assert packed.open(trial) == ()
    found: dict[int, list[Measurement]] = {}
    while events := packed.advance():
        for event in events:
            assert isinstance(event, Measurement), event
            found.setdefault(event.trial, []).append(event)
            if event.step == 8:
                packed.close(event.trial)
    packed.shutdown()
    assert packed.capacity == most
    for number, items in calm.items():
        assert [item.step for item in found[number]] == [3, 6, 8]
        losses = [item.metrics["loss"] for item in found[number]]
        assert losses == pytest.approx([item.metrics["loss"] for item in items], rel=1e-5)  # rows were halved


class NarrowInTheEnd(Classification):
    """A task whose trials, once over, can be measured in an empty pack only."""

    trainer: PackedTrainer

    def evaluate_by_row(
        self, model: torch.nn.Module, batches: Iterator[Batch], tokenizer: Any
    ) -> tuple[dict[str, float], Outcomes | None]:
        members = self.trainer.members.values()
        if len(members) > 1 and any(member.is_over for member in members):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")
        return super().evaluate_by_row(model, batches, tokenizer)


@pytest.mark.parametrize("ahead", [False, True])
def test_one_that_lacks_memory_for_its_best_checkpoint_waits_for_the_neighbour(tmp_path: Path, ahead: bool) -> None:
    ending = replace(OVERFITS, early_stopping=True)
    beside = replace(TRIALS[2], evaluate_every=2, hyper=replace(TRIALS[2].hyper, batch_size=12))
    beside = replace(beside, steps=ending.steps)
    calm = small(tmp_path / "calm")
    calm.open(ending)
    undisturbed = run(calm)[0]
    packed = small(tmp_path / "short", ahead=ahead)
    load = packed.trainer.workload
    task = NarrowInTheEnd(load.task.settings)
    task.trainer = packed.trainer
    packed.trainer.work_on(replace(load, task=task))
    for trial in (ending, beside):
        packed.open(trial)
    found: dict[int, list[Measurement]] = {}
    while events := packed.advance():
        for event in events:
            assert isinstance(event, Measurement), event
            found.setdefault(event.trial, []).append(event)
            if event.step == beside.steps or event.best is not None:
                packed.close(event.trial)
    packed.shutdown()
    assert packed.capacity == 1
    assert found[2][-1].step == beside.steps
    assert [item.step for item in found[0]] == [item.step for item in undisturbed]
    assert found[0][-1].best == undisturbed[-1].best


def crowd(trainer: PackedTrainer, most: int) -> None:
    task = Narrow(workload().task.settings)
    task.trainer, task.most = trainer, most
    trainer.work_on(replace(workload(), task=task))


def test_a_waiting_trial_can_be_parked_and_a_failed_one_is_told_once(tmp_path: Path) -> None:
    packed = host(tmp_path, tiny_model("bert"))
    crowd(packed.trainer, 1)
    for trial in TRIALS[:2]:
        packed.open(trial)
    first = list(packed.advance())
    (waiting,) = {0, 1} - {event.trial for event in first}
    packed.park(waiting)
    rest = remaining(packed)
    assert {event.trial for event in rest} == {event.trial for event in first}
    packed.trainer.workload.task.most = 0  # type: ignore[attr-defined]
    packed.close(first[0].trial)
    packed.open(TRIALS[waiting])
    (failure,) = packed.advance()
    assert isinstance(failure, TrialFailure)
    assert (failure.trial, failure.reason) == (waiting, StopReason.OOM)
    assert packed.advance() == []


def remaining(packed: PackedHost) -> list[Measurement | TrialFailure]:
    found = []
    while events := packed.advance():
        found += events
    return found
