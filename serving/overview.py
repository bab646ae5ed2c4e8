"""What kind of demonstrations a pool holds, as numbers: a plane through its vectors, its outputs, its lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udr.types import FloatArray

__all__ = ["Plane", "lengths", "outputs", "principal_plane"]

_OUTPUTS = 50  # the commonest ones, each with its count


class Plane(NamedTuple):
    """Where vectors fall on the plane that keeps most of their variance, and the share of it on each axis."""

    points: NDArray[np.float64]  # (m, 2)
    shares: tuple[float, float]


def principal_plane(vectors: FloatArray) -> Plane:
    """Principal components 1 and 2 (Pearson 1901): the eigenvectors of the covariance with the largest eigenvalues.

    Their signs are arbitrary; here the largest entry of each is positive, so that the same vectors fall alike again.

    Args:
        vectors: (m, d); with d = 1 or m < 2 what is missing of the plane is 0.
    """
    m = len(vectors)
    if m < 2:
        return Plane(np.zeros((m, 2)), (0.0, 0.0))
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    variances, axes = np.linalg.eigh(centred.T @ centred)
    variances, axes = variances[::-1][:2].clip(min=0), axes[:, ::-1][:, :2]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), range(axes.shape[1])] < 0, -1.0, 1.0)
    whole = float((centred**2).sum())
    missing = 2 - axes.shape[1]
    points = np.pad(centred @ axes, ((0, 0), (0, missing)))
    first, second = np.pad(variances / whole if whole else np.zeros_like(variances), (0, missing)).tolist()
    return Plane(points, (first, second))


def outputs(texts: Sequence[str]) -> dict[str, Any]:
    """How often each output stands there, the commonest first; ties by their text."""
    counts = sorted(Counter(texts).items(), key=lambda pair: (-pair[1], pair[0]))
    common = [{"output": text, "count": n} for text, n in counts[:_OUTPUTS]]
    return {"distinct": len(counts), "most_common": common}


def lengths(texts: Sequence[str]) -> dict[str, Any]:
    """Characters of texts: the shortest, the median, the longest, and how many reach up to each power of two."""
    if not texts:
        return {"shortest": 0, "median": 0, "longest": 0, "histogram": []}
    sizes = np.array([len(t) for t in texts])
    powers = [max(n - 1, 0).bit_length() for n in sizes.tolist()]
    counts = Counter(powers)
    histogram = [{"up_to": 2**p, "count": counts[p]} for p in range(min(powers), max(powers) + 1)]
    return {
        "shortest": int(sizes.min()),
        "median": float(np.median(sizes)),
        "longest": int(sizes.max()),
        "histogram": histogram,
    }
