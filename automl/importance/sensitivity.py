"""Sensitivity of the training loss to each singular value of the low-rank updates, gathered while a trial trains.

For an update ΔW = U Σ Vᵀ and the gradient G = ∂L/∂ΔW, component i scores
I_i = |σ_i ∂L/∂σ_i| = |u_iᵀ G ΔWᵀ u_i|. It depends on ΔW and G alone and not on how ΔW is split into B and A,
as |w ∂L/∂w| over the entries of B and A does.
Neither ΔW nor G is formed: with s the scaling, M_A = s² A Aᵀ = L Lᵀ, M_B = Bᵀ B and N = Bᵀ ∂L/∂B,

    Lᵀ M_B L = V Σ² Vᵀ        I_i = |v_iᵀ (Lᵀ N L⁻ᵀ) v_i|        Σ_i σ_i ∂L/∂σ_i = trace N

since u_i = B L v_i / σ_i and ∂L/∂B = s G Aᵀ. Smoothing as in AdaLoRA (Zhang et al. 2023, eq. 10 to 12), but reported as
means over time: at the end a trial that has fitted its data has gradients of noise.
Grams are made where the adapter is, modules of one shape at once. They are taken apart on the CPU: above rank 32 a GPU
takes such matrices one by one, no faster than a CPU does. It need not wait for that: no training depends on it.
Legend: M modules, R largest rank; products of r x r matrices are float64.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from automl.lora import LinearShape
from automl.trial import ModuleImportance

EVERY = 5
"""Optimizer steps from one sample to the next, at least."""

MOST_SAMPLES = 40
"""Samples of one trial, at most: a longer one is looked at more rarely, and its means become no better by more."""

DECAY = 0.85
"""Decay of both moving averages: AdaLoRA's beta1 and beta2."""

_LEAST = 1e-9
"""Eigenvalues of A Aᵀ below this share of the largest count as zero: gradients are float32, and these divide them."""

_MOST_WAITING = 4
"""Samples of one trial that wait to be taken apart; before a further one the first of them is waited for."""

_AT_ONCE = 256 * 2**20
"""Bytes of matrices that are held in float64 for a moment, at most, unless those of one module are more."""

_SUMS = ("mean", "deviation", "sensitivity", "uncertainty", "score")


class Factors(NamedTuple):
    """The update of one module, scaling * b @ a, and the gradient of the loss by b.

    a: (r, in); b, b_grad: (out, r); b_grad may be None where no gradient is read. Rows of a that are zero are
    components that a method has switched off.
    """

    a: Tensor
    b: Tensor
    b_grad: Tensor | None
    scaling: float


class Spectrum(NamedTuple):
    """variances: σ², largest first, (M, R). vectors: v_i as columns, (M, R, R). root, inverse: L and L⁻¹, (M, R, R)."""

    variances: Tensor
    vectors: Tensor
    root: Tensor
    inverse: Tensor


def gradient(factors: Factors) -> Tensor:
    """∂L/∂B of one module. Raises ValueError if there was no backward pass."""
    if factors.b_grad is None:
        raise ValueError("there is no gradient: call it between the backward pass and zero_grad")
    return factors.b_grad


def is_sample(step: int, steps: int) -> bool:
    """Whether the gradient of a step of so many, from 0 on, is looked at. Not that of the first: B is zero there."""
    return step > 0 and step % max(EVERY, -(-steps // MOST_SAMPLES)) == 0


class Sensitivity:
    """Running means of one trial: they are of the size (M, R) and belong into its slot file.

    layers: the adapted modules, in the order in which factors are given. rank: the largest of theirs. norms: Frobenius
    norms of their weights. aside: samples are taken apart by threads of their own, while the device goes on; the
    numbers are the same.
    """

    def __init__(
        self, layers: Sequence[LinearShape], rank: int, norms: Sequence[float], *, aside: bool = False
    ) -> None:
        self.layers = tuple(layers)
        self._norms = tuple(norms)
        self._samples = 0
        self._sums = {name: torch.zeros(len(self.layers), rank, dtype=torch.float64) for name in _SUMS}
        self._rank = rank
        self._aside = aside
        self._waiting: deque[Future[Tensor | None]] = deque()

    @property
    def samples(self) -> int:
        """Samples that have been taken."""
        self._gather(0)
        return self._samples

    def add(self, factors: Sequence[Factors], count: int = 1) -> None:
        """Take one sample. count: what the gradients must be divided by. A gradient that is not finite is passed over.

        Call it when the gradient of a step is complete, before it is clipped.
        """
        grams = _grams(factors, self._rank, with_gradient=True)
        if not self._aside:
            self._take(_scores(grams, count))
            return
        self._gather(_MOST_WAITING - 1)
        self._waiting.append(_threads().submit(_scores, grams.sent(), count))

    def state(self) -> dict[str, Tensor]:
        """Copies of everything that `load` needs to go on to the bit."""
        self._gather(0)
        copies = {name: tensor.clone() for name, tensor in self._sums.items()}
        return {**copies, "samples": torch.tensor(self._samples)}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned; nothing, or the state of other modules or ranks, starts anew."""
        self._waiting.clear()
        if any(name not in state or state[name].shape != tensor.shape for name, tensor in self._sums.items()):
            return
        for name, tensor in self._sums.items():
            tensor.copy_(state[name])
        self._samples = int(state["samples"])

    def report(self, factors: Sequence[Factors], *, step: int, steps: int) -> tuple[ModuleImportance, ...]:
        """What is known of every module that still has an update; nothing before the first sample.

        factors: after `step` of `steps` steps; their gradients are not read.
        """
        if self.samples == 0:
            return ()
        gram_a, gram_b, _ = _grams(factors, self._rank, with_gradient=False).on_cpu()
        if not bool(torch.isfinite(gram_a + gram_b).all()):
            return ()
        variances = spectrum(gram_a, gram_b).variances
        ranks = (gram_a.diagonal(dim1=-2, dim2=-1) > 0).sum(dim=1).tolist()
        mean = {name: tensor / self.samples for name, tensor in self._sums.items()}
        components = mean["score"].sqrt().tolist()
        columns = zip(
            self.layers,
            ranks,
            self._norms,
            mean["sensitivity"].sum(dim=1).tolist(),
            mean["uncertainty"].sum(dim=1).tolist(),
            effective_rank(variances).tolist(),
            variances.sum(dim=1).sqrt().tolist(),
            components,
            strict=True,
        )
        return tuple(
            ModuleImportance(
                module=layer.path,
                rank=rank,
                in_features=layer.in_features,
                out_features=layer.out_features,
                step=step,
                fraction_done=step / steps,
                samples=self.samples,
                sensitivity=sensitivity,
                uncertainty=uncertainty,
                effective_rank=effective,
                relative_update=change / norm if norm > 0 else 0.0,
                components=tuple(scores[:rank]),
            )
            for layer, rank, norm, sensitivity, uncertainty, effective, change, scores in columns
            if rank > 0
        )

    def _gather(self, most: int) -> None:
        """Take the samples that were taken apart meanwhile, in order, and wait till at most so many are left."""
        while self._waiting and (len(self._waiting) > most or self._waiting[0].done()):
            self._take(self._waiting.popleft().result())

    def _take(self, now: Tensor | None) -> None:
        if now is None:
            return
        sums = self._sums
        sums["mean"].lerp_(now, 1.0 - DECAY)
        sums["deviation"].lerp_((now - sums["mean"]).abs_(), 1.0 - DECAY)
        sums["sensitivity"] += now
        sums["uncertainty"] += sums["deviation"]
        sums["score"] += sums["mean"] * sums["deviation"]
        self._samples += 1


def spectrum(gram_a: Tensor, gram_b: Tensor) -> Spectrum:
    """Singular values of all updates from s² A Aᵀ and Bᵀ B, both (M, R, R) float64, zero beyond a module's own rank."""
    values, vectors = torch.linalg.eigh(gram_a)
    kept = values > _LEAST * values.amax(dim=-1, keepdim=True)
    scale = torch.where(kept, values, 0.0).sqrt()  # (M, R)
    root = vectors * scale.unsqueeze(-2)
    inverse = vectors.mT * torch.where(kept, 1.0 / scale, 0.0).unsqueeze(-1)
    variances, own = torch.linalg.eigh(root.mT @ gram_b @ root)  # ascending
    return Spectrum(variances.flip(-1).clamp(min=0.0), own.flip(-1), root, inverse)


def component_scores(found: Spectrum, mixed: Tensor) -> Tensor:
    """|σ_i ∂L/∂σ_i| of every component, largest σ first, (M, R). mixed: Bᵀ ∂L/∂B, (M, R, R)."""
    turned = found.root.mT @ mixed @ found.inverse.mT
    return (found.vectors * (turned @ found.vectors)).sum(dim=-2).abs()


def effective_rank(variances: Tensor) -> Tensor:
    """exp of the entropy of σ²/Σσ², (M,); 0 where there is no update. Source: Roy and Vetterli 2007."""
    total = variances.sum(dim=-1, keepdim=True)
    share = torch.where(total > 0, variances / total, 0.0)
    entropy = -torch.xlogy(share, share).sum(dim=-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0)


class _Chunk(NamedTuple):
    """Modules of one shape. rank: theirs."""

    modules: list[int]
    rank: int


class _Grams:
    """A Aᵀ, Bᵀ B and, in a sample, Bᵀ ∂L/∂B of all modules, still where the adapter is.

    products: (2 or 3, modules, r, r) of each chunk. squares: s² of every module.
    """

    def __init__(
        self, chunks: Sequence[_Chunk], products: Sequence[Tensor], squares: Sequence[float], rank: int
    ) -> None:
        self._chunks = chunks
        self._kinds = len(products[0])
        self._flat = torch.cat([product.flatten() for product in products])  # one copy to the CPU
        self._squares = squares
        self._rank = rank
        self._wait: Callable[[], None] = lambda: None

    def sent(self) -> _Grams:
        """Send them to the CPU; nobody waits for that before they are needed."""
        if self._flat.is_cuda:
            host = torch.empty_like(self._flat, device="cpu", pin_memory=True).copy_(self._flat, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
            self._flat, self._wait = host, arrived.synchronize
        return self

    def on_cpu(self) -> tuple[Tensor, Tensor, Tensor]:
        """s² A Aᵀ, Bᵀ B and Bᵀ ∂L/∂B, each (M, R, R)."""
        self._wait()
        grams = torch.zeros(3, len(self._squares), self._rank, self._rank, dtype=torch.float64)
        shapes = [(self._kinds, len(chunk.modules), chunk.rank, chunk.rank) for chunk in self._chunks]
        parts = torch.split(self._flat.cpu(), [math.prod(shape) for shape in shapes])
        for (modules, rank), shape, part in zip(self._chunks, shapes, parts, strict=True):
            grams[: self._kinds, modules, :rank, :rank] = part.view(shape)
        grams[0] *= torch.tensor(self._squares, dtype=torch.float64).view(-1, 1, 1)
        return grams[0], grams[1], grams[2]


@torch.no_grad()
def _grams(factors: Sequence[Factors], rank: int, *, with_gradient: bool) -> _Grams:
    """The products of all modules; nothing here waits for the device."""
    chunks = list(_chunks(factors))
    products = []
    for chunk in chunks:
        members = [factors[index] for index in chunk.modules]
        a = torch.stack([member.a for member in members]).double()
        b = torch.stack([member.b for member in members]).double()
        parts = [a @ a.mT, b.mT @ b]
        if with_gradient:
            parts.append(b.mT @ torch.stack([gradient(member) for member in members]).double())
        products.append(torch.stack(parts))
    return _Grams(chunks, products, [member.scaling**2 for member in factors], rank)


def _chunks(factors: Sequence[Factors]) -> Iterator[_Chunk]:
    """All modules, those of one shape together, and no more at once than there is to be memory for."""
    groups: dict[tuple[torch.Size, torch.Size], list[int]] = {}
    for index, item in enumerate(factors):
        groups.setdefault((item.a.shape, item.b.shape), []).append(index)
    for (a, b), modules in groups.items():
        most = max(1, _AT_ONCE // (8 * (a.numel() + 2 * b.numel())))
        for start in range(0, len(modules), most):
            yield _Chunk(modules[start : start + most], a[0])


def _scores(grams: _Grams, count: int) -> Tensor | None:
    """Score of every component; None where something is not finite."""
    gram_a, gram_b, mixed = grams.on_cpu()
    if not bool(torch.isfinite(gram_a + gram_b + mixed).all()):
        return None
    return component_scores(spectrum(gram_a, gram_b), mixed / count)


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that take samples apart. LAPACK holds no lock of the interpreter."""
    return ThreadPoolExecutor(max(1, min(4, (os.cpu_count() or 1) // 2)), thread_name_prefix="importance")
