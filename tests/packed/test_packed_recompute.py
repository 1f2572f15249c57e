"""Gradient checkpointing changes no number, and bfloat16 for whole models stays near float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import tiny_model
from packed_oracle import spec, workload

from automl.packed.bank import BankSize
from automl.packed.recompute import recomputable
from automl.packed.seating import Seat
from automl.packed.trainer import PackedTrainer
from automl.training.state import TrainState

ROOM = BankSize(slots=2, rank=16, targets=("qv", "all-linear"))
TRIALS = [
    spec(0, rank=4, target="qv", dropout=0.2, batch_size=4, learning_rate=3e-3),
    spec(1, rank=16, dropout=0.1, batch_size=4, learning_rate=3e-3),
]


def states(name: str, kind: str, steps: int = 4, **options: Any) -> list[TrainState]:
    model = tiny_model(name, kind=kind)
    if options.get("precision") == "bf16":
        model = model.to(torch.bfloat16)
    trainer = PackedTrainer(model, workload(kind), **options)
    for trial in TRIALS:
        trainer.admit(trial)
    for _ in range(steps):
        assert trainer.round(list(trainer.members.values())) == []
    found = [trainer.snapshot(trial.number) for trial in TRIALS]
    trainer.close()
    assert "forward" not in vars(model.base_model)
    return found


@pytest.mark.parametrize("bank", [None, ROOM], ids=["loop", "bank"])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("bert", "classification"), ("llama", "causal-lm"), ("gpt2", "classification")],
)
def test_computing_activations_again_changes_no_bit(name: str, kind: str, bank: BankSize | None) -> None:
    plain, again = (states(name, kind, bank=bank, recompute=recompute) for recompute in (False, True))
    for one, other in zip(plain, again, strict=True):
        assert all(torch.equal(one.params[key], other.params[key]) for key in one.params)
        assert all(torch.equal(one.moments[key], other.moments[key]) for key in one.moments)
        assert one.dropout is not None
        assert other.dropout is not None
        assert torch.equal(one.dropout, other.dropout)


def test_layers_that_share_an_input_add_up_its_gradient_in_another_order() -> None:
    plain, again = (states("t5", "classification", recompute=recompute) for recompute in (False, True))
    for one, other in zip(plain, again, strict=True):
        # T5's encoder output goes into every decoder layer.
        assert all(torch.allclose(one.params[key], other.params[key], atol=1e-6) for key in one.params)


def test_activations_are_not_kept() -> None:
    kept = {recompute: saved_bytes(recompute) for recompute in (False, True)}
    assert kept[True] < kept[False] / 2


def saved_bytes(recompute: bool) -> int:
    """Bytes that autograd keeps of one forward pass; what packed layers keep for themselves comes on top."""
    trainer = PackedTrainer(tiny_model("bert"), workload(), recompute=recompute)
    trainer.admit(TRIALS[0])
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    counting = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    member = trainer.members[0]
    rows = member.upcoming(torch.device("cpu"))
    with counting, trainer._seating.seated([Seat(member.adapter, 0, rows.rows, rows.longest)]):
        trainer.model(**{name: tensor for name, tensor in rows.batch.items() if name != "labels"})
    return total


def test_every_tested_architecture_can_recompute() -> None:
    for name in ("bert", "roberta", "distilbert", "modernbert", "gpt2", "gpt-neox", "llama", "gemma3", "phi3", "t5"):
        assert recomputable(tiny_model(name)), name


@pytest.mark.parametrize("bank", [None, ROOM], ids=["loop", "bank"])
@pytest.mark.parametrize(("name", "kind"), [("bert", "classification"), ("llama", "causal-lm")])
def test_bf16_stays_near_fp32_and_keeps_adapters_in_float32(name: str, kind: str, bank: BankSize | None) -> None:
    exact, half = (states(name, kind, 10, bank=bank, precision=precision) for precision in ("fp32", "bf16"))
    for one, other in zip(exact, half, strict=True):
        assert all(tensor.dtype == torch.float32 for tensor in other.params.values())
        norm, apart = (
            torch.cat([(tensor - base).flatten() for tensor, base in pairs]).norm()
            for pairs in (
                [(one.params[key], torch.zeros(())) for key in one.params],
                [(one.params[key], other.params[key]) for key in one.params],
            )
        )
        assert 0 < apart < 0.1 * norm
