"""Log-probabilities by blocks of the vocabulary, against one softmax over all of it."""

import numpy as np
import pytest
import torch
from torch import nn

from udr.scoring import vocabulary
from udr.scoring.vocabulary import log_probabilities

D, VOCABULARY = 12, 53
HEADS = {
    "linear": lambda: nn.Linear(D, VOCABULARY, bias=False),
    "with a bias": lambda: nn.Linear(D, VOCABULARY),
    "of another kind": lambda: nn.Sequential(nn.Linear(D, VOCABULARY), nn.Tanh()),
}


@pytest.mark.parametrize("block", [1, 7, VOCABULARY, 1000])
@pytest.mark.parametrize("together", [1, 5, 100])
@pytest.mark.parametrize("kind", [*HEADS, "none: the logits themselves"])
def test_blocks_give_the_numbers_of_one_softmax(
    monkeypatch: pytest.MonkeyPatch, kind: str, block: int, together: int
) -> None:
    monkeypatch.setattr(vocabulary, "BLOCK", block)
    monkeypatch.setattr(vocabulary, "TOGETHER", (together, together))
    torch.manual_seed(block)
    rng = np.random.default_rng(together)
    head = HEADS[kind]() if kind in HEADS else None
    states = 30 * torch.randn(11, D if head else VOCABULARY)
    places, targets = rng.integers(11, size=40), rng.integers(VOCABULARY, size=40)  # some asked twice, in no order
    with torch.inference_mode():
        found = log_probabilities(states, head, places, targets)
        expected = (head(states) if head else states).double().log_softmax(-1)[places, targets]
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-4)


def test_half_precision_is_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "BLOCK", 1000)
    torch.manual_seed(0)
    logits = torch.zeros(3, 30_000, dtype=torch.bfloat16)  # a bfloat16 sum of ones stays at 256
    found = log_probabilities(logits, None, np.array([0, 2]), np.array([5, 29_999]))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), -np.log(30_000), rtol=1e-6)


def test_nothing_asked_is_nothing_told() -> None:
    found = log_probabilities(torch.randn(2, 9), None, np.zeros(0, np.int64), np.zeros(0, np.int64))
    assert found.shape == (0,)
