from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from automl.errors import CheckpointError
from automl.importance.cuts import even_ranks, global_ranks, kept_share, parameters
from automl.importance.squeeze import directions
from automl.methods.base import LowRank

SCALINGS = (2.0, 0.37)


def update(seed: int, *, rank: int = 6, inputs: int = 21, outputs: int = 13, scaling: float = 2.0) -> LowRank:
    """An update with singular values over two orders of magnitude, B and A far from orthogonal."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rank, rank, generator=draw)
    spread = torch.logspace(0, -2, rank).unsqueeze(1)
    a = mixed @ (spread * torch.randn(rank, inputs, generator=draw))
    b = torch.randn(outputs, rank, generator=draw) @ torch.randn(rank, rank, generator=draw)
    return LowRank("encoder.query", a, nn.Parameter(b), scaling)


def product(item: LowRank) -> Tensor:
    return item.scaling * item.b.detach().double() @ item.a.double()


def correlated(seed: int, size: int) -> Tensor:
    """Second moments of inputs, far from white and with a mean."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(400, size, generator=draw, dtype=torch.float64) @ torch.randn(
        size, size, generator=draw, dtype=torch.float64
    )
    x += 3.0
    return x.mT @ x / len(x)


def moments(item: LowRank, sigma: Tensor) -> Tensor:
    return item.a.double() @ sigma @ item.a.double().mT


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("shape", [(21, 13), (13, 21), (4, 30)])
def test_all_directions_together_are_the_update(shape: tuple[int, int], with_data: bool) -> None:
    item = update(1, inputs=shape[0], outputs=shape[1])
    found = directions(item, 0.37, moments(item, correlated(2, shape[0])) if with_data else None)
    whole = product(item)
    error = torch.linalg.matrix_norm(0.37 * found.b @ found.a - whole) / torch.linalg.matrix_norm(whole)
    assert float(error) < 1e-12
    assert len(found.strengths) == min(6, *shape)


@pytest.mark.parametrize("with_data", [False, True])
def test_a_cut_is_the_best_of_its_rank(with_data: bool) -> None:
    """Eckart and Young, against the decomposition of the whole ΔW Σ^½."""
    item = update(3)
    sigma = correlated(4, 21) if with_data else torch.eye(21, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(sigma)
    root = vectors * values.sqrt() @ vectors.mT
    weighted = product(item) @ root
    exact = torch.linalg.svdvals(weighted)
    found = directions(item, 1.0, moments(item, sigma) if with_data else None)
    assert torch.allclose(torch.tensor(found.strengths, dtype=torch.float64), exact[:6].square(), rtol=1e-8)
    for rank in range(7):
        error = torch.linalg.matrix_norm((product(item) - found.b[:, :rank] @ found.a[:rank]) @ root)
        assert float(error) == pytest.approx(float(exact[rank:].square().sum().sqrt()), rel=1e-7, abs=1e-9)


def test_inputs_decide_what_is_kept() -> None:
    """The direction that is larger in the weights is never used: inputs have next to nothing there."""
    a = torch.tensor([[10.0, 0.0], [0.0, 1.0]])
    item = LowRank("m", a, nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])), 1.0)
    plain = directions(item, 1.0)
    used = directions(item, 1.0, moments(item, torch.diag(torch.tensor([1e-6, 4.0], dtype=torch.float64))))
    assert plain.strengths == pytest.approx((100.0, 1.0))
    assert used.strengths == pytest.approx((4.0, 1e-4))
    assert torch.allclose((used.b[:, :1] @ used.a[:1]).abs(), torch.tensor([[0, 0], [0, 1.0], [0, 0]]).double())


def test_directions_that_no_input_has_used_come_last_and_are_kept() -> None:
    """Other inputs may use them: all directions together are the whole update."""
    item = update(5)
    item.a[2] = 0.0
    seen = torch.zeros(21, 21, dtype=torch.float64)
    seen[0, 0] = 1.0
    found = directions(item, 1.0, moments(item, seen))
    assert len(found.strengths) == 5
    assert found.strengths[1] < 1e-12 * found.strengths[0]
    assert torch.allclose(found.b @ found.a, product(item))
    first = found.b[:, :1] @ found.a[:1]
    assert torch.allclose(first[:, 0], product(item)[:, 0])  # nothing is lost where inputs were


def test_switched_off_components_are_no_directions() -> None:
    item = update(6)
    item.a[[1, 4]] = 0.0
    assert len(directions(item, 1.0).strengths) == 4
    assert directions(item._replace(a=torch.zeros_like(item.a)), 1.0).strengths == ()
    nothing = LowRank("m", torch.zeros(0, 21), nn.Parameter(torch.zeros(13, 0)), 2.0)
    assert directions(nothing, 1.0, torch.zeros(0, 0)).strengths == ()


def test_factors_of_a_direction_are_of_like_norm() -> None:
    found = directions(update(7), 2.0)
    assert torch.allclose(torch.linalg.vector_norm(found.a, dim=1), torch.linalg.vector_norm(found.b, dim=0))


def modules() -> tuple[list[tuple[float, ...]], list[int]]:
    """Strengths and costs of five modules of different shapes, one much stronger than the others."""
    items = [update(seed, inputs=10 + seed, outputs=40 - seed, scaling=1.0 + 3 * (seed == 9)) for seed in range(7, 12)]
    return [directions(item, 1.0).strengths for item in items], [50] * 4 + [70]


def test_global_keeps_more_than_even_at_equal_parameters() -> None:
    strengths, costs = modules()
    for rank in range(1, 6):
        even = even_ranks(strengths, rank)
        kept = global_ranks(strengths, costs, parameters(even, costs))
        assert parameters(kept, costs) <= parameters(even, costs)
        assert kept_share(strengths, kept) > kept_share(strengths, even)
    assert global_ranks(strengths, costs, 10**6) == even_ranks(strengths, 6) == [6] * 5


def test_a_dear_direction_must_be_worth_its_parameters() -> None:
    assert global_ranks([(3.0,), (4.0,)], [10, 20], 20) == [1, 0]  # 0.3 against 0.2 for each parameter
    assert global_ranks([(3.0,), (7.0,)], [10, 20], 20) == [0, 1]


def test_ties_go_to_the_earlier_module() -> None:
    assert global_ranks([(1.0, 1.0)] * 3, [5] * 3, 15) == [2, 1, 0]


def test_weights_that_are_not_finite_are_named() -> None:
    item = update(8)
    item.a[2, 3] = float("nan")
    with pytest.raises(CheckpointError, match=r"encoder\.query: the adapter's weights are not finite"):
        directions(item, 1.0)
