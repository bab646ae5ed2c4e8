"""Maximum entropy coding: views that agree, over as many directions as there are."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["coding_length", "mec_loss", "spectral_radius"]

Mode = Literal["exact", "taylor"]
Form = Literal["batch", "feature"]
ORDER = 4  # of the series
SQUARINGS = 10  # of a matrix whose spectral radius is sought


def coding_length(a: Tensor, b: Tensor, distortion: float, mode: Mode = "exact", form: Form = "batch") -> Tensor:
    """log det(I + a bᵀ / (n ε)), by itself or as the first four terms of its series, Σ_k (−1)^{k+1} tr(cᵏ) / k.

    `batch` multiplies into (n, n) and `feature` into (d, d); both are the same number (Sylvester's identity), so the
    smaller one is the cheaper. The series is the logarithm only where the spectral radius of c is below 1.

    Shape: a and b (n, d), of length 1; `distortion` is ε. The result is a scalar in nats.
    """
    scale = len(a) * distortion
    c = a @ b.T / scale if form == "batch" else b.T @ a / scale
    if mode == "exact":
        length: Tensor = torch.linalg.slogdet(torch.eye(len(c), dtype=c.dtype, device=c.device) + c).logabsdet
        return length
    total, power = c.diagonal().sum(), c
    for k in range(2, ORDER + 1):
        power = power @ c
        total = total + (-1) ** (k + 1) * power.diagonal().sum() / k
    return total


def spectral_radius(a: Tensor, b: Tensor, distortion: float) -> float:
    """The largest eigenvalue of c = a bᵀ / (n ε) by its length, from 1 on the series of `coding_length` diverges.

    By Gelfand's formula, ‖c^k‖^(1/k) at k = 1,024, from above. Each power is brought to length 1, so none overflows.

    Shape: a and b (n, d), of length 1.
    """
    n, d = a.shape
    power = (a @ b.T if n < d else b.T @ a) / (n * distortion)  # which of the two has the smaller side
    logarithm = 0.0
    for squared in range(SQUARINGS + 1):
        length = power.norm()
        if length == 0:
            return 0.0
        logarithm += float(length.log()) / 2**squared
        power = power / length
        power = power @ power
    return math.exp(logarithm)


def mec_loss(
    online: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    distortion: float,
    mode: Mode = "exact",
    form: Form = "batch",
) -> Tensor:
    """Ask the online views to code with the teacher's other view for as long as they can: −(L(p₁,z₂) + L(p₂,z₁))/2 · ε.

    So scaled, the first term of the series is the mean cosine of the two views, as in SimSiam; the second takes the
    correlations between directions away. Source: Liu et al. 2022, "Self-Supervised Learning via Maximum Entropy
    Coding", arXiv 2210.11464, equations 4 to 7 (μ left out).

    Shape: four times (n, d), normalised here; (first view, second view) of each. The result is a scalar; with
    equal networks it is at least −1.
    """
    p1, p2 = (F.normalize(p, dim=1) for p in online)
    z1, z2 = (F.normalize(z, dim=1) for z in teacher)
    lengths = coding_length(p1, z2, distortion, mode, form) + coding_length(p2, z1, distortion, mode, form)
    return -lengths * distortion / 2
