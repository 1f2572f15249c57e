"""The contract of a method: what it trains, where it starts, that it goes on to the bit and leaves nothing behind."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from automl.errors import CheckpointError, TargetError
from automl.lora import Hyperparameters, LinearShape
from automl.methods.base import Method
from automl.methods.registry import METHODS
from automl.methods.settings import Span, chosen
from automl.models.inventory import head_modules, head_parameters, resolve_targets
from automl.tasks.virtual import call

STEPS = 6
VOCABULARY = 64


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
MODELS: Mapping[str, Callable[[], Any]] = {
    "encoder": lambda: BertForSequenceClassification(
        BertConfig(vocab_size=VOCABULARY, num_labels=3, hidden_dropout_prob=0, attention_probs_dropout_prob=0, **SIZES)
    ),
    "decoder": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **SIZES)),
}


class MethodContract:
    """method: its name. hyper: what it is tried with; it should learn with it. ends_smaller: it takes parameters away
    while it trains, and counts those that are left. is_drawn: it starts from random numbers. models: those of MODELS
    that it can adapt; the others it has to refuse.
    """

    method: ClassVar[str]
    ends_smaller: ClassVar[bool] = False
    is_drawn: ClassVar[bool] = True
    models: ClassVar[Sequence[str]] = tuple(MODELS)
    hyper: ClassVar[Hyperparameters] = Hyperparameters(rank=4, alpha=8.0, learning_rate=0.02)

    @pytest.fixture
    def name(self) -> str:
        """The method that is tested."""
        return self.method

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Each test of a model is one of each that the method can adapt."""
        if "model" in metafunc.fixturenames:
            metafunc.parametrize("model", self.models, indirect=True)

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> nn.Module:
        """A frozen model of two layers, from a fixed start."""
        return _frozen(request.param)

    def test_what_it_cannot_adapt_it_refuses_and_leaves_alone(self, name: str) -> None:
        for other in MODELS.keys() - set(self.models):
            model = _frozen(other)
            before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
            layers = resolve_targets(model, self.hyper.target)
            with pytest.raises(TargetError, match=r"^[^\n]+$"):
                METHODS[name].trainable(model, layers, self.hyper)
            with pytest.raises(TargetError, match=r"^[^\n]+$"):
                Attached(name, model, self.hyper)
            after = model.state_dict()
            assert before.keys() == after.keys()
            assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())

    def test_it_trains_as_many_parameters_as_it_counts(self, name: str, model: nn.Module) -> None:
        trial = Attached(name, model, self.hyper)
        expected = METHODS[name].trainable(trial.plain, trial.layers, self.hyper) + head_parameters(trial.plain)
        trained = sum(tensor.numel() for tensor in trial.state().values())
        assert trained > expected if self.ends_smaller else trained == expected

    def test_every_setting_can_be_trained_with_and_leaves_no_trace(self, name: str, model: nn.Module) -> None:
        """What is tried of each: it trains what is counted, and is recorded unless it is the default."""
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        for setting in METHODS[name].settings:
            tried = (setting.tried.low, setting.tried.high) if isinstance(setting.tried, Span) else setting.tried
            for value in (setting.typed(value) for value in tried if value != setting.default):
                own = chosen([setting], {setting.name: value, "another": 1})
                hyper = replace(self.hyper, own=own)
                assert hyper.as_dict()[setting.name] == setting.of(hyper) == value
                trial = Attached(name, model, hyper)
                trained = sum(tensor.numel() for tensor in trial.state().values())
                counted = METHODS[name].trainable(trial.plain, trial.layers, hyper) + head_parameters(trial.plain)
                assert trained > counted if self.ends_smaller else trained == counted
                losses = trial.train(STEPS)
                assert losses[-1] < losses[0]
                after = trial.method.detach(trial.model).state_dict()
                assert all(torch.equal(tensor, after[key]) for key, tensor in before.items()), (setting.name, value)
            assert chosen([setting], {setting.name: setting.default}) == ()

    def test_as_much_memory_is_planned_as_it_trains(self, name: str, model: nn.Module) -> None:
        trial = Attached(name, model, self.hyper)
        planned = METHODS[name].footprint(trial.plain, trial.layers, self.hyper)
        assert planned.parameters == sum(tensor.numel() for tensor in trial.state().values()) - head_parameters(
            trial.plain
        )
        assert planned.per_token >= 0

    def test_its_learning_rates_are_a_range(self, name: str) -> None:
        for parameters in (20_000_000, 1_000_000_000, 70_000_000_000):
            low, high = METHODS[name].learning_rates(parameters, 300)
            assert 0 < low < high <= 10

    def test_it_learns_in_float32(self, name: str, model: nn.Module) -> None:
        trial = Attached(name, model, self.hyper)
        losses = trial.train(STEPS)
        assert losses[-1] < losses[0]
        assert {tensor.dtype for tensor in trial.state().values()} == {torch.float32}

    def test_it_leaves_the_backbone_as_it_was(self, name: str, model: nn.Module) -> None:
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        trial = Attached(name, model, self.hyper)
        first = trial.train(2)
        backbone = trial.method.detach(trial.model)
        after = backbone.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
        assert not any(parameter.requires_grad for parameter in backbone.parameters())
        assert not any(module.training for module in backbone.modules())
        assert Attached(name, backbone, self.hyper).train(2) == first

    def test_its_start_depends_on_the_seed_alone(self, name: str, model: nn.Module) -> None:
        with torch.random.fork_rng(devices=[]):
            starts = []
            for draw, seed in ((1, 5), (2, 5), (3, 6)):
                torch.manual_seed(draw)
                state = torch.get_rng_state()
                starts.append(Attached(name, copy.deepcopy(model), self.hyper, seed=seed).state())
                assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
        first, again, other = starts
        assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
        if self.is_drawn:
            assert not all(torch.equal(tensor, other[key]) for key, tensor in first.items())

    def test_it_goes_on_to_the_bit(self, name: str, model: nn.Module) -> None:
        whole = Attached(name, copy.deepcopy(model), self.hyper)
        losses = whole.train(STEPS)
        half = Attached(name, copy.deepcopy(model), self.hyper)
        assert half.train(STEPS // 2) == losses[: STEPS // 2]
        state = {key: tensor.clone() for key, tensor in half.state().items()}
        memory = {key: tensor.clone() for key, tensor in half.method.memory(half.model).items()}
        rest = Attached(name, copy.deepcopy(model), self.hyper)
        rest.method.load_state(rest.model, state)
        rest.method.load_memory(rest.model, memory)
        assert rest.train(STEPS - STEPS // 2, first=STEPS // 2) == losses[STEPS // 2 :]

    def test_a_state_of_another_trial_is_refused(self, name: str, model: nn.Module) -> None:
        trial = Attached(name, model, self.hyper)
        state = trial.state()
        state.pop(next(iter(state)))
        with pytest.raises(CheckpointError):
            trial.method.load_state(trial.model, state)

    def test_its_updates_are_what_they_say(self, name: str, model: nn.Module) -> None:
        trial = Attached(name, model, self.hyper)
        trial.train(2)
        shapes = {layer.path: layer for layer in trial.layers}
        for update in trial.method.low_rank(trial.model):
            layer = shapes[update.path]
            assert update.a.shape[1] == layer.in_features
            assert update.b.shape == (layer.out_features, update.a.shape[0])
            assert update.b.requires_grad

    def test_its_file_is_cheap_to_import(self, name: str) -> None:
        script = (
            f"import sys\nfrom automl.methods.registry import METHODS\nMETHODS[{name!r}]\n"
            "print([name for name in ('torch', 'peft', 'transformers', 'ray') if name in sys.modules])\n"
        )
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        assert result.stdout == "[]\n"


def _frozen(name: str) -> nn.Module:
    """The model of MODELS, from a fixed start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        model: nn.Module = MODELS[name]()
    return model.requires_grad_(False).eval()


class Attached:
    """An adapter on a model, and a plain loop of gradient descent around it."""

    def __init__(self, name: str, model: nn.Module, hyper: Hyperparameters, *, seed: int = 5) -> None:
        self.method: Method = METHODS[name]
        self.layers: Sequence[LinearShape] = resolve_targets(model, hyper.target)
        self.plain = copy.deepcopy(model)
        self._rate = hyper.learning_rate
        modules, head = [layer.path for layer in self.layers], head_modules(model)
        self.model: Any = self.method.attach(model, hyper, modules, head, seed, steps=STEPS)

    def state(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return self.method.state(self.model)

    def train(self, steps: int, *, first: int = 0) -> list[float]:
        """Losses of so many steps on one batch, counted from `first`."""
        self.model.train()
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        losses = []
        for step in range(first, first + steps):
            loss = call(self.model, **self._batch()).loss
            total = loss if (penalty := self.method.penalty(self.model)) is None else loss + penalty
            total.backward()
            with torch.no_grad():
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter -= 10 * self._rate * parameter.grad
            self.method.after_step(self.model, step)
            for parameter in parameters:
                parameter.grad = None
            losses.append(float(loss.detach()))
        return losses

    def _batch(self) -> dict[str, Tensor]:
        ids = torch.randint(3, VOCABULARY, (6, 10), generator=torch.Generator().manual_seed(1))
        labels = torch.tensor([0, 1, 2, 1, 0, 2]) if head_modules(self.plain) else ids
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
