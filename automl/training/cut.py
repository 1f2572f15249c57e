"""An adapter of PEFT's LoRA family, its updates turned to directions: cut to any ranks in place, or written smaller.

Adapters need not be ours: any folder that plain PEFT has saved will do, if it holds low-rank updates of linear layers.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from automl import durable
from automl.errors import CheckpointError, ModelError
from automl.importance.heldout import in_batches
from automl.importance.pattern import patterned, peft_block
from automl.importance.squeeze import directions
from automl.lora import Hyperparameters
from automl.methods.attaching import ADAPTER, adapted_layers, check_anchored
from automl.methods.base import LowRank
from automl.methods.registry import METHODS
from automl.models.inventory import head_modules, linear_layers
from automl.tasks.base import Row
from automl.training.export import OWN_WEIGHTS, with_adapter
from automl.training.moments import moments_of
from automl.training.runtime import Runtime

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_TRAINED_COPY = f".modules_to_save.{ADAPTER}."
"""In the name of a parameter of a module that PEFT saves with the adapter; its file leaves this out."""
_KINDS = ("LORA", "ADALORA")
_OTHER_SCHEDULES = (
    "init_r",
    "target_r",
    "tinit",
    "tfinal",
    "deltaT",
    "beta1",
    "beta2",
    "orth_reg_weight",
    "total_step",
)
"""What AdaLoRA's configuration has beside LoRA's (peft 0.21, tuners/adalora/config.py)."""
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq")
"""Initialisations that change the frozen weights by the rank (peft 0.21, tuners/lora/layer.py)."""
_LEFT = (".safetensors", ".bin", ".pt", ".pth", ".md")
"""Endings of files that do not belong into a cut adapter: weights, the state of a trainer, and what is said of both."""
_LEFT_NAMES = (CONFIG, durable.MANIFEST, "trainer_state.json")


class Trained(NamedTuple):
    """Copies of what a recovery has trained. factors: a and b of every module; heads: by name in the adapter's file."""

    factors: tuple[tuple[Tensor, Tensor], ...]
    heads: Mapping[str, Tensor]


class TurnedAdapter:
    """An adapter on its backbone, each update in the form that can be cut to its first directions.

    folder: the adapter's. runtime: its model becomes the PEFT model's. rows: training rows, on which is seen what the
    modules' inputs are; none: they are taken to be white. Of each module in `paths`: shapes: in and out features;
    costs: parameters of one direction; scalings: factors of the updates; strengths: of its directions, largest first.
    heads: as the adapter has them, by name in the model. Raises ModelError or CheckpointError in a line if it cannot be
    cut.
    """

    def __init__(self, folder: Path, runtime: Runtime, rows: Sequence[Row] = ()) -> None:
        check_cuttable(folder, runtime.model)
        self._folder = folder
        self._config = read_config(folder)
        self.model: Any = with_adapter(runtime.model, folder).to(runtime.device).eval()
        self._layers: dict[str, Any] = {
            path: layer for path, layer in adapted_layers(self.model.get_base_model()).items() if _has_update(layer)
        }
        updates = METHODS[self._config["peft_type"].lower()].low_rank(self.model)
        moments = input_moments(runtime, self.model, self._layers, updates, rows) if rows else [None] * len(updates)
        self.paths = tuple(self._layers)
        self.shapes = tuple((layer.in_features, layer.out_features) for layer in self._layers.values())
        self.costs = tuple(map(sum, self.shapes))
        self.scalings = tuple(update.scaling for update in updates)
        self.parameters = sum(len(update.a) * cost for update, cost in zip(updates, self.costs, strict=True))
        self._whole: list[tuple[Tensor, Tensor]] = []
        self.heads = {name: tensor.detach().clone() for name, tensor in self._head_parameters().items()}
        self.strengths = tuple(map(self._turn, self._layers.values(), updates, moments))
        if not any(self.strengths):
            raise ModelError(f"{folder}: every update is zero; the adapter was not trained, there is nothing to cut")

    def cut(self, ranks: Sequence[int]) -> None:
        """Let the model have the first directions of each module alone, in the order of `paths`; 0 leaves none.

        Heads are as they were in the adapter, and nothing is trained.
        """
        self.model.requires_grad_(False)
        for name, tensor in self._head_parameters().items():
            tensor.data.copy_(self.heads[name])
        for layer, (a, b), rank in zip(self._layers.values(), self._whole, ranks, strict=True):
            _set_factors(layer, a[:rank], b[:, :rank])

    def updates(self, ranks: Sequence[int]) -> list[LowRank]:
        """The first directions of each module, in the order of `paths`; modules of rank 0 are left out."""
        return self._first(self._whole, ranks)

    def trainable(self, ranks: Sequence[int]) -> dict[str, nn.Parameter]:
        """Cut, and let kept directions and heads be trained, by name in the model; the directions are copies."""
        self.cut(ranks)
        for layer, rank in zip(self._layers.values(), ranks, strict=True):
            for parameter in _factors(layer):
                parameter.data = parameter.data.clone()
                parameter.requires_grad_(rank > 0)
        for parameter in self._head_parameters().values():
            parameter.requires_grad_(True)
        return {name: each for name, each in self.model.named_parameters() if each.requires_grad}

    def trained(self) -> Trained:
        """Copies of the directions and heads as they are now, on the CPU."""
        factors = tuple((_copy(a), _copy(b)) for a, b in map(_factors, self._layers.values()))
        heads = {name.replace(_TRAINED_COPY, "."): _copy(each) for name, each in self._head_parameters().items()}
        return Trained(factors, heads)

    def write(
        self, ranks: Sequence[int], folder: Path, about: Mapping[str, Any], trained: Trained | None = None
    ) -> None:
        """Write the cut adapter as a folder for `PeftModel.from_pretrained`, in float32; all of it or nothing.

        Modules of rank 0 leave `target_modules`. Heads, modules to save, tokenizer and class names are those of the
        adapter, or as they were trained at these ranks. about: of the manifest. Raises ResourceError if the disk
        refuses.
        """
        write_updates(self.model.get_base_model(), self._folder, folder, *self._parts(ranks, trained), about)

    def _turn(self, layer: Any, update: LowRank, moments: Tensor | None) -> tuple[float, ...]:
        """Turn one update in place; returns the strengths of its directions."""
        found = directions(update, update.scaling, moments)
        a, b = found.a.to(update.b), found.b.to(update.b)
        _set_factors(layer, a, b)
        self._whole.append((a, b))
        return found.strengths

    def _head_parameters(self) -> dict[str, nn.Parameter]:
        """The adapter's own copies of heads, by name in the model."""
        heads = tuple(f"{_PREFIX}{head}{_TRAINED_COPY}" for head in head_modules(self.model.get_base_model()))
        return {name: each for name, each in self.model.named_parameters() if name.startswith(heads)} if heads else {}

    def _parts(self, ranks: Sequence[int], trained: Trained | None) -> tuple[list[LowRank], dict[str, Tensor]]:
        """The kept directions, and everything else that the adapter holds."""
        others = other_tensors(self._folder) | (dict(trained.heads) if trained is not None else {})
        return self._first(self._whole if trained is None else trained.factors, ranks), others

    def _first(self, factors: Sequence[tuple[Tensor, Tensor]], ranks: Sequence[int]) -> list[LowRank]:
        parts = zip(self.paths, factors, self.scalings, ranks, strict=True)
        return [LowRank(path, a[:rank], b[:, :rank], own) for path, (a, b), own, rank in parts if rank]


def write_updates(
    base: nn.Module,
    source: Path,
    folder: Path,
    updates: Sequence[LowRank],
    others: Mapping[str, Tensor],
    about: Mapping[str, Any],
) -> None:
    """Write low-rank updates as a folder for `PeftModel.from_pretrained`, in float32; all of it or nothing.

    base: the backbone, without an adapter or with one. source: folder of the adapter that they come from, which also
    gives configuration, tokenizer and class names. others: all tensors beside A and B, by name in the file. Raises
    ResourceError if the disk refuses.
    """
    config = read_config(source)
    ranks = {update.path: len(update.a) for update in updates}
    check_anchored(base, list(ranks))
    with durable.sealed_folder(folder, about) as draft:
        _copy_beside(source, draft)
        tensors = {**others, **dict(_factors_of(updates, recorded(config).scaling))}
        durable.write_file(draft / WEIGHTS, save(tensors, metadata={"format": "pt"}))
        durable.write_file(draft / CONFIG, durable.canonical(_cut_config(config, ranks)))


def other_tensors(folder: Path) -> dict[str, Tensor]:
    """Everything in the adapter's file that is no part of a low-rank update, by name."""
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if ".lora_" not in name}  # noqa: SIM118


def _factors_of(updates: Sequence[LowRank], scaling: float) -> Iterator[tuple[str, Tensor]]:
    """A and B by name in the file, of the one scaling that the configuration has."""
    for path, a, b, own in updates:
        shift = math.sqrt(own / scaling)
        yield f"{_PREFIX}{path}.lora_A.weight", (a * shift).float().cpu().contiguous()
        yield f"{_PREFIX}{path}.lora_B.weight", (b * shift).float().cpu().contiguous()


def _copy_beside(source: Path, draft: Path) -> None:
    """Tokenizer, class names and the like of one adapter for another."""
    for path in source.iterdir():
        if path.is_file() and path.suffix not in _LEFT and path.name not in _LEFT_NAMES:
            shutil.copyfile(path, draft / path.name)


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's configuration of the adapter. Raises ModelError if there is none that can be read."""
    if (folder / OWN_WEIGHTS).is_file():
        method = durable.verify_folder(folder)["hyperparameters"]["method"]
        raise ModelError(f"{folder}: an adapter of method {method} cannot be cut; it has no low-rank updates")
    try:
        found: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found["peft_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: no adapter of PEFT: {CONFIG} cannot be read ({error})") from None
    return found


def recorded(config: Mapping[str, Any]) -> Hyperparameters:
    """Rank, alpha and with them the scaling that a configuration gives to modules outside its patterns."""
    rank = config["init_r"] if config["peft_type"] == "ADALORA" else config["r"]
    return Hyperparameters(
        rank=int(rank),
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout") or 0.0),
        use_rslora=bool(config.get("use_rslora")),
    )


def cut_hyperparameters(config: Mapping[str, Any], ranks: Mapping[str, int]) -> Hyperparameters:
    """The configuration of plain LoRA with these ranks, all above 0, by module path."""
    return patterned(recorded(config), ranks)


def check_cuttable(folder: Path, model: nn.Module) -> None:
    """Raise ModelError, in a line, unless the folder holds low-rank updates of linear layers of this model.

    model: the backbone with its head, without an adapter; one on the meta device will do.
    """
    check_low_rank(folder, read_config(folder), "cut")
    layers = {layer.path: layer for layer in linear_layers(model)}
    parameters = dict(model.named_parameters())
    for name, shape in tensor_shapes(folder / WEIGHTS).items():
        path, is_update, part = name.removeprefix(_PREFIX).partition(".lora_")
        if not is_update:
            known = parameters.get(path)
            if known is not None and tuple(known.shape) != shape:
                raise ModelError(f"{folder}: {path} is {shape} there and {tuple(known.shape)} here; other classes?")
        elif part.removesuffix(".weight") not in ("A", "B", "E"):
            raise ModelError(f"{folder}: holds {name}; only low-rank updates of linear layers can be cut")
        elif path not in layers:
            raise ModelError(f"{folder}: is an adapter of another model: here is no linear layer '{path}'")
        elif part[0] != "E":
            _check_fits(folder, part[0], shape, layers[path])


def _check_fits(folder: Path, part: str, shape: tuple[int, ...], layer: Any) -> None:
    there = shape[1] if part == "A" else shape[0]
    here = layer.in_features if part == "A" else layer.out_features
    if there != here:
        raise ModelError(
            f"{folder}: is an adapter of another model: '{layer.path}' has {here:,}"
            f" {'inputs' if part == 'A' else 'outputs'} here and {there:,} there"
        )


def check_low_rank(folder: Path, config: Mapping[str, Any], done: str) -> None:
    """Raise ModelError, in a line, if the adapter is more than low-rank updates. done: what is to be done to it."""
    kind, start = config["peft_type"], str(config.get("init_lora_weights", "")).lower()
    wrong = [
        *([f"peft_type {kind}"] if kind not in _KINDS else []),
        *(
            name
            for name in ("use_dora", "lora_bias", "target_parameters", "layer_replication", "megatron_config")
            if config.get(name)
        ),
        *([f"init_lora_weights {start}"] if start.startswith(_CHANGES_BASE) else []),
    ]
    if wrong:
        raise ModelError(f"{folder}: {wrong[0]} cannot be {done}; it can be done for plain LoRA, rsLoRA and AdaLoRA")


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a safetensors file. Raises CheckpointError if it is none."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file.parent}: {file.name} cannot be read: {error}") from None


def input_moments(
    runtime: Runtime, model: Any, layers: Mapping[str, nn.Module], updates: Sequence[LowRank], rows: Sequence[Row]
) -> list[Tensor]:
    """E[A x (A x)ᵀ] of every module, each (r, r) float64, over the real tokens of these rows; forward passes only."""
    batches = map(runtime.batch, in_batches(rows))
    with runtime.autocast():
        return moments_of(list(layers.values()), updates, batches, lambda batch: runtime.task.loss(model, batch))


def _cut_config(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in _OTHER_SCHEDULES}
    block = peft_block(cut_hyperparameters(config, ranks), sorted(ranks))
    everywhere = {"layers_to_transform": None, "layers_pattern": None, "exclude_modules": None}
    return {**kept, **everywhere, **block, "peft_type": "LORA", "inference_mode": True, "init_lora_weights": True}


def _has_update(layer: Any) -> bool:
    return ADAPTER in layer.lora_A


def _factors(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """A and B of PEFT's layer; AdaLoRA has them as parameters, LoRA in layers."""
    a, b = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    return getattr(a, "weight", a), getattr(b, "weight", b)


def _set_factors(layer: Any, a: Tensor, b: Tensor) -> None:
    """Let PEFT's layer have these matrices, whatever their rank."""
    if not isinstance(layer.lora_A[ADAPTER], nn.Module):
        layer.lora_E[ADAPTER].data = torch.ones(len(a), 1, dtype=a.dtype, device=a.device)
    own_a, own_b = _factors(layer)
    own_a.data, own_b.data = a, b


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
