"""A task the encoder was never trained on: the trained and the untrained encoder together, as its pool advises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from udr.draw import seeded
from udr.overlap import dice, words
from udr.prompt import for_encoder
from udr.retriever import DenseRanker, index_vectors
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration, Encoder, FloatArray, Query

__all__ = ["SHARES", "MixedEncoder", "Mixture", "mix"]

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the untrained encoder, tried in turn
ASKED = 300  # demonstrations of the pool that are asked for their neighbours
NEIGHBOURS = 8  # of each
CELLS = 1 << 23  # similarities at a time


class MixedEncoder:
    """Two encoders side by side: sim(x, z) = a · E_q(I ⊕ x) · E_d(I ⊕ x' ⊕ y') + b · U(x) · U(x').

    E is trained, U untrained; U reads inputs alone, as a sentence encoder does. The vectors are those of both, one
    behind the other, times √a and √b, so that one index of inner products serves the sum.
    """

    def __init__(self, trained: Encoder, untrained: Encoder, a: float, b: float) -> None:
        self.trained = trained
        self.untrained = untrained
        self.a = a
        self.b = b

    @property
    def dim(self) -> int:
        return self.trained.dim + self.untrained.dim

    @property
    def read_outputs(self) -> str:
        """As the trained encoder reads them."""
        return getattr(self.trained, "read_outputs", "all")

    @property
    def fingerprint(self) -> str:
        return f"{self.a:.6g}*{self.trained.fingerprint}+{self.b:.6g}*{self.untrained.fingerprint}"

    def encode_queries(self, queries: Sequence[Query], instruction: str = "") -> FloatArray:
        """Vectors of queries, float32 (n, d)."""
        return self.join(self.trained.encode_queries(queries, instruction), self.untrained.encode_queries(queries))

    def encode_demonstrations(self, demonstrations: Sequence[Demonstration], instruction: str = "") -> FloatArray:
        """Vectors of demonstrations, float32 (m, d)."""
        return self.join(
            self.trained.encode_demonstrations(demonstrations, instruction),
            self.untrained.encode_queries([d.query for d in demonstrations]),
        )

    def tokens_cut(self, texts: Sequence[Query | Demonstration], instruction: str = "") -> list[int]:
        """Tokens of each text (n,) that the encoder which reads less leaves out."""
        inputs = [t.query if isinstance(t, Demonstration) else t for t in texts]
        both = self.trained.tokens_cut(texts, instruction), self.untrained.tokens_cut(inputs)
        return [max(pair) for pair in zip(*both, strict=True)]

    def tokens_read(self, queries: Sequence[Query], instruction: str = "") -> list[int]:
        """Tokens of each query (n,) that both encoders read."""
        both = self.trained.tokens_read(queries, instruction), self.untrained.tokens_read(queries)
        return [sum(pair) for pair in zip(*both, strict=True)]

    def join(self, trained: FloatArray, untrained: FloatArray) -> FloatArray:
        """Put vectors of the same texts side by side."""
        joined: FloatArray = np.hstack([np.sqrt(self.a) * trained, np.sqrt(self.b) * untrained]).astype(np.float32)
        return joined


@dataclass(frozen=True, slots=True)
class Mixture:
    """A ranker of one pool, and how it came by its share of the untrained encoder."""

    ranker: DenseRanker
    share: float
    likeness: Mapping[float, float]  # share -> mean likeness of outputs, 0..1

    def as_json(self) -> dict[str, Any]:
        """The share and what each would have given, without the ranker."""
        return {"share": self.share, "likeness": {str(share): like for share, like in self.likeness.items()}}


def mix(spec: TaskSpec, pool: Sequence[Demonstration], trained: Encoder, untrained: Encoder) -> Mixture:
    """Rank a pool by both encoders; the share of each is the one whose neighbours have the outputs most alike.

    What training taught may help on a task it has not seen or mislead there, and no LM has judged the pool. But the
    pool knows its outputs: up to `ASKED` demonstrations are asked for their neighbours among the others, under each
    share, and the neighbours' outputs are compared with their own (the same label; the words shared by free text).
    Shares are of similarities in units of their spread over the pool. Of equal shares the more even one is taken. The
    same pool and encoders always give the same share: what was evaluated is what answers later.
    """
    instruction = spec.retrieval_instruction
    asked = [int(i) for i in seeded("mixture", 0).permutation(len(pool))[:ASKED]]
    z = trained.encode_demonstrations(for_encoder(spec, pool, trained), instruction)
    x = untrained.encode_queries([d.query for d in pool])
    q = trained.encode_queries([pool[i].query for i in asked], instruction)

    def similarities() -> Iterator[tuple[list[int], FloatArray, FloatArray]]:
        """Of some that are asked, with the whole pool, by either encoder."""
        step = max(1, CELLS // len(pool))
        for start in range(0, len(asked), step):
            some = asked[start : start + step]
            yield some, q[start : start + step] @ z.T, x[some] @ x.T

    spreads = np.mean([[s.std(1).mean(), t.std(1).mean()] for _, s, t in similarities()], axis=0)
    a, b = 1 / np.maximum(spreads, 1e-6)
    alike = _likeness(spec, pool)
    inputs = np.array([d.query.content_hash for d in pool])
    nearest = min(NEIGHBOURS, len(pool)) - 1
    found: dict[float, list[float]] = {share: [] for share in SHARES}
    for some, by_trained, by_untrained in similarities():
        own = inputs[some][:, None] == inputs[None, :]
        for share in SHARES:
            sims = (1 - share) * a * by_trained + share * b * by_untrained
            sims[own] = -np.inf
            near = np.argpartition(-sims, nearest, axis=1)[:, : nearest + 1]
            for i, row, similar in zip(some, near, np.take_along_axis(sims, near, axis=1), strict=True):
                found[share] += [alike(i, int(j)) for j in row[np.isfinite(similar)]]
    likeness = {share: float(np.mean(values)) if values else 0.0 for share, values in found.items()}
    best = max(SHARES, key=lambda share: (round(likeness[share], 9), -abs(share - 0.5)))
    encoder = MixedEncoder(trained, untrained, float((1 - best) * a), float(best * b))
    return Mixture(DenseRanker(encoder, index_vectors(encoder.join(z, x), encoder), instruction), best, likeness)


def _likeness(spec: TaskSpec, pool: Sequence[Demonstration]) -> Callable[[int, int], float]:
    """How alike the outputs of two demonstrations are, by their places in the pool."""
    if spec.kind == "classification":
        return lambda i, j: float(pool[i].output == pool[j].output)
    known: dict[int, list[str]] = {}

    def bag(i: int) -> list[str]:
        if i not in known:
            known[i] = words(pool[i].output)
        return known[i]

    return lambda i, j: dice(bag(i), bag(j))
