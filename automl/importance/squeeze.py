"""Turn trained low-rank updates so that they can be cut to fewer directions, the best ones first.

An update ΔW = s B A of rank r is a sum of directions. With B = Q R and Aᵀ = P S (QR), the decomposition of the (r, r)
core s R Sᵀ = L diag(σ) Zᵀ gives ΔW = U T A with U = Q L, orthonormal, and T = s Lᵀ R: exact, and ΔW is never formed.
What the module adds to its output has the second moments E[(ΔW x)(ΔW x)ᵀ] = U K Uᵀ with K = T E[A x (A x)ᵀ] Tᵀ, (r, r).
With the eigenvectors V of K, largest eigenvalue first, the first k columns of U V span the best approximation of rank
k in the mean squared change of the output, and the error is the sum of the eigenvalues left out (Eckart and Young
1936, for ΔW Σ^½ with Σ = E[x xᵀ]). Without data Σ is the identity, V too, and the eigenvalues are σ².
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from automl.errors import CheckpointError
from automl.methods.base import LowRank

_NOTHING = 1e-9
"""Singular values of ΔW below this share of the largest are no directions: what AdaLoRA has switched off."""


class Directions(NamedTuple):
    """An update ΔW = scaling * b @ a, turned so that its first k directions are its best approximation of rank k.

    a: (r, in), b: (out, r), both float64 and of equal norms for each direction. strengths: mean squared length of what
    each direction adds to the module's output, largest first; without data its σ².
    """

    a: Tensor
    b: Tensor
    strengths: tuple[float, ...]


@torch.no_grad()
def directions(update: LowRank, scaling: float, moments: Tensor | None = None) -> Directions:
    """Turn an update; its product stays what it is, whatever the new scaling. Directions of nothing are left out.

    moments: E[A x (A x)ᵀ] over inputs x of the module, (r, r); None: inputs are taken to be white. Raises
    CheckpointError if the weights, or the moments, are not finite.
    """
    a, b = update.a.double(), update.b.double()
    _check_finite(update.path, *((a, b) if moments is None else (a, b, moments)))
    orthogonal, triangle = torch.linalg.qr(b)
    core = update.scaling * triangle @ torch.linalg.qr(a.mT).R.mT
    left, values, _ = torch.linalg.svd(core)
    left = left[:, : int((values > _NOTHING * values[:1]).sum())]
    turn = update.scaling * left.mT @ triangle  # T
    strengths = values[: len(turn)].square()
    if moments is not None:
        strengths, vectors = torch.linalg.eigh(turn @ moments.to(a) @ turn.mT)  # ascending
        strengths, vectors = strengths.flip(0).clamp(min=0.0), vectors.flip(1)
        left, turn = left @ vectors, vectors.mT @ turn
    new_a = turn @ a / scaling
    balance = torch.linalg.vector_norm(new_a, dim=1).sqrt()
    return Directions(new_a / balance.unsqueeze(1), orthogonal @ left * balance, tuple(strengths.tolist()))


def _check_finite(path: str, *tensors: Tensor) -> None:
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors):
        raise CheckpointError(f"{path}: the adapter's weights are not finite; there is nothing to cut")
