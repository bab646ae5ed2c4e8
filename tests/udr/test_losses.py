"""Losses against plain loops and the golden vectors of the specification."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from udr.losses import PairWeight, epr_loss, in_batch_loss, rank_loss, udr_loss

sizes = st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1))


def plain_rank_loss(sims: Sequence[float], ranks: Sequence[int]) -> float:
    total = 0.0
    for si, ri in zip(sims, ranks, strict=True):
        for sj, rj in zip(sims, ranks, strict=True):
            total += max(0.0, 1 / ri - 1 / rj) * math.log(1 + math.exp(sj - si))
    return total


def plain_released_loss(sims: Sequence[float], ranks: Sequence[int]) -> float:
    """Weights by the position in the predicted order, mean over the pairs that the LM prefers."""
    order = sorted(range(len(sims)), key=lambda i: -sims[i])
    position = {i: p for p, i in enumerate(order, 1)}
    terms = [
        abs(1 / position[i] - 1 / position[j]) * math.log(1 + math.exp(sims[j] - sims[i]))
        for i in range(len(sims))
        for j in range(len(sims))
        if ranks[i] < ranks[j]
    ]
    return sum(terms) / len(terms) if terms else 0.0


def plain_in_batch_loss(sims: Sequence[float], best: int, masked: Sequence[bool]) -> float:
    kept = [s for j, (s, m) in enumerate(zip(sims, masked, strict=True)) if j == best or not m]
    return math.log(sum(math.exp(s) for s in kept)) - sims[best]


def tensor(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


FOUR = [0.3, 0.1, 0.5, -0.2]
EIGHT = [0.9, 0.2, 0.4, 0.1, 0.0, -0.3, 0.6, -0.1]


@pytest.mark.parametrize(
    ("sims", "paper", "released"),
    [(FOUR, 1.5110766096711827, 0.26242352237819894), (EIGHT, 4.085902767560183, 0.154721683990413)],
)
def test_rank_loss_gives_the_golden_values(sims: list[float], paper: float, released: float) -> None:
    ranks = tensor([range(1, len(sims) + 1)])
    assert rank_loss(tensor([sims]), ranks).item() == pytest.approx(paper, rel=1e-12)
    assert rank_loss(tensor([sims]), ranks, "predicted_position").item() == pytest.approx(released, rel=1e-12)
    whole = ranks.long()  # as training passes them, with float32 similarities
    assert rank_loss(tensor([sims]).float(), whole).item() == pytest.approx(paper, rel=1e-6)
    assert rank_loss(tensor([sims]).float(), whole, "predicted_position").item() == pytest.approx(released, rel=1e-6)


@given(sizes)
def test_rank_loss_is_the_double_sum_averaged_over_the_batch(size: tuple[int, int, int]) -> None:
    b, n, seed = size
    rng = np.random.default_rng(seed)
    sims = rng.normal(size=(b, n)) * 3
    ranks = np.array([rng.permutation(n) + 1 for _ in range(b)])
    expected = np.mean([plain_rank_loss(s, r) for s, r in zip(sims, ranks, strict=True)])
    assert rank_loss(tensor(sims), tensor(ranks)).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    expected = np.mean([plain_released_loss(s, r) for s, r in zip(sims, ranks, strict=True)])
    found = rank_loss(tensor(sims), tensor(ranks), "predicted_position").item()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_candidates_of_one_rank_are_not_compared() -> None:
    assert rank_loss(tensor([[5.0, -5.0]]), tensor([[1, 1]])).item() == 0
    assert rank_loss(tensor([[5.0, -5.0]]), tensor([[1, 1]]), "predicted_position").item() == 0


@given(sizes, st.integers(0, 3), st.sampled_from(["lm_rank", "predicted_position"]))
def test_places_without_a_candidate_change_nothing(size: tuple[int, int, int], empty: int, variant: PairWeight) -> None:
    b, n, seed = size
    rng = np.random.default_rng(seed)
    sims, masked = tensor(rng.normal(size=(b, n + 2))), torch.tensor(rng.random((b, n + 2)) < 0.2)
    own = torch.tensor(np.array([rng.permutation(n + 2)[:n] for _ in range(b)]))
    ranks = torch.tensor(np.array([rng.permutation(n) + 1 for _ in range(b)]))
    wider = [torch.cat([x, torch.zeros((b, empty), dtype=torch.long)], 1) for x in (own, ranks)]
    found, expected = (udr_loss(sims, *x, masked, 0.8, variant) for x in (wider, (own, ranks)))
    assert found.item() == pytest.approx(expected.item(), rel=1e-12)


def test_rank_loss_stays_finite_for_large_similarities_and_pulls_the_better_one_up() -> None:
    sims = tensor([[-400.0, 400.0]]).requires_grad_()
    loss = rank_loss(sims, tensor([[1, 2]]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(400)
    assert sims.grad is not None
    assert sims.grad[0, 0] < 0 < sims.grad[0, 1]


@given(sizes)
def test_in_batch_loss_is_the_softmax_over_what_is_not_masked(size: tuple[int, int, int]) -> None:
    b, u, seed = size
    rng = np.random.default_rng(seed)
    sims = rng.normal(size=(b, u)) * 3
    best = rng.integers(u, size=b)
    masked = rng.random((b, u)) < 0.4  # the best one may be masked too, and still counts
    expected = np.mean([plain_in_batch_loss(*row) for row in zip(sims, best, masked, strict=True)])
    found = in_batch_loss(tensor(sims), torch.tensor(best), torch.tensor(masked))
    assert found.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert epr_loss(tensor(sims), torch.tensor(best), torch.tensor(masked)).item() == found.item()


def test_a_masked_false_negative_gets_no_gradient() -> None:
    sims = tensor([[1.0, 2.0, 3.0]]).requires_grad_()
    in_batch_loss(sims, torch.tensor([0]), torch.tensor([[False, True, False]])).backward()  # type: ignore[no-untyped-call]
    assert sims.grad is not None
    assert sims.grad[0, 1] == 0
    assert sims.grad[0, 2] > 0


@given(sizes, st.sampled_from([0.0, 0.3, 0.8, 1.0]), st.sampled_from(["lm_rank", "predicted_position"]))
def test_udr_loss_weighs_the_two_parts(size: tuple[int, int, int], weight: float, variant: str) -> None:
    b, n, seed = size
    rng = np.random.default_rng(seed)
    u = n + 3
    sims, masked = rng.normal(size=(b, u)), rng.random((b, u)) < 0.2
    own = np.array([rng.permutation(u)[:n] for _ in range(b)])
    ranks = np.array([rng.permutation(n) + 1 for _ in range(b)])
    plain = plain_rank_loss if variant == "lm_rank" else plain_released_loss
    expected = 0.0
    for s, o, r, m in zip(sims, own, ranks, masked, strict=True):
        best = int(o[list(r).index(1)])
        expected += (weight * plain(s[o], r) + (1 - weight) * plain_in_batch_loss(s, best, m)) / b
    found = udr_loss(
        tensor(sims),
        torch.tensor(own),
        torch.tensor(ranks),
        torch.tensor(masked),
        weight,
        variant,  # type: ignore[arg-type]
    )
    assert found.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_udr_loss_takes_the_papers_weight_by_default() -> None:
    sims, own, ranks = tensor([[*FOUR, 0.7]]), torch.arange(4)[None], torch.arange(1, 5)[None]
    masked = torch.zeros(1, 5, dtype=torch.bool)
    expected = 0.8 * 1.5110766096711827 + 0.2 * plain_in_batch_loss([*FOUR, 0.7], 0, [False] * 5)
    assert udr_loss(sims, own, ranks, masked).item() == pytest.approx(expected, rel=1e-7)
