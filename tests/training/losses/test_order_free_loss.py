"""The order-free loss against plain loops, and what must hold of targets."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from training.losses.order_free import next_targets, sequence_loss


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def target_in_loops(log_p: list[float], remaining: list[bool], priority: list[float] | None) -> int:
    scores = log_p if priority is None else priority
    best = len(remaining)
    for i, left in enumerate(remaining):
        if left and (best == len(remaining) or scores[i] > scores[best]):
            best = i
    return best


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.booleans())
def test_targets_are_those_of_plain_loops(seed: int, fixed: bool) -> None:
    log_p = drawn(7, 6, seed=seed).log_softmax(1)
    remaining = drawn(7, 5, seed=seed + 1) > 0.3
    priority = drawn(5, seed=seed + 2) if fixed else None
    found = next_targets(log_p, remaining, priority)
    for i in range(7):
        own = None if priority is None else priority.tolist()
        assert int(found[i]) == target_in_loops(log_p[i].tolist(), remaining[i].tolist(), own)


def test_a_false_label_is_no_target_however_probable_and_the_end_comes_when_none_is_left() -> None:
    log_p = torch.tensor([[5.0, 1.0, 2.0, 9.0]]).log_softmax(1)
    assert next_targets(log_p, torch.tensor([[False, True, True]])).tolist() == [2]
    assert next_targets(log_p, torch.tensor([[False, False, False]])).tolist() == [3]


def test_the_loss_is_the_mean_over_steps_until_the_end_and_no_further() -> None:
    log_p = drawn(3, 4, 5, seed=1).log_softmax(2)
    targets = torch.tensor([[0, 2, 4, 4], [4, 4, 4, 4], [1, 0, 3, 4]])  # 4 is the end
    total, steps = 0.0, 0
    for i in range(3):
        for t in range(4):
            total -= float(log_p[i, t, targets[i, t]])
            steps += 1
            if targets[i, t] == 4:
                break
    assert steps == 3 + 1 + 4
    assert math.isclose(float(sequence_loss(log_p, targets, 4)), total / steps, rel_tol=1e-12)


def test_what_comes_behind_the_end_teaches_nothing_even_where_it_is_impossible() -> None:
    raw = drawn(1, 3, 3, seed=2).requires_grad_()
    log_p = raw.log_softmax(2).masked_fill(torch.tensor([[[False] * 3, [False] * 3, [False, False, True]]]), -math.inf)
    loss = sequence_loss(log_p, torch.tensor([[0, 2, 2]]), 2)
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert raw.grad is not None
    assert bool((raw.grad[0, 2] == 0).all())
    assert bool((raw.grad[0, :2] != 0).any(1).all())
