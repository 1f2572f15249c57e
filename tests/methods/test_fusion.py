"""The layer of AdapterFusion is the published formula, alone and in a model, and leaves the backbone as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from automl.lora import Hyperparameters
from automl.methods.bottleneck_layers import Bottleneck
from automl.methods.fusion import Fusion, attach_fused, fusions, member_tensor, value_penalty
from automl.methods.in_place import restored
from automl.methods.registry import METHODS
from automl.models.inventory import head_modules, resolve_targets
from tests.methods.lively import lively_model
from tests.training.test_in_place_methods import FUNCTIONS

MEMBERS = [
    Hyperparameters(method="adapter", own=(("adapter_activation", "silu"), ("adapter_size", 3))),
    Hyperparameters(method="adapter", own=(("adapter_place", "parallel"), ("adapter_scale", 2.0), ("adapter_size", 5))),
    Hyperparameters(
        method="adapter", own=(("adapter_activation", "tanh"), ("adapter_place", "houlsby"), ("adapter_size", 4))
    ),
]


def rough(module: nn.Module, deviation: float = 0.4) -> None:
    """Numbers that are nothing like a start."""
    draws = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(deviation * torch.randn(parameter.shape, generator=draws))


def plain_member(member: Any, x: Tensor) -> Tensor:
    """W_up f(W_down x + b) + b, scaled, in float64."""
    down, bias = member.down.weight.double(), member.down.bias.double()
    inside = FUNCTIONS[member.function](x @ down.T + bias)
    return member.scale * (inside @ member.up.weight.double().T + member.up.bias.double())  # type: ignore[no-any-return]


def plain_fusion(fusion: Fusion, h: Tensor, added: list[Tensor]) -> Tensor:
    """Equations of section 3.2 for one token after the other: s = softmax(hᵀQ ⊗ zᵀK), z' = zᵀV, o = sᵀZ'. Float64."""
    q, k, v = (each.weight.double().T for each in (fusion.query, fusion.key, fusion.value))
    found = torch.empty_like(h)
    for row in range(h.shape[0]):
        for token in range(h.shape[1]):
            z = torch.stack([each[row, token] for each in added])  # (members, d)
            s = torch.softmax((z @ k) @ (h[row, token] @ q), dim=0)
            found[row, token] = s @ (z @ v)
    return found


def test_the_layer_is_the_published_formula() -> None:
    members = {number: Bottleneck(8, size, "gelu", 1.5).to_empty(device="cpu") for number, size in ((0, 3), (2, 5))}
    members[2].is_beside = True
    fusion = Fusion(8, members, seed=3, path="there")
    assert torch.equal(fusion.value.weight, torch.eye(8))
    assert 0.01 < fusion.query.weight.std() < 0.03
    rough(fusion)
    fusion.requires_grad_(False)
    h, seen = (torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(each)) for each in (1, 2))
    members[2].seen = seen
    added = [plain_member(members[0], h.double()), plain_member(members[2], seen.double())]
    expected = plain_fusion(fusion, h.double(), added)
    assert torch.allclose(fusion(h).double(), expected, rtol=1e-6, atol=1e-6)
    assert expected.std() > 0.1
    alone = [torch.allclose(expected, each, atol=0.1) for each in added]
    assert not any(alone)
    apart = (fusion.value.weight - torch.eye(8)).square().sum()
    assert float(value_penalty(nn.Sequential(fusion, copy.deepcopy(fusion)))) == pytest.approx(2 * 0.01 * float(apart))


def attached(model: nn.Module, members: list[Hyperparameters]) -> nn.Module:
    paths = [layer.path for layer in resolve_targets(model, "all-linear")]
    return attach_fused(model, members, paths, head_modules(model), 5)


class PlainBlock(nn.Module):
    """A feed-forward layer with a fusion of one adapter behind it, one beside it, and another behind it."""

    def __init__(self, inner: nn.Module, fusion: Fusion) -> None:
        super().__init__()
        self.inner, self.fusion = inner, fusion

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x).double()
        reads = (h, x.double(), h)
        members = self.fusion.members.values()
        added = [plain_member(member, each) for member, each in zip(members, reads, strict=True)]
        return (h + plain_fusion(self.fusion, h, added)).float()


class PlainEnd(nn.Module):
    """The end of an attention with a fusion of one adapter, which is that one through the value matrix."""

    def __init__(self, inner: nn.Module, fusion: Fusion) -> None:
        super().__init__()
        self.inner, self.fusion = inner, fusion

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x).double()
        (member,) = self.fusion.members.values()
        return (h + plain_member(member, h) @ self.fusion.value.weight.double().T).float()


def test_members_of_different_sizes_and_places_are_joined_in_every_layer() -> None:
    model: Any = lively_model("llama", kind="causal-lm")
    tokens = torch.tensor([[5, 9, 3, 17], [8, 2, 30, 11]])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        plain = model(tokens).logits
        joined: Any = attached(model, MEMBERS)
        for each in fusions(joined):
            rough(each, 0.25)
        found = joined(tokens).logits
        made = {path: each for path, each in joined.named_modules() if isinstance(each, Fusion)}
        restored(joined)
        assert torch.equal(model(tokens).logits, plain)
        assert {name: torch.equal(each, before[name]) for name, each in model.state_dict().items()} == dict.fromkeys(
            before, True
        )
        assert [sorted(each.members) for each in made.values()] == [["2"], ["0", "1", "2"]] * len(model.model.layers)
        for number, block in enumerate(model.model.layers):
            path = f"model.layers.{number}"
            block.self_attn.o_proj = PlainEnd(block.self_attn.o_proj, made[f"{path}.self_attn.o_proj.fusion"])
            block.mlp = PlainBlock(block.mlp, made[f"{path}.mlp.down_proj.fusion"])
        expected = model(tokens).logits
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, plain, atol=0.1)


@pytest.mark.parametrize("member", MEMBERS, ids=["pfeiffer", "parallel", "houlsby"])
def test_with_one_member_and_the_identity_it_is_the_member(member: Hyperparameters) -> None:
    model: Any = lively_model("bert")
    method, tokens = METHODS["adapter"], torch.tensor([[5, 9, 3, 17], [8, 2, 30, 11]])
    paths = [layer.path for layer in resolve_targets(model, "all-linear")]
    with torch.no_grad():
        alone: Any = method.attach(model, member, paths, head_modules(model), 5)
        rough(alone)
        tensors = {name: tensor.clone() for name, tensor in method.state(alone).items()}
        expected = alone(tokens).logits
        restored(alone)
        plain = model(tokens).logits
        joined: Any = attached(model, [member])
        own = dict(joined.named_parameters())
        for name, tensor in tensors.items():
            own[member_tensor(name, 0) or name].copy_(tensor)
        assert torch.allclose(joined(tokens).logits, expected, rtol=0, atol=1e-6)
    assert not torch.allclose(expected, plain, atol=0.1)


def test_torch_s_own_random_numbers_are_left_alone() -> None:
    before = torch.random.get_rng_state()
    first, second, other = (Fusion(4, {}, seed=seed, path="there") for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.query.weight, second.query.weight)
    assert not torch.equal(first.query.weight, first.key.weight)
    assert not torch.equal(first.query.weight, other.query.weight)
