"""What trials of init eva start from is found once, kept beside the data, and not found again by who goes on."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from automl.models.inventory import resolve_targets
from automl.packed.build import packed_host
from automl.space.spec import Quantization
from automl.tasks.batches import batch_rows
from automl.training import inputs
from automl.training.host import build_solo_host
from automl.training.inputs import rows_to_read
from automl.training.runtime import HostSettings, load_runtime
from automl.training.solo import SoloTrial
from automl.trial import Measurement
from tests.training.quantised_cases import quantised_settings
from tests.training.training_cases import curve, host_settings, trial_spec

EVA = (("init", "eva"),)


class Decompositions(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "linalg_eigh" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def settings(tmp_path: Path) -> HostSettings:
    return host_settings(tmp_path, architecture="llama", kind="completion", input_rank=6, importance=False)


def starts(settings: HostSettings, **hyper: Any) -> dict[str, torch.Tensor]:
    """A of every layer as a trial begins with it."""
    trial = SoloTrial(trial_spec(own=EVA, **hyper), load_runtime(settings))
    trial.attach()
    found = {name: tensor for name, tensor in trial.snapshot().params.items() if ".lora_A." in name}
    trial.detach()
    return found


def files(settings: HostSettings) -> list[Path]:
    return sorted(settings.prepared.path.parent.glob("*.reference/*/inputs-*.safetensors"))


def test_all_ranks_share_one_pass_and_one_file(settings: HostSettings) -> None:
    first = starts(settings)
    (file,) = files(settings)
    layers = resolve_targets(load_runtime(settings).model, "all-linear")
    assert len(load_file(file)) < len(layers), "what reads the same is kept once"
    assert all(len(tensor) == 6 for tensor in load_file(file).values())
    with Decompositions() as found:
        smaller, larger = starts(settings, rank=2), starts(settings, rank=6)
    assert found.count == 0
    for name, a in larger.items():
        assert a @ a.mT == pytest.approx(torch.eye(6), abs=1e-5)
        assert torch.equal(a[:4], first[name])
        assert torch.equal(a[:2], smaller[name])
    assert len(files(settings)) == 1


def test_a_rank_above_those_of_the_space_has_a_file_of_its_own(settings: HostSettings) -> None:
    starts(settings)
    assert all(len(a) == 9 for a in starts(settings, rank=9).values())
    assert len(files(settings)) == 2


def test_a_damaged_file_is_made_anew_with_a_line(settings: HostSettings, caplog: pytest.LogCaptureFixture) -> None:
    first = starts(settings)
    (file,) = files(settings)
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"{}" * 40):
        file.write_bytes(damaged)
        with caplog.at_level(logging.WARNING, inputs.__name__):
            again = starts(settings)
        assert f"{file} is damaged" in caplog.text
        assert file.read_bytes() == whole
        assert all(torch.equal(a, again[name]) for name, a in first.items())
        caplog.clear()


def test_packed_trials_start_where_solo_ones_do(settings: HostSettings) -> None:
    expected = starts(settings)
    host = packed_host(replace(settings, packed=True, capacity=2), load_runtime(settings))
    host.open(trial_spec(own=EVA))
    found = host.trainer.members[0].adapter.parameters()
    assert all(torch.equal(a, found[name]) for name, a in expected.items())
    host.shutdown()


@pytest.mark.parametrize("freeze", [False, True])
def test_who_goes_on_finds_nothing_anew_and_is_the_same_to_the_bit(settings: HostSettings, freeze: bool) -> None:
    spec = trial_spec(own=(("freeze_a", True), *EVA) if freeze else EVA, steps=8)

    def stretch(output: str) -> Measurement:
        host = build_solo_host(replace(settings, output=str(Path(settings.output) / output)))
        host.open(spec)
        (found,) = host.advance()
        assert isinstance(found, Measurement), found
        return found

    host = build_solo_host(replace(settings, output=str(Path(settings.output) / "whole")))
    host.open(spec)
    whole = [event for _ in range(2) for event in host.advance() if isinstance(event, Measurement)]
    parts = [stretch("parts")]
    with Decompositions() as found:
        parts.append(stretch("parts"))
    assert found.count == 0
    assert curve(parts) == curve(whole)


def test_a_quantised_model_reads_with_the_weights_it_has(tmp_path: Path) -> None:
    kind = "causal-lm"
    held = replace(quantised_settings(tmp_path, "llama", Quantization(kind="nf4"), kind=kind), input_rank=4)
    found = starts(held)
    whole = replace(held, backbone=replace(held.backbone, quantization=None))
    assert found.keys() == starts(whole).keys()
    assert len(files(held)) == 2, "another model has other inputs"


def test_rows_are_read_in_one_order_until_there_are_tokens_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"input_ids": [number] * 10} for number in range(9)]
    order = batch_rows(3, 0, 9, 9)
    assert [row["input_ids"][0] for row in rows_to_read(rows, 3)] == order
    monkeypatch.setattr(inputs, "TOKENS", 41)
    assert [row["input_ids"][0] for row in rows_to_read(rows, 3)] == order[:5]
