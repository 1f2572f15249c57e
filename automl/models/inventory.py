"""Which linear layers a network has, which of them a target set means, and what adapting them costs.

Everything is read off the actual module tree, on the meta device as well as in memory. Paths are those of
`model.named_modules()`. How layers are called is in `automl.models.naming`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from automl.errors import TargetError
from automl.lora import TARGET_SETS, LinearShape, lora_parameters
from automl.models.left_out import left_out
from automl.models.naming import ROLES, SETS
from automl.nearest import did_you_mean

WORTH_SAYING = 0.01
"""Share of a model's parameters from which on it is said that they stay frozen."""

_ANEW = "_automl_made_anew"
_POOLER = re.compile(r"(?:^|(?<=\.))pooler(?=\.)")

LONGEST_PATTERN = 200
"""Characters of a pattern in a target set of the user: longer ones are refused, as matching could take for ever."""


_NOT_TEXT = re.compile(
    r"(^|\.)(pooler|contact_head|vision_tower|vision_model|visual|audio_tower|multi_modal_projector)(\.|$)"
)
"""Parts of a backbone that named sets leave out: what hangs beside it, and what never sees text."""


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
    in full, the lm_head and layers that PEFT cannot adapt belong to no set; the pooler only to one that names it.

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
    if target in SETS:
        return _by_roles(model, target, text)
    if target in TARGET_SETS:
        raise TargetError(f"target set '{target}' matches nothing: {type(model).__name__} has no linear layers")
    known = [*TARGET_SETS, *own]
    raise TargetError(
        f"unknown target set '{target}'; known: {', '.join(known)}{did_you_mean(target.rpartition('.')[2], known)}"
    )


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


def kept_modules(model: nn.Module) -> list[str]:
    """Names of the modules that stay as they are in a quantised backbone: heads, lm_head, poolers, and what
    transformers keeps in float32.

    transformers takes a name as the beginning of a path, or as its end.
    """
    output = _output_embeddings(model)
    poolers = [path for path, _ in model.named_modules() if path.rpartition(".")[2] == "pooler"]
    names = [path for path, module in model.named_modules() if module is output]
    return [*head_modules(model), *names, *poolers, *(getattr(model, "_keep_in_fp32_modules", None) or ())]


def quantised_layers(model: nn.Module) -> list[LinearShape]:
    """The linear layers that are held in few bits if the backbone is quantised."""
    kept = tuple(kept_modules(model))
    starts = tuple(f"{name}." for name in kept)
    return [layer for layer in linear_layers(model) if not (layer.path.endswith(kept) or layer.path.startswith(starts))]


def made_anew(model: nn.Module) -> tuple[str, ...]:
    """Paths of the modules of the backbone that its checkpoint lacked (a pooler), so that no file of it has them.

    They stay frozen as they were made, and must travel with every adapter.
    """
    return tuple(getattr(model, _ANEW, ()))


def mark_made_anew(model: nn.Module, parameters: Sequence[str]) -> None:
    """Remember the modules that these parameters belong to: for each the path down to its pooler."""
    paths = (parameter[: match.end()] for parameter in parameters if (match := _POOLER.search(parameter)))
    setattr(model, _ANEW, tuple(dict.fromkeys(paths)))


def mark_like(model: nn.Module, other: nn.Module) -> None:
    """Remember of a model that shares its backbone with another one what is remembered of that."""
    setattr(model, _ANEW, made_anew(other))


def head_parameters(model: nn.Module) -> int:
    """Number of parameters in the modules of `head_modules`."""
    return sum(
        parameter.numel() for name in head_modules(model) for parameter in model.get_submodule(name).parameters()
    )


def resolvable_sets(model: nn.Module) -> tuple[str, ...]:
    """The named target sets that this network has, in the order of TARGET_SETS."""
    return tuple(name for name in TARGET_SETS if _is_resolvable(model, name))


def _is_resolvable(model: nn.Module, name: str) -> bool:
    try:
        resolve_targets(model, name)
    except TargetError:
        return False
    return True


def notes(model: nn.Module) -> Iterator[str]:
    """What no target set reaches although a user may expect it to: one line each, for plans and logs."""
    for reason, paths in _by_reason(left_out(model)).items():
        kinds = ", ".join(dict.fromkeys(map(_kind, paths)))
        yield f"{kinds}: left out of every target set, as {reason}"
    total = sum(parameter.numel() for parameter in model.parameters())
    stacked = {name: parameter.numel() for name, parameter in model.named_parameters() if _is_stacked(model, name)}
    if sum(stacked.values()) >= WORTH_SAYING * total:
        kinds = ", ".join(dict.fromkeys(map(_kind, stacked)))
        yield (
            f"{kinds}: {sum(stacked.values()) / total:.0%} of the model's parameters stay frozen in every target set,"
            " as they are no linear layers"
        )


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path, reason in reasons.items():
        found.setdefault(reason, []).append(path)
    return found


def _is_stacked(model: nn.Module, name: str) -> bool:
    """Whether this parameter is several matrices in one tensor, as those of fused experts are; not a convolution's."""
    owner, _, leaf = name.rpartition(".")
    is_convolution = leaf == "weight" and hasattr(model.get_submodule(owner), "kernel_size")
    return model.get_parameter(name).dim() > 2 and not is_convolution


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

    A set that the network does not have is missing from `trainable`; why is in `unresolved`. notes: see `notes`.
    weights: bytes of the frozen weights by the way they are held.
    """

    architecture: str
    parameters: int
    head: tuple[str, ...]
    head_parameters: int
    layers: tuple[LayerKind, ...]
    trainable: Mapping[str, Mapping[int, int]]
    unresolved: Mapping[str, str]
    notes: tuple[str, ...] = ()
    weights: Mapping[str, int] = field(default_factory=dict)


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
        notes=tuple(notes(model)),
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
    if isinstance(module, Conv1D):
        return LinearShape(path, *module.weight.shape)
    return LinearShape(path, module.in_features, module.out_features)  # a weight in few bits has another shape


def _adaptable(model: nn.Module) -> list[LinearShape]:
    """Linear layers of the backbone that can be adapted."""
    excluded = _excluded(model)
    return [layer for layer in linear_layers(model) if layer.path not in excluded]


def _excluded(model: nn.Module) -> dict[str, str]:
    """Linear layers that belong to no set: path -> why, as the end of a sentence."""
    heads = tuple(f"{name}." for name in head_modules(model))
    output = _output_embeddings(model)
    reasons = left_out(model)
    anew = tuple(f"{name}." for name in made_anew(model))
    for path in (layer.path for layer in linear_layers(model)):
        if f"{path}.".startswith(heads):
            reasons[path] = "it is part of the head, which is trained in full"
        elif f"{path}.".startswith(anew):
            reasons[path] = "the checkpoint lacks it, so it was made anew and stays as it is"
        elif model.get_submodule(path) is output:
            reasons[path] = "the output over the vocabulary stays as it is, as it is often the embeddings' own weight"
    return reasons


def _output_embeddings(model: Any) -> nn.Module | None:
    """The lm_head of a transformers model, None if it has none (or is no transformers model)."""
    getter = getattr(model, "get_output_embeddings", None)
    output = getter() if getter is not None else None
    return output if isinstance(output, nn.Module) else None


def _by_roles(model: nn.Module, target: str, layers: Sequence[LinearShape]) -> list[LinearShape]:
    """Layers of a named set; every role that it asks for must be there."""
    patterns = {role: re.compile("|".join(rf"(.*\.)?{name}" for name in ROLES[role])) for role in SETS[target]}
    lacking = [role for role, found in patterns.items() if not any(found.fullmatch(layer.path) for layer in layers)]
    if lacking:
        raise TargetError(
            f"target set '{target}' is not known for {type(model).__name__}: no linear layer is known as its"
            f" {' or '.join(lacking)}; it has {_listing(layers)}{_why_not(model)}; use all-linear, or name layers"
            " under targets:"
        )
    return [layer for layer in layers if any(pattern.fullmatch(layer.path) for pattern in patterns.values())]


def _why_not(model: nn.Module) -> str:
    """What is no linear layer although it holds much of the model, or is left out, as part of a sentence."""
    return "".join(f" ({note})" for note in notes(model))


def _by_patterns(
    model: nn.Module, target: str, patterns: Sequence[str], layers: Sequence[LinearShape]
) -> list[LinearShape]:
    """Layers that any of the patterns matches; every one must match something, so that no slip goes unseen."""
    chosen: set[LinearShape] = set()
    for text in patterns:
        pattern = _compiled(target, text)
        matched = {layer for layer in layers if pattern.fullmatch(layer.path)}
        if not matched:
            raise TargetError(f"targets.{target}: '{text}' {_nothing_for(model, pattern)}; {_offer(text, layers)}")
        chosen |= matched
    if not chosen:
        raise TargetError(f"targets.{target}: has no patterns; name at least one linear layer: {_listing(layers)}")
    return [layer for layer in layers if layer in chosen]


def _nothing_for(model: nn.Module, pattern: re.Pattern[str]) -> str:
    """Why a pattern yields nothing: what it matches is left out on purpose, or is no linear layer."""
    for path, reason in _excluded(model).items():
        if pattern.fullmatch(path):
            return f"is left out on purpose: {reason}"
    for path, module in model.named_modules():
        if path and pattern.fullmatch(path):
            return f"is no linear layer of {type(model).__name__}, but {type(module).__name__}"
    if any(pattern.fullmatch(path) for path, _ in model.named_parameters()):
        return f"is a tensor of {type(model).__name__} and no linear layer; only linear layers are adapted"
    return f"matches no linear layer of {type(model).__name__}"


def _offer(text: str, layers: Sequence[LinearShape]) -> str:
    near = did_you_mean(text.rpartition(".")[2], sorted({layer.path.rpartition(".")[2] for layer in layers}))
    return f"it has {_listing(layers)}{near}"


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
