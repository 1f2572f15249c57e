"""Methods that PEFT does not have: they follow plain loops around torch, go on to the bit, and come out right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from automl.errors import CheckpointError, ModelError, TargetError
from automl.lora import Hyperparameters
from automl.methods.bottleneck import places
from automl.methods.llama_pro import sources
from automl.methods.registry import METHODS
from automl.models.inventory import head_modules, resolve_targets
from automl.tasks.batches import batch_rows
from automl.training.cut import check_cuttable
from automl.training.export import evaluate_export, evaluate_merged, load_adapter, merge_adapter
from automl.training.host import SoloHost, build_solo_host
from automl.training.runtime import HostSettings, Runtime, load_runtime
from automl.training.schedule import lr_multiplier
from automl.training.solo import SoloTrial
from automl.trial import Measurement, TrialSpec
from tests.architectures import ARCHITECTURES, FURTHER, further_model, tiny_model
from tests.methods.lively import lively_model
from tests.training.training_cases import curve, host_settings, trial_spec, write_backbone


def spec_of(method: str, *, steps: int = 40, evaluate_every: int = 20, **own: Any) -> TrialSpec:
    hyper = {"method": method, "own": tuple(sorted(own.items())), "learning_rate": 5e-3, "clip": 0.5, "dropout": 0.0}
    return trial_spec(steps=steps, evaluate_every=evaluate_every, warmup=0.2, schedule="cosine", **hyper)


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], HostSettings]:
    """Settings over a lively model of an architecture, made once."""
    made: dict[str, HostSettings] = {}

    def settings(architecture: str) -> HostSettings:
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            kind = "causal-lm" if architecture == "llama" else "classification"
            write_backbone(folder / "model", architecture, model=lively_model(architecture, kind=kind))
            made[architecture] = host_settings(folder, architecture=architecture, kind=kind)
        return made[architecture]

    return settings


# A plain loop


FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "gelu": nn.GELU(),
    "silu": lambda x: x * torch.sigmoid(x),
    "tanh": torch.tanh,
}


class PlainAdapter(nn.Module):
    """The published formula, with these four tensors."""

    def __init__(self, start: Mapping[str, Tensor], path: str, function: str, scale: float) -> None:
        super().__init__()
        names = ("down.weight", "down.bias", "up.weight", "up.bias")
        self.all = nn.ParameterList([start[f"{path}.bottleneck.{name}"].clone() for name in names])
        self.function, self.scale = FUNCTIONS[function], scale

    def forward(self, h: Tensor) -> Tensor:
        down, down_bias, up, up_bias = self.all
        return self.scale * (self.function(h @ down.T + down_bias) @ up.T + up_bias)


class Behind(nn.Module):
    def __init__(self, inner: nn.Module, adapter: nn.Module) -> None:
        super().__init__()
        self.inner, self.adapter = inner, adapter

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y + self.adapter(y)


class Beside(Behind):
    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.adapter(x)


def bert_chunk(layer: Any, adapter: nn.Module, x: Tensor) -> Tensor:
    """BERT's feed-forward layer with an adapter beside it."""
    return layer.output.LayerNorm(layer.output.dense(layer.intermediate(x)) + adapter(x) + x)


class Names(NamedTuple):
    """Paths in a block of an architecture."""

    blocks: str
    attention: str
    feed_forward: str


NAMES = {
    "bert": Names("bert.encoder.layer", "attention.output.dense", "output.dense"),
    "gpt2": Names("transformer.h", "attn.c_proj", "mlp.c_proj"),
    "llama": Names("model.layers", "self_attn.o_proj", "mlp.down_proj"),
}


def plain_adapters(model: Any, architecture: str, place: str, adapter: Callable[[str], PlainAdapter]) -> None:
    names = NAMES[architecture]
    for index, block in enumerate(model.get_submodule(names.blocks)):
        path = f"{names.blocks}.{index}"
        if place == "houlsby":
            inner = block.get_submodule(names.attention)
            block.set_submodule(names.attention, Behind(inner, adapter(f"{path}.{names.attention}")))
        made = adapter(f"{path}.{names.feed_forward}")
        if architecture != "bert":
            block.mlp = (Beside if place == "parallel" else Behind)(block.mlp, made)
        elif place == "parallel":
            block.adapter, block.feed_forward_chunk = made, partial(bert_chunk, block, made)
        else:
            block.output.dense = Behind(block.output.dense, made)


def with_adapters(runtime: Runtime, start: Mapping[str, Tensor], architecture: str, **own: Any) -> list[nn.Parameter]:
    """Change the model of the runtime; returns what is to be trained."""
    model: Any = runtime.model
    how = partial(PlainAdapter, start, function=own["adapter_activation"], scale=own["adapter_scale"])
    plain_adapters(model, architecture, own["adapter_place"], how)
    for path in head_modules(model):
        head = model.get_submodule(path).requires_grad_(True)
        head.load_state_dict({name: start[f"{path}.{name}"] for name in head.state_dict()})
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def with_blocks(runtime: Runtime, origins: list[int], new: set[int]) -> tuple[nn.Module, list[nn.Parameter]]:
    """An ordinary, deeper Llama: block i is that of `origins[i]`; those of `new` start with zeros at their ends."""
    old: Any = runtime.model
    config = type(old.config)(**{**old.config.to_dict(), "num_hidden_layers": len(origins)})
    deep = AutoModelForCausalLM.from_config(config).requires_grad_(False)
    weights = {name: tensor for name, tensor in old.state_dict().items() if ".layers." not in name}
    for position, origin in enumerate(origins):
        for name, tensor in old.model.layers[origin].state_dict().items():
            is_end = position in new and name in ("self_attn.o_proj.weight", "mlp.down_proj.weight")
            weights[f"model.layers.{position}.{name}"] = torch.zeros_like(tensor) if is_end else tensor
    deep.load_state_dict(weights)
    trained = [each for position in sorted(new) for each in deep.model.layers[position].parameters()]
    for parameter in trained:
        parameter.requires_grad_(True)
    return deep, trained


def plain_losses(model: nn.Module, trained: list[nn.Parameter], runtime: Runtime, spec: TrialSpec) -> list[float]:
    """The loss of every step and of an evaluation at the end."""
    hyper = spec.hyper
    optimizer = torch.optim.AdamW(trained, lr=hyper.learning_rate, weight_decay=hyper.weight_decay)
    rate = partial(lr_multiplier, steps=spec.steps, warmup=hyper.warmup, schedule=hyper.schedule)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    losses = []
    for step in range(spec.steps):
        model.train()
        rows = batch_rows(spec.data_seed, step, hyper.batch_size, len(runtime.train_rows))
        parts = runtime.task.loss(model, runtime.batch([runtime.train_rows[row] for row in rows]))
        loss = parts.total / parts.count
        loss.backward()
        nn.utils.clip_grad_norm_(trained, hyper.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return [*losses, runtime.evaluate(model, runtime.evaluation_rows, runtime.evaluation_tokens)["loss"]]


def our_losses(trial: SoloTrial) -> list[float]:
    """The same of a trial that is attached."""
    losses = []
    while trial.step < trial.spec.steps:
        trial.take_step()
        losses.append(trial.loss)
    return [*losses, trial.measure().metrics["loss"]]


ADAPTERS = [
    ("bert", "houlsby", "silu", 1.0),
    ("bert", "parallel", "gelu", 4.0),
    ("gpt2", "houlsby", "tanh", 2.0),
    ("gpt2", "parallel", "relu", 2.0),
    ("llama", "houlsby", "relu", 1.0),
    ("llama", "pfeiffer", "gelu", 2.0),
    ("llama", "parallel", "silu", 4.0),
]


@pytest.mark.parametrize(("architecture", "place", "function", "scale"), ADAPTERS)
def test_adapters_follow_a_plain_loop(
    lively: Callable[[str], HostSettings], architecture: str, place: str, function: str, scale: float
) -> None:
    own = {"adapter_size": 5, "adapter_place": place, "adapter_activation": function, "adapter_scale": scale}
    spec = spec_of("adapter", **own)
    trial = SoloTrial(spec, load_runtime(lively(architecture)))
    trial.attach()
    start = trial.snapshot().params
    assert all(not tensor.any() for name, tensor in start.items() if ".up." in name), "it starts as nothing"
    runtime = load_runtime(lively(architecture))
    expected = plain_losses(runtime.model, with_adapters(runtime, start, architecture, **own), runtime, spec)
    found = our_losses(trial)
    assert found == pytest.approx(expected, rel=1e-6)
    assert all(tensor.any() for name, tensor in trial.snapshot().params.items() if ".up." in name)
    names = NAMES[architecture]
    ends = [names.attention, names.feed_forward] if place == "houlsby" else [names.feed_forward]
    layers = {f"{names.blocks}.{index}.{end}" for index in range(2) for end in ends}
    assert {name.partition(".bottleneck.")[0] for name in start if ".bottleneck." in name} == layers


@pytest.mark.parametrize(
    ("own", "origins", "new"),
    [
        ({"added_blocks": 2}, [0, 0, 1, 1], {1, 3}),
        ({"added_blocks": 3}, [0, 0, 1, 1, 1], {1, 3, 4}),
        ({"added_blocks": 1, "added_where": "bottom"}, [0, 0, 1], {1}),
        ({"added_blocks": 2, "added_where": "top"}, [0, 1, 1, 1], {2, 3}),
    ],
)
def test_added_blocks_follow_a_plain_loop_around_a_deeper_model(
    lively: Callable[[str], HostSettings], own: dict[str, Any], origins: list[int], new: set[int]
) -> None:
    spec, runtime = spec_of("llama-pro", **own), load_runtime(lively("llama"))
    deep, trained = with_blocks(runtime, origins, new)
    untouched = runtime.evaluate(runtime.model, runtime.evaluation_rows, runtime.evaluation_tokens)["loss"]
    trial = SoloTrial(spec, runtime)
    trial.attach()
    assert trial.measure().metrics["loss"] == untouched, "the added blocks add nothing yet"
    expected = plain_losses(deep, trained, runtime, spec)
    found = our_losses(trial)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found[-1] < found[0] - 0.01
    trial.detach()
    assert runtime.evaluate(runtime.model, runtime.evaluation_rows, runtime.evaluation_tokens)["loss"] == untouched
    assert runtime.model.config.num_hidden_layers == len(runtime.model.model.layers) == 2


# Going on, and coming out


BOTH = [
    ("bert", "adapter", {"adapter_size": 5, "adapter_place": "parallel"}),
    ("llama", "llama-pro", {"added_blocks": 2}),
]


def advanced(host: SoloHost) -> list[Measurement]:
    found: list[Measurement] = []
    while some := host.advance():
        assert all(isinstance(item, Measurement) for item in some), some
        found += some  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(("architecture", "method", "own"), BOTH)
def test_parked_killed_and_resumed_it_is_the_same_to_the_bit(
    lively: Callable[[str], HostSettings], architecture: str, method: str, own: dict[str, Any], tmp_path: Path
) -> None:
    spec = spec_of(method, steps=12, evaluate_every=4, **own)
    settings = lively(architecture)
    whole = build_solo_host(replace(settings, output=str(tmp_path / "whole")))
    whole.open(spec)
    expected = curve(advanced(whole))

    settings = replace(settings, output=str(tmp_path / "parts"))
    host = build_solo_host(settings)
    host.open(spec)
    host.advance()
    host.park(spec.number)
    host.open(spec)
    host.advance()
    del host  # what happens after the last slot file is lost
    again = build_solo_host(settings)
    before = again.open(replace(spec, attempt=2))
    assert [item.step for item in before] == [4, 8]
    assert curve([*before, *advanced(again)]) == expected


@pytest.mark.parametrize(("architecture", "method", "own"), BOTH)
def test_an_exported_adapter_measures_the_same(
    lively: Callable[[str], HostSettings], architecture: str, method: str, own: dict[str, Any], tmp_path: Path
) -> None:
    settings = replace(lively(architecture), output=str(tmp_path / "out"))
    host = build_solo_host(settings)
    host.open(spec_of(method, steps=8, evaluate_every=8, **own))
    (last,) = advanced(host)
    folder = Path(str(last.adapter))
    assert evaluate_export(folder, settings) == pytest.approx(last.metrics, rel=1e-6)
    model, tokenizer = load_adapter(folder, settings.backbone)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert len(tokenizer) == 64
    with pytest.raises(ModelError, match=rf"an adapter of method {method} cannot be cut; it has no low-rank updates$"):
        check_cuttable(folder, load_runtime(settings).model)
    if method == "adapter":
        with pytest.raises(ModelError, match=r"method adapter cannot be merged into the model; export it as it is$"):
            merge_adapter(folder, settings, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
        return
    merge_adapter(folder, settings, tmp_path / "merged")
    assert evaluate_merged(tmp_path / "merged", settings) == pytest.approx(last.metrics, rel=1e-6)
    deep = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert deep.config.num_hidden_layers == len(deep.model.layers) == 4
    with (folder / "adapter.safetensors").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors is damaged"):
        load_adapter(folder, settings.backbone)


def attached(model: nn.Module, method: str, **own: Any) -> Any:
    hyper = Hyperparameters(method=method, own=tuple(sorted(own.items())))
    paths = [layer.path for layer in resolve_targets(model, "all-linear")]
    return METHODS[method].attach(model, hyper, paths, head_modules(model), 5)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3", "phi3"])
def test_a_grown_decoder_writes_texts_with_and_without_a_cache(architecture: str) -> None:
    model = attached(lively_model(architecture, kind="causal-lm"), "llama-pro", added_blocks=3)
    with torch.no_grad():  # not the identity any more
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    ids = torch.tensor([[5, 9, 11, 30]])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with_cache = model.generate(ids, **options)
    assert torch.equal(with_cache, model.generate(ids, use_cache=False, **options))
    assert len(set(with_cache[0].tolist())) > 3


@pytest.mark.parametrize(("method", "own"), [("adapter", {"adapter_place": "parallel"}), ("llama-pro", {})])
def test_a_bfloat16_backbone_is_adapted_in_float32(method: str, own: dict[str, Any]) -> None:
    model = attached(lively_model("llama", kind="causal-lm").to(torch.bfloat16), method, **own)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    ids = torch.tensor([[5, 9, 11, 30]])
    for is_autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        assert loss.isfinite()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in trained)


# Where


@pytest.mark.parametrize("name", [*ARCHITECTURES, *FURTHER])
def test_adapters_are_behind_the_layers_that_are_known_by_name(name: str) -> None:
    """The layers are found by shape; how they are called is known from the tables of architectures."""
    model = tiny_model(name) if name in ARCHITECTURES else further_model(name)
    entry: Any = ARCHITECTURES.get(name) or FURTHER[name]
    layers = resolve_targets(model, "all-linear")
    refused = {"mobilebert", "mamba", "mamba2", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe"}
    if name in refused or name.startswith("deepseek"):
        with pytest.raises(TargetError, match="has no blocks with one feed-forward layer made of linear layers"):
            places(layers, "pfeiffer", type(model).__name__)
        return

    def last_names(kinds: Any) -> set[str]:
        return {str(kind).rpartition(".")[2] for kind in kinds}

    behind, beside = places(layers, "pfeiffer", "x"), places(layers, "parallel", "x")
    assert {place.source for place in behind} == {None}
    assert [place.path for place in behind] == [place.path for place in beside]
    assert last_names(place.path for place in behind) | last_names(place.source for place in beside) <= last_names(
        entry.mlp
    )
    if not entry.attention:
        with pytest.raises(TargetError, match="has no attention made of linear layers; use adapter_place pfeiffer"):
            places(layers, "houlsby", "x")
        return
    inside = {place.path for place in places(layers, "houlsby", "x")} - {place.path for place in behind}
    assert last_names(inside) <= last_names(entry.attention) - last_names(entry.qv) - {"k", "key", "k_proj", "k_lin"}
    assert len(inside) >= len(behind)


def test_copies_are_spread_evenly() -> None:
    def spread(count: int, added: int) -> list[int]:
        return sources(count, Hyperparameters(method="llama-pro", own=(("added_blocks", added),)))

    assert spread(32, 8) == [3, 7, 11, 15, 19, 23, 27, 31], "as in the paper"
    assert spread(30, 4) == [7, 14, 22, 29]
    assert spread(2, 5) == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("name", ["bert", "gpt2", "gpt-neox", "t5", "mixtral", "qwen3_moe"])
def test_decoders_that_are_not_like_llama_are_refused(name: str) -> None:
    model = tiny_model(name) if name in ARCHITECTURES else further_model(name)
    with pytest.raises(
        TargetError, match=rf"^method llama-pro: {type(model).__name__} is not a decoder of blocks like"
    ):
        METHODS["llama-pro"].trainable(model, [], Hyperparameters(method="llama-pro"))
