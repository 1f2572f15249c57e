"""A space file derived from another means the same in another folder: nothing of its model is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from automl.errors import ConfigError
from automl.space.derive import derived_text
from automl.space.load import parse_space
from automl.space.submitted import validated

REST = "task: {type: completion, data: a.jsonl}\nspace: {rank: {type: int, low: 2, high: 8}}\n"


@pytest.mark.parametrize(
    "model",
    [
        "./model",
        "org/name",
        "model.gguf",
        "{folder: model, quantization: nf4, double_quant: true}",
        "{hub: org/name, revision: main, quantization: int8}",
        "{hub: org/name, adapter: trained/sft}",
        "{gguf: model.gguf, adapter: /elsewhere/sft, quantization: fp4}",
        "{package: some_package, path: model, adapter: ./sft, quantization: nf4}",
    ],
)
def test_the_model_is_the_same_in_another_folder(model: str) -> None:
    spec = parse_space(f"version: 1\nstudy: s\nmodel: {model}\n{REST}", "space.yaml", Path("/here"))
    text = derived_text(spec, study="night", heading="made", folder=Path("/there"))
    again = parse_space(text, "night.yaml", Path("/there"))
    assert again.model == spec.model
    twice = derived_text(again, study="night", heading="made", folder=Path("/there"))
    assert parse_space(twice, "night.yaml", Path("/nowhere")).model == spec.model


@pytest.mark.parametrize(("adapter", "is_fine"), [("trained/sft", True), ("/etc/sft", False), ("../sft", False)])
def test_a_submission_begins_with_an_adapter_of_the_schedulers_folder(adapter: str, is_fine: bool) -> None:
    text = f"version: 1\nstudy: s\nmodel: {{hub: org/name, adapter: {adapter}}}\n{REST}"
    if is_fine:
        assert validated(text).model.adapter.endswith("trained/sft")
        return
    with pytest.raises(ConfigError, match=r"model\.adapter: a submitted sweep may only name files below"):
        validated(text)
