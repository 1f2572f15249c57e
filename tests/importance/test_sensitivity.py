"""The score of a component against an explicit decomposition, under every way to split an update into two matrices."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from automl.importance.sensitivity import DECAY, Factors, Sensitivity, is_sample, spectrum
from automl.lora import LinearShape

LAYERS = [LinearShape("first", 24, 40), LinearShape("second", 40, 16), LinearShape("third", 24, 40)]
RANKS = (4, 2, 6)


class Update(NamedTuple):
    """An update scaling * b @ a and the gradient of a loss by it, (out, in)."""

    a: Tensor
    b: Tensor
    g: Tensor
    scaling: float

    def factors(self, gauge: Tensor | None = None) -> Factors:
        """As a trainer has it; gauge: (r, r), b becomes b R and a becomes R⁻¹ a, and the update stays."""
        r = torch.eye(len(self.a)) if gauge is None else gauge
        a, b = torch.linalg.solve(r, self.a), self.b @ r
        return Factors(a, b, self.scaling * self.g @ a.mT, self.scaling)


def updates(seed: int, ranks: tuple[int, ...] = RANKS) -> list[Update]:
    draw = torch.Generator().manual_seed(seed)
    return [
        Update(
            a=torch.randn(rank, layer.in_features, generator=draw) / 5,
            b=torch.randn(layer.out_features, rank, generator=draw) / 20,
            g=torch.randn(layer.out_features, layer.in_features, generator=draw),
            scaling=2.0 / (1 + index),
        )
        for index, (layer, rank) in enumerate(zip(LAYERS, ranks, strict=True))
    ]


def explicit(update: Update) -> tuple[Tensor, Tensor]:
    """Singular values of the update and |σ_i u_iᵀ G v_i|, by forming everything in float64."""
    u, s, vt = torch.linalg.svd(update.scaling * update.b.double() @ update.a.double(), full_matrices=False)
    rank = len(update.a)
    return s[:rank], (s * torch.einsum("oi,on,ni->i", u, update.g.double(), vt.mT)).abs()[:rank]


def sensitivity(ranks: tuple[int, ...] = RANKS, *, aside: bool = False) -> Sensitivity:
    return Sensitivity(LAYERS, max(ranks), [2.0, 3.0, 4.0], aside=aside)


def test_scores_are_those_of_an_explicit_decomposition() -> None:
    found = sensitivity()
    given = updates(0)
    found.add([update.factors() for update in given])
    for update, module, norm in zip(
        given, found.report([u.factors() for u in given], step=6, steps=12), (2.0, 3.0, 4.0), strict=True
    ):
        values, scores = explicit(update)
        share = values.square() / values.square().sum()
        # One sample: the averages start at zero, so Ī = 0.15 I, Ū = 0.15 (I - Ī), and the score is the root of ĪŪ.
        assert module.sensitivity == pytest.approx(float(scores.sum()), rel=1e-5)
        assert module.components == pytest.approx([0.15 * math.sqrt(DECAY) * float(s) for s in scores], rel=1e-4)
        assert module.effective_rank == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-5)
        assert module.relative_update == pytest.approx(float(values.square().sum().sqrt()) / norm, rel=1e-6)
        assert (module.step, module.fraction_done, module.samples) == (6, 0.5, 1)


def test_singular_values_are_exact() -> None:
    for update in updates(1):
        a, b = update.a.double(), update.b.double()
        variances = spectrum(update.scaling**2 * (a @ a.mT)[None], (b.mT @ b)[None]).variances[0]
        torch.testing.assert_close(variances.sqrt(), explicit(update)[0], rtol=1e-9, atol=0)


# The gauge is what an "EMA of |w dL/dw| over the LoRA parameters" depends on, and a model does not.
@pytest.mark.parametrize("seed", range(5))
def test_a_change_of_gauge_changes_nothing(seed: int) -> None:
    draw = torch.Generator().manual_seed(100 + seed)
    given = updates(seed)
    gauges = [torch.randn(len(u.a), len(u.a), generator=draw) + 2 * torch.eye(len(u.a)) for u in given]
    plain, turned = sensitivity(), sensitivity()
    entries = []
    for _ in range(3):
        plain.add([update.factors() for update in given])
        moved = [update.factors(gauge) for update, gauge in zip(given, gauges, strict=True)]
        turned.add(moved)
        entries.append([float((item.b * item.b_grad).abs().mean()) for item in moved if item.b_grad is not None])
    for first, second in zip(
        plain.report([u.factors() for u in given], step=15, steps=20),
        turned.report([u.factors(g) for u, g in zip(given, gauges, strict=True)], step=15, steps=20),
        strict=True,
    ):
        # float32 products of a badly conditioned gauge: 1e-4 is what they leave.
        assert second.sensitivity == pytest.approx(first.sensitivity, rel=1e-3)
        assert second.components == pytest.approx(first.components, rel=1e-2, abs=1e-4 * max(first.components))
        assert second.effective_rank == pytest.approx(first.effective_rank, rel=1e-3)
    raw = [float((item.b * item.b_grad).abs().mean()) for u in given if (item := u.factors()).b_grad is not None]
    assert entries[0] != pytest.approx(raw, rel=0.1)


def test_the_components_of_a_module_add_up_to_its_dot_product_with_the_gradient() -> None:
    # All σ_i ∂L/∂σ_i positive: G = ΔW. Then Σ I_i = <ΔW, G>.
    (update, *rest) = updates(3)
    same = update._replace(g=update.scaling * update.b @ update.a)
    found = sensitivity()
    found.add([same.factors(), *(item.factors() for item in rest)])
    module = found.report([same.factors(), *(item.factors() for item in rest)], step=5, steps=10)[0]
    assert module.sensitivity == pytest.approx(float(same.g.square().sum()), rel=1e-5)


def test_smoothing_is_that_of_adalora_and_the_report_is_a_time_mean() -> None:
    found, given = sensitivity(), updates(4)
    mean = deviation = torch.zeros(RANKS[0], dtype=torch.float64)
    total, spread, score = torch.zeros(3, RANKS[0], dtype=torch.float64)
    for count in (1, 2, 4, 5):
        found.add([update.factors() for update in given], count)
        now = explicit(given[0])[1] / count
        mean = 0.85 * mean + 0.15 * now
        deviation = 0.85 * deviation + 0.15 * (now - mean).abs()
        total, spread, score = total + now, spread + deviation, score + mean * deviation
    module = found.report([update.factors() for update in given], step=20, steps=20)[0]
    assert module.samples == 4
    assert module.sensitivity == pytest.approx(float(total.sum()) / 4, rel=1e-5)
    assert module.uncertainty == pytest.approx(float(spread.sum()) / 4, rel=1e-5)
    assert module.components == pytest.approx((score / 4).sqrt().tolist(), rel=1e-4)


@pytest.mark.parametrize("empty", ["b", "a", "one component"])
def test_an_update_that_is_not_there_yet_scores_nothing(empty: str) -> None:
    given = updates(5)
    first = given[0]
    if empty == "b":
        given[0] = first._replace(b=torch.zeros_like(first.b))
    elif empty == "a":
        given[0] = first._replace(a=torch.zeros_like(first.a))
    else:
        given[0] = first._replace(a=torch.cat([first.a[:-1], torch.zeros_like(first.a[:1])]))
    found = sensitivity()
    found.add([update.factors() for update in given])
    modules = {m.module: m for m in found.report([u.factors() for u in given], step=5, steps=10)}
    if empty == "b":
        assert (modules["first"].sensitivity, modules["first"].effective_rank) == (0.0, 0.0)
    elif empty == "a":
        assert list(modules) == ["second", "third"]  # it has no update any more
    else:
        _, scores = explicit(given[0])
        assert modules["first"].rank == RANKS[0] - 1
        assert modules["first"].sensitivity == pytest.approx(float(scores[:-1].sum()), rel=1e-4)
        assert modules["first"].components == pytest.approx(
            [0.15 * math.sqrt(DECAY) * float(score) for score in scores[:-1]], rel=1e-3
        )


def test_nothing_is_reported_before_the_first_sample() -> None:
    assert sensitivity().report([update.factors() for update in updates(6)], step=4, steps=8) == ()


def test_a_gradient_that_is_not_finite_is_passed_over() -> None:
    found, given = sensitivity(), updates(7)
    broken = [item._replace(b_grad=torch.full_like(item.b, math.inf)) for item in (u.factors() for u in given)]
    found.add(broken)
    assert found.samples == 0
    assert found.state()["mean"].abs().sum() == 0


def test_the_state_continues_to_the_bit() -> None:
    whole, first, second = sensitivity(), sensitivity(), sensitivity()
    steps = [[update.factors() for update in updates(seed)] for seed in range(4)]
    for sample in steps:
        whole.add(sample)
    for sample in steps[:2]:
        first.add(sample)
    second.load(first.state())
    for sample in steps[2:]:
        second.add(sample)
    assert second.report(steps[-1], step=20, steps=20) == whole.report(steps[-1], step=20, steps=20)


class Asked(TorchDispatchMode):
    """Notes the operations of this thread."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def test_samples_that_are_taken_apart_aside_are_the_same_to_the_bit() -> None:
    inline, aside = sensitivity(), sensitivity(aside=True)
    steps = [[update.factors() for update in updates(seed)] for seed in range(9)]
    steps[3] = [item._replace(b_grad=torch.full_like(item.b, math.nan)) for item in steps[3]]
    for sample in steps:
        inline.add(sample, 3)
        aside.add(sample, 3)
    assert aside.samples == inline.samples == 8
    assert all(torch.equal(tensor, aside.state()[name]) for name, tensor in inline.state().items())
    assert aside.report(steps[-1], step=20, steps=20) == inline.report(steps[-1], step=20, steps=20)


def test_a_sample_aside_lets_nobody_wait() -> None:
    given = [update.factors() for update in updates(1)]
    for aside in (False, True):
        found = sensitivity(aside=aside)
        with Asked() as asked:
            found.add(given)
        assert "aten.bmm.default" in asked.names
        waits = {"aten._linalg_eigh.default", "aten._local_scalar_dense.default", "aten.is_nonzero.default"}
        assert bool(asked.names & waits) is not aside


def test_what_waits_when_a_trial_goes_back_is_forgotten() -> None:
    found = sensitivity(aside=True)
    steps = [[update.factors() for update in updates(seed)] for seed in range(3)]
    found.add(steps[0])
    state = found.state()
    for sample in steps[1:]:
        found.add(sample)
    found.load(state)
    assert found.samples == 1
    assert torch.equal(found.state()["mean"], state["mean"])


def test_modules_that_are_too_many_at_once_are_done_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [update.factors() for update in updates(2, (4, 4, 4))]
    at_once, in_turn = sensitivity(), sensitivity()
    at_once.add(given)
    monkeypatch.setattr("automl.importance.sensitivity._AT_ONCE", 1)
    in_turn.add(given)
    torch.testing.assert_close(in_turn.state()["mean"], at_once.state()["mean"], rtol=1e-12, atol=0.0)


def test_the_state_of_other_modules_starts_anew() -> None:
    other = Sensitivity(LAYERS[:2], 4, [1.0, 1.0])
    found = sensitivity()
    found.load(other.state())
    found.load({})
    assert found.samples == 0


def test_samples_are_every_fifth_step_but_the_first() -> None:
    assert [step for step in range(17) if is_sample(step, 17)] == [5, 10, 15]
    assert sum(is_sample(step, 200) for step in range(200)) == 39


@pytest.mark.parametrize("steps", [201, 999, 1000, 12_345])
def test_a_long_trial_is_looked_at_forty_times_at_most_and_to_its_end(steps: int) -> None:
    samples = [step for step in range(steps) if is_sample(step, steps)]
    assert 30 <= len(samples) <= 40
    assert len({later - earlier for earlier, later in pairwise(samples)}) == 1
    assert samples[-1] >= 0.95 * steps
