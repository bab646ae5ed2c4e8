"""Draws depend on words alone, and a spread order is even in all its beginnings."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from udr.draw import seeded, spread


def test_the_same_words_draw_the_same_and_other_words_others() -> None:
    draws = [seeded("a", 1).random(), seeded("a", 1).random(), seeded("a1").random(), seeded("a", 2).random()]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3


@given(st.lists(st.sampled_from("abc"), max_size=12), st.randoms(use_true_random=False))
def test_every_beginning_of_a_spread_order_is_as_even_as_the_supply_allows(labels: list[str], rng) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(labels)))
    rng.shuffle(order)
    found = spread(order, labels)
    assert sorted(found) == sorted(order)
    supply = Counter(labels)
    for n in range(len(found) + 1):
        taken = Counter(labels[i] for i in found[:n])
        most = max(taken.values(), default=0)
        # a label may lag by more than one only when it has no more to give
        assert all(taken[label] >= min(most - 1, supply[label]) for label in supply)
    for label in supply:
        assert [i for i in found if labels[i] == label] == [i for i in order if labels[i] == label]
