"""Trials that are due together are measured on each batch of rows together: as each would be alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from automl import watchdog
from automl.errors import is_out_of_memory
from automl.packed.bank import BankSize
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload
from automl.tasks.classification import Classification
from automl.training.runtime import load_runtime
from automl.trial import Measurement, StopReason, TrialFailure, TrialSpec
from tests.architectures import tiny_model
from tests.packed.packed_oracle import SETTINGS, spec, workload
from tests.training.judged_cases import judged_settings, own, workload_of
from tests.training.preference_cases import pairs, preference_settings, singles
from tests.training.seq2seq_cases import seq2seq_settings

TRIALS = [
    spec(0, rank=4, target="qv", batch_size=4),
    spec(1, rank=8, dropout=0.2, batch_size=2, use_rslora=True),
    spec(2, rank=3, target="attention", batch_size=4),
]
ROOM = BankSize(slots=4, rank=8, targets=("qv", "all-linear", "attention"))


def trained(model: nn.Module, load: Workload, trials: Sequence[TrialSpec] = TRIALS, **options: Any) -> PackedTrainer:
    """A pack after two steps of all trials."""
    trainer = PackedTrainer(model, load, **options)
    for trial in trials:
        trainer.admit(trial)
    for _ in range(2):
        assert trainer.round(list(trainer.members.values())) == []
    return trainer


@contextmanager
def counted_passes(trainer: PackedTrainer, tokens: list[int]) -> Iterator[None]:
    """Notes the tokens of every pass of the body inside the block, padding included."""
    embedding = trainer.model.get_input_embeddings()  # type: ignore[operator]
    handle = embedding.register_forward_pre_hook(lambda module, given: tokens.append(given[0].numel()))
    try:
        yield
    finally:
        handle.remove()


def hold_against_alone(trainer: PackedTrainer) -> None:
    members = list(trainer.members.values())
    apart: list[int] = []
    with counted_passes(trainer, apart):
        alone = [trainer.evaluate(member, member.evaluation_tokens) for member in members]
    together: list[int] = []
    with counted_passes(trainer, together):
        events = trainer.measured(members)
    tolerance = 0.0 if trainer.kernel.startswith("onednn") and trainer.bank_step is None else 2e-6
    for event, metrics in zip(events, alone, strict=True):
        assert isinstance(event, Measurement), event
        assert event.metrics == pytest.approx(metrics, rel=tolerance, abs=tolerance)
    assert len({event.metrics["loss"] for event in events if isinstance(event, Measurement)}) == len(members)
    assert sum(together) == sum(apart)
    assert len(together) == len(apart) / len(members)


@pytest.mark.parametrize("bank", [None, ROOM])
@pytest.mark.parametrize(("name", "kind"), [("bert", "classification"), ("llama", "causal-lm")])
def test_measured_together_as_alone(name: str, kind: str, bank: BankSize | None) -> None:
    hold_against_alone(trained(tiny_model(name, kind=kind), workload(kind), bank=bank))


@pytest.mark.parametrize("kind", ["regression", "multi_label", "token_classification"])
def test_so_are_tasks_with_other_heads(tmp_path: Path, kind: str) -> None:
    runtime = load_runtime(judged_settings(tmp_path, kind, metric="loss"))
    hold_against_alone(trained(runtime.model, workload_of(runtime)))


@pytest.mark.parametrize("rows", [pairs, singles])
def test_so_are_preferences(tmp_path: Path, rows: Callable[[int], Any]) -> None:
    runtime = load_runtime(preference_settings(tmp_path, rows(24)))
    load = workload_of(runtime)
    trials = [replace(trial, hyper=replace(trial.hyper, **own(loss="kto"))) for trial in TRIALS]
    hold_against_alone(trained(runtime.model, load, trials if rows is singles else TRIALS))


def test_so_are_encoders_with_decoders(tmp_path: Path) -> None:
    runtime = load_runtime(seq2seq_settings(tmp_path, "t5"))
    hold_against_alone(trained(runtime.model, workload_of(runtime)))


def test_a_pass_of_several_has_no_more_tokens_than_one_alone_may_have() -> None:
    trainer = trained(tiny_model("bert", kind="classification"), workload())
    members, passes = list(trainer.members.values()), list[int]()
    for member in members:
        member.evaluation_tokens = 60
    alone: list[int] = []
    with counted_passes(trainer, alone):
        trainer.evaluate(members[0], 60)
    with counted_passes(trainer, passes):
        trainer.measured(members)
    assert max(alone) > 30  # no room for two
    assert max(passes) <= 60
    assert sum(passes) == 3 * sum(alone)


def test_trials_of_whom_other_rows_are_wanted_are_measured_apart() -> None:
    trainer = trained(tiny_model("bert", kind="classification"), workload())
    members = list(trainer.members.values())
    members[0].spec = replace(members[0].spec, evaluations=((2, 4),))
    alone = [trainer.evaluate(member, 2048) for member in members]
    found = trainer.measured(members)
    assert [event.metrics for event in found if isinstance(event, Measurement)] == [
        pytest.approx(metrics, rel=1e-6) for metrics in alone
    ]


def test_one_that_is_no_number_leaves_alone() -> None:
    trainer = trained(tiny_model("bert", kind="classification"), workload())
    members = list(trainer.members.values())
    alone = [trainer.evaluate(member, 2048) for member in members]
    members[1].adapter.storage.params.fill_(float("nan"))
    first, failure, last = trainer.measured(members)
    assert isinstance(failure, TrialFailure)
    assert failure.reason is StopReason.DIVERGED
    for event, metrics in ((first, alone[0]), (last, alone[2])):
        assert isinstance(event, Measurement)
        assert event.metrics == pytest.approx(metrics, rel=1e-6)
    assert sorted(trainer.members) == [0, 2]


class Picky(Classification):
    """Its metrics are of finite losses alone, as one of a user's own may be."""

    def scores(self, judged: Sequence[Any], model: nn.Module, tokenizer: Any) -> tuple[dict[str, float], Any]:
        found = super().scores(judged, model, tokenizer)
        if not math.isfinite(found[0]["loss"]):
            raise ValueError("no number")
        return found


def test_the_others_keep_what_they_have_if_a_metric_fails_for_one() -> None:
    trainer = trained(tiny_model("bert", kind="classification"), replace(workload(), task=Picky(SETTINGS)))
    members = list(trainer.members.values())
    alone: list[int] = []
    with counted_passes(trainer, alone):
        trainer.evaluate(members[0], 2048)
    members[1].adapter.storage.params.fill_(float("nan"))
    passes: list[int] = []
    with counted_passes(trainer, passes):
        found = trainer.measured(members)
    assert [type(event) for event in found] == [Measurement, TrialFailure, Measurement]
    assert sum(passes) == 3 * sum(alone) + sum(alone), "only the one that failed is evaluated again"


def test_every_pass_is_a_sign_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "_BETWEEN", 0.0)
    trainer = trained(tiny_model("bert", kind="classification"), workload())
    members, signs = list(trainer.members.values()), list[float]()
    for member in members:
        member.evaluation_tokens = 60

    def note(*_: object) -> None:
        assert watchdog._watch is not None
        signs.append(watchdog._watch.wound_up)

    trainer.model.get_input_embeddings().register_forward_pre_hook(note)  # type: ignore[operator]
    with watchdog.watched(600.0, tmp_path / "traces"):
        trainer.measured(members)
    assert len(signs) > len(members)
    assert len(set(signs)) == len(signs)


def test_short_memory_lets_each_go_alone() -> None:
    trainer = trained(tiny_model("bert", kind="classification"), workload())
    members = list(trainer.members.values())
    alone = [trainer.evaluate(member, 2048) for member in members]
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert is_out_of_memory(error)

    def crowded(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if len(given[0]) > 12:
            raise error

    trainer.model.get_input_embeddings().register_forward_pre_hook(crowded)  # type: ignore[operator]
    found = trainer.measured(members)
    assert [event.metrics for event in found if isinstance(event, Measurement)] == alone
    assert {member.evaluation_tokens for member in members} == {2048}
