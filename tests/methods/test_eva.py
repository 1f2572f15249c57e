"""EVA's directions are PEFT's for the same rows, are found in one pass, and say when there are too few."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from peft.tuners.lora.config import EvaConfig
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from automl.errors import TargetError
from automl.lora import Hyperparameters
from automl.methods.eva import ROWS_AT_ONCE, InputVariation, know_inputs, starting_matrices
from automl.models.inventory import resolve_targets
from automl.training.inputs import directions_of_inputs
from tests.methods.lively import lively_model
from tests.packed.packed_oracle import workload

CPU = torch.device("cpu")
DRAW = torch.Generator().manual_seed(5)


def inputs(count: int, features: int) -> Tensor:
    """Rows whose directions differ in size, around a mean that is not zero."""
    scales = torch.logspace(0, -1.5, features)
    turn, _ = torch.linalg.qr(torch.randn(features, features, generator=DRAW))
    return (torch.randn(count, features, generator=DRAW) * scales) @ turn + torch.randn(features, generator=DRAW)


def overlap(ours: Tensor, theirs: Tensor) -> float:
    """Smallest cosine between the spaces that both span: 1 if they are the same whatever their signs and rotation."""
    return float(torch.linalg.svdvals(ours.double() @ theirs.double().mT).min())


@pytest.mark.parametrize("features", [24, 600])
def test_of_all_inputs_at_once_they_are_the_singular_vectors(features: int) -> None:
    x = inputs(200, features)
    variation = InputVariation(6)
    variation.add(x)
    found = variation.directions()
    _, _, expected = torch.linalg.svd((x - x.mean(dim=0)).double(), full_matrices=False)
    cosines = (found.double() * expected[:6]).sum(dim=1).abs()
    assert cosines == pytest.approx(torch.ones(6).double(), abs=1e-6)
    assert (found.gather(1, found.abs().argmax(dim=1, keepdim=True)) > 0).all()


def test_of_inputs_that_come_in_parts_they_are_those_of_peft() -> None:
    x = inputs(320, 40)
    ours, theirs = InputVariation(6), IncrementalPCA(n_components=6, lowrank=False)
    for part in x.split(80):
        ours.add(part)
        theirs.partial_fit(part)
    cosines = (ours.directions() * theirs.components_).sum(dim=1)
    assert cosines.abs() == pytest.approx(torch.ones(6), abs=1e-4)


def test_many_inputs_are_taken_a_few_at_a_time() -> None:
    x = inputs(2 * ROWS_AT_ONCE, 16)
    whole, parts = InputVariation(16), InputVariation(16)
    whole.add(x)
    for part in x.split(ROWS_AT_ONCE):
        parts.add(part)
    assert torch.equal(whole.directions(), parts.directions())
    _, _, expected = torch.linalg.svd((x - x.mean(dim=0)).double(), full_matrices=False)
    assert (whole.directions() * expected).sum(dim=1).abs() == pytest.approx(torch.ones(16).double(), abs=1e-5)


def test_where_inputs_vary_along_fewer_the_rest_is_orthogonal() -> None:
    x = inputs(50, 3) @ torch.randn(3, 12, generator=DRAW)
    variation = InputVariation(8)
    variation.add(x)
    found = variation.directions()
    assert found.shape == (8, 12)
    assert found @ found.mT == pytest.approx(torch.eye(8), abs=1e-5)
    few = InputVariation(8)
    few.add(x[:5])
    assert few.directions().shape == (4, 12), "five inputs differ from their mean in four directions"
    assert InputVariation(8).directions().shape == (0, 0)


def one_batch(kind: str) -> dict[str, Tensor]:
    load = workload(kind)
    return load.task.collate(load.train_rows[:16], 0)


@pytest.fixture(params=[("bert", "classification"), ("llama", "causal-lm"), ("gpt2", "causal-lm")])
def case(request: pytest.FixtureRequest) -> tuple[Any, str]:
    name, kind = request.param
    return lively_model(name, kind=kind), kind


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # asked for by peft 0.21
@pytest.mark.filterwarnings("ignore:lora with eva initialization used with low_cpu_mem_usage:UserWarning")
def test_peft_starts_in_the_same_space(case: tuple[Any, str]) -> None:
    """PEFT decomposes at random; with half the features as components that leaves nothing out."""
    model, kind = case
    rank, batch = 16, one_batch(kind)
    layers = [layer.path for layer in resolve_targets(model, "all-linear")]
    ours = directions_of_inputs(model, layers, [batch], lambda batch: workload(kind).task.loss(model, batch), rank)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM if kind == "causal-lm" else TaskType.SEQ_CLS,
        r=rank,
        target_modules=layers,
        fan_in_fan_out=isinstance(model.get_submodule(layers[0]), Conv1D),
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0, tau=0.0),
    )
    peft_model = get_peft_model(model, config)
    given = {name: tensor for name, tensor in batch.items() if kind == "causal-lm" or name != "labels"}
    initialize_lora_eva_weights(peft_model, [given], show_progress_bar=False)
    for path in layers:
        theirs = peft_model.get_base_model().get_submodule(path).lora_A["default"].weight.detach()
        assert overlap(ours[path], theirs) > 1 - 1e-4, path


def test_layers_that_read_the_same_are_decomposed_once(case: tuple[Any, str]) -> None:
    model, kind = case
    layers = [layer.path for layer in resolve_targets(model, "all-linear")]
    batches = [one_batch(kind)] * 2
    found = directions_of_inputs(model, layers, batches, lambda batch: workload(kind).task.loss(model, batch), 4)
    assert found.keys() == set(layers)
    by_block = {"BertForSequenceClassification": 4, "LlamaForCausalLM": 4, "GPT2LMHeadModel": 4}[type(model).__name__]
    assert len({id(tensor) for tensor in found.values()}) == by_block * model.config.num_hidden_layers
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_too_high_a_rank_and_unknown_inputs_are_one_line() -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(TargetError, match="init eva starts from inputs of the model's layers, which are not known"):
        starting_matrices(model, Hyperparameters(rank=2), ["a"])
    know_inputs(model, lambda count: {"a": torch.eye(3, 4)})
    assert starting_matrices(model, Hyperparameters(rank=2), ["a"])["a"].tolist() == torch.eye(2, 4).tolist()
    with pytest.raises(TargetError, match="init eva: rank 4 is above the 3 directions that are found in the inputs"):
        starting_matrices(model, Hyperparameters(rank=4), ["a"])
    with pytest.raises(TargetError, match="rank 1 is above the 0 directions that are found in the inputs of b"):
        starting_matrices(model, Hyperparameters(rank=1), ["b"])
