"""Bottleneck adapters: small networks inside each block, which PEFT does not have.

Down to a few units, a non-linearity, up again: h + s · (W_up f(W_down h + b_down) + b_up). Behind the attention and the
feed-forward layer of every block (Houlsby et al. 2019, 1902.00751), behind the feed-forward layer alone (Pfeiffer et
al. 2021, 2005.00247), or beside it, reading what it reads (He et al. 2022, 2110.04366). W_up starts as zero, so the
adapter starts as nothing.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from automl.errors import TargetError
from automl.lora import Hyperparameters, LinearShape
from automl.methods.base import Footprint, Stateless
from automl.methods.settings import Setting, Span

if TYPE_CHECKING:
    from torch import Tensor, nn

    from automl.methods.bottleneck_layers import Bottleneck

SIZE = Setting(
    name="adapter_size",
    default=64,
    meaning="units of the bottleneck",
    low=1,
    high=8192,
    tried=Span(8, 256, log=True),
    searched=True,
    sized=True,
    shardable=True,
)
PLACE = Setting(
    name="adapter_place",
    default="pfeiffer",
    meaning="houlsby: behind attention and feed-forward layer; pfeiffer: behind the latter; parallel: beside it",
    choices=("houlsby", "pfeiffer", "parallel"),
    tried=("houlsby", "pfeiffer", "parallel"),
    searched=True,
    sized=True,
    shardable=True,
)
ACTIVATION = Setting(
    name="adapter_activation",
    default="relu",
    meaning="non-linearity of the bottleneck",
    choices=("relu", "gelu", "silu", "tanh"),
    tried=("relu", "gelu", "silu"),
    shardable=True,
)
SCALE = Setting(
    name="adapter_scale",
    default=1.0,
    meaning="factor of what the adapter adds",
    low=1e-3,
    high=100.0,
    tried=(1.0, 2.0, 4.0),
    shardable=True,
)

_SMALL, _LARGE = 500_000_000, 4_000_000_000
_BLOCK = re.compile(r"(.*\.\d+)\.")
_ATTENTION = re.compile(r".*?\.(?=[^.]*(?:attention|attn))[^.]*", re.IGNORECASE)
"""Down to the first part of a path that is called attention."""
_MOST_LINEAR = 3
"""Linear layers of a feed-forward layer: up, down, and in gated ones the gate."""


class Place(NamedTuple):
    """Where an adapter is: it reads the input of one layer, or (None) the output of the other, and adds to the latter.

    features: in and out.
    """

    source: str | None
    path: str
    features: int


class Bottlenecks(Stateless):
    """The layers are found by shape: in a block, an attention layer ends with the last linear layer that is part of it,
    and the feed-forward layer consists of the others, of which the first reads what the last writes.
    """

    packable: ClassVar[bool] = False
    shardable: ClassVar[bool] = True
    mergeable: ClassVar[bool] = False
    settings: ClassVar[tuple[Setting, ...]] = (SIZE, PLACE, ACTIVATION, SCALE)
    takes: ClassVar[frozenset[str]] = frozenset()

    def trainable(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> int:
        size = int(SIZE.of(hyper))
        found = places(layers, str(PLACE.of(hyper)), type(model).__name__)
        return sum(2 * size * place.features + size + place.features for place in found)

    def footprint(self, model: nn.Module, layers: Sequence[LinearShape], hyper: Hyperparameters) -> Footprint:
        """With the bottleneck's units before and after the non-linearity, and what goes in and comes out."""
        found = places(layers, str(PLACE.of(hyper)), type(model).__name__)
        kept = sum(2 * int(SIZE.of(hyper)) + 2 * place.features for place in found)
        order = {layer.path: number for number, layer in enumerate(layers)}
        first = min((place.path for place in found), key=order.__getitem__)
        return Footprint(self.trainable(model, layers, hyper), kept, begins=first)

    def learning_rates(self, model_parameters: int, steps: int) -> tuple[float, float]:
        """Around 3e-5 to 3e-3 for BERT (Houlsby et al. 2019, section 3.2) and 3e-4 for 7B to 13B parameters (Hu et al.
        2023, LLM-Adapters, 2304.01933); higher at the top for trials that are short.
        """
        if model_parameters >= _LARGE:
            return 3e-5, 1e-3
        return (3e-5, 3e-3) if model_parameters >= _SMALL else (1e-4, 1e-2)

    def attach(
        self,
        model: nn.Module,
        hyper: Hyperparameters,
        modules: Sequence[str],
        head: Sequence[str],
        seed: int,
        *,
        steps: int | None = None,
    ) -> nn.Module:
        """Attach as the seam says. modules: all linear layers, of which it takes those of its places."""
        from automl.methods.bottleneck_layers import insert, shape_of, started
        from automl.methods.in_place import fresh_heads

        layers = [shape_of(model, path) for path in modules]
        for place in places(layers, str(PLACE.of(hyper)), type(model).__name__):
            insert(model, started(bottleneck_of(hyper, place), seed, place.path), place.path, place.source)
        fresh_heads(model, head, seed)
        return model

    def exported(
        self, peft_model: nn.Module, saved: Mapping[str, Tensor], config: Mapping[str, Any]
    ) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        return saved, config


def bottleneck_of(hyper: Hyperparameters, place: Place) -> Bottleneck:
    """The network of such an adapter for a place, without numbers."""
    from automl.methods.bottleneck_layers import Bottleneck

    return Bottleneck(place.features, int(SIZE.of(hyper)), str(ACTIVATION.of(hyper)), float(SCALE.of(hyper)))


def places(layers: Iterable[LinearShape], kind: str, architecture: str) -> list[Place]:
    """Where adapters of this kind are put among these layers, which are in module order.

    Raises TargetError, naming the architecture, if it has no such places.
    """
    blocks = [list(inside) for _, inside in groupby(filter(_block_of, layers), key=_block_of)]
    beside = [place for block in blocks for place in _feed_forward(block, is_beside=kind == "parallel")]
    if not beside or any(len(_others(block)) > _MOST_LINEAR for block in blocks):
        raise TargetError(
            f"method adapter: {architecture} has no blocks with one feed-forward layer made of linear layers; use lora"
        )
    if kind != "houlsby":
        return beside
    widths = {place.features for place in beside}
    inside = [place for block in blocks for place in _attention(block, widths)]
    if not inside:
        raise TargetError(
            f"method adapter: {architecture} has no attention made of linear layers; use adapter_place pfeiffer"
        )
    return [*inside, *beside]


def _block_of(layer: LinearShape) -> str:
    """Path of the block that the layer is in, down to its number; empty if it is in none."""
    found = _BLOCK.match(layer.path)
    return found[1] if found else ""


def _others(block: Sequence[LinearShape]) -> list[LinearShape]:
    """Layers of a block that are no part of attention; experts, of which each token sees a few, are passed over."""
    return [layer for layer in block if not _ATTENTION.match(layer.path) and "expert" not in layer.path]


def _feed_forward(block: Sequence[LinearShape], *, is_beside: bool) -> Iterator[Place]:
    """The place at the block's feed-forward layer, if it has one: its first layer reads what its last one writes."""
    others = _others(block)
    if len(others) > 1 and others[0].in_features == others[-1].out_features:
        yield Place(others[0].path if is_beside else None, others[-1].path, others[-1].out_features)


def _attention(block: Sequence[LinearShape], widths: Container[int]) -> Iterator[Place]:
    """A place behind each attention of the block: at the last of its layers of a feed-forward layer's width."""
    parts = [(layer, match[0]) for layer in block if (match := _ATTENTION.match(layer.path))]
    for _, inside in groupby(parts, key=lambda part: part[1]):
        fitting = [layer for layer, _ in inside if layer.out_features in widths]
        yield from (Place(None, layer.path, layer.out_features) for layer in fitting[-1:])
