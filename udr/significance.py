"""How sure a number of the results table is: bootstrap intervals and paired permutation tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from udr.errors import ConfigError, DataError
from udr.types import IntArray

__all__ = ["bootstrap_interval", "paired_permutation"]

_CELLS = 1 << 20  # signs drawn at a time, so that memory stays at some 30 MB however long the test set is


def bootstrap_interval(score: Callable[[IntArray], float], n: int, seed: int, draws: int = 1000) -> tuple[float, float]:
    """Bound a score by the 2.5 % and 97.5 % quantiles of its values on resampled test sets.

    Each draw takes n of the n examples with replacement and scores them anew, so set metrics (macro-F1, corpus BLEU)
    are recomputed and not averaged. Percentile bootstrap: Efron and Tibshirani 1993, An Introduction to the
    Bootstrap, chapter 13; in this field Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation.

    Args:
        score: indices (n,) of examples, repeats included -> the score of that set, in any unit.
        n: how many examples the test set has.
        seed: the same seed gives the same interval.
        draws: how many resampled sets.

    Returns:
        (low, high), a 95 % interval in the unit of `score`.

    Raises:
        ConfigError: n or draws below 1.
        DataError: a resampled set has no finite score.
    """
    if n < 1 or draws < 1:
        raise ConfigError(f"a bootstrap needs n and draws of at least 1, got n={n} and draws={draws}")
    rng = np.random.default_rng(seed)
    values = np.array([score(rng.integers(0, n, size=n, dtype=np.int64)) for _ in range(draws)], dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError("the score of a resampled set is not finite; no interval can be given")
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def paired_permutation(a: ArrayLike, b: ArrayLike, seed: int, draws: int = 10000) -> float:
    """Test whether two systems differ on the same examples.

    If they do not, each difference a_i − b_i is as likely to have the other sign. p is the share of sign patterns whose
    |sum of differences| reaches the observed one: over all 2^m patterns when they are no more than `draws` (m nonzero
    differences; exact), else over `draws` random ones with the observed one counted in, p = (1 + hits) / (1 + draws),
    which is never 0. Fisher 1935, The Design of Experiments, section 21; Noreen 1989, Computer-Intensive Methods.

    Args:
        a: scores (n,) of one system, one for each example.
        b: scores (n,) of the other system on the same examples in the same order.
        seed: the same seed gives the same p.
        draws: how many random sign patterns.

    Returns:
        Two-sided p in (0, 1]; 1.0 when the systems agree everywhere.

    Raises:
        ConfigError: the two are not vectors of one length, or draws is below 1.
        DataError: a difference is not finite.
    """
    differences = _differences(a, b)
    if draws < 1:
        raise ConfigError(f"draws must be at least 1, got {draws}")
    if not len(differences):
        return 1.0
    # Sums of the same numbers in another order differ in the last bits; without slack a tie would count by luck.
    threshold = abs(differences.sum()) - 1e-9 * np.abs(differences).sum()
    exact = len(differences) <= 30 and 1 << len(differences) <= draws
    patterns = _all_signs(len(differences)) if exact else _random_signs(len(differences), draws, seed)
    hits = sum(int(np.count_nonzero(np.abs(signs @ differences) >= threshold)) for signs in patterns)
    return hits / (1 << len(differences)) if exact else (1 + hits) / (1 + draws)


def _differences(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Subtract b from a and leave out the zeros: their sign changes no sum."""
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise ConfigError(f"a paired test needs two vectors of one length, got {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise DataError("a paired test needs finite scores")
    differences: NDArray[np.float64] = (first - second)[first != second]
    return differences


def _all_signs(m: int) -> Iterator[NDArray[np.float64]]:
    """Give every pattern of m signs in blocks (rows, m) of −1 and 1."""
    step = max(1, _CELLS // m)
    for start in range(0, 1 << m, step):
        numbers = np.arange(start, min(start + step, 1 << m), dtype=np.int64)
        yield 1 - 2 * ((numbers[:, None] >> np.arange(m)) & 1).astype(np.float64)


def _random_signs(m: int, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Give `draws` random patterns of m signs in blocks (rows, m) of −1 and 1."""
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // m)
    for start in range(0, draws, step):
        rows = min(step, draws - start)
        yield 1 - 2 * rng.integers(0, 2, size=(rows, m), dtype=np.int8).astype(np.float64)
