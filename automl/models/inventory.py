"""Which linear layers a network has, which of them a target set means, and what adapting them costs.

Everything is read off the actual module tree, on the meta device as well as in memory. Paths are those of
`model.named_modules()`. How layers of an architecture are called is one row of `NAMINGS`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from automl.errors import TargetError
from automl.lora import TARGET_SETS, LinearShape, lora_parameters

LONGEST_PATTERN = 200
"""Characters of a pattern in a target set of the user: longer ones are refused, as matching could take for ever."""


class Naming(NamedTuple):
    """How a family of architectures calls its projections: regular expressions for the end of a module path.

    query, key, value may be the same layer (a fused projection): it is then adapted as a whole.
    """

    query: str
    key: str
    value: str
    output: str
    mlp: str


def _fused(projection: str, output: str, mlp: str) -> Naming:
    return Naming(query=projection, key=projection, value=projection, output=output, mlp=mlp)


NAMINGS: dict[str, Naming] = {
    # BERT, RoBERTa, ELECTRA, MiniLM. Both "dense" below a layer, never the pooler's.
    "bert": Naming(
        query=r"attention\.self\.query",
        key=r"attention\.self\.key",
        value=r"attention\.self\.value",
        output=r"attention\.output\.dense",
        mlp=r"layer\.\d+\.(intermediate|output)\.dense",
    ),
    "distilbert": Naming(
        query=r"attention\.q_lin",
        key=r"attention\.k_lin",
        value=r"attention\.v_lin",
        output=r"attention\.out_lin",
        mlp=r"ffn\.lin[12]",
    ),
    "modernbert": _fused(r"attn\.Wqkv", output=r"attn\.Wo", mlp=r"mlp\.W[io]"),
    # Conv1D layers; c_attn holds query, key and value side by side.
    "gpt2": _fused(r"attn\.c_attn", output=r"attn\.c_proj", mlp=r"mlp\.c_(fc|proj)"),
    # Llama, Mistral, SmolLM, Qwen2, Qwen3, Gemma.
    "llama": Naming(
        query=r"self_attn\.q_proj",
        key=r"self_attn\.k_proj",
        value=r"self_attn\.v_proj",
        output=r"self_attn\.o_proj",
        mlp=r"mlp\.(gate|up|down)_proj",
    ),
    "phi3": _fused(r"self_attn\.qkv_proj", output=r"self_attn\.o_proj", mlp=r"mlp\.(gate_up|down)_proj"),
    "gpt-neox": _fused(r"attention\.query_key_value", output=r"attention\.dense", mlp=r"mlp\.dense_(h_to_4h|4h_to_h)"),
    # Encoder and decoder, self and cross attention; wi_0 and wi_1 in the gated versions.
    "t5": Naming(
        query=r"(Self|EncDec)Attention\.q",
        key=r"(Self|EncDec)Attention\.k",
        value=r"(Self|EncDec)Attention\.v",
        output=r"(Self|EncDec)Attention\.o",
        mlp=r"DenseReluDense\.w(i|i_0|i_1|o)",
    ),
}
"""Family -> names. The first row of which every role is found in the network is used; no two rows fit one network."""

_ROLES: dict[str, tuple[str, ...]] = {
    "qv": ("query", "value"),
    "attention": ("query", "key", "value", "output"),
    "mlp": ("mlp",),
}

_NOT_TEXT = re.compile(r"(^|\.)(pooler|vision_tower|vision_model|visual|audio_tower|multi_modal_projector)(\.|$)")
"""Parts of a backbone that named sets leave out: the pooler, and what never sees text in a multi-modal model."""


def linear_layers(model: nn.Module) -> list[LinearShape]:
    """Every linear layer in module order, head and lm_head included. GPT-2's Conv1D counts (it stores in x out)."""
    return [_shape(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def resolve_targets(
    model: nn.Module, target: str, targets: Mapping[str, Sequence[str]] | None = None
) -> list[LinearShape]:
    """The layers that a target set means in this network, in module order; never empty.

    `target` is a name of TARGET_SETS or of `targets`, the user's own sets. A pattern of those made of letters, digits,
    underscores and dots names the end of a path at a dot, as PEFT users write it (`q_proj`, `self_attn.q_proj`); any
    other is a regular expression that must match the whole path (`.*layer\\.[0-5]\\..*query`). Heads that are trained
    in full and the lm_head belong to no set; the pooler only to one that names it.

    With a fused projection (GPT-2 c_attn, Phi-3 qkv_proj) `qv` means all of it: PEFT adapts whole layers.

    Raises TargetError, naming the kinds of linear layers there are, if the set is unknown or matches nothing.
    """
    own = targets or {}
    candidates = _adaptable(model)
    if target in own:
        return _by_patterns(model, target, own[target], candidates)
    text = [layer for layer in candidates if not _NOT_TEXT.search(layer.path)]
    if target == "all-linear" and text:
        return text
    if target in _ROLES:
        naming = _naming(model, target, text)
        pattern = re.compile("|".join(rf"(.*\.)?{getattr(naming, role)}" for role in _ROLES[target]))
        return [layer for layer in text if pattern.fullmatch(layer.path)]
    if target in TARGET_SETS:
        raise TargetError(f"target set '{target}' matches nothing: {type(model).__name__} has no linear layers")
    known = [*TARGET_SETS, *own]
    raise TargetError(f"unknown target set '{target}'; known: {', '.join(known)}{_nearest(target, known)}")


def head_modules(model: nn.Module) -> list[str]:
    """Names of the modules on top of the backbone that are trained in full: classifier, score …; none for a text model.

    They are the children of the model beside its backbone (transformers' base_model_prefix) that hold parameters,
    without the lm_head.
    """
    children = dict(model.named_children())
    if getattr(model, "base_model_prefix", "") not in children:
        return []
    output = _output_embeddings(model)
    return [
        name
        for name, child in children.items()
        if name != model.base_model_prefix and child is not output and next(child.parameters(), None) is not None
    ]


def head_parameters(model: nn.Module) -> int:
    """Number of parameters in the modules of `head_modules`."""
    return sum(
        parameter.numel() for name in head_modules(model) for parameter in model.get_submodule(name).parameters()
    )


def trainable_parameters(
    model: nn.Module, target: str, rank: int, targets: Mapping[str, Sequence[str]] | None = None
) -> int:
    """Trainable parameters of a LoRA trial: low-rank matrices plus head. Equals what PEFT counts."""
    return lora_parameters(resolve_targets(model, target, targets), rank) + head_parameters(model)


# Report

RANKS = (4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKind:
    """Layers that differ only in their layer number, and in nothing else: `kind` has `*` in its place."""

    kind: str
    in_features: int
    out_features: int
    count: int
    sets: tuple[str, ...]  # the named sets they belong to


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """What `automl inspect` shows. trainable: target set -> rank -> trainable parameters, head included.

    A set that the network does not have is missing from `trainable`; why is in `unresolved`.
    """

    architecture: str
    parameters: int
    head: tuple[str, ...]
    head_parameters: int
    layers: tuple[LayerKind, ...]
    trainable: Mapping[str, Mapping[int, int]]
    unresolved: Mapping[str, str]


def inspect_model(
    model: nn.Module, targets: Mapping[str, Sequence[str]] | None = None, *, ranks: Sequence[int] = RANKS
) -> ModelReport:
    """Describe the linear layers of a network and what each target set would train in it."""
    resolved: dict[str, list[LinearShape]] = {}
    unresolved: dict[str, str] = {}
    for name in [*TARGET_SETS, *(targets or {})]:
        try:
            resolved[name] = resolve_targets(model, name, targets)
        except TargetError as error:
            unresolved[name] = str(error)
    head = head_parameters(model)
    return ModelReport(
        architecture=type(model).__name__,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        head=tuple(head_modules(model)),
        head_parameters=head,
        layers=_kinds(model, resolved),
        trainable={
            name: {rank: lora_parameters(layers, rank) + head for rank in ranks} for name, layers in resolved.items()
        },
        unresolved=unresolved,
    )


def _kinds(model: nn.Module, resolved: Mapping[str, Sequence[LinearShape]]) -> tuple[LayerKind, ...]:
    sets_of = {layer: [name for name, layers in resolved.items() if layer in layers] for layer in linear_layers(model)}
    groups: dict[tuple[str, int, int, tuple[str, ...]], int] = {}
    for layer, sets in sets_of.items():
        key = (_kind(layer.path), layer.in_features, layer.out_features, tuple(sets))
        groups[key] = groups.get(key, 0) + 1
    return tuple(
        LayerKind(kind=kind, in_features=inputs, out_features=outputs, count=count, sets=sets)
        for (kind, inputs, outputs, sets), count in groups.items()
    )


# Matching


def _shape(path: str, module: nn.Linear | Conv1D) -> LinearShape:
    rows, columns = module.weight.shape
    return LinearShape(path, rows, columns) if isinstance(module, Conv1D) else LinearShape(path, columns, rows)


def _adaptable(model: nn.Module) -> list[LinearShape]:
    """Linear layers of the backbone: all but those of the head and the lm_head."""
    heads = tuple(f"{name}." for name in head_modules(model))
    output = _output_embeddings(model)
    return [
        layer
        for layer in linear_layers(model)
        if not f"{layer.path}.".startswith(heads) and model.get_submodule(layer.path) is not output
    ]


def _output_embeddings(model: Any) -> nn.Module | None:
    """The lm_head of a transformers model, None if it has none (or is no transformers model)."""
    getter = getattr(model, "get_output_embeddings", None)
    output = getter() if getter is not None else None
    return output if isinstance(output, nn.Module) else None


def _naming(model: nn.Module, target: str, layers: Sequence[LinearShape]) -> Naming:
    for naming in NAMINGS.values():
        if all(any(re.fullmatch(rf"(.*\.)?{name}", layer.path) for layer in layers) for name in naming):
            return naming
    raise TargetError(
        f"target set '{target}' is not known for {type(model).__name__}; its linear layers are "
        f"{_listing(layers)}; use all-linear, or name layers under targets:"
    )


def _by_patterns(
    model: nn.Module, target: str, patterns: Sequence[str], layers: Sequence[LinearShape]
) -> list[LinearShape]:
    """Layers that any of the patterns matches; every one must match something, so that no slip goes unseen."""
    chosen: set[LinearShape] = set()
    for text in patterns:
        pattern = _compiled(target, text)
        matched = {layer for layer in layers if pattern.fullmatch(layer.path)}
        if not matched:
            near = _nearest(text, sorted({layer.path.rpartition(".")[2] for layer in layers}))
            raise TargetError(
                f"targets.{target}: '{text}' matches no linear layer of {type(model).__name__}; "
                f"it has {_listing(layers)}{near}"
            )
        chosen |= matched
    if not chosen:
        raise TargetError(f"targets.{target}: has no patterns; name at least one linear layer: {_listing(layers)}")
    return [layer for layer in layers if layer in chosen]


def _compiled(target: str, text: str) -> re.Pattern[str]:
    if len(text) > LONGEST_PATTERN:
        raise TargetError(f"targets.{target}: pattern of {len(text)} characters; at most {LONGEST_PATTERN} are allowed")
    if re.fullmatch(r"[\w.]+", text):
        return re.compile(rf"(.*\.)?{re.escape(text)}")
    try:
        return re.compile(text)
    except re.error as error:
        raise TargetError(f"targets.{target}: '{text}' is not a regular expression: {error}") from error


def _kind(path: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", path)


def _listing(layers: Sequence[LinearShape]) -> str:
    return ", ".join(dict.fromkeys(_kind(layer.path) for layer in layers)) or "none"


def _nearest(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name.rpartition(".")[2], known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""
