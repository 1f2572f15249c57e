"""Behind the last attention a classifier's encoder computes the first token alone, and nobody can tell."""

from __future__ import annotations

import pytest
import torch

from automl.packed.first_token import narrow_module, narrowed_layers
from automl.packed.trainer import PackedTrainer
from tests.architectures import tiny_model
from tests.packed.packed_oracle import spec, workload


def widths(model: torch.nn.Module) -> dict[str, int]:
    """Tokens of each row that the linear layers of the body are given."""
    seen: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].shape[1]}))
    trainer = PackedTrainer(model, workload("classification"))
    trainer.admit(spec(0, rank=2, dropout=0.1))
    trainer.round(list(trainer.members.values()))
    trainer.close()
    return seen


def test_only_the_first_token_goes_on_behind_the_last_attention() -> None:
    seen = widths(tiny_model("bert", kind="classification"))
    narrow = sorted(name for name, width in seen.items() if ".encoder." in name and width == 1)
    assert narrow == [
        "bert.encoder.layer.1.attention.output.dense",
        "bert.encoder.layer.1.intermediate.dense",
        "bert.encoder.layer.1.output.dense",
    ]
    assert seen["bert.encoder.layer.0.output.dense"] > 1
    assert seen["bert.encoder.layer.1.attention.self.value"] > 1


@pytest.mark.parametrize(("name", "kind"), [("gpt2", "classification"), ("llama", "causal-lm")])
def test_models_that_read_more_are_left_alone(name: str, kind: str) -> None:
    assert narrow_module(tiny_model(name, kind=kind)) is None


def test_a_closed_trainer_leaves_the_model_as_it_was() -> None:
    model = tiny_model("bert", kind="classification")
    inputs = {"input_ids": torch.arange(3, 15).view(2, 6), "output_hidden_states": True}
    before = model(**inputs).hidden_states[-1]
    PackedTrainer(model, workload("classification")).close()
    assert torch.equal(model(**inputs).hidden_states[-1], before)


def test_the_narrow_layers_are_those_of_the_last_layer() -> None:
    assert narrowed_layers("bert.encoder.layer.11.attention.output") == (
        "bert.encoder.layer.11.attention.output.",
        "bert.encoder.layer.11.intermediate.",
        "bert.encoder.layer.11.output.",
    )
