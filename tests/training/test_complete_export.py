"""An exported adapter is complete: whatever was trained or made anew is in its files, whatever the architecture."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from automl.errors import TargetError
from automl.lora import Hyperparameters
from automl.methods.lora import Lora
from automl.models.backbone import load_backbone, load_tokenizer, reference
from automl.models.inventory import head_modules, made_anew, resolve_targets
from automl.packed.convert import adapter_config, made_anew_parameters, write_adapter
from automl.packed.layout import file_name
from automl.report.recipe import recipe
from automl.training.adapter import AdapterMeta
from automl.training.export import export_adapter
from automl.training.reload import measure_afresh
from automl.trial import Measurement
from tests.architectures import ARCHITECTURES, FURTHER, LABELS, VOCABULARY, tiny_config, tiny_tokenizer
from tests.training.test_adapter_export import finished
from tests.training.training_cases import host_settings

POOLERS = {
    "bert": "bert.pooler",
    "albert": "albert.pooler",
    "mobilebert": "mobilebert.pooler",
    "fnet": "fnet.pooler",
    "big_bird": "bert.pooler",
    "rembert": "rembert.pooler",
    "megatron-bert": "bert.pooler",
    "ernie": "ernie.pooler",
}
"""Architectures whose classifier reads the body's own pooler, and where that is."""

HEADS_ONLY = [
    *("roberta", "distilbert", "modernbert", "deberta", "deberta-v2", "mpnet", "xlnet", "t5", "bart"),
    *("gpt2", "llama", "opt", "falcon", "bloom", "mixtral"),
]
"""Architectures in which all that is new is the head; most have several layers in it."""


def config_of(name: str) -> Any:
    if name in ARCHITECTURES:
        return tiny_config(name)
    if name in FURTHER:
        return AutoConfig.for_model(name, **FURTHER[name].settings)
    settings = ARCHITECTURES["bert"].settings | {"attention_type": "original_full", "sep_token_id": 2}
    return AutoConfig.for_model(name, **settings)


def write_body(folder: Path, name: str) -> Path:
    """A checkpoint as masked or causal language modelling leaves it: neither head nor pooler."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModel.from_config(config_of(name))
        for parameter in model.parameters():  # the default initialisation would hide what a pooler does
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if not key.startswith("pooler.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def trained(model: nn.Module) -> Any:
    """The model with an adapter and heads of weights that matter."""
    modules = [layer.path for layer in resolve_targets(model, "all-linear")]
    peft_model = Lora().attach(model, Hyperparameters(rank=2), modules, head_modules(model), seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0.0, 0.2, generator=generator)
    return peft_model.eval()


def meta_for(folder: Path, cache: Path) -> AdapterMeta:
    return AdapterMeta(
        measurement=Measurement(trial=0, step=1, metrics={"accuracy": 1.0}, seconds=0.0, tokens=0),
        metric="accuracy",
        hyper=Hyperparameters(rank=2),
        backbone=reference(folder, cache),
        data="0" * 64,
        precision="fp32",
        labels=LABELS,
    )


def logits_of(model: Any) -> Tensor:
    ids = torch.arange(3, VOCABULARY - 1).view(4, -1)[:, :8]
    ids[:, -1] = {"bart": 2, "t5": 1}.get(model.config.model_type, 3)  # they read a text at its end-of-text token
    with torch.no_grad():
        found: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return found


def as_printed(folder: Path, seed: int) -> Any:
    """The model of the printed lines, with other random numbers about."""
    found = recipe(str(folder))
    assert found is not None
    names: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(seed)
        exec(found.use, names)
    return names["model"].eval()


@pytest.mark.parametrize("name", [*POOLERS, *HEADS_ONLY])
def test_the_printed_lines_give_the_model_that_was_trained(name: str, tmp_path: Path) -> None:
    meta = meta_for(write_body(tmp_path / "model", name), tmp_path / "cache")
    model = load_backbone(meta.backbone, "classification", LABELS)
    anew = made_anew(model)
    assert anew == ((POOLERS[name],) if name in POOLERS else ())
    modules = [layer.path for layer in resolve_targets(model, "all-linear")]
    config = adapter_config(model, meta.hyper, modules, head_modules(model), base=meta.backbone.path)
    fixed = made_anew_parameters(model)
    peft_model = trained(model)
    expected = logits_of(peft_model)

    export_adapter(peft_model, tmp_path / "adapter", meta, tokenizer=load_tokenizer(meta.backbone))
    again = as_printed(tmp_path / "adapter", seed=1)
    assert logits_of(again) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert again.config.id2label == dict(enumerate(LABELS))

    (tmp_path / "packed").mkdir()
    tensors = {file_name(name): tensor for name, tensor in (Lora().state(peft_model) | fixed).items()}
    write_adapter(tmp_path / "packed", tensors, config)
    ours, theirs = (load_file(tmp_path / part / "adapter_model.safetensors") for part in ("packed", "adapter"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["modules_to_save"]
    assert set(config["modules_to_save"]) == set(saved)
    assert set(anew) <= set(saved)


def test_a_search_on_a_checkpoint_without_pooler_exports_it(tmp_path: Path) -> None:
    """The whole way, and loaded in a process of its own."""
    settings = host_settings(tmp_path)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    kept = {key: tensor for key, tensor in weights.items() if ".pooler." not in key}
    assert len(kept) < len(weights)
    save_file(kept, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    settings = replace(settings, backbone=reference(tmp_path / "model", tmp_path / "cache"))

    settings, last, folder = finished(settings, str(tmp_path / "out"))
    found = recipe(str(folder))
    assert found is not None
    (reloaded,) = measure_afresh([found.use.splitlines()], settings)
    assert reloaded.metrics == pytest.approx(dict(last.metrics), rel=1e-6, abs=1e-6)
    assert reloaded.labels == settings.prepared.labels


def test_a_pooler_that_was_made_anew_is_no_target(tmp_path: Path) -> None:
    model = load_backbone(reference(write_body(tmp_path / "m", "bert"), tmp_path / "c"), "classification", LABELS)
    with pytest.raises(TargetError, match=r"'pooler\.dense' is left out on purpose: the checkpoint lacks it"):
        resolve_targets(model, "mine", {"mine": ["pooler.dense"]})
