"""LoRA on tiny models of every architecture: what is trained, how it starts, and that nothing of it stays behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoModelForSequenceClassification

from automl.errors import CheckpointError, TargetError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.methods.seeding import SeededDropout
from automl.models.inventory import head_modules, resolve_targets, trainable_parameters
from tests.architectures import ARCHITECTURES, DECODERS, LABELS, VOCABULARY, tiny_config, tiny_model

LORA = METHODS["lora"]


def attach(model: nn.Module, *, target: str = "all-linear", seed: int = 5, **hyper: Any) -> PeftModel:
    return LORA.attach(
        model,
        Hyperparameters(rank=3, alpha=6.0, target=target, **hyper),
        modules=[layer.path for layer in resolve_targets(model, target)],
        head=head_modules(model),
        seed=seed,
    )


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(3, VOCABULARY, (4, 10), generator=torch.Generator().manual_seed(1))
    ids[:, -1] = 1  # T5 classifies at the end-of-text token
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, 1, 2, 1])}


def loss_of(model: Any) -> torch.Tensor:
    loss = model(**batch()).loss
    assert isinstance(loss, torch.Tensor)
    return loss


def train(model: PeftModel, steps: int) -> list[float]:
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def copy_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_trial_leaves_the_backbone_untouched(name: str) -> None:
    model = tiny_model(name)
    before = copy_of(model.state_dict())

    peft_model = attach(model, dropout=0.1)
    assert peft_model.get_nb_trainable_parameters()[0] == trainable_parameters(tiny_model(name), "all-linear", 3)
    first = train(peft_model, steps=2)
    backbone = LORA.detach(peft_model)

    assert backbone is model
    assert equal(copy_of(model.state_dict()), before)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    again = attach(model, dropout=0.1)
    assert train(again, steps=2) == first


@pytest.mark.parametrize("name", DECODERS)
def test_a_text_model_is_adapted_without_a_head(name: str) -> None:
    model = tiny_model(name, kind="causal-lm")
    inputs = batch()
    inputs["labels"] = inputs["input_ids"]
    with torch.no_grad():
        plain = model(**inputs).loss
    peft_model = attach(model, target="qv")

    assert peft_model.get_nb_trainable_parameters()[0] == trainable_parameters(tiny_model(name), "qv", 3) - 3 * 32
    assert torch.equal(peft_model(**inputs).loss, plain)
    peft_model(**inputs).loss.backward()
    assert all(p.grad is not None for p in peft_model.parameters() if p.requires_grad)


def test_the_start_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = copy_of(LORA.state(attach(tiny_model("bert"))))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = LORA.state(attach(tiny_model("bert")))

    assert torch.equal(torch.get_rng_state(), state)
    assert equal(first, second)
    other = LORA.state(attach(tiny_model("bert"), seed=6))
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_a_layers_start_does_not_depend_on_the_other_layers() -> None:
    few, all_of_them = LORA.state(attach(tiny_model("bert"), target="qv")), LORA.state(attach(tiny_model("bert")))

    assert few.keys() < all_of_them.keys()
    assert all(torch.equal(few[name], all_of_them[name]) for name in few)


def test_every_trial_gets_a_fresh_head_and_an_adapter_that_is_nothing_yet() -> None:
    model = tiny_model("roberta")
    with torch.no_grad():
        hidden = model.base_model(batch()["input_ids"]).last_hidden_state
    peft_model = attach(model)
    head = peft_model.base_model.model.classifier.modules_to_save["default"]

    assert not head.dense.bias.any()
    assert not torch.equal(head.dense.weight, model.classifier.original_module.dense.weight)
    with torch.no_grad():
        assert torch.equal(peft_model.base_model.model.roberta(batch()["input_ids"]).last_hidden_state, hidden)


@pytest.mark.parametrize("use_rslora", [False, True], ids=["plain", "rank-stabilised"])
def test_scaling_is_that_of_the_hyperparameters(use_rslora: bool) -> None:
    model = tiny_model("llama")
    attach(model, use_rslora=use_rslora)
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    expected = Hyperparameters(rank=3, alpha=6.0, use_rslora=use_rslora).scaling

    assert [layer.scaling["default"] for layer in layers] == [pytest.approx(expected)] * 14


def test_one_generator_feeds_every_dropout() -> None:
    model = tiny_model("bert")
    attach(model, dropout=0.2)
    dropouts = [module for module in model.modules() if isinstance(module, SeededDropout)]

    assert len(dropouts) == 12
    assert len({id(module.generator) for module in dropouts}) == 1
    assert {module.p for module in dropouts} == {0.2}


def test_state_round_trip_continues_the_curve() -> None:
    model = tiny_model("distilbert")
    peft_model = attach(model)
    train(peft_model, steps=3)
    saved = copy_of(LORA.state(peft_model))
    trained = loss_of(peft_model.eval()).item()
    fresh = attach(LORA.detach(peft_model))

    assert loss_of(fresh.eval()).item() != trained
    LORA.load_state(fresh, saved)
    assert loss_of(fresh).item() == trained
    assert sum(tensor.numel() for tensor in saved.values()) == fresh.get_nb_trainable_parameters()[0]


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    peft_model = attach(tiny_model("bert"))
    good = copy_of(LORA.state(peft_model))
    name = next(iter(good))

    for bad in (
        {**good, "extra": torch.ones(1)},
        {k: v for k, v in good.items() if k != name},
        {**good, name: torch.ones(1)},
    ):
        with pytest.raises(CheckpointError, match="do not fit the model"):
            LORA.load_state(peft_model, bad)
    assert equal(LORA.state(peft_model), good)


def test_layer_1_is_not_layer_11() -> None:
    config = tiny_config("bert")
    config.num_hidden_layers = 12
    model = AutoModelForSequenceClassification.from_config(config).requires_grad_(False)
    path = "bert.encoder.layer.1.attention.self.query"
    LORA.attach(model, Hyperparameters(), modules=[path], head=["classifier"], seed=1)

    assert [name for name, module in model.named_modules() if isinstance(module, LoraLayer)] == [path]


def test_a_path_that_ends_another_is_refused_before_anything_changes() -> None:
    model = tiny_model("bert")
    model.add_module(
        "side", nn.ModuleDict({"bert": nn.ModuleDict({"pooler": nn.ModuleDict({"dense": nn.Linear(2, 2)})})})
    )

    with pytest.raises(TargetError, match=r"would adapt 'side\.bert\.pooler\.dense' too"):
        LORA.attach(model, Hyperparameters(), modules=["bert.pooler.dense"], head=["classifier"], seed=1)
    assert not any(isinstance(module, LoraLayer) for module in model.modules())


@pytest.mark.parametrize("name", ["bert", "gpt2", "distilbert", "t5"])
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked for by peft 0.21
def test_plain_peft_loads_what_was_trained(name: str, tmp_path: Path) -> None:
    tiny_model(name).save_pretrained(tmp_path / "backbone")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "backbone").requires_grad_(False)
    peft_model = attach(model, dropout=0.1)
    train(peft_model, steps=2)
    expected = peft_model.eval()(**batch()).logits
    peft_model.save_pretrained(tmp_path / "adapter")

    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "backbone")
    loaded = PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    assert torch.equal(loaded(**batch()).logits, expected)
    assert expected.shape == (4, len(LABELS))


def test_trained_tensors_are_float32_on_a_bfloat16_backbone() -> None:
    peft_model = attach(tiny_model("bert").to(torch.bfloat16))

    assert {tensor.dtype for tensor in LORA.state(peft_model).values()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(peft_model)
    loss.backward()
    assert loss.isfinite()
