"""How fast the LM gives its feedback, and how much of it was known already."""

from __future__ import annotations

import time

from udr.scoring.cache import CachedScorer
from udr.types import Progress

__all__ = ["Meter"]


class Meter:
    """Counts pairs, tokens and cache hits from the first time progress is told."""

    def __init__(self, scorer: CachedScorer) -> None:
        self.scorer = scorer
        self.pairs = 0
        self._begin()

    def _begin(self) -> None:
        self._started = time.monotonic()
        self._tokens = self.scorer.tokens_computed
        self._hits, self._misses = self.scorer.hits, self.scorer.misses

    def counting(self, progress: Progress) -> Progress:
        """The same progress, counted on its way."""

        def tell(done: int, total: int) -> None:
            if not done:
                self._begin()  # the model was loaded before
            self.pairs = done
            progress(done, total)

        return tell

    def note(self) -> str:
        """Pairs and LM tokens a second, and the share of texts that the cache knew."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        hits, misses = self.scorer.hits - self._hits, self.scorer.misses - self._misses
        known = 100 * hits / max(hits + misses, 1)
        tokens = self.scorer.tokens_computed - self._tokens
        return f"{self.pairs / seconds:,.1f} pairs/s, {tokens / seconds:,.0f} tokens/s, {known:.0f} % from the cache"
