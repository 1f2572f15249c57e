"""Virtual tokens against a plain loop around PEFT: the same curves, resumed to the bit, exported and loaded again.

The loop uses PEFT's own configuration and losses and torch's optimizer; only the start is ours. The models' weights are
far from those of a fresh model, so that norms, biases and positions matter.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertModel

from automl.errors import ModelError
from automl.lora import Hyperparameters
from automl.methods.registry import METHODS
from automl.methods.settings import chosen
from automl.models.backbone import resolve_model
from automl.models.inventory import head_parameters, resolve_targets
from automl.models.memory import estimate_bytes
from automl.report.recipe import recipe
from automl.space.spec import ModelSettings
from automl.tasks.base import Row
from automl.tasks.batches import batch_rows
from automl.tasks.generation import generate
from automl.training.cut import check_cuttable
from automl.training.export import evaluate_export, load_adapter, merge_adapter
from automl.training.host import SoloHost
from automl.training.reload import measure_afresh
from automl.training.runtime import HostSettings, Runtime, load_runtime
from automl.training.schedule import lr_multiplier
from automl.training.solo import SoloTrial
from automl.trial import Measurement, TrialSpec
from tests.architectures import tiny_model
from tests.models.test_memory import kept_bytes
from tests.training.training_cases import curve, host_settings, run

STEPS = 40
WORDS = "w1 w12 w23"


class Case(NamedTuple):
    """A method with settings of its own, what PEFT's configuration has for them, and a rate at which it learns."""

    method: str
    own: Mapping[str, Any]
    config: type[Any]
    peft: Mapping[str, Any]
    rate: float


CASES = {
    "prompt": Case("prompt", {"virtual_tokens": 5}, PromptTuningConfig, {}, 3e-2),
    "prompt of a text": Case("prompt", {"virtual_tokens": 7, "prompt_text": WORDS}, PromptTuningConfig, {}, 3e-2),
    "p-tuning": Case(
        "p-tuning",
        {"virtual_tokens": 5, "encoder_hidden_size": 24},
        PromptEncoderConfig,
        {"encoder_hidden_size": 24},
        3e-3,
    ),
    "p-tuning lstm": Case(
        "p-tuning",
        {"virtual_tokens": 4, "prompt_encoder": "lstm"},
        PromptEncoderConfig,
        {"encoder_reparameterization_type": "LSTM"},
        3e-3,
    ),
    "prefix": Case("prefix", {"virtual_tokens": 6}, PrefixTuningConfig, {}, 1e-2),
    "prefix projected": Case(
        "prefix",
        {"virtual_tokens": 5, "prefix_projection": True, "encoder_hidden_size": 12},
        PrefixTuningConfig,
        {"prefix_projection": True, "encoder_hidden_size": 12},
        3e-3,
    ),
}
EMBEDDED = [name for name in CASES if not name.startswith("prefix")]
PLACES = {
    "bert classification": EMBEDDED,
    "llama classification": ["prompt"],
    "llama completion": list(CASES),
    "gpt2 completion": list(CASES),
}
PAIRS = [(place, case) for place, cases in PLACES.items() for case in cases]
KILLED = [
    ("llama classification", "prompt"),
    ("gpt2 completion", "prompt of a text"),
    ("bert classification", "p-tuning"),
    ("llama completion", "p-tuning lstm"),
    ("llama completion", "prefix"),
    ("gpt2 completion", "prefix projected"),
]


def rough(model: nn.Module) -> None:
    """Weights of some size, norms and biases included, from a generator of their own."""
    draw = torch.Generator().manual_seed(21)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draw)
            parameter.add_(noise * (0.3 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 0.2))


class World(NamedTuple):
    place: str
    settings: HostSettings
    runtime: Runtime
    auto: Any


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    return {place: made(place, tmp_path_factory.mktemp("world")) for place in PLACES}


def made(place: str, folder: Path, **options: Any) -> World:
    architecture, kind = place.split()
    found = host_settings(folder, architecture=architecture, kind=kind)
    auto: Any = AutoModelForSequenceClassification if kind == "classification" else AutoModelForCausalLM
    model = auto.from_pretrained(folder / "model")
    rough(model)
    model.save_pretrained(folder / "model")
    backbone = resolve_model(ModelSettings(kind="folder", location=str(folder / "model")), folder / "cache")
    settings = replace(found, backbone=backbone, task=replace(found.task, **options))
    return World(place, settings, load_runtime(settings), auto)


def spec(name: str, number: int = 0, *, steps: int = STEPS) -> TrialSpec:
    case = CASES[name]
    own = chosen(METHODS[case.method].settings, case.own)
    hyper = Hyperparameters(method=case.method, own=own, learning_rate=case.rate, batch_size=5)
    return TrialSpec(
        number=number, params={}, hyper=hyper, seed=100 + number, data_seed=7, steps=steps, evaluate_every=steps // 2
    )


def plain_peft(world: World, name: str) -> Any:
    """PEFT's own model on a backbone loaded anew."""
    case, is_classifier = CASES[name], world.auto is AutoModelForSequenceClassification
    config = case.config(
        task_type=TaskType.SEQ_CLS if is_classifier else TaskType.CAUSAL_LM,
        num_virtual_tokens=case.own["virtual_tokens"],
        **case.peft,
    )
    labels = {"num_labels": len(world.settings.prepared.labels)} if is_classifier else {}
    base = world.auto.from_pretrained(world.settings.backbone.path, **labels)
    base.config.pad_token_id = world.runtime.tokenizer.pad_token_id
    for module in base.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        return get_peft_model(base, config)


def plain_loss(world: World, model: Any, rows: list[Row]) -> torch.Tensor:
    """Mean loss of a step as PEFT's model computes it: a row at a time where it would read padding as text."""
    parts = [[row] for row in rows] if world.place == "llama classification" else [rows]
    return torch.stack([model(**world.runtime.batch(part)).loss for part in parts]).mean()


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize(("place", "name"), PAIRS)
def test_its_curve_is_that_of_a_plain_loop_around_peft(worlds: dict[str, World], place: str, name: str) -> None:
    world = worlds[place]
    trial = SoloTrial(spec(name), world.runtime)
    trial.attach()
    start = {key: tensor.clone() for key, tensor in METHODS[trial.spec.hyper.method].state(trial.model).items()}
    ours = []
    while trial.step < STEPS:
        trial.take_step()
        ours.append(trial.loss)
    trial.detach()

    model, hyper, theirs = plain_peft(world, name), trial.spec.hyper, []
    parameters = {key: tensor for key, tensor in model.named_parameters() if tensor.requires_grad}
    assert parameters.keys() == start.keys()
    for key, tensor in parameters.items():
        tensor.data.copy_(start[key])
    model.train()
    optimizer = torch.optim.AdamW(parameters.values(), weight_decay=hyper.weight_decay)
    rows = world.runtime.train_rows
    for step in range(STEPS):
        batch = [rows[index] for index in batch_rows(7, step, hyper.batch_size, len(rows))]
        loss = plain_loss(world, model, batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), hyper.clip)
        for group in optimizer.param_groups:
            group["lr"] = hyper.learning_rate * lr_multiplier(
                step, steps=STEPS, warmup=hyper.warmup, schedule=hyper.schedule
            )
        optimizer.step()
        theirs.append(loss.item())
    assert ours == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    assert max(ours) - min(ours) > 1e-2


@pytest.mark.parametrize(("place", "name"), PAIRS)
def test_what_is_counted_is_what_peft_trains(worlds: dict[str, World], place: str, name: str) -> None:
    world, hyper = worlds[place], spec(name).hyper
    model, base = plain_peft(world, name), world.runtime.model
    layers = resolve_targets(base, hyper.target)
    trained = model.get_nb_trainable_parameters()[0]
    method = METHODS[hyper.method]
    assert method.trainable(base, layers, hyper) + head_parameters(base) == trained
    assert method.footprint(base, layers, hyper).parameters + head_parameters(base) == trained
    assert estimate_bytes(base, hyper, tokens=16).adapter == 16 * trained


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["prompt", "prefix"])
@pytest.mark.parametrize("place", ["llama completion", "gpt2 completion"])
def test_activations_are_estimated_within_a_factor_of_two(worlds: dict[str, World], place: str, name: str) -> None:
    world = worlds[place]
    own = chosen(METHODS[name].settings, {"virtual_tokens": 24})
    hyper = replace(spec(name).hyper, own=own)
    batch = world.runtime.batch(list(world.runtime.train_rows[:8]))
    rows, length = batch["input_ids"].shape
    estimate = estimate_bytes(world.runtime.model, hyper, tokens=rows * length, rows=rows)
    trial = SoloTrial(replace(spec(name), hyper=hyper), world.runtime)
    trial.attach()
    kept = kept_bytes(trial.model.train(), batch)
    trial.detach()
    assert kept / 2 < estimate.activations + estimate.logits < kept * 2


@pytest.mark.parametrize(("place", "name"), KILLED)
def test_a_killed_trial_ends_to_the_bit_and_its_export_measures_the_same(
    worlds: dict[str, World], place: str, name: str, tmp_path: Path
) -> None:
    """The export is loaded by plain PEFT; it can be neither merged nor cut."""
    world = worlds[place]
    settings = replace(world.settings, output=str(tmp_path / "out"))
    before = {key: tensor.clone() for key, tensor in world.runtime.model.state_dict().items()}
    trial = spec(name, 3, steps=8)
    whole = run(world.runtime, trial)
    first = SoloHost(settings, world.runtime)
    first.open(trial)
    half = [*first.advance()]
    first.shutdown()  # as after a kill: what goes on is in the slot file
    second = SoloHost(settings, world.runtime)
    assert curve(second.open(trial)) == curve([item for item in half if isinstance(item, Measurement)])
    (last,) = second.advance()
    second.shutdown()
    assert isinstance(last, Measurement)
    assert curve([*half, last]) == curve(whole)  # type: ignore[list-item]
    after = world.runtime.model.state_dict()
    assert all(torch.equal(tensor, after[key]) for key, tensor in before.items())

    folder = Path(str(last.adapter))
    assert evaluate_export(folder, settings) == pytest.approx(dict(last.metrics), rel=1e-6, abs=1e-6)
    with pytest.raises(ModelError, match=r"cannot be merged into the model; export it as it is$"):
        merge_adapter(folder, settings, tmp_path / "merged")
    with pytest.raises(ModelError, match=r"cannot be cut; it can be done for plain LoRA, rsLoRA and AdaLoRA$"):
        check_cuttable(folder, world.runtime.model)


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A GPT-2 that is judged by what it writes."""
    return made(
        "gpt2 completion", tmp_path_factory.mktemp("world"), metric="exact_match", generate_rows=12, max_new_tokens=5
    )


def prompts_of(runtime: Runtime) -> list[list[int]]:
    """Prompts of different lengths."""
    return [list(row["input_ids"][: 3 + place % 4]) for place, row in enumerate(runtime.evaluation_rows[:6])]


@pytest.mark.parametrize("name", ["prompt", "p-tuning", "prefix projected"])
def test_what_it_writes_follows_from_its_logits(writing: World, name: str) -> None:
    """Each prompt by itself, a token at a time; together they have different lengths."""
    runtime = writing.runtime
    trial = SoloTrial(spec(name), runtime)
    trial.attach()
    for _ in range(4):
        trial.take_step()
    model, prompts = trial.model.eval(), prompts_of(runtime)
    expected, end = [], runtime.tokenizer.eos_token_id
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + 7 and ids[-1] != end:
            with torch.no_grad(), warnings.catch_warnings(action="ignore"):
                ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(runtime.tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip())
    assert generate(model, prompts, runtime.tokenizer, max_new_tokens=7) == expected
    assert len(set(expected)) > 1
    trial.detach()


def test_a_fresh_process_reproduces_its_metrics_with_plain_peft(writing: World, tmp_path: Path) -> None:
    """By the lines that a user is told; PEFT gets the prefix, not the network that made it, and writes the same."""
    settings, runtime = replace(writing.settings, output=str(tmp_path / "out")), writing.runtime
    trial = SoloTrial(spec("prefix projected", steps=4), runtime)
    trial.attach()
    while trial.step < 4:
        trial.take_step()
    texts = generate(trial.model.eval(), prompts_of(runtime), runtime.tokenizer, max_new_tokens=7)
    trial.detach()
    host = SoloHost(settings, runtime)
    host.open(trial.spec)
    host.advance()
    (last,) = host.advance()
    host.shutdown()
    assert isinstance(last, Measurement)
    folder = Path(str(last.adapter))
    loaded, tokenizer = load_adapter(folder, settings.backbone)
    assert type(loaded).__module__ == "peft.peft_model"
    assert generate(loaded, prompts_of(runtime), tokenizer, max_new_tokens=7) == texts
    assert len(set(texts)) > 1
    lines = recipe(str(folder))
    assert lines is not None
    (found,) = measure_afresh([lines.use.splitlines()], settings)
    assert "exact_match" in found.metrics
    assert found.metrics == pytest.approx(dict(last.metrics), rel=1e-6, abs=1e-6)


def test_a_pooler_that_was_made_anew_travels_with_virtual_tokens(tmp_path: Path) -> None:
    """As a module to save, once; the frozen one that another load would make is another."""
    first = host_settings(tmp_path)
    BertModel(tiny_model("bert").config, add_pooling_layer=False).save_pretrained(tmp_path / "model")
    backbone = resolve_model(ModelSettings(kind="folder", location=str(tmp_path / "model")), tmp_path / "cache")
    settings = replace(first, backbone=backbone)
    host = SoloHost(settings, load_runtime(settings))
    host.open(spec("prompt", steps=8))
    host.advance()
    (last,) = host.advance()
    assert isinstance(last, Measurement)
    folder = Path(str(last.adapter))
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["bert.pooler", "classifier", "score"]
    assert "base_model.bert.pooler.dense.weight" in load_file(folder / "adapter_model.safetensors")
    assert evaluate_export(folder, settings) == pytest.approx(dict(last.metrics), rel=1e-6, abs=1e-6)
