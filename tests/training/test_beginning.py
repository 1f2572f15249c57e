"""A search that begins with a trained adapter: it becomes part of the weights, exactly, or is refused in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from automl.errors import CheckpointError, ModelError
from automl.models.backbone import load_backbone, resolve_model
from automl.space.spec import ModelSettings
from automl.training.beginning import resolve_start
from tests.architectures import tiny_model
from tests.training.preference_cases import lively_llama
from tests.training.test_adapter_export import finished
from tests.training.training_cases import host_settings, write_backbone

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
IDS = torch.tensor([[1, 5, 9, 12, 7, 3]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beginning")
    write_backbone(folder / "model", "llama", kind="causal-lm", model=lively_llama())
    return folder


def settings(folder: Path, adapter: Path) -> ModelSettings:
    return ModelSettings(kind="folder", location=str(folder / "model"), adapter=str(adapter))


def plain(folder: Path, to: Path, **config: Any) -> PeftModel:
    """Save an adapter as plain PEFT does, with weights that matter."""
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    values = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(base, LoraConfig(**values))
    _roughen(model)
    model.save_pretrained(to)
    return model.eval()


def _roughen(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("config", [{}, {"use_rslora": True, "rank_pattern": {"down_proj": 2}}, {"use_dora": True}])
def test_an_adapter_of_plain_peft_becomes_part_of_the_weights(
    folder: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    adapted = plain(folder, tmp_path / "adapter", **config)
    base = resolve_start(ModelSettings(kind="folder", location=str(folder / "model")), tmp_path)
    start = resolve_start(settings(folder, tmp_path / "adapter"), tmp_path)
    merged = load_backbone(start, "causal-lm")
    assert torch.allclose(logits(merged), logits(adapted), rtol=1e-5, atol=1e-5)
    assert (logits(merged) - logits(load_backbone(base, "causal-lm"))).abs().max() > 0.1
    assert start.fingerprint != base.fingerprint
    assert start.parameters == base.parameters


def test_it_is_merged_once_and_again_when_it_is_another(folder: Path, tmp_path: Path) -> None:
    plain(folder, tmp_path / "adapter")
    first = resolve_start(settings(folder, tmp_path / "adapter"), tmp_path)
    written = Path(first.path, "model.safetensors").stat()
    again = resolve_start(settings(folder, tmp_path / "adapter"), tmp_path)
    assert again == first
    assert Path(first.path, "model.safetensors").stat().st_ino == written.st_ino
    plain(folder, tmp_path / "adapter", lora_alpha=4)
    assert resolve_start(settings(folder, tmp_path / "adapter"), tmp_path).fingerprint != first.fingerprint


def test_an_adapter_of_ours_becomes_part_of_the_weights(tmp_path: Path) -> None:
    begun = host_settings(tmp_path, architecture="llama", kind="causal-lm")
    _, _, adapter = finished(begun, str(tmp_path / "out"))
    start = resolve_start(settings(tmp_path, adapter), tmp_path / "cache")
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), adapter).eval()
    assert torch.allclose(logits(load_backbone(start, "causal-lm")), logits(adapted), rtol=1e-5, atol=1e-5)
    write_backbone(tmp_path / "other" / "model", "llama", kind="causal-lm", model=lively_llama(seed=6))
    with pytest.raises(CheckpointError, match="was trained on backbone"):
        resolve_start(settings(tmp_path / "other", adapter), tmp_path / "cache")


def _nothing(adapter: Path) -> None:
    (adapter / "adapter_config.json").unlink()


def _pickled(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def _not_a_number(adapter: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: tensor.fill_(float("nan")) for name, tensor in tensors.items()}, adapter / "adapter_model.safetensors"
    )


def _changed(**entries: Any) -> Callable[[Path], None]:
    def change(adapter: Path) -> None:
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(config | entries))

    return change


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_nothing, "no adapter: a folder with adapter_config.json and adapter_model.safetensors is needed"),
        (_pickled, "adapter_model.bin but no adapter_model.safetensors; pickled weights are not read"),
        (_not_a_number, "PEFT cannot merge it"),
        (
            _changed(task_type="SEQ_CLS"),
            "its head is for classification; a search begins with an adapter of",
        ),
        (_changed(peft_type="XLORA"), "peft_type XLORA is not loaded"),
        (_changed(megatron_config={"a": 1}), "names code to import"),
        (_changed(r=3), "PEFT cannot load the adapter|size mismatch"),
    ],
    ids=["nothing", "pickled", "nan", "classifier", "xlora", "code", "rank"],
)
def test_what_cannot_be_merged_is_refused_in_a_line(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    plain(folder, tmp_path / "adapter")
    spoil(tmp_path / "adapter")
    with pytest.raises((ModelError, CheckpointError), match=said) as refused:
        resolve_start(settings(folder, tmp_path / "adapter"), tmp_path)
    assert "\n" not in str(refused.value)
    assert str(tmp_path / "adapter") in str(refused.value)
    assert not list((tmp_path / "models").glob("merged-*/model.safetensors"))


def test_virtual_tokens_and_other_models_are_refused_in_a_line(folder: Path, tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    get_peft_model(base, PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")).save_pretrained(
        tmp_path / "p"
    )
    with pytest.raises(ModelError, match="PEFT cannot merge it") as refused:
        resolve_start(settings(folder, tmp_path / "p"), tmp_path)
    assert "\n" not in str(refused.value)
    plain(folder, tmp_path / "adapter")
    write_backbone(tmp_path / "gpt2" / "model", "gpt2", kind="causal-lm", model=tiny_model("gpt2", kind="causal-lm"))
    with pytest.raises(ModelError) as refused:
        resolve_start(settings(tmp_path / "gpt2", tmp_path / "adapter"), tmp_path)
    assert "\n" not in str(refused.value)
    with pytest.raises(ModelError, match="no adapter"):
        resolve_start(settings(folder, tmp_path / "nowhere"), tmp_path)


def test_the_merged_model_is_an_ordinary_model_folder(folder: Path, tmp_path: Path) -> None:
    plain(folder, tmp_path / "adapter")
    start = resolve_start(settings(folder, tmp_path / "adapter"), tmp_path)
    assert resolve_model(ModelSettings(kind="folder", location=start.path), tmp_path).fingerprint == start.fingerprint
