"""AdapterFusion: what several trained bottleneck adapters add in one place, weighed by attention that is learned.

Source: Pfeiffer et al. 2021 (2005.00247), section 3.2. The members stay as they are. In every layer the query is what
the layer puts out, keys and values are what the members would add to it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from automl.lora import Hyperparameters
from automl.methods.bottleneck import PLACE, bottleneck_of, places
from automl.methods.bottleneck_layers import NAME, Bottleneck, add_to, read_from, shape_of
from automl.methods.in_place import fresh_heads
from automl.methods.seeding import stream

_FUSION = "fusion"
_DEVIATION = 0.02
"""Standard deviation of the numbers that query and key start with, as the authors' program has it."""
_HELD = 0.01
"""Weight of the distance of the value matrices from the identity, as the authors' program has it."""


class Fusion(nn.Module):
    """Σ_n softmax_n(Q h · K z_n) V z_n for h, what a layer puts out; z_n: what member n would add to it.

    members: by number, those that have an adapter here. Query and key start small, the value matrix as the identity.
    """

    def __init__(self, features: int, members: Mapping[int, Bottleneck], *, seed: int, path: str) -> None:
        super().__init__()
        self.members = nn.ModuleDict({str(number): member for number, member in members.items()})
        self.query, self.key, self.value = (
            nn.Linear(features, features, bias=False, device="meta").to_empty(device="cpu") for _ in range(3)
        )
        for name, layer in (("query", self.query), ("key", self.key)):
            nn.init.normal_(layer.weight, 0.0, _DEVIATION, generator=stream(seed, f"{path}.{_FUSION}.{name}"))
        nn.init.eye_(self.value.weight)

    def forward(self, output: Tensor) -> Tensor:
        """What is added to this output, (…, features) in its type; computed in float32 outside autocast."""
        numeric = self.query.weight.dtype
        added = torch.stack([member.added(output) for member in self.members.values()]).to(numeric)  # type: ignore[operator]
        scores = (self.query(output.to(numeric)) * self.key(added)).sum(-1, keepdim=True)  # (members, …, 1)
        mixed: Tensor = (scores.softmax(0) * self.value(added)).sum(0)
        return mixed.to(output.dtype)


def attach_fused(
    model: nn.Module, members: Sequence[Hyperparameters], modules: Sequence[str], head: Sequence[str], seed: int
) -> nn.Module:
    """Put so many bottleneck adapters and their fusion on the backbone, which is changed in place, as `Method.attach`.

    The members have no numbers yet: `member_tensor` says which tensor of an adapter's file is which of theirs. Members
    may differ in everything; in a place that some of them do not adapt the others are joined.
    """
    layers = [shape_of(model, path) for path in modules]
    here: dict[str, dict[int, Bottleneck]] = defaultdict(dict)
    for number, hyper in enumerate(members):
        for place in places(layers, str(PLACE.of(hyper)), type(model).__name__):
            here[place.path][number] = made = bottleneck_of(hyper, place).to_empty(device="cpu")
            read_from(model, made, place.source)
    for path, found in here.items():
        features = next(iter(found.values())).up.out_features
        fusion = Fusion(features, found, seed=seed, path=path)
        add_to(model, path, _FUSION, fusion, fusion)
    fresh_heads(model, head, seed)
    return model


def member_tensor(name: str, number: int) -> str | None:
    """Name in a fusion of a tensor of the member's own file; None: it is no part of a bottleneck, but of a head."""
    path, is_inside, rest = name.partition(f".{NAME}.")
    return f"{path}.{_FUSION}.members.{number}.{rest}" if is_inside else None


def fusions(model: nn.Module) -> list[Fusion]:
    """Those that the model has, in module order."""
    return [module for module in model.modules() if isinstance(module, Fusion)]


def value_penalty(model: nn.Module) -> Tensor:
    """What is minimised beside the loss of the task, (): how far the value matrices are from the identity, squared."""
    apart = [(each.value.weight - torch.eye(len(each.value.weight)).to(each.value.weight)) for each in fusions(model)]
    return _HELD * torch.stack([each.square().sum() for each in apart]).sum()
