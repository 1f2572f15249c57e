"""Randomness of a trial: reproducible, independent of everything else, and statistically what it should be."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from automl.errors import CheckpointError
from automl.methods.seeding import (
    SeededDropout,
    dropout_mask,
    dropout_state,
    initialise_adapter,
    initialise_head,
    set_dropout_state,
    stream,
)


def test_streams_differ_by_seed_and_by_name_only() -> None:
    def draw(seed: int, name: str) -> float:
        return float(torch.rand((), generator=stream(seed, name), dtype=torch.float64))

    assert draw(1, "a") == draw(1, "a")
    assert len({draw(1, "a"), draw(2, "a"), draw(1, "b"), draw(11, "a")}) == 4


def test_adapter_starts_as_nothing_with_a_uniform_a() -> None:
    a, b = torch.empty(8, 400), torch.ones(5, 8)
    initialise_adapter(a, b, seed=3, path="x")

    bound = 1 / math.sqrt(400)
    assert not b.any()
    assert -bound <= float(a.min()) < -0.99 * bound
    assert 0.99 * bound < float(a.max()) <= bound
    assert float(a.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_head_starts_as_transformers_would_start_it() -> None:
    head = nn.ModuleDict(
        {"dense": nn.Linear(300, 100), "norm": nn.LayerNorm(100), "out": nn.Linear(100, 3, bias=False)}
    )
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.fill_(7.0)
    initialise_head(head, seed=3, path="head", std=0.02)

    assert head["dense"].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert not head["dense"].bias.any()
    assert torch.equal(head["norm"].weight, torch.ones(100))


class TestSeededDropout:
    def test_keeps_the_mean_and_drops_the_share(self) -> None:
        dropout = SeededDropout(0.25, stream(1, "dropout"))
        y = dropout(torch.ones(100, 1000))

        assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.005)
        assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.75])

    def test_is_the_identity_in_eval_mode_and_draws_nothing(self) -> None:
        dropout = SeededDropout(0.5, stream(1, "dropout")).eval()
        before, x = dropout.generator.get_state(), torch.ones(3)

        assert dropout(x) is x
        assert torch.equal(dropout.generator.get_state(), before)

    def test_masks_do_not_depend_on_the_global_generator(self) -> None:
        torch.manual_seed(1)
        first = SeededDropout(0.5, stream(9, "dropout"))(torch.ones(50))
        torch.manual_seed(2)
        state = torch.get_rng_state()
        second = SeededDropout(0.5, stream(9, "dropout"))(torch.ones(50))

        assert torch.equal(first, second)
        assert torch.equal(torch.get_rng_state(), state)

    def test_continues_from_a_saved_state(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), SeededDropout(0.5, stream(9, "dropout")))
        model(torch.ones(4, 2))
        saved = dropout_state(model)
        assert saved is not None
        expected = model(torch.ones(4, 2))
        fresh = nn.Sequential(model[0], SeededDropout(0.5, stream(1, "other")))
        set_dropout_state(fresh, saved)

        assert torch.equal(fresh(torch.ones(4, 2)), expected)

    def test_no_dropout_has_no_state(self) -> None:
        plain = nn.Sequential(nn.Linear(2, 2))
        assert dropout_state(plain) is None
        set_dropout_state(plain, None)
        with pytest.raises(CheckpointError, match="disagree on whether there is dropout"):
            set_dropout_state(plain, stream(1, "x").get_state())


@pytest.mark.parametrize("p", [1e-9, 0.05, 0.1, 0.5, 0.9])
def test_masks_drop_the_share_they_should_and_keep_the_mean(p: float) -> None:
    mask = dropout_mask((997, 101), p, stream(3, "masks"))
    kept = mask > 0
    deviation = (p * (1 - p) / mask.numel()) ** 0.5
    assert float(kept.float().mean()) == pytest.approx(1 - p, abs=4 * deviation + 2**-15)
    assert mask[kept].unique().tolist() == pytest.approx([1 / (1 - p)], rel=1e-3)
    assert torch.equal(mask, dropout_mask((997, 101), p, stream(3, "masks")))


def test_masks_of_neighbouring_elements_are_independent() -> None:
    dropped = (dropout_mask((400_000,), 0.25, stream(4, "masks")) == 0).float()
    for lag in range(1, 9):
        together = float((dropped[:-lag] * dropped[lag:]).mean())
        assert together == pytest.approx(0.25**2, abs=0.002)
