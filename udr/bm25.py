"""Lexical candidates: BM25 over the inputs or the outputs of a pool."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from udr.errors import MissingDependencyError
from udr.types import Demonstration, FloatArray, IntArray

__all__ = ["BM25"]


class BM25:
    """BM25 (Robertson et al. 1995; Lucene's idf, k1 = 1.5, b = 0.75) over one field of the demonstrations."""

    def __init__(self, pool: Sequence[Demonstration], field: Literal["input", "output"] = "input") -> None:
        bm25s = _import_bm25s()
        self.field = field
        self._size = len(pool)
        self._tokenise: Callable[[list[str]], list[list[str]]] = lambda texts: bm25s.tokenize(
            texts, token_pattern=r"(?u)\w+", stopwords=None, return_ids=False, show_progress=False
        )
        self._retriever = bm25s.BM25(method="lucene")
        # a mark in each document keeps the vocabulary from being empty when no text holds a word
        tokens = [[*t, "\0"] for t in self._tokenise([getattr(d, field) for d in pool])]
        self._retriever.index(tokens, show_progress=False)

    def search(
        self, texts: Sequence[str], k: int, admitted: NDArray[np.bool_] | None = None
    ) -> tuple[IntArray, FloatArray]:
        """Best `k` pool positions of each text and their scores, (n, k) both; ties go to the earlier position.

        Args:
            texts: (n).
            k: how many; there are fewer columns where fewer are admitted.
            admitted: (size,) of the pool, whether a position may be given; None: all may.
        """
        places = np.arange(self._size) if admitted is None else np.flatnonzero(admitted)
        k = min(k, len(places))
        rows = np.empty((len(texts), k), dtype=np.int64)
        scores = np.empty((len(texts), k), dtype=np.float32)
        for i, tokens in enumerate(self._tokenise(list(texts))):
            known = [t for t in tokens if t in self._retriever.vocab_dict]
            all_scores = self._retriever.get_scores(known) if known else np.zeros(self._size, dtype=np.float32)
            rows[i] = places[np.argsort(-all_scores[places], kind="stable")[:k]]
            scores[i] = all_scores[rows[i]]
        return rows, scores


def _import_bm25s() -> Any:
    """The package without JAX: where JAX is installed its import would run it, and so take most of a GPU's memory."""
    hide = "jax" not in sys.modules
    if hide:
        sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        return import_module("bm25s")
    except ImportError:
        raise MissingDependencyError("bm25s", "train") from None
    finally:
        if hide:
            del sys.modules["jax"]
