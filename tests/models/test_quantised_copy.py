"""Quantised weights are made once: what is loaded from their copy is the same to the bit, whatever happens to it."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from automl import durable
from automl.models import quantised_copy
from automl.models.backbone import BackboneRef, Kind, load_backbone, resolve_model
from automl.models.inventory import made_anew
from automl.space.spec import ModelSettings, Quantization
from tests.training.quantised_cases import DOUBLE, FP4, INT8, NF4, wide_model
from tests.training.training_cases import LABELS, write_backbone


class Quantisings(TorchDispatchMode):
    """Counts the weights that are quantised."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(func).startswith(("bitsandbytes.quantize", "bitsandbytes.int8_vectorwise_quant"))
        return func(*args, **(kwargs or {}))


def reference(folder: Path, name: str, kind: str, quantization: Quantization, model: nn.Module | None = None) -> Any:
    write_backbone(folder / "model", name, kind=kind, model=model or wide_model(name, kind=kind))
    place = ModelSettings(kind="folder", location=str(folder / "model"), quantization=quantization)
    return resolve_model(place, folder / "cache")


def copies(folder: Path) -> list[Path]:
    return [each for each in (folder / "cache" / "models").glob("quantised-*") if each.is_dir()]


def loaded(ref: BackboneRef, kind: Kind, labels: tuple[str, ...] = LABELS, **options: Any) -> tuple[Any, int]:
    """The model, and how many of its weights had to be quantised."""
    with Quantisings() as seen:
        model = load_backbone(ref, kind, labels if kind == "classification" else (), **options)
    return model, seen.count


def assert_same(ours: Any, theirs: Any) -> None:
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert tensor.dtype == expected[name].dtype, name
        assert torch.equal(tensor, expected[name]), name
    ids = torch.arange(3, 23).view(2, 10)
    assert torch.equal(ours(input_ids=ids).logits, theirs(input_ids=ids).logits)
    assert [type(module) for module in ours.modules()] == [type(module) for module in theirs.modules()]
    assert [each.requires_grad for each in ours.parameters()] == [each.requires_grad for each in theirs.parameters()]
    assert made_anew(ours) == made_anew(theirs)


@pytest.mark.parametrize(
    ("name", "kind", "quantization"),
    [
        ("bert", "classification", DOUBLE),
        ("llama", "causal-lm", NF4),
        ("gpt2", "causal-lm", INT8),
        ("gpt2", "causal-lm", FP4),
        ("llama", "classification", INT8),
    ],
)
def test_a_copy_gives_the_bits_of_quantising_anew(
    tmp_path: Path, name: str, kind: Kind, quantization: Quantization
) -> None:
    """Of a language model whose head is tied, of one that gets a new head, and of layers that are stored transposed."""
    model = wide_model(name, kind="causal-lm" if name == "llama" else kind)
    ref = reference(tmp_path, name, kind, quantization, model)
    anew, many = loaded(replace(ref, cache=""), kind)
    assert many
    assert not copies(tmp_path)
    first, count = loaded(ref, kind)
    assert count == many
    second, count = loaded(ref, kind)
    assert count == 0
    assert len(copies(tmp_path)) == 1
    for model in (first, second):
        assert_same(model, anew)


def test_what_was_made_anew_is_made_anew_again(tmp_path: Path) -> None:
    """A pooler and a head that the checkpoint lacks depend on the seed, not on who has made the copy."""
    ref = reference(tmp_path, "bert", "classification", NF4, wide_model("bert", kind="causal-lm").bert)
    loaded(ref, "classification", seed=1)
    second, count = loaded(ref, "classification", seed=2)
    assert count == 0
    assert_same(second, loaded(replace(ref, cache=""), "classification", seed=2)[0])


def test_other_settings_are_other_copies(tmp_path: Path) -> None:
    ref = reference(tmp_path, "bert", "classification", NF4)
    loaded(ref, "classification")
    others: list[tuple[BackboneRef, tuple[str, ...], str]] = [
        (replace(ref, quantization=DOUBLE), LABELS, "fp32"),
        (replace(ref, quantization=INT8), LABELS, "fp32"),
        (ref, (*LABELS, "none of them"), "fp32"),
        (ref, LABELS, "bf16"),
    ]
    for number, (other, labels, dtype) in enumerate(others, start=2):
        assert loaded(other, "classification", labels, dtype=dtype)[1] > 0
        assert len(copies(tmp_path)) == number


def test_a_damaged_copy_is_made_anew_with_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ref = reference(tmp_path, "llama", "causal-lm", NF4)
    first, _ = loaded(ref, "causal-lm")
    (folder,) = copies(tmp_path)
    file, manifest = folder / quantised_copy.WEIGHTS, folder / durable.MANIFEST
    whole = file.read_bytes()
    for path, content in ((file, whole[:-7]), (file, whole[:-1] + b"\x01"), (manifest, b"{}")):
        path.write_bytes(content)
        with caplog.at_level(logging.WARNING, quantised_copy.__name__):
            again, count = loaded(ref, "causal-lm")
        assert count > 0
        assert "the model is quantised anew: " in caplog.text
        assert len(caplog.records) == 1
        assert file.read_bytes() == whole
        assert_same(again, first)
        caplog.clear()
    file.unlink()
    assert loaded(ref, "causal-lm")[1] > 0
    assert loaded(ref, "causal-lm")[1] == 0


def test_of_several_at_once_one_makes_it(tmp_path: Path) -> None:
    made: list[str] = []
    there = threading.Barrier(3)

    def make() -> Any:
        made.append("made")
        return nn.Linear(2, 2), {"missing_keys": [], "mismatched_keys": []}

    def load() -> None:
        there.wait()
        quantised_copy.read_or_make(tmp_path / "copy", [], read=lambda: made.append("read"), make=make)  # type: ignore[arg-type, func-returns-value]

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == ["made", "read", "read"]


def test_without_room_for_a_copy_the_model_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ref = reference(tmp_path, "llama", "causal-lm", NF4)
    (tmp_path / "file").write_text("no folder")
    with caplog.at_level(logging.WARNING, quantised_copy.__name__):
        model, count = loaded(replace(ref, cache=str(tmp_path / "file")), "causal-lm")
    assert count > 0
    assert "the quantised weights are not kept: " in caplog.text
    assert_same(model, loaded(replace(ref, cache=""), "causal-lm")[0])
