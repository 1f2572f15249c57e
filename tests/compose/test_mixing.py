"""Updates of one layer made into one, beside what PEFT makes of the same adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from torch import Tensor, nn

from automl.compose.found import Mixture
from automl.compose.mixing import Recipe, mixed
from automl.compose.run import greedy
from automl.compose.wanted import Wanted
from automl.errors import ConfigError
from automl.methods.base import LowRank
from automl.methods.merging import dropped_and_elected
from automl.methods.seeding import stream

RANKS = {"one": 4, "two": 4, "three": 2}


class Net(nn.Module):
    """Two layers, of which an adapter may leave the second alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 9)
        self.second = nn.Linear(9, 7)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(torch.tanh(self.first(x)))
        return found


def adapters(*names: str, second: bool = True) -> LoraModel:
    """PEFT's model with adapters of these names, whose A and B are nothing like the start."""
    torch.manual_seed(7)
    model: Any = None
    for number, name in enumerate(names):
        layers = ["first", "second"] if second or number == 0 else ["first"]
        config = LoraConfig(r=RANKS[name], lora_alpha=3 * (number + 1), target_modules=layers)
        if model is None:
            model = LoraModel(Net(), config, name)
        else:
            model.peft_config[name] = config
            model.inject_adapter(model.model, name)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.copy_(torch.randn(tensor.shape))
    return model


def updates(model: LoraModel, layer: str, *names: str) -> list[LowRank]:
    found = model.model.get_submodule(layer)
    return [
        LowRank(layer, found.lora_A[name].weight.detach(), found.lora_B[name].weight.detach(), found.scaling[name])
        for name in names
        if name in found.lora_A
    ]


def product(update: LowRank) -> Tensor:
    return update.scaling * update.b.double() @ update.a.double()


def theirs(model: LoraModel, layer: str, **options: Any) -> Tensor:
    """ΔW of what PEFT makes of the adapters."""
    names = [name for name in RANKS if name in model.peft_config]
    each = options.pop("each")
    model.add_weighted_adapter(names, [each] * len(names), "mixture", svd_full_matrices=False, **options)
    found: Tensor = model.model.get_submodule(layer).get_delta_weight("mixture").double()
    return found


@pytest.mark.parametrize(
    ("recipe", "names", "options"),
    [
        (Recipe(how="soup"), ("one", "two", "three"), {"combination_type": "cat", "each": 1 / 3}),
        (Recipe(how="svd"), ("one", "two", "three"), {"combination_type": "svd", "each": 1 / 3}),
        (Recipe(how="svd", rank=3), ("one", "two"), {"combination_type": "svd", "each": 1 / 2, "svd_rank": 3}),
        (Recipe(how="linear"), ("one", "two"), {"combination_type": "linear", "each": 1 / 2}),
        (
            Recipe(how="ties", density=0.3),
            ("one", "two", "three"),
            {"combination_type": "ties_svd", "each": 1.0, "density": 0.3},
        ),
        (
            Recipe(how="ties", density=0.6, majority="frequency"),
            ("one", "two", "three"),
            {"combination_type": "ties_svd", "each": 1.0, "density": 0.6, "majority_sign_method": "frequency"},
        ),
    ],
    ids=["soup", "svd", "svd of a rank", "linear", "ties", "ties by frequency"],
)
@pytest.mark.parametrize("layer", ["first", "second"])
def test_it_is_what_peft_makes_of_them(recipe: Recipe, names: Any, options: Mapping[str, Any], layer: str) -> None:
    model = adapters(*names)
    ours = product(mixed(updates(model, layer, *names), len(names), recipe))
    expected = theirs(model, layer, **options)
    assert torch.allclose(ours, expected, atol=2e-5 * float(expected.abs().max()))


def test_a_soup_is_the_mean_of_the_changes_in_double() -> None:
    model = adapters("one", "two", "three")
    all_of_them = updates(model, "first", *RANKS)
    soup = mixed(all_of_them, 3, Recipe(how="soup"))
    expected = sum(map(product, all_of_them)) / 3
    assert torch.allclose(product(soup), expected, rtol=0, atol=1e-12)
    assert len(soup.a) == 9  # 4 + 4 + 2 directions, of which a layer of 9 outputs can have 9
    cut = mixed(all_of_them, 3, Recipe(how="svd"))
    values = torch.linalg.svdvals(expected)
    assert torch.linalg.matrix_norm(product(cut) - expected) == pytest.approx(float(values[4:].square().sum().sqrt()))


def test_a_layer_that_an_adapter_leaves_alone_counts_as_no_change() -> None:
    model = adapters("one", "two", second=False)
    alone = updates(model, "second", "one", "two")
    assert len(alone) == 1
    assert torch.allclose(product(mixed(alone, 2, Recipe(how="soup"))), product(alone[0]) / 2, atol=1e-12)
    voted = mixed(alone, 2, Recipe(how="ties", density=0.5, rank=7))  # the other one has nothing to vote with
    kept = product(voted)
    whole = product(alone[0]).flatten()
    large = whole.abs().topk(len(whole) // 2).indices
    expected = torch.zeros_like(whole).index_copy(0, large, whole[large])
    assert torch.allclose(kept.flatten(), expected, atol=1e-5)


def test_dare_keeps_a_share_and_the_expectation() -> None:
    """Against a plain loop: drop, rescale, elect the sign of the sum, average those that have it."""
    torch.manual_seed(1)
    whole = [torch.randn(40, 50) for _ in range(3)]
    before = torch.random.get_rng_state()
    found = dropped_and_elected(whole, 0.25, "total", "layer")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(found, dropped_and_elected(whole, 0.25, "total", "layer"))
    assert not torch.equal(found, dropped_and_elected(whole, 0.25, "total", "other"))
    torch.manual_seed(stream(0, "layer.dare").initial_seed())
    dropped = torch.stack([each * torch.bernoulli(torch.full_like(each, 0.25)) / 0.25 for each in whole])
    sign = torch.where(dropped.sum(0) >= 0, 1.0, -1.0)
    agreeing = dropped.sign() == sign
    expected = (dropped * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_nothing_comes_of_updates_that_are_nothing() -> None:
    nothing = [LowRank("m", torch.zeros(2, 5), torch.zeros(4, 2), 1.0)] * 2
    for how in ("soup", "svd", "ties"):
        assert len(mixed(nothing, 2, Recipe(how=how, density=0.5)).a) == 0


def test_all_that_cannot_be_asked_is_said_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        Wanted(of=1, how=["soap"], densities=[0.2, 1.0], majority="most", rank=0).check()
    assert str(error.value).splitlines() == [
        "--density: 1 is no share of entries to keep; above 0, below 1",
        "--how: 'soap' is not known; known: soup, svd, ties, dare_ties, linear, fusion (did you mean 'soup'?)",
        "--majority: 'most' is not known; known: total, frequency",
        "--of: 1 adapters are no mixture; 2 are the least",
        "--rank: rank 0 keeps nothing; 1 is the least",
    ]
    with pytest.raises(ConfigError, match=r"^--trials: 3, 3: a mixture needs two different trials$"):
        Wanted(of=[3, 3]).check()
    assert math.isclose(Wanted().recipes("ties")[0].density or 0.0, 0.2)
    assert Wanted(rank=4).recipes("soup") == [Recipe(how="soup")]


VALUES = {(1,): 0.90, (2,): 0.88, (3,): 0.85, (4,): 0.5, (1, 2): 0.89, (1, 3): 0.92, (1, 3, 4): 0.92}


def measured(trials: Sequence[int]) -> Mixture:
    """A mixture with the accuracy of the table; its loss is lower with the last trial."""
    metrics = {"accuracy": VALUES[tuple(trials)], "loss": 0.4 - 0.01 * trials[-1]}
    return Mixture(name="", trials=tuple(trials), recipe=None, parameters=1, metrics=metrics)


def test_a_greedy_soup_takes_what_makes_it_better_and_passes_over_the_rest() -> None:
    singles = [measured([number]) for number in (1, 2, 3, 4)]
    assert greedy(singles[:2], measured, "accuracy").trials == (1,)
    assert greedy(singles[:3], measured, "accuracy").trials == (1, 3)
    assert greedy(singles, measured, "accuracy").trials == (1, 3, 4)  # as accurate, with a lower loss
