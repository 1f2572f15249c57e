"""The tuners that only PEFT has against a plain loop around PEFT; resumed, exported, loaded afresh and merged.

Three of them run in CI, the others by hand (marker `full`).
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftType, TaskType, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from automl.errors import ModelError, PluginError, TargetError
from automl.lora import Hyperparameters
from automl.methods.gateway import UNFIT
from automl.methods.peft_tuners import ELSEWHERE, OWNED, fields_of, tuner_names
from automl.methods.registry import METHODS
from automl.methods.seeding import SeededDropout, stream
from automl.models.inventory import head_modules, head_parameters, resolve_targets
from automl.report.recipe import recipe
from automl.training.export import evaluate_export, evaluate_merged, merge_adapter
from automl.training.host import build_solo_host
from automl.training.reload import measure_afresh
from automl.training.runtime import HostSettings, Runtime, load_runtime
from automl.training.solo import SoloTrial, train
from automl.trial import Measurement
from tests.contracts.test_methods import Case, plain_loop, quietly, rough_settings, solo_losses, spec_of

TUNERS: Mapping[str, Mapping[str, Any]] = {
    "vera": {"r": 6, "d_initial": 0.3, "vera_dropout": 0.1},
    "loha": {"r": 3, "alpha": 5},
    "lokr": {"r": 2, "alpha": 4, "decompose_factor": 4},
    "oft": {"oft_block_size": 4},
    "boft": {"boft_block_size": 4},
    "fourierft": {"n_frequency": 30, "scaling": 20.0},
    "miss": {"r": 4, "miss_dropout": 0.1},
    "gralora": {"r": 4, "alpha": 8},
    "hra": {"r": 4},
    "hira": {"r": 4},
    "c3a": {"block_size": 16},
    "road": {"group_size": 4},
    "randlora": {"r": 4, "randlora_alpha": 20},
    "delora": {"r": 4},
    "lily": {"r": 4},
    "glora": {"r": 4},
    "beft": {},
    "deft": {"r": 4, "init_weights": False},  # else half of its first gradients are zero, but for rounding
    "osf": {},
    "peanut": {"r": 4},
    "psoft": {"r": 4, "psoft_alpha": 8},
    "supertuning": {"sparsity": 0.9},
    "unilora": {"theta_d_length": 64},
}
"""Tuners with fields that suit layers of 32 features."""

QUICK = [("bert", "vera"), ("llama", "loha"), ("bert", "miss"), ("bert", "randlora")]  # the last one shares tensors
CONV1D = ("vera", "fourierft", "gralora", "hira", "randlora", "deft", "unilora")
"""Tuners that PEFT has for GPT-2's kind of layers."""

OTHERS = [(way, name) for way in ("bert", "llama") for name in TUNERS if (way, name) not in QUICK]
OTHERS += [("gpt2", name) for name in CONV1D]
ALL = [*QUICK, *(pytest.param(*pair, marks=pytest.mark.full) for pair in OTHERS)]


@pytest.fixture(scope="module")
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HostSettings:
    return rough_settings(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def runtime(settings: HostSettings) -> Runtime:
    return load_runtime(settings)


def case_of(name: str) -> Case:
    own = {f"{name}.{field}": value for field, value in TUNERS[name].items() if field in fields_of(name)}
    rate = 2e-3 if name in ("randlora", "delora") else 2e-2  # above, rounding differences of training grow
    return Case(own, {"learning_rate": rate}, method=f"peft:{name}")


def plain_losses(runtime: Runtime, name: str, start: Mapping[str, torch.Tensor]) -> Iterator[float]:
    """Losses of torch's optimizer around PEFT's own model. start: the tensors that the trial began with."""
    spec, model = spec_of(case_of(name)), copy.deepcopy(runtime.model)
    paths = [layer.path for layer in resolve_targets(model, spec.hyper.target)]
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.upper())]
    has_fan = any(field.name == "fan_in_fan_out" for field in dataclasses.fields(kind))
    turned = {"fan_in_fan_out": isinstance(model.get_submodule(paths[0]), Conv1D)} if has_fan else {}
    task = TaskType.SEQ_CLS if head_modules(model) else TaskType.CAUSAL_LM
    config = kind(target_modules=paths, task_type=task, **turned, **TUNERS[name])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load the CUDA extension|Setting boft_n_butterfly_factor")
        warnings.filterwarnings("ignore", message="Detected that the base layer has no bias term")
        adapted = quietly(get_peft_model, model, config)
    masks = stream(spec.seed, "dropout")
    for path, module in list(adapted.named_modules()):
        if isinstance(module, nn.Dropout) and module.p > 0:
            adapted.set_submodule(path, SeededDropout(module.p, masks))
    for key, parameter in adapted.named_parameters():
        parameter.data.copy_(start[key])
    yield from plain_loop(runtime, spec, case_of(name), adapted)


@pytest.mark.parametrize(("settings", "name"), ALL, indirect=["settings"])
def test_it_trains_as_a_plain_loop_does_and_goes_on_to_the_bit(runtime: Runtime, name: str) -> None:
    spec = spec_of(case_of(name))
    before = {key: tensor.clone() for key, tensor in runtime.model.state_dict().items()}
    trial = SoloTrial(spec, runtime)
    trial.attach()
    start = {key: tensor.detach().clone() for key, tensor in trial.model.named_parameters()}
    trained = sum(tensor.numel() for tensor in trial.model.parameters() if tensor.requires_grad)
    found = list(solo_losses(trial))
    trial.detach()
    after = runtime.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    exact = 1e-5 if name == "delora" else 1e-6  # it divides by the norm of its matrices, which are small at first
    assert found == pytest.approx(list(plain_losses(runtime, name, start)), abs=exact, rel=exact)
    assert min(found[-5:]) < found[0]
    layers = resolve_targets(runtime.model, spec.hyper.target)
    counted = METHODS[spec.hyper.method].trainable(runtime.model, layers, spec.hyper)
    assert trained == counted + head_parameters(runtime.model)

    short = replace(spec, steps=8, evaluate_every=4)
    whole = list(train(SoloTrial(short, runtime)))
    trial = SoloTrial(short, runtime)
    generator = train(trial)
    assert next(generator).metrics == whole[0].metrics
    state = trial.snapshot()
    generator.close()
    torch.manual_seed(3)  # nothing of it is read
    (rest,) = list(train(SoloTrial(short, runtime, state)))
    assert rest.metrics == whole[1].metrics


@pytest.mark.parametrize(("settings", "name"), ALL, indirect=["settings"])
def test_an_export_is_loaded_by_plain_peft_and_merged(
    settings: HostSettings, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    host = build_solo_host(replace(settings, output=str(tmp_path)))
    host.open(replace(spec_of(case_of(name)), steps=8, evaluate_every=8))
    (last,) = host.advance()
    assert isinstance(last, Measurement), last
    assert last.adapter is not None
    expected = pytest.approx(dict(last.metrics), rel=1e-5, abs=1e-5)
    assert evaluate_export(Path(last.adapter), settings) == expected
    made = recipe(last.adapter)
    assert made is not None
    if request.node.get_closest_marker("full"):
        (afresh,) = measure_afresh([made.use.splitlines()], settings)
        assert afresh.metrics == expected
    if name == "lily" or (name == "beft" and settings.backbone.architecture == "llama"):  # which has no biases
        with pytest.raises(ModelError, match=f"PEFT cannot merge an adapter of method peft:{name}"):
            merge_adapter(Path(last.adapter), settings, tmp_path / "merged")
        return
    merge_adapter(Path(last.adapter), settings, tmp_path / "merged")
    assert evaluate_merged(tmp_path / "merged", settings) == pytest.approx(dict(last.metrics), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("settings", ["bert"], indirect=True)
def test_what_peft_refuses_is_one_line_and_leaves_the_backbone(runtime: Runtime) -> None:
    before = dict(runtime.model.named_modules())
    hyper = Hyperparameters(method="peft:gralora", own=(("gralora.r", 5),))
    layers = resolve_targets(runtime.model, "all-linear")
    said = r"^PEFT's gralora cannot adapt BertForSequenceClassification: [^\n]*divi[^\n]*$"
    with pytest.raises(TargetError, match=said):
        METHODS[hyper.method].trainable(runtime.model, layers, hyper)
    with pytest.raises(TargetError, match=said):
        METHODS[hyper.method].attach(runtime.model, hyper, [layer.path for layer in layers], ["classifier"], 1, steps=4)
    assert dict(runtime.model.named_modules()) == before
    with pytest.raises(TargetError, match="takes no rank pattern"):
        METHODS[hyper.method].attach(runtime.model, replace(hyper, rank_pattern=(("a", 2),)), ["a"], [], 1)


@pytest.mark.parametrize("settings", ["bert"], indirect=True)
def test_what_peft_would_build_otherwise_is_refused(runtime: Runtime) -> None:
    from torch.utils.cpp_extension import CUDA_HOME

    if CUDA_HOME is not None:
        pytest.skip("PEFT may build its extension here")
    before = dict(runtime.model.named_modules())
    hyper = Hyperparameters(method="peft:boft", own=(("boft.boft_n_butterfly_factor", 2),))
    said = "^PEFT's boft would take boft_n_butterfly_factor 1 for 2: its CUDA extension, .*; give 1, or nothing$"
    layers = resolve_targets(runtime.model, "qv")
    with pytest.raises(TargetError, match=said):
        METHODS[hyper.method].trainable(runtime.model, layers, hyper)
    with pytest.raises(TargetError, match=said):
        METHODS[hyper.method].attach(runtime.model, hyper, [layer.path for layer in layers], ["classifier"], 1)
    assert dict(runtime.model.named_modules()) == before


# What is read of the source is what the imported configuration says, in every tuner.
@pytest.mark.parametrize("name", tuner_names())
def test_fields_are_those_of_the_configuration(name: str) -> None:
    kind = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(name.upper())]
    declared = {field.name: field for field in dataclasses.fields(kind)}
    read = fields_of(name)
    patterns = {field for field in declared if field.endswith("_pattern")}
    assert declared.keys() - read.keys() - OWNED.keys() <= patterns
    for field, found in read.items():
        if found.setting is None:
            continue
        assert found.setting.name == f"{name}.{field}"
        default = declared[field].default
        if found.setting.default == "default":
            assert isinstance(default, bool)
        else:
            assert found.setting.default == default
            assert isinstance(default, (type(found.setting.default), int))


def test_every_tuner_is_reached_or_refused_with_a_reason() -> None:
    known = {kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING}
    assert known == {*tuner_names(), *ELSEWHERE}, peft.__version__
    for name in sorted(known):
        if name in ELSEWHERE or name in UNFIT:
            with pytest.raises(PluginError, match=f"^PEFT's {name} [^\n]+$"):
                METHODS[f"peft:{name}"]
        else:
            method = METHODS[f"peft:{name}"]
            assert not method.packable
            assert method.takes == {"target"}
            assert METHODS[f"peft:{name}"] is method
            assert name in TUNERS, "it is trained above"
    with pytest.raises(PluginError, match=r"no tuner 'vear'; it has .* \(did you mean 'vera'\?\)"):
        METHODS["peft:vear"]
    assert "peft:vera" in METHODS
    assert "peft:vera" not in list(METHODS)
