"""Trials of several tasks in one pack: each follows the curve of a pack of its own, and they share micro-steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch
from torch import nn

from automl.lanes import joined, lane_of, number_in, own_number, parted, trial_name
from automl.models.inventory import head_modules
from automl.packed.bank import BankSize
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload
from automl.tasks.base import Row
from automl.tasks.classification import Classification
from automl.tasks.joining import join_rows
from automl.trial import Measurement, TrialSpec
from tests.architectures import tiny_model
from tests.packed.packed_oracle import SETTINGS, spec, token_rows, workload

TRIALS = [
    spec(0, rank=4, target="qv", batch_size=2, learning_rate=3e-3, steps=6, evaluate_every=3),
    spec(1, rank=8, dropout=0.1, batch_size=4, learning_rate=3e-3, steps=6, evaluate_every=3),
]
Curves = Mapping[int, list[tuple[int, Mapping[str, float]]]]


def curves(trainer: PackedTrainer, specs: Sequence[TrialSpec]) -> Curves:
    found: dict[int, list[tuple[int, Mapping[str, float]]]] = {}
    for event in trainer.train(specs, slots=4):
        assert isinstance(event, Measurement)
        found.setdefault(event.trial, []).append((event.step, event.metrics))
    trainer.close()
    return found


def in_lane(lane: int) -> list[TrialSpec]:
    return [replace(trial, number=number_in(lane, trial.number)) for trial in TRIALS]


def assert_same(found: Curves, wanted: Curves, *, lane: int) -> None:
    for number, points in wanted.items():
        for (step, one), (other_step, other) in zip(found[number_in(lane, number)], points, strict=True):
            assert step == other_step
            assert one == pytest.approx(other, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_language_tasks_follow_the_curves_they_have_alone(name: str) -> None:
    tasks = [workload("causal-lm"), workload("causal-lm", seed=8, longest=11)]
    alone = [curves(PackedTrainer(tiny_model(name, kind="causal-lm"), task), TRIALS) for task in tasks]
    assert alone[0] != alone[1]
    trainer = PackedTrainer(tiny_model(name, kind="causal-lm"), tasks[0], beside=tasks[1:])
    found = curves(trainer, [*in_lane(0), *in_lane(1)])
    for lane in (0, 1):
        assert_same(found, alone[lane], lane=lane)


def test_tasks_share_a_micro_step() -> None:
    task = workload("causal-lm")
    rows = [row for row in task.train_rows if len(row["input_ids"]) == 9]
    tasks = [replace(task, train_rows=rows), replace(task, train_rows=rows[::-1])]
    trainer = PackedTrainer(tiny_model("llama", kind="causal-lm"), tasks[0], beside=tasks[1:])
    one, other = in_lane(0)[0], in_lane(1)[0]
    for trial in (one, other):
        trainer.admit(trial)
    assert trainer.micro_step(list(trainer.members.values())) == []
    assert [member.step for member in trainer.members.values()] == [1, 1]
    assert trainer.parted == ""


@pytest.mark.parametrize("bank", [None, BankSize(2, 8, ("qv",))], ids=["one by one", "bank"])
@pytest.mark.parametrize("first", [0, 1], ids=["joined beside single", "single beside joined"])
def test_joined_rows_of_one_task_share_no_micro_step_with_single_ones(first: int, bank: BankSize | None) -> None:
    task = workload("causal-lm")
    rows = [row for row in task.train_rows if len(row["input_ids"]) == 9]
    blocks = join_rows([{name: values[:3] for name, values in row.items()} for row in rows * 3], 9)
    tasks = [replace(task, train_rows=rows), replace(task, train_rows=blocks)]
    tasks = [tasks[first], tasks[1 - first]]
    trial = in_lane(0)[0]
    alone = []
    for each in tasks:
        trainer = PackedTrainer(tiny_model("llama", kind="causal-lm"), each, bank=bank)
        alone.append(losses_of(trainer, [trial])[0])
    trainer = PackedTrainer(tiny_model("llama", kind="causal-lm"), tasks[0], beside=tasks[1:], bank=bank)
    found = losses_of(trainer, [replace(trial, number=number_in(lane, 0)) for lane in (0, 1)])
    assert trainer.parted == ""
    for one, other in zip(found, alone, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def losses_of(trainer: PackedTrainer, specs: Sequence[TrialSpec]) -> list[list[float]]:
    """The training losses of each of these trials in three steps."""
    for each in specs:
        trainer.admit(each)
    members = list(trainer.members.values())
    found: list[list[float]] = [[] for _ in members]
    for _ in range(3):
        assert trainer.round(members) == []
        for losses, member in zip(found, members, strict=True):
            losses.append(member.loss)
    trainer.close()
    return found


def two_classes(rows: Sequence[Row]) -> list[Row]:
    return [{**row, "labels": int(row["input_ids"][1] % 2)} for row in rows]


def own_heads(model: nn.Module, classes: int) -> dict[str, nn.Module]:
    """The heads of the model, which here are linear layers, with another number of classes."""
    found = {}
    for name in head_modules(model):
        head = model.get_submodule(name)
        assert isinstance(head, nn.Linear)
        found[name] = nn.Linear(head.in_features, classes, bias=head.bias is not None)
    return found


def test_heads_of_other_numbers_of_classes_are_each_trial_s_own() -> None:
    model = tiny_model("bert")
    rows = two_classes(token_rows("classification", seed=5))
    second = Workload(
        task=Classification(SETTINGS),
        train_rows=rows[:36],
        evaluation_rows=rows[36:],
        tokenizer=workload().tokenizer,
        heads=own_heads(model, 2),
    )
    alone = [
        curves(PackedTrainer(tiny_model("bert"), workload()), TRIALS),
        curves(PackedTrainer(tiny_model("bert"), second), TRIALS),
    ]
    found = curves(PackedTrainer(model, workload(), beside=[second]), [*in_lane(0), *in_lane(1)])
    for lane in (0, 1):
        assert_same(found, alone[lane], lane=lane)


def test_a_trial_keeps_its_head_when_it_is_taken_out_and_goes_on() -> None:
    model = tiny_model("bert")
    rows = two_classes(token_rows("classification", seed=5))
    second = replace(workload(), train_rows=rows[:36], evaluation_rows=rows[36:], heads=own_heads(model, 2))
    trainer = PackedTrainer(model, workload(), beside=[second])
    trial = in_lane(1)[0]
    trainer.admit(trial)
    trainer.round(list(trainer.members.values()))
    state = trainer.snapshot(trial.number)
    assert {2} == {len(tensor) for name, tensor in state.params.items() if "classifier" in name}
    trainer.evict(trial.number)
    trainer.admit(trial, state)
    again = trainer.snapshot(trial.number)
    assert all(torch.equal(again.params[name], tensor) for name, tensor in state.params.items())


def test_the_number_of_a_trial_says_its_lane() -> None:
    assert number_in(0, 7) == 7
    number = number_in(3, 12)
    assert (lane_of(number), own_number(number), trial_name(number)) == (3, 12, "trial 12 of task 4")
    assert trial_name(7) == "trial 7"


def test_metrics_of_lanes_are_joined_and_parted() -> None:
    metrics = [{"loss": 1.0}, {}, {"minimize:judge": 2.0, "loss": 3.0}]
    assert parted(joined(metrics), 3) == metrics
    assert joined(metrics[:1]) == metrics[0]
