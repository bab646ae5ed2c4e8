"""Pictures of two styles without pairs, for methods that learn to translate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.pictures import Pictures

__all__ = ["Unpaired"]


@dataclass(frozen=True)
class Unpaired:
    """As many of each style in a batch; which ones come together is drawn, and says nothing.

    Args:
        first, second: pictures of either style, of one size. The smaller set comes again within a pass.
        seed: of the draw.
    """

    first: Pictures
    second: Pictures
    seed: int = 0

    def __len__(self) -> int:
        return max(len(self.first), len(self.second))

    def batch(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Pictures (n, 2, 3, s, s) of both styles, in orders of their own."""
        found = []
        for style, own in enumerate((self.first, self.second)):
            order = np.random.default_rng([self.seed, style]).permutation(len(self))  # as long as the longer
            found.append(own.pixels[order[rows] % len(own)])
        return np.stack(found, 1)
