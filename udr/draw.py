"""Random draws that depend on words alone, so that any part of a run can be redone by itself."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["seeded"]


def seeded(*parts: object) -> np.random.Generator:
    """A generator for these words: the same in every process, whatever was drawn before."""
    digest = hashlib.blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))
