"""AdaLoRA as a method of the solo trainer: PEFT's allocation really runs, resumes to the bit, and is read back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from automl.errors import CheckpointError, TargetError
from automl.importance.sensitivity import Factors, Sensitivity
from automl.lora import Hyperparameters
from automl.methods.adalora import PENALTY, AdaLora
from automl.methods.attaching import ADAPTER, adapted_layers
from automl.methods.registry import METHODS
from automl.models.inventory import head_modules, resolve_targets
from automl.packed.build import obstacle
from automl.training.export import evaluate_export
from automl.training.host import build_solo_host
from automl.training.runtime import HostSettings, Runtime, load_runtime
from automl.training.solo import SoloTrial, train
from automl.trial import Measurement, TrialSpec
from tests.architectures import tiny_model
from tests.training.training_cases import host_settings, trial_spec

METHOD = METHODS["adalora"]
TRIAL = trial_spec(steps=20, evaluate_every=10, method="adalora", rank=2, alpha=4.0, batch_size=4)


def attached(architecture: str = "bert", *, steps: int = 20, **hyper: Any) -> PeftModel:
    model = tiny_model(architecture)
    paths = [layer.path for layer in resolve_targets(model, "all-linear")]
    options = Hyperparameters(**{"method": "adalora", "rank": 2, "alpha": 4.0, **hyper})
    return METHOD.attach(model, options, paths, head_modules(model), 3, steps=steps)


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    return load_runtime(host_settings(tmp_path_factory.mktemp(request.param), architecture=request.param))


def live_ranks(trial: SoloTrial) -> dict[str, int]:
    layers: dict[str, Any] = adapted_layers(trial.model.get_base_model())
    return {path: int((layer.lora_E[ADAPTER] != 0).sum()) for path, layer in layers.items()}


def test_ranks_are_allocated_down_to_the_target_and_read_back(either: Runtime) -> None:
    trial = SoloTrial(TRIAL, either)
    for measurement in train(trial):
        if measurement.step == TRIAL.steps:
            ranks = live_ranks(trial)
    modules = len(ranks)
    assert sum(ranks.values()) == 2 * modules  # the budget of PEFT is in ranks: 3 each at the start, 2 at the end
    assert len(set(ranks.values())) > 1
    reported = {module.module: module.rank for module in measurement.importances}
    assert reported == {path: rank for path, rank in ranks.items() if rank > 0}  # a module without rank has no row


def test_a_resumed_trial_is_the_same_to_the_bit(runtime: Runtime) -> None:
    whole = list(train(SoloTrial(TRIAL, runtime)))
    trial = SoloTrial(TRIAL, runtime)
    generator = train(trial)
    first = next(generator)
    state = trial.snapshot()
    generator.close()
    (rest,) = list(train(SoloTrial(TRIAL, runtime, state)))
    assert first.metrics == whole[0].metrics
    assert (rest.metrics, rest.importances) == (whole[1].metrics, whole[1].importances)


def test_the_exported_adapter_reproduces_its_metric_and_holds_its_ranks(bert: HostSettings, output: str) -> None:
    settings = replace(bert, output=output)
    host = build_solo_host(settings)
    host.open(replace(TRIAL, steps=100, evaluate_every=100))  # long enough to look at held-out rows
    while found := host.advance():
        (last,) = found
    assert isinstance(last, Measurement)
    assert last.adapter is not None
    folder = Path(last.adapter)
    assert evaluate_export(folder, settings) == pytest.approx(dict(last.metrics), abs=1e-6)
    pattern = json.loads((folder / "adapter_config.json").read_text())["rank_pattern"]
    ranks = {name.removesuffix(".lora_E"): sum(kept) for name, kept in pattern.items()}
    assert {path: rank for path, rank in ranks.items() if rank} == {m.module: m.rank for m in last.importances}
    assert all(module.held_out is not None for module in last.importances)


def test_scaling_is_that_of_lora_with_the_same_rank_and_alpha() -> None:
    assert [update.scaling for update in METHOD.low_rank(attached())] == pytest.approx([2.0] * 12, rel=1e-4)


def test_the_penalty_is_the_one_that_peft_adds_to_a_loss() -> None:
    model = attached()
    batch = {"input_ids": torch.tensor([[5, 6, 7, 1]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    model.eval()
    with torch.no_grad():
        plain = torch.nn.functional.cross_entropy(model(**batch).logits, torch.tensor([1]))
        with_penalty = model(**batch, labels=torch.tensor([1])).loss
    penalty = METHOD.penalty(model)
    assert penalty is not None
    assert float(penalty.detach()) == pytest.approx(float(with_penalty - plain), rel=1e-5)
    assert float(penalty.detach()) > PENALTY


def test_the_penalty_is_no_part_of_the_reported_loss(runtime: Runtime) -> None:
    trial = SoloTrial(TRIAL, runtime)
    (first, *_) = train(trial)
    assert first.metrics["loss"] < 1.5  # three classes: a penalty of 0.8 on top of it would show


# The two must agree where P and Q are orthonormal: then the singular values are |λ|, and I_i = |λ_i ∂L/∂λ_i|.
def test_sensitivity_is_that_of_pefts_allocator_on_its_singular_values() -> None:
    model = attached()
    layers: dict[str, Any] = adapted_layers(model.get_base_model())
    draw = torch.Generator().manual_seed(0)
    for layer in layers.values():
        for name, part in (("lora_A", 1), ("lora_B", 0)):
            tensor = getattr(layer, name)[ADAPTER]
            basis = torch.linalg.qr(torch.randn(max(tensor.shape), 3, generator=draw)).Q
            tensor.data.copy_(basis.T if part else basis)
        layer.lora_E[ADAPTER].data.copy_(torch.tensor([[0.9], [0.5], [0.2]]))
    shapes = resolve_targets(tiny_model("bert"), "all-linear")
    ours = Sensitivity(shapes, 3, [1.0] * len(shapes))
    allocator = model.base_model.rankallocator
    for number in range(4):
        ids = torch.randint(3, 60, (4, 6), generator=draw)
        model.zero_grad()
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, number % 3].square().sum()
        loss.backward()
        updates = METHOD.low_rank(model)
        ours.add([Factors(update.a, update.b, update.b.grad, update.scaling) for update in updates])
        allocator.update_ipt(model.get_base_model())
    state = ours.state()
    for index, path in enumerate(layers):
        for name, theirs in (("mean", allocator.exp_avg_ipt), ("deviation", allocator.exp_avg_unc)):
            expected: Tensor = theirs[f"{path}.lora_E.{ADAPTER}"].flatten().double()
            torch.testing.assert_close(state[name][index], expected, rtol=2e-3, atol=1e-7)


def test_memory_of_another_adapter_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is not of this adapter"):
        METHOD.load_memory(attached(), {"exp_avg_ipt/bert.nowhere.lora_E.default": torch.zeros(3, 1)})


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_short_trials_have_a_schedule_too(runtime: Runtime, steps: int) -> None:
    short = TrialSpec(number=0, params={}, hyper=TRIAL.hyper, seed=1, data_seed=7, steps=steps, evaluate_every=steps)
    assert [measurement.step for measurement in train(SoloTrial(short, runtime))] == [steps]


def test_it_is_trained_alone_and_finds_its_own_ranks() -> None:
    assert not AdaLora.packable
    assert obstacle(tiny_model("bert"), ["lora", "adalora"]) == "method adalora cannot be packed"
    values = {"init": ["default", "olora", "pissa"], "use_dora": [False, True]}
    assert obstacle(tiny_model("bert"), ["ia3", "lora", "adalora"], values) == (
        "methods adalora, ia3 and use_dora True cannot be packed"
    )
    with pytest.raises(TargetError, match="adalora finds its own ranks"):
        attached(rank_pattern=(("bert.encoder.layer.0.attention.self.query", 4),))
    with pytest.raises(ValueError, match="steps is None"):
        METHOD.attach(tiny_model("bert"), TRIAL.hyper, ["bert.encoder.layer.0.attention.self.query"], [], 1)
