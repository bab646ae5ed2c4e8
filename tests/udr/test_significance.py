"""The bootstrap and the permutation test against enumeration, theory and scipy."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from udr.errors import ConfigError, DataError
from udr.significance import bootstrap_interval, paired_permutation
from udr.types import IntArray


def test_bootstrap_of_two_examples_spans_both() -> None:
    values = np.array([0.0, 1.0])  # means of a resample: 0, 1/2, 1 with chances 1/4, 1/2, 1/4
    assert bootstrap_interval(lambda i: float(values[i].mean()), 2, seed=0) == (0.0, 1.0)


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, size=400)
    low, high = bootstrap_interval(lambda i: float(values[i].mean()), 400, seed=2, draws=4000)
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_agrees_with_scipy_on_a_median() -> None:
    values = np.random.default_rng(3).exponential(size=101)
    ours = bootstrap_interval(lambda i: float(np.median(values[i])), 101, seed=4, draws=4000)
    theirs = stats.bootstrap((values,), np.median, n_resamples=4000, method="percentile", rng=5).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.05)


def test_bootstrap_interval_holds_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(6)
    held = 0
    for seed in range(200):
        values = rng.normal(size=60)
        low, high = bootstrap_interval(lambda i, v=values: float(v[i].mean()), 60, seed=seed, draws=200)  # type: ignore[misc]
        held += low <= 0 <= high
    assert 178 <= held <= 199  # binomial(200, 0.94) within three standard deviations


def test_bootstrap_draws_as_many_examples_as_there_are_with_repeats() -> None:
    seen: list[IntArray] = []

    def record(indices: IntArray) -> float:
        seen.append(indices)
        return 0.0

    bootstrap_interval(record, 50, seed=0, draws=20)
    assert all(len(i) == 50 and i.min() >= 0 and i.max() < 50 and len(set(i.tolist())) < 50 for i in seen)
    assert set(np.concatenate(seen).tolist()) == set(range(50))


def test_same_seed_gives_the_same_numbers_and_another_seed_others() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.random(40), rng.random(40)
    intervals = [bootstrap_interval(lambda i: float(a[i].mean()), 40, seed=s, draws=100) for s in (1, 1, 2)]
    ps = [paired_permutation(a, b, seed=s, draws=500) for s in (1, 1, 2)]
    assert intervals[0] == intervals[1] != intervals[2]
    assert ps[0] == ps[1] != ps[2]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=9))
@settings(max_examples=60, deadline=None)
def test_few_differences_are_enumerated_exactly_ties_included(pairs: list[tuple[int, int]]) -> None:
    differences = [Fraction(x - y, 10) for x, y in pairs]  # tenths have no exact float, so ties need care
    observed = abs(sum(differences, Fraction(0)))
    patterns = list(itertools.product((-1, 1), repeat=len(differences)))
    hits = sum(
        abs(sum((s * d for s, d in zip(p, differences, strict=True)), Fraction(0))) >= observed for p in patterns
    )
    p = paired_permutation([x / 10 for x, _ in pairs], [y / 10 for _, y in pairs], seed=0)
    assert p == pytest.approx(hits / len(patterns), abs=1e-12)


def test_many_differences_agree_with_scipy() -> None:
    rng = np.random.default_rng(8)
    a = rng.normal(0.25, 1.0, size=60)
    b = np.zeros(60)
    theirs = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=20000, rng=9
    ).pvalue
    assert 0.001 < theirs < 0.5
    assert paired_permutation(a, b, seed=10, draws=20000) == pytest.approx(theirs, abs=0.015)


def test_blocks_do_not_change_what_is_counted() -> None:
    rng = np.random.default_rng(11)
    b = np.zeros(3000)
    p = paired_permutation(rng.normal(size=3000), b, seed=1, draws=1000)  # 1000 x 3000 signs take three blocks
    assert p * 1001 == pytest.approx(round(p * 1001))
    assert p > 0.01
    assert paired_permutation(rng.normal(0.5, 1.0, size=3000), b, seed=1, draws=1000) == pytest.approx(1 / 1001)


def test_p_is_uniform_when_the_systems_are_alike() -> None:
    rng = np.random.default_rng(12)
    ps = [paired_permutation(rng.random(30), rng.random(30), seed=s, draws=400) for s in range(200)]
    assert stats.kstest(ps, "uniform").pvalue > 0.01


def test_p_is_two_sided_and_symmetric() -> None:
    a, b = np.array([1.0, 1, 1, 1, 0]), np.array([0.0, 0, 0, 0, 1])
    assert paired_permutation(a, b, seed=0) == paired_permutation(b, a, seed=0) == 12 / 32


def test_systems_that_agree_everywhere_have_p_one() -> None:
    assert paired_permutation([0.5, 1.0], [0.5, 1.0], seed=0) == 1.0


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([[1.0]], [[2.0]])])
def test_unpaired_scores_are_refused(a: list[float], b: list[float]) -> None:
    with pytest.raises(ConfigError, match="one length"):
        paired_permutation(a, b, seed=0)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="draws"):
        paired_permutation([1.0], [0.0], seed=0, draws=0)
    with pytest.raises(ConfigError, match="n=0"):
        bootstrap_interval(lambda i: 0.0, 0, seed=0)


def test_scores_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(DataError, match="finite"):
        paired_permutation([np.inf], [np.inf], seed=0)
    with pytest.raises(DataError, match="finite"):
        bootstrap_interval(lambda i: float("nan"), 3, seed=0, draws=5)
