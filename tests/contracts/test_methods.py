"""Every method and setting against a plain loop around PEFT and torch, resumed to the bit, exported and loaded again.

The loop uses PEFT's own configuration and torch's optimizer, nothing of `automl.methods` but what it starts from. The
models' weights are far from those of a fresh model: norms, biases and spectra all matter.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from automl.errors import ModelError, TargetError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.methods.seeding import SeededDropout, stream
from automl.methods.settings import chosen
from automl.models.backbone import resolve_model
from automl.models.inventory import head_modules, resolve_targets
from automl.packed.trainer import PackedTrainer
from automl.packed.workload import Workload
from automl.report.recipe import recipe
from automl.setup.prepare import Derivation
from automl.space.spec import ModelSettings
from automl.tasks.base import Row
from automl.tasks.batches import batch_rows
from automl.training.cut import check_cuttable
from automl.training.export import evaluate_export
from automl.training.host import build_solo_host
from automl.training.runtime import HostSettings, Runtime, load_runtime
from automl.training.schedule import lr_multiplier
from automl.training.solo import SoloTrial, train
from automl.trial import Measurement, TrialSpec
from tests.training.training_cases import host_settings

STEPS = 40
WAYS = {"bert": "classification", "llama": "completion", "gpt2": "completion"}


NONE: Mapping[str, Any] = MappingProxyType({})


class Case(NamedTuple):
    """A configuration. own: settings of the method. peft: what PEFT's own configuration has for them."""

    own: Mapping[str, Any] = NONE
    general: Mapping[str, Any] = NONE
    peft: Mapping[str, Any] = NONE
    is_packed: bool = True
    method: str = "lora"


CASES = {
    "plain": Case(),
    "neftune": Case(general={"neftune_alpha": 5.0}),
    "plus": Case({"lora_plus_ratio": 4.0}),
    "gaussian": Case({"init": "gaussian"}),
    "orthogonal": Case({"init": "orthogonal"}),
    "dora": Case({"use_dora": True}, peft={"use_dora": True}, is_packed=False),
    "frozen A": Case({"freeze_a": True}),
    "pissa": Case({"init": "pissa"}, peft={"init_lora_weights": "pissa"}),
    "olora": Case({"init": "olora"}, peft={"init_lora_weights": "olora"}),
    "eva": Case({"init": "eva"}),
    "frozen eva": Case({"init": "eva", "freeze_a": True, "use_dora": True}, peft={"use_dora": True}, is_packed=False),
    "ia3": Case(method="ia3", is_packed=False),
    "bitfit": Case({"bitfit_norms": True}, method="bitfit", is_packed=False),
    "full": Case(method="full", is_packed=False),
    "many": Case(
        {"init": "pissa", "freeze_a": True, "lora_plus_ratio": 2.0},
        {"neftune_alpha": 3.0, "use_rslora": True},
        {"init_lora_weights": "pissa", "use_rslora": True},
    ),
}


def spec_of(case: Case, number: int = 0, **changes: Any) -> TrialSpec:
    usual: dict[str, Any] = {"rank": 3, "alpha": 5.0, "dropout": 0.1, "learning_rate": 4e-3, "batch_size": 5}
    own = chosen(METHODS[case.method].settings, case.own)
    hyper = Hyperparameters(**{**usual, **case.general, **changes}, method=case.method, own=own)
    return TrialSpec(
        number=number, params={}, hyper=hyper, seed=100 + number, data_seed=7, steps=STEPS, evaluate_every=STEPS // 2
    )


def rough(model: nn.Module) -> None:
    """Weights of some size, norms and biases included, from a generator of their own."""
    draw = torch.Generator().manual_seed(21)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.add_(noise * (0.3 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 0.2))


@pytest.fixture(scope="module", params=WAYS)
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HostSettings:
    return rough_settings(request.param, tmp_path_factory.mktemp(request.param))


def rough_settings(architecture: str, folder: Path) -> HostSettings:
    """Settings of a tiny model of this architecture with rough weights, written into the folder."""
    found = host_settings(folder, architecture=architecture, kind=WAYS[architecture])
    auto: Any = AutoModelForSequenceClassification if architecture == "bert" else AutoModelForCausalLM
    model = auto.from_pretrained(folder / "model")
    rough(model)
    model.save_pretrained(folder / "model")
    place = ModelSettings(kind="folder", location=str(folder / "model"))
    return replace(found, backbone=resolve_model(place, folder / "cache"), input_rank=4)


@pytest.fixture(scope="module")
def runtime(settings: HostSettings) -> Runtime:
    return load_runtime(settings)


def quietly(make: Callable[..., Any], *arguments: Any) -> Any:
    """PEFT reads an attribute that transformers has renamed; see `automl.methods.attaching`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return make(*arguments)


def plain_losses(runtime: Runtime, spec: TrialSpec, case: Case, start: dict[str, Tensor]) -> Iterator[float]:
    """Losses of a loop around PEFT and torch. start: of the trial, but for what PEFT makes from the weight itself."""
    hyper, model = spec.hyper, copy.deepcopy(runtime.model)
    if case.method in ("bitfit", "full"):
        yield from plain_loop(runtime, spec, case, unfrozen(model, case.method, start))
        return
    first = model.get_submodule(resolve_targets(model, hyper.target)[0].path)
    by_hand = case.own.get("init") == "olora" and isinstance(first, Conv1D)
    config = peft_config(case, hyper, model, {} if by_hand else case.peft)
    peft_model = quietly(get_peft_model, model, config)
    is_derived = "init_lora_weights" in case.peft
    for name, parameter in peft_model.named_parameters():
        if name in start and not (is_derived and (".lora_" in name or ".base_layer." in name)):
            parameter.data.copy_(start[name])
        if by_hand and ".lora_A." in name:
            olora_by_hand(peft_model.get_submodule(name.partition(".lora_A.")[0]))
        if case.own.get("freeze_a") and ".lora_A." in name:
            parameter.requires_grad_(False)
    masks = stream(spec.seed, "dropout")
    for module in peft_model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = SeededDropout(hyper.dropout, masks)
    yield from plain_loop(runtime, spec, case, peft_model)


def unfrozen(model: Any, method: str, start: dict[str, Tensor]) -> Any:
    """The model with every parameter trained, or every vector, and with the head that the trial begins with."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(method == "full" or parameter.dim() == 1 or name.startswith("classifier"))
        if name.startswith("classifier"):
            parameter.data.copy_(start[name])
    return model


def plain_loop(runtime: Runtime, spec: TrialSpec, case: Case, peft_model: Any) -> Iterator[float]:
    """Losses of torch's own optimizer on a model whose parameters to train are known."""
    hyper, ratio = spec.hyper, case.own.get("lora_plus_ratio", 1.0)
    slow = [each for name, each in peft_model.named_parameters() if each.requires_grad and ".lora_B." not in name]
    fast = [each for name, each in peft_model.named_parameters() if each.requires_grad and ".lora_B." in name]
    optimizer = torch.optim.AdamW([{"params": slow}, {"params": fast}], weight_decay=hyper.weight_decay)
    peft_model.train()
    for step in range(spec.steps):
        numbers = batch_rows(spec.data_seed, step, hyper.batch_size, len(runtime.train_rows))
        batch = runtime.batch([runtime.train_rows[number] for number in numbers])
        with embedding_noise(peft_model, batch["attention_mask"], hyper.neftune_alpha, spec.seed, step):
            parts = runtime.task.loss(peft_model, batch)
        loss = parts.total / parts.count
        loss.backward()
        nn.utils.clip_grad_norm_(slow + fast, hyper.clip)
        rate = hyper.learning_rate * lr_multiplier(step, steps=spec.steps, warmup=hyper.warmup, schedule=hyper.schedule)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = rate, ratio * rate
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach())


def peft_config(case: Case, hyper: Hyperparameters, model: Any, options: Mapping[str, Any]) -> PeftConfig:
    """PEFT's own configuration for the case, written down without the help of our methods."""
    paths = [layer.path for layer in resolve_targets(model, hyper.target)]
    common: dict[str, Any] = {
        "target_modules": paths,
        "task_type": TaskType.SEQ_CLS if head_modules(model) else TaskType.CAUSAL_LM,
        "fan_in_fan_out": isinstance(model.get_submodule(paths[0]), Conv1D),
    }
    if case.method == "ia3":
        last = [path for path in paths if path.endswith(("output.dense", "mlp.down_proj", "mlp.c_proj"))]
        return IA3Config(feedforward_modules=last, **common)
    return LoraConfig(r=hyper.rank, lora_alpha=hyper.alpha, lora_dropout=hyper.dropout, **common, **options)


def olora_by_hand(layer: Any) -> None:
    """PEFT 0.21 (olora_init) takes a Conv1D's weight for one that is not transposed, and fails."""
    weight = layer.base_layer.weight
    q, r = torch.linalg.qr(weight.detach().mT)
    rank = layer.r["default"]
    layer.lora_A["default"].weight.data.copy_(r[:rank])
    layer.lora_B["default"].weight.data.copy_(q[:, :rank])
    weight.data -= layer.scaling["default"] * (q[:, :rank] @ r[:rank]).mT


class embedding_noise:
    """NEFTune by the formula of the paper, token by token."""

    def __init__(self, model: Any, mask: Tensor, alpha: float, seed: int, step: int) -> None:
        self._model, self._mask, self._alpha = model, mask, alpha
        self._draw = stream(seed, f"neftune.{step}")

    def __enter__(self) -> None:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if not self._alpha:
                return output
            noisy = output.clone()
            for row, real in enumerate(self._mask):
                length = int(real.sum())
                bound = self._alpha / math.sqrt(length * output.shape[-1])
                drawn = torch.rand(length, output.shape[-1], generator=self._draw)
                noisy[row, real.bool()] += (2 * drawn - 1) * bound
            return noisy

        self._handle = self._model.get_input_embeddings().register_forward_hook(hook)

    def __exit__(self, *error: object) -> None:
        self._handle.remove()


def solo_losses(trial: SoloTrial) -> Iterator[float]:
    while trial.step < trial.spec.steps:
        trial.take_step()
        yield trial.loss


@pytest.fixture(scope="module")
def usual(runtime: Runtime) -> float:
    """Loss of the sixth step without any setting."""
    trial = SoloTrial(spec_of(CASES["plain"]), runtime)
    trial.attach()
    *_, sixth = islice(solo_losses(trial), 6)
    trial.detach()
    return sixth


SOME = [*(("bert", name) for name in CASES), ("llama", "many"), ("gpt2", "many"), ("llama", "eva")]


@pytest.mark.parametrize("name", CASES)
def test_it_trains_as_a_plain_loop_does_and_leaves_the_backbone(runtime: Runtime, usual: float, name: str) -> None:
    case = CASES[name]
    spec = spec_of(case)
    before = {key: tensor.clone() for key, tensor in runtime.model.state_dict().items()}
    trial = SoloTrial(spec, runtime)
    trial.attach()
    start = {key: tensor.detach().clone() for key, tensor in trial.model.named_parameters()}
    found = list(solo_losses(trial))
    trial.detach()
    after = runtime.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())
    expected = list(plain_losses(runtime, spec, case, start))
    assert found == pytest.approx(expected, abs=1e-6, rel=1e-6)
    assert min(found[-5:]) < found[0]
    assert (found[5] == usual) is (name == "plain"), "a setting that changes nothing would pass for exact"


@pytest.mark.parametrize(("settings", "name"), SOME, indirect=["settings"])
def test_a_resumed_trial_is_the_same_to_the_bit(runtime: Runtime, name: str) -> None:
    spec = replace(spec_of(CASES[name]), steps=8, evaluate_every=4)
    whole = list(train(SoloTrial(spec, runtime)))
    trial = SoloTrial(spec, runtime)
    generator = train(trial)
    assert next(generator).metrics == whole[0].metrics
    state = trial.snapshot()
    generator.close()
    (rest,) = list(train(SoloTrial(spec, runtime, state)))
    assert rest.metrics == whole[1].metrics


@pytest.mark.parametrize(("settings", "name"), SOME, indirect=["settings"])
def test_an_exported_adapter_is_loaded_by_plain_peft_and_reproduces(
    settings: HostSettings, name: str, tmp_path: Path
) -> None:
    host = build_solo_host(replace(settings, output=str(tmp_path)))
    host.open(replace(spec_of(CASES[name]), steps=8, evaluate_every=8))
    (last,) = host.advance()
    assert isinstance(last, Measurement), last
    assert last.adapter is not None
    expected = pytest.approx(dict(last.metrics), rel=1e-6, abs=1e-6)
    assert evaluate_export(Path(last.adapter), settings) == expected
    made = recipe(last.adapter)
    assert made is not None
    found: dict[str, Any] = {}
    quietly(exec, made.use, found)  # as the report tells a user to
    runtime = load_runtime(settings)
    assert runtime.evaluate(found["model"], runtime.evaluation_rows, runtime.evaluation_tokens) == expected


PACKED = [name for name, case in CASES.items() if case.is_packed]


def test_packed_trials_follow_the_same_trials_alone(runtime: Runtime) -> None:
    """All that can be packed, together, on one backbone."""
    specs = [replace(spec_of(CASES[name], number), steps=12, evaluate_every=6) for number, name in enumerate(PACKED)]
    alone = [[item.metrics for item in train(SoloTrial(spec, runtime))] for spec in specs]
    rows: list[Row] = list(runtime.train_rows)
    load = Workload(
        task=runtime.task, train_rows=rows, evaluation_rows=runtime.evaluation_rows, tokenizer=runtime.tokenizer
    )
    trainer = PackedTrainer(runtime.model, load, targets=runtime.targets)
    try:
        found: dict[int, list[Any]] = {}
        for event in trainer.train(specs, slots=len(specs)):
            assert isinstance(event, Measurement), event
            found.setdefault(event.trial, []).append(event.metrics)
    finally:
        trainer.close()
    for number, expected in enumerate(alone):
        for ours, theirs in zip(found[number], expected, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-5, abs=2e-5), PACKED[number]


def test_a_packed_trial_goes_on_to_the_bit(runtime: Runtime) -> None:
    load = Workload(
        task=runtime.task,
        train_rows=list(runtime.train_rows),
        evaluation_rows=runtime.evaluation_rows,
        tokenizer=runtime.tokenizer,
    )
    both = Case({"lora_plus_ratio": 4.0, "init": "orthogonal"}, {"neftune_alpha": 5.0})
    spec = replace(spec_of(both), steps=8, evaluate_every=4)

    def run(start: Callable[[PackedTrainer], None]) -> list[Any]:
        trainer = PackedTrainer(runtime.model, load, targets=runtime.targets)
        try:
            start(trainer)
            events = list(trainer.advance())
            states.append(trainer.snapshot(spec.number))
            return [event.metrics for event in events if isinstance(event, Measurement)]
        finally:
            trainer.close()

    states: list[Any] = []
    run(lambda trainer: trainer.admit(spec))
    trainer = PackedTrainer(runtime.model, load, targets=runtime.targets)
    try:
        whole = [event.metrics for event in trainer.train([spec], slots=1) if isinstance(event, Measurement)]
    finally:
        trainer.close()
    assert run(lambda again: again.admit(spec, states[0])) == [whole[1]]


def test_settings_that_exclude_each_other_are_one_line(runtime: Runtime) -> None:
    trial = SoloTrial(spec_of(Case({"use_dora": True, "init": "pissa"})), runtime)
    with pytest.raises(TargetError, match="use_dora True and init pissa: DoRA scales"):
        trial.attach()


@pytest.mark.parametrize("settings", ["bert"], indirect=True)
def test_own_weights_in_fewer_bits_are_one_line(runtime: Runtime) -> None:
    half = replace(runtime, model=copy.deepcopy(runtime.model).to(torch.bfloat16))
    with pytest.raises(TargetError, match="method full trains the model's own weights, which are bfloat16"):
        SoloTrial(spec_of(CASES["full"]), half).attach()


@pytest.mark.parametrize("settings", ["llama"], indirect=True)
def test_a_model_without_biases_is_one_line(runtime: Runtime) -> None:
    derive = Derivation(runtime.model, {})
    with pytest.raises(TargetError, match="LlamaForCausalLM has nothing that method bitfit trains"):
        derive(Hyperparameters(method="bitfit"))
    assert derive(Hyperparameters(method="full"))["trainable_params"] == sum(
        parameter.numel() for parameter in runtime.model.parameters()
    )


@pytest.mark.parametrize(
    ("settings", "name"), [("bert", "dora"), ("bert", "full"), ("bert", "ia3")], indirect=["settings"]
)
def test_what_cannot_be_cut_is_refused_in_a_line(settings: HostSettings, name: str, tmp_path: Path) -> None:
    host = build_solo_host(replace(settings, output=str(tmp_path)))
    host.open(replace(spec_of(CASES[name]), steps=2, evaluate_every=2))
    (last,) = host.advance()
    assert isinstance(last, Measurement)
    assert last.adapter is not None
    said = {
        "dora": "use_dora cannot be cut",
        "full": "method full cannot be cut",
        "ia3": "peft_type IA3 cannot",
    }
    with pytest.raises(ModelError, match=said[name]):
        check_cuttable(Path(last.adapter), host.runtime.model)


def test_a_rank_above_the_weights_is_filled_up(runtime: Runtime) -> None:
    trial = SoloTrial(
        replace(spec_of(Case({"init": "pissa"}), rank=40, alpha=40.0), steps=2, evaluate_every=2), runtime
    )
    (last,) = list(train(trial))
    assert math.isfinite(last.metrics["loss"])


def test_plain_peft_reads_the_exported_folder(settings: HostSettings, tmp_path: Path) -> None:
    host = build_solo_host(replace(settings, output=str(tmp_path)))
    host.open(replace(spec_of(CASES["many"]), steps=4, evaluate_every=4))
    (last,) = host.advance()
    assert isinstance(last, Measurement)
    assert last.adapter is not None
    model = quietly(PeftModel.from_pretrained, load_runtime(settings).model, last.adapter)
    assert model.peft_config["default"].r == 6, "what it began with is taken away by a second adapter of its rank"
    assert model.peft_config["default"].init_lora_weights is True
    made = recipe(last.adapter)
    assert made is not None
    assert "r=3, lora_alpha=5.0" in made.train
    assert "init_lora_weights='pissa'" in made.train, "how to train it again is said as it was trained"
    assert made.training.endswith(
        "; B at 2 times that rate (LoRA+); A frozen (LoRA-FA); noise of alpha 3 on the embeddings (NEFTune)"
    )
