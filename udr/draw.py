"""Random draws that depend on words alone, so that any part of a run can be redone by itself."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

__all__ = ["seeded", "spread"]


def seeded(*parts: object) -> np.random.Generator:
    """A generator for these words: the same in every process, whatever was drawn before."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def spread(order: Sequence[int], labels: Sequence[str]) -> list[int]:
    """Reorder positions so that every beginning holds their labels as evenly as the supply allows.

    The n-th of each label stands before the (n+1)-th of any; otherwise the given order stays.
    """
    seen: Counter[str] = Counter()
    turns = []
    for place, position in enumerate(order):
        turns.append((seen[labels[position]], place, position))
        seen[labels[position]] += 1
    return [position for _, _, position in sorted(turns)]
