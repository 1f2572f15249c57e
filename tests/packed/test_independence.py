"""A trial's curve does not depend on who shares its pack, where it sits, or when it came in: not by one bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from automl.packed.kernels import works
from automl.packed.trainer import PackedTrainer
from automl.tasks.base import Batch, LossParts, Row
from automl.tasks.batches import batch_rows
from automl.tasks.classification import Classification
from automl.training.state import TrainState
from automl.trial import StopReason, TrialFailure, TrialSpec
from tests.architectures import tiny_model
from tests.packed.packed_oracle import spec, workload

MODELS = [("bert", "classification"), ("llama", "causal-lm"), ("gpt2", "causal-lm")]
PRECISIONS = ["fp32", "bf16h"]
CPU = torch.device("cpu")

TRIALS = [
    spec(0, rank=4, alpha=4.0, target="qv", batch_size=2, learning_rate=3e-3),
    spec(1, rank=8, dropout=0.1, target="attention", batch_size=4, learning_rate=3e-3),
    spec(2, rank=16, dropout=0.2, batch_size=8, clip=0.0, learning_rate=3e-3),
    spec(3, rank=3, target="mlp", batch_size=4, learning_rate=3e-3),
]
WILD = spec(9, rank=32, alpha=3200.0, batch_size=4, learning_rate=1e6)


def pack(kind: str, name: str, precision: str, **options: object) -> PackedTrainer:
    return PackedTrainer(tiny_model(name, kind=kind), workload(kind), precision=precision, **options)  # type: ignore[arg-type]


def states_after(trainer: PackedTrainer, trials: Sequence[TrialSpec], rounds: int) -> dict[int, TrainState]:
    for trial in trials:
        trainer.admit(trial)
    turn(trainer, rounds)
    return {number: trainer.snapshot(number) for number in trainer.members}


def turn(trainer: PackedTrainer, rounds: int) -> list[TrialFailure]:
    return [failure for _ in range(rounds) for failure in trainer.round(list(trainer.members.values()))]


def same(one: TrainState, other: TrainState, precision: str = "fp32") -> bool:
    """To the bit with prepacked kernels; 1e-6 with torch's own, which pick a kernel by the number of rows."""
    pairs = [(one.params, other.params), (one.moments, other.moments)]
    return one.step == other.step and all(equal(left, right, precision) for left, right in pairs)


def equal(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor], precision: str) -> bool:
    if works(f"onednn-{precision}"):
        return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
    return all(torch.allclose(left[name], right[name], rtol=1e-4, atol=1e-6) for name in left)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("name", "kind"), MODELS)
def test_neighbours_position_and_token_budget_do_not_matter(name: str, kind: str, precision: str) -> None:
    together = states_after(pack(kind, name, precision), TRIALS, 8)
    reverse = states_after(pack(kind, name, precision), TRIALS[::-1], 8)
    tight = states_after(pack(kind, name, precision, token_budget=60), TRIALS, 8)

    for trial in TRIALS:
        alone = states_after(pack(kind, name, precision), [trial], 8)
        others = (alone, reverse, tight)
        assert all(same(together[trial.number], other[trial.number], precision) for other in others)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_trial_moves_to_another_pack_and_goes_on(precision: str) -> None:
    undisturbed = states_after(pack("classification", "bert", precision), TRIALS, 10)
    first = states_after(pack("classification", "bert", precision), TRIALS, 5)
    second = pack("classification", "bert", precision)
    states_after(second, [spec(7, rank=5, dropout=0.3)], 2)
    for trial in (TRIALS[2], TRIALS[1]):
        second.admit(trial, first[trial.number])
    turn(second, 5)

    for trial in (TRIALS[1], TRIALS[2]):
        moved, stayed = second.snapshot(trial.number), undisturbed[trial.number]
        assert same(moved, stayed, precision)
        assert moved.dropout is not None
        assert stayed.dropout is not None
        assert torch.equal(moved.dropout, stayed.dropout)
        assert moved.tokens == stayed.tokens


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_neighbour_that_diverges_changes_nothing(precision: str) -> None:
    calm = states_after(pack("classification", "bert", precision), TRIALS, 8)
    trainer = pack("classification", "bert", precision)
    for trial in (TRIALS[0], WILD, *TRIALS[1:]):
        trainer.admit(trial)
    failures = turn(trainer, 8)

    assert [(failure.trial, failure.reason) for failure in failures] == [(9, StopReason.DIVERGED)]
    assert "training loss is" in failures[0].message
    assert all(same(calm[trial.number], trainer.snapshot(trial.number), precision) for trial in TRIALS)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_poisoned_neighbour_changes_nothing(poison: float) -> None:
    calm = states_after(pack("classification", "bert", "fp32"), TRIALS, 6)
    trainer = pack("classification", "bert", "fp32")
    states_after(trainer, [spec(9, rank=32, batch_size=4), *TRIALS], 3)
    for tensor in trainer.members[9].adapter.low_rank.values():
        tensor.b.fill_(poison)
    failures = turn(trainer, 3)

    assert [(failure.trial, failure.step) for failure in failures] == [(9, 3)]
    assert all(same(calm[trial.number], trainer.snapshot(trial.number)) for trial in TRIALS)


def test_trials_come_and_go_without_the_others_noticing() -> None:
    calm = states_after(pack("classification", "bert", "fp32"), TRIALS[:2], 9)
    trainer = pack("classification", "bert", "fp32")
    states_after(trainer, TRIALS, 3)
    trainer.evict(2)
    turn(trainer, 3)
    trainer.evict(3)
    trainer.admit(spec(2, rank=2, dropout=0.5))
    turn(trainer, 3)

    assert all(same(calm[number], trainer.snapshot(number)) for number in (0, 1))
    fresh = states_after(pack("classification", "bert", "fp32"), [spec(2, rank=2, dropout=0.5)], 3)
    assert same(fresh[2], trainer.snapshot(2))


class BadRow(Classification):
    """A task that cannot read one row."""

    def collate(self, rows: Sequence[Row], pad_id: int) -> Batch:
        if any(row["labels"] == -1 for row in rows):
            raise ValueError("row 17 cannot be read")
        return super().collate(rows, pad_id)


class Greedy(Classification):
    """A task that finds too little memory for more than `limit` rows of one trial."""

    limit = 2

    def loss(self, model: torch.nn.Module, batch: Batch) -> LossParts:
        parts = super().loss(model, batch)
        if len(batch["labels"]) > self.limit:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return parts


def test_a_data_error_fails_one_trial_alone() -> None:
    load = workload()
    calm = states_after(PackedTrainer(tiny_model("bert"), load), TRIALS[:1], 6)
    read = {row for step in range(6) for row in batch_rows(TRIALS[0].data_seed, step, 2, len(load.train_rows))}
    # The trial with batches of 2 never comes to the rows that cannot be read; the one with batches of 8 does.
    rows = [row if index in read else {**row, "labels": -1} for index, row in enumerate(load.train_rows)]
    trainer = PackedTrainer(tiny_model("bert"), replace(load, task=BadRow(load.task.settings), train_rows=rows))
    for trial in (TRIALS[2], TRIALS[0]):
        trainer.admit(trial)
    failures = turn(trainer, 6)

    assert [(failure.trial, failure.reason) for failure in failures] == [(2, StopReason.ERROR)]
    assert "row 17 cannot be read" in failures[0].message
    assert same(calm[0], trainer.snapshot(0))


def test_a_token_outside_the_vocabulary_fails_one_trial_alone() -> None:
    load = workload()
    calm = states_after(PackedTrainer(tiny_model("bert"), load), TRIALS[:1], 6)
    read = {row for step in range(6) for row in batch_rows(TRIALS[0].data_seed, step, 2, len(load.train_rows))}
    rows = [
        row if index in read else {**row, "input_ids": [9999] * len(row["input_ids"])}
        for index, row in enumerate(load.train_rows)
    ]
    trainer = PackedTrainer(tiny_model("bert"), replace(load, train_rows=rows))
    for trial in (TRIALS[2], TRIALS[0], TRIALS[1]):
        trainer.admit(trial)
    failures = turn(trainer, 6)

    assert {failure.trial for failure in failures} == {1, 2}
    assert "IndexError" in failures[0].message
    assert same(calm[0], trainer.snapshot(0))


def test_short_memory_halves_the_rows_of_one_trial_alone() -> None:
    load = workload()
    quiet = [spec(0, batch_size=2, learning_rate=3e-3), spec(1, batch_size=8, learning_rate=3e-3)]
    calm = states_after(PackedTrainer(tiny_model("bert"), load), quiet, 6)
    trainer = PackedTrainer(tiny_model("bert"), replace(load, task=Greedy(load.task.settings)))
    short = states_after(trainer, quiet, 6)

    assert same(calm[0], short[0])
    assert (short[0].micro_batch, short[1].micro_batch) == (2, 2)
    # Four micro-batches of two rows are one batch of eight: the same sum in another order.
    assert all(torch.allclose(calm[1].params[name], tensor, atol=1e-6) for name, tensor in short[1].params.items())


def test_a_trial_that_does_not_fit_at_all_fails_as_such() -> None:
    load = workload()
    task = Greedy(load.task.settings)
    task.limit = 0
    trainer = PackedTrainer(tiny_model("bert"), replace(load, task=task))
    trainer.admit(TRIALS[3])
    (failure,) = turn(trainer, 1)

    assert (failure.reason, failure.step) == (StopReason.OOM, 0)
    assert "one row at a time" in failure.message


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_accumulation_equals_one_large_batch(kind: str) -> None:
    name = "bert" if kind == "classification" else "llama"
    trial = spec(0, batch_size=8, learning_rate=3e-3)
    whole = states_after(pack(kind, name, "fp32"), [trial], 6)[0]
    trainer = pack(kind, name, "fp32")
    trainer.admit(trial)
    trainer.members[0].micro_batch = 3
    turn(trainer, 6)
    split = trainer.snapshot(0)

    assert split.tokens == whole.tokens
    assert all(torch.allclose(whole.params[key], tensor, atol=2e-6) for key, tensor in split.params.items())


@pytest.mark.parametrize("kind", ["classification", "causal-lm"])
def test_a_batch_above_the_budget_is_computed_in_parts(kind: str) -> None:
    name = "bert" if kind == "classification" else "llama"
    trial = spec(0, batch_size=8, learning_rate=3e-3)
    whole = states_after(pack(kind, name, "fp32"), [trial], 4)[0]
    trainer = pack(kind, name, "fp32", split=60)
    trainer.admit(trial)
    first = trainer.members[0].upcoming(torch.device("cpu"))
    assert first.rows < 8
    assert first.rows * first.longest <= 60
    turn(trainer, 4)
    parts = trainer.snapshot(0)

    assert (parts.tokens, parts.micro_batch) == (whole.tokens, 8)
    assert all(torch.allclose(whole.params[key], tensor, atol=2e-6) for key, tensor in parts.params.items())


def test_closing_gives_the_backbone_back() -> None:
    model = tiny_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[5, 6, 7, 1]])
    expected = model(input_ids=ids).logits
    trainer = PackedTrainer(model, workload())
    states_after(trainer, TRIALS, 3)
    trainer.close()

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(model(input_ids=ids).logits, expected)
    assert not any("forward" in vars(module) for module in model.modules())
