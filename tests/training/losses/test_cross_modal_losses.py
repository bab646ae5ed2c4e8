"""The losses of cross-modal representation against their formulas in plain loops, and what must hold of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from embed.quantizer import Quantizer
from training.losses.cmcm import code_distribution, code_matching, code_similarities
from training.losses.mms import margin_at, mms


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def distributions(n: int, v: int, seed: int) -> Tensor:
    return drawn(n, v, seed=seed).softmax(1)


def test_mms_is_the_formula_in_plain_loops_in_both_directions() -> None:
    s, margin = drawn(5, 5), 0.3
    total = 0.0
    for i in range(5):
        own = math.exp(float(s[i, i]) - margin)
        rows = sum(math.exp(float(s[i, j])) for j in range(5) if j != i)
        columns = sum(math.exp(float(s[j, i])) for j in range(5) if j != i)
        total -= math.log(own / (own + rows)) + math.log(own / (own + columns))
    assert float(mms(s, margin)) == pytest.approx(total / 5)


def test_things_of_one_caption_are_no_others_to_each_other() -> None:
    s = drawn(4, 4)
    same = torch.eye(4, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    total = 0.0
    for i in range(4):
        others = [j for j in range(4) if not same[i, j]]
        for row in (s[i], s[:, i]):
            own = math.exp(float(row[i]) - 0.1)
            total -= math.log(own / (own + sum(math.exp(float(row[j])) for j in others)))
    assert float(mms(s, 0.1, same)) == pytest.approx(total / 4)
    assert mms(s, 0.1, same) < mms(s, 0.1)


def test_the_margin_grows_by_a_fifth_of_a_percent_a_thousand_steps() -> None:
    assert margin_at(0) == 0.001
    assert margin_at(2500) == pytest.approx(0.001 * 1.002**2.5)


def test_code_matching_is_the_formula_in_plain_loops() -> None:
    codebook, a, b = drawn(6, 3), drawn(4, 5, 3, seed=1), drawn(4, 2, 3, seed=2)
    there = torch.tensor([[True, True], [True, False], [True, True], [False, True]])

    def distribution(features: Tensor, places: list[int]) -> list[float]:
        found = [0.0] * 6
        for place in places:
            exponents = [math.exp(-math.dist(features[place].tolist(), code.tolist())) for code in codebook]
            for v in range(6):
                found[v] += exponents[v] / sum(exponents) / len(places)
        return found

    p = [distribution(a[i], list(range(5))) for i in range(4)]
    q = [distribution(b[i], [k for k in range(2) if there[i, k]]) for i in range(4)]
    s = [
        [
            sum(x * math.log(y + 1e-10) + y * math.log(x + 1e-10) for x, y in zip(p[i], q[j], strict=True))
            for j in range(4)
        ]
        for i in range(4)
    ]
    expected = -sum(math.log(math.exp(s[i][i]) / sum(math.exp(x) for x in s[i])) for i in range(4)) / 4
    quantizer = Quantizer(6, 3)
    quantizer.codebook = codebook.float()
    soft = [
        code_distribution(quantizer.probabilities(x.float()), valid)
        for x, valid in ((a, torch.ones(4, 5, dtype=torch.bool)), (b, there))
    ]
    torch.testing.assert_close(soft[0], torch.tensor(p), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(code_similarities(*soft), torch.tensor(s), atol=1e-4, rtol=1e-4)
    assert float(code_matching(*soft)) == pytest.approx(expected, rel=1e-4)


def test_code_matching_does_not_overflow_and_is_least_where_codes_agree() -> None:
    peaks = torch.eye(4, dtype=torch.float64)
    assert code_matching(peaks, peaks).isfinite()
    assert float(code_matching(peaks, peaks)) == pytest.approx(0, abs=1e-6)
    assert code_matching(peaks, peaks.roll(1, 0)) > 40
    a, b = distributions(4, 6, 0), distributions(4, 6, 1)
    assert code_matching(a, a) < code_matching(a, b)
    swapped = code_similarities(b, a)
    torch.testing.assert_close(code_similarities(a, b), swapped.T)  # it is symmetric


def test_code_matching_moves_encoders_and_never_codes() -> None:
    quantizer = Quantizer(5, 3)
    features = [torch.randn(3, 2, 3, requires_grad=True) for _ in range(2)]
    valid = torch.ones(3, 2, dtype=torch.bool)
    loss = code_matching(*(code_distribution(quantizer.probabilities(f), valid) for f in features))
    loss.backward()
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in features)
    assert not list(quantizer.parameters())
