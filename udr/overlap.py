"""How many words two texts share."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["dice", "words"]

WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text in order, case folded."""
    return WORD.findall(text.casefold())


def dice(a: Sequence[str], b: Sequence[str]) -> float:
    """Overlap of two bags, 2·|a ∩ b| / (|a| + |b|), in 0..1; nothing overlaps with nothing."""
    shared = (Counter(a) & Counter(b)).total()
    return 2 * shared / (len(a) + len(b)) if shared else 0.0
