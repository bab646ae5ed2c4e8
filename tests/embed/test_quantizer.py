"""Codes: the nearest is taken, codes follow features of all modalities alike, and no code stays unused."""

from __future__ import annotations

import math

import pytest
import torch

from embed.quantizer import SMOOTHING, Quantizer


def begun(codes: int, dim: int, **more: float) -> Quantizer:
    torch.manual_seed(0)
    quantizer = Quantizer(codes, dim, **more)  # type: ignore[arg-type]
    quantizer.begun.fill_(True)
    return quantizer


def test_codes_follow_two_modalities_pooled_into_the_same_counts_as_in_plain_loops() -> None:
    quantizer = begun(4, 3, decay=0.9, patience=100)
    a, b = torch.randn(2, 5, 3), torch.randn(3, 2, 3)
    there = torch.tensor([[True, False], [True, True], [False, True]])
    counts = [1.0] * 4
    sums = [row.tolist() for row in quantizer.codebook]
    book = [row.tolist() for row in quantizer.codebook]
    for _ in range(3):
        features = [h.tolist() for h in a.flatten(0, 1)] + [h.tolist() for h in b[there]]
        near = [min(range(4), key=lambda v: math.dist(h, book[v])) for h in features]
        for v in range(4):
            mine = [h for h, code in zip(features, near, strict=True) if code == v]
            counts[v] = 0.9 * counts[v] + 0.1 * len(mine)
            sums[v] = [0.9 * sums[v][k] + 0.1 * sum(h[k] for h in mine) for k in range(3)]
        total = sum(counts)
        for v in range(4):
            smooth = (counts[v] + SMOOTHING) / (total + 4 * SMOOTHING) * total
            book[v] = [s / smooth for s in sums[v]]
        found = quantizer.together([(a, torch.ones(2, 5, dtype=torch.bool)), (b, there)])
        assert found[0].tokens.flatten().tolist() == near[:10]
        torch.testing.assert_close(quantizer.counts, torch.tensor(counts))
        torch.testing.assert_close(quantizer.codebook, torch.tensor(book))


def test_one_modality_or_two_halves_of_it_move_codes_alike() -> None:
    one, two = begun(5, 3), begun(5, 3)
    features, all_there = torch.randn(4, 6, 3), torch.ones(2, 6, dtype=torch.bool)
    torch.manual_seed(1)
    whole = one(features)
    torch.manual_seed(1)
    first, second = two.together([(features[:2], all_there), (features[2:], all_there)])
    torch.testing.assert_close(one.codebook, two.codebook)
    assert whole.tokens.equal(torch.cat([first.tokens, second.tokens]))
    torch.testing.assert_close(whole.commitment, (first.commitment + second.commitment) / 2)


def test_the_nearest_code_stands_in_and_the_gradient_passes_straight_through() -> None:
    quantizer = begun(6, 3).eval()
    features = torch.randn(2, 4, 3, requires_grad=True)
    before = quantizer.codebook.clone()
    found = quantizer(features)
    for n in range(2):
        for place in range(4):
            distances = [math.dist(features[n, place].tolist(), code.tolist()) for code in quantizer.codebook]
            assert int(found.tokens[n, place]) == distances.index(min(distances))
    torch.testing.assert_close(found.codes, quantizer.codebook[found.tokens])
    weights = torch.randn(2, 4, 3)
    (found.codes * weights).sum().backward()
    torch.testing.assert_close(features.grad, weights)
    assert quantizer.codebook.equal(before)  # in use, codes stand still


def test_probabilities_are_a_softmax_of_distances_that_are_not_squared() -> None:
    quantizer = begun(5, 3)
    features = torch.randn(2, 3, 3, requires_grad=True)
    found = quantizer.probabilities(features)
    for n in range(2):
        for place in range(3):
            exponents = [math.exp(-math.dist(features[n, place].tolist(), c.tolist())) for c in quantizer.codebook]
            expected = [e / sum(exponents) for e in exponents]
            assert found[n, place].tolist() == pytest.approx(expected, abs=1e-5)
    on_a_code = quantizer.codebook[None, :1].clone().requires_grad_()
    quantizer.probabilities(on_a_code)[..., 0].sum().backward()
    assert on_a_code.grad is not None
    assert on_a_code.grad.isfinite().all()


def test_a_code_that_nothing_is_near_to_becomes_a_copy_of_one_that_is_used() -> None:
    quantizer = begun(8, 2, patience=3)
    with torch.no_grad():
        quantizer.codebook[2:] = 100.0  # far from everything
        quantizer.codebook[:2] = torch.tensor([[0.0, 0.0], [4.0, 4.0]])
        quantizer.sums.copy_(quantizer.codebook)
    features = torch.cat([torch.zeros(1, 6, 2), torch.full((1, 6, 2), 4.0)], 1)
    for step in range(4):
        assert int((quantizer.codebook.abs().amax(1) > 50).sum()) == 6, step
        quantizer(features)
    near = torch.cdist(quantizer.codebook[2:], quantizer.codebook[:2]).amin(1)
    assert (near < 0.5).all()
    assert (near > 0).all()  # a little moved, so that they part
    assert not quantizer.idle[2:].any()
