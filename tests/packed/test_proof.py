"""No model is packed that packing would change: every architecture follows PEFT in a pack, or the proof says no."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from automl.models.backbone import BackboneRef
from automl.packed.bank import BankSize
from automl.packed.build import disagreement
from automl.packed.proof import disproof
from automl.packed.remembered import objection
from automl.packed.trainer import PackedTrainer
from automl.tasks.base import Prepared
from automl.tasks.classification import Classification
from automl.tasks.completion import Completion
from automl.training.runtime import HostSettings, Runtime
from tests.architectures import tiny_model
from tests.many_models import MIXING, many_models, model_of
from tests.packed.packed_oracle import SETTINGS, PadOnly, spec, token_rows, workload

CPU = torch.device("cpu")
ROOM = BankSize(slots=4, rank=4, targets=("all-linear",))


def bench_of(model: nn.Module, kind: str = "classification") -> Runtime:
    rows = token_rows(kind)
    return Runtime(
        model=model,
        tokenizer=PadOnly(),
        task=Classification(SETTINGS) if kind == "classification" else Completion(SETTINGS),
        train_rows=rows[:36],
        evaluation_rows=rows[36:],
        device=CPU,
    )


def losses(model: nn.Module, kind: str, neighbours: int, bank: BankSize | None) -> list[float]:
    """Of a trial in a pack with so many others, whose adapters grow quickly."""
    trainer = PackedTrainer(model, workload(kind), bank=bank)
    trials = [spec(0, rank=4, batch_size=4, learning_rate=1e-2, warmup=0.0)]
    trials += [spec(number, rank=3, batch_size=4, learning_rate=0.2, warmup=0.0) for number in range(1, neighbours + 1)]
    for trial in trials:
        trainer.admit(trial)
    found = []
    for _ in range(4):
        assert trainer.round(list(trainer.members.values())) == []
        found.append(trainer.members[0].loss)
    trainer.close()
    return found


@pytest.mark.parametrize("bank", [None, ROOM], ids=["loop", "bank"])
@pytest.mark.parametrize(("name", "kind"), many_models())
def test_a_pack_follows_peft_or_is_refused(name: str, kind: str, bank: BankSize | None) -> None:
    model = model_of(name, kind)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    found = disproof(bench_of(model, kind), ["all-linear"], bank=bank is not None, recompute=False)

    assert MIXING.get((name, kind), "") in found
    assert bool(found) == ((name, kind) in MIXING)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    if not found:  # and what it says can be seen without it: neighbours do not matter
        assert losses(model, kind, 2, bank) == pytest.approx(losses(model, kind, 0, bank), rel=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("llama", "causal-lm"), ("falcon", "classification")])
def test_gradient_checkpointing_is_part_of_the_path(name: str, kind: str) -> None:
    assert disproof(bench_of(model_of(name, kind), kind), ["all-linear"], bank=True, recompute=True) == ""


def test_adapters_that_change_nothing_prove_nothing() -> None:
    runtime = bench_of(model_of("deberta-v2", "classification"))

    found = disproof(runtime, ["all-linear"], bank=True, recompute=False, strengths=[1e-5])

    assert found.startswith("adapters hardly change this model's loss")


class Echo(nn.Module):
    """A layer norm that adds what it was given first to whatever it is given next: a model with a memory."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(x)
        return y + 1e-3 * y.mean(dim=(0, 1))


def test_a_thousandth_of_a_mean_over_all_rows_is_found() -> None:
    # Nothing raises here, and rows are where they belong: only the numbers tell.
    model = tiny_model("bert")
    layer: Any = model.get_submodule("bert.encoder.layer.0.output")
    layer.LayerNorm = Echo(layer.LayerNorm)

    assert "differs from PEFT's" in disproof(bench_of(model), ["all-linear"], bank=False, recompute=False)


def settings_of(folder: Path, **changes: Any) -> HostSettings:
    backbone = BackboneRef(
        path="model", fingerprint="f" * 64, architecture="BertForSequenceClassification", parameters=1, bytes=4
    )
    prepared = Prepared(path=folder, fingerprint="d", rows={}, labels=("a", "b", "c"), longest=12)
    settings = HostSettings(
        backbone=backbone,
        task=SETTINGS,
        prepared=prepared,
        output=str(folder),
        device="cpu",
        packed=True,
        choices=("all-linear",),
        proofs=str(folder / "packing"),
    )
    return replace(settings, **changes)


class TestMemory:
    """What was found out is known the next time, for the same model, path and versions only."""

    @staticmethod
    def asked(settings: HostSettings, model: nn.Module, *, bank: bool = False) -> tuple[str | None, int]:
        """The answer, and how often the model was loaded for it."""
        loaded: list[Runtime] = []

        def load() -> Runtime:
            loaded.append(bench_of(model))
            return loaded[-1]

        return objection(settings, model, CPU, bank=bank, recompute=False, runtime=load), len(loaded)

    @pytest.mark.parametrize("name", ["bert", "deberta-v2"])
    def test_it_is_paid_for_once(self, tmp_path: Path, name: str) -> None:
        model, settings = model_of(name, "classification"), settings_of(tmp_path)
        first, loads = self.asked(settings, model)

        assert (bool(first), loads) == (name != "bert", 1)
        assert self.asked(settings, model) == (first, 0)
        assert disagreement(settings, model, runtime=None) == first

    def test_another_model_path_length_or_mask_is_asked_anew(self, tmp_path: Path) -> None:
        model, settings = model_of("bert", "classification"), settings_of(tmp_path)
        self.asked(settings, model)

        other = replace(settings, backbone=replace(settings.backbone, fingerprint="e" * 64))
        longer = replace(settings, prepared=replace(settings.prepared, longest=20))
        joined = replace(settings, task=replace(settings.task, short_texts="join"))
        assert [self.asked(each, model)[1] for each in (other, longer, joined)] == [1, 1, 1]
        assert self.asked(settings, model, bank=True)[1] == 1

    def test_a_damaged_file_is_as_none(self, tmp_path: Path) -> None:
        model, settings = model_of("bert", "classification"), settings_of(tmp_path)
        self.asked(settings, model)
        for file in (tmp_path / "packing").iterdir():
            file.write_text("{")

        assert self.asked(settings, model) == ("", 1)

    def test_a_cache_that_cannot_be_written_is_no_hindrance(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "packing").write_text("a file")

        assert self.asked(settings_of(tmp_path), model_of("bert", "classification")) == ("", 1)
        assert "cannot remember" in caplog.text
