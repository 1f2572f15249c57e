"""A backbone held in few bits: the same layers and target sets, weights as bitsandbytes has them, and what it takes."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from automl.errors import ModelError
from automl.lora import Hyperparameters
from automl.models.activations import activations
from automl.models.backbone import dense_backbone, load_backbone, resolve_model, skeleton
from automl.models.inventory import head_modules, linear_layers, quantised_layers, resolve_targets
from automl.models.memory import backbone_bytes
from automl.models.quantisation import bytes_per_weight
from automl.models.quantised import dense_weight, is_quantised, weight_norms
from automl.space.spec import ModelSettings, Quantization
from automl.training.runtime import load_runtime
from tests.architectures import LABELS
from tests.training.quantised_cases import DOUBLE, FP4, INT8, NF4, quantised_settings, wide_model
from tests.training.training_cases import curve, run, trial_spec, write_backbone

WAYS = [INT8, NF4, DOUBLE, FP4]


def settings(folder: Path, quantization: Quantization | None) -> ModelSettings:
    return ModelSettings(kind="folder", location=str(folder), quantization=quantization)


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("quantization", [INT8, DOUBLE], ids=str)
def test_layers_and_target_sets_are_those_of_the_model_as_stored(
    tmp_path: Path, name: str, quantization: Quantization
) -> None:
    write_backbone(tmp_path / "m", name, model=wide_model(name, kind="classification"))
    ref = resolve_model(settings(tmp_path / "m", quantization), tmp_path)
    bones, model = skeleton(ref, "classification", LABELS), load_backbone(ref, "classification", LABELS)

    assert linear_layers(model) == linear_layers(bones)
    assert head_modules(model) == head_modules(bones)
    for target in ("qv", "attention", "mlp", "all-linear"):
        assert resolve_targets(model, target) == resolve_targets(bones, target)
    held = [path for path, module in model.named_modules() if is_quantised(module)]
    assert held == [layer.path for layer in quantised_layers(bones)]
    assert held == [layer.path for layer in resolve_targets(bones, "all-linear")]


@pytest.mark.parametrize("quantization", [INT8, NF4], ids=str)
def test_a_worker_counts_what_is_kept_as_the_plan_does(tmp_path: Path, quantization: Quantization) -> None:
    write_backbone(tmp_path / "m", "llama", kind="causal-lm", model=wide_model("llama", kind="causal-lm"))
    ref = resolve_model(settings(tmp_path / "m", quantization), tmp_path)
    planned, counted = (
        activations(model, resolve_targets(model, "all-linear"), Hyperparameters(rank=2))
        for model in (skeleton(ref, "causal-lm"), load_backbone(ref, "causal-lm"))
    )
    assert planned.is_counted
    assert counted == planned


@pytest.mark.parametrize("quantization", WAYS, ids=str)
def test_dense_weights_are_those_that_products_are_made_with(tmp_path: Path, quantization: Quantization) -> None:
    whole = wide_model("gpt2", kind="causal-lm")
    write_backbone(tmp_path / "m", "gpt2", kind="causal-lm", model=whole)
    model = load_backbone(resolve_model(settings(tmp_path / "m", quantization), tmp_path), "causal-lm")
    layers = resolve_targets(model, "all-linear")
    for layer in layers:
        module: Any = model.get_submodule(layer.path)
        weight = dense_weight(module)
        assert weight.shape == (layer.out_features, layer.in_features)
        unit = torch.eye(layer.in_features)
        torch.testing.assert_close(module(unit) - module.bias, weight.t(), atol=1e-6, rtol=1e-6)
        near = whole.get_submodule(layer.path).weight.t()  # type: ignore[union-attr, operator]
        assert 0 < float((weight - near).norm() / near.norm()) < 0.2
    assert weight_norms(model, layers) == pytest.approx(
        [float(dense_weight(model.get_submodule(layer.path)).norm()) for layer in layers], rel=1e-6
    )


@pytest.mark.parametrize("quantization", WAYS, ids=str)
def test_a_weight_takes_what_the_plan_says(tmp_path: Path, quantization: Quantization) -> None:
    write_backbone(tmp_path / "m", "llama", kind="causal-lm", model=wide_model("llama", kind="causal-lm"))
    ref = resolve_model(settings(tmp_path / "m", quantization), tmp_path)
    model, bones = load_backbone(ref, "causal-lm"), skeleton(ref, "causal-lm")
    modules: list[Any] = [module for module in model.modules() if is_quantised(module)]
    weights = sum(module.in_features * module.out_features for module in modules)
    held = 0
    for module in modules:
        held += module.weight.nbytes
        state = getattr(module.weight, "quant_state", None)
        held += 0 if state is None else state.absmax.nbytes
        held += state.state2.absmax.nbytes if state is not None and state.nested else 0
    # The blocks of scales of so small layers are not full.
    assert held == pytest.approx(bytes_per_weight(quantization) * weights, rel=0.01)
    assert held <= (1.01 if quantization.kind == "int8" else 0.60) * weights
    rest = sum(parameter.numel() for parameter in bones.parameters()) - weights
    largest = max(module.in_features * module.out_features for module in modules)
    assert backbone_bytes(bones, 4, quantization) == pytest.approx(held + 4 * (largest + rest), rel=0.01)


def test_the_fingerprint_is_that_of_the_files(tmp_path: Path) -> None:
    write_backbone(tmp_path / "m", "llama", model=wide_model("llama", kind="classification"))
    plain, held = (resolve_model(settings(tmp_path / "m", each), tmp_path) for each in (None, NF4))
    assert plain.fingerprint == held.fingerprint
    assert (plain.quantization, held.quantization) == (None, NF4)


@pytest.mark.parametrize("quantization", [DOUBLE, INT8], ids=str)
def test_a_checkpoint_that_comes_quantised_is_trained_as_it_is(tmp_path: Path, quantization: Quantization) -> None:
    """What transformers has saved in few bits gives the curve of the model that was quantised when it was loaded."""
    held = quantised_settings(tmp_path, "llama", quantization, kind="causal-lm")
    runtime = load_runtime(held)
    spec = trial_spec(steps=6, evaluate_every=3)
    wanted = curve(run(runtime, spec))
    runtime.model.save_pretrained(tmp_path / "stored")  # type: ignore[operator]
    runtime.tokenizer.save_pretrained(tmp_path / "stored")

    ref = resolve_model(settings(tmp_path / "stored", None), tmp_path / "cache")
    assert (ref.quantization, ref.is_stored_so) == (quantization, True)
    assert ref.parameters == held.backbone.parameters
    stored = load_runtime(replace(held, backbone=ref))
    assert linear_layers(skeleton(ref, "causal-lm")) == linear_layers(stored.model)
    assert curve(run(stored, spec)) == wanted
    whole = dense_backbone(ref, "causal-lm")
    for layer in quantised_layers(skeleton(ref, "causal-lm")):
        module = stored.model.get_submodule(layer.path)
        torch.testing.assert_close(whole.get_parameter(f"{layer.path}.weight"), dense_weight(module))

    with pytest.raises(ModelError, match=r"is stored in .*; leave quantization out"):
        resolve_model(settings(tmp_path / "stored", FP4), tmp_path / "cache")


def test_a_missing_package_is_named_before_anything_is_read(tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['bitsandbytes'] = None\n"
        "from pathlib import Path\n"
        "from automl.cli.main import main\n"
        "main(['validate', sys.argv[1]])\n"
    )
    space = tmp_path / "space.yaml"
    space.write_text(
        "version: 1\nstudy: s\nmodel: {folder: ./m, quantization: nf4}\ntask: {type: completion, data: d.jsonl}\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(space)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    assert "quantization nf4: needs the package bitsandbytes; pip install 'automl-lora[quant]'" in done.stderr
    assert "Traceback" not in done.stderr
