"""The trained and the untrained encoder together: as a new task's pool advises, or for a known one an LM's answers."""

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

__all__ = ["JUDGED", "SHARES", "JudgedMixture", "MixedEncoder", "Mixture", "mix", "mix_by_judge"]

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the untrained encoder, tried in turn
JUDGED = (0.0, 0.5, 1.0)  # those that an LM is asked about, the trained encoder alone first
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

    def join(self, trained: FloatArray, untrained: FloatArray) -> FloatArray:
        """Put vectors of the same texts side by side."""
        joined: FloatArray = np.hstack([np.sqrt(self.a) * trained, np.sqrt(self.b) * untrained]).astype(np.float32)
        return joined


@dataclass(frozen=True, slots=True)
class Mixture:
    """A ranker of one pool, and how it came by its share of the untrained encoder."""

    ranker: DenseRanker
    share: float
    weights: tuple[float, float]  # of the trained encoder's similarity and of the untrained one's
    likeness: Mapping[float, float]  # share -> mean likeness of outputs, 0..1

    def as_json(self) -> dict[str, Any]:
        """The share and what each would have given, without the ranker."""
        return {"share": self.share, "likeness": {str(share): like for share, like in self.likeness.items()}}


class _Both:
    """A pool under both encoders.

    Shares are of similarities in units of their spread over the pool, as seen by some of its demonstrations (`asked`,
    by their places).
    """

    def __init__(
        self, spec: TaskSpec, pool: Sequence[Demonstration], trained: Encoder, untrained: Encoder, seed: int
    ) -> None:
        self.trained, self.untrained, self.instruction = trained, untrained, spec.retrieval_instruction
        self.asked = [int(i) for i in seeded("mixture", seed).permutation(len(pool))[:ASKED]]
        self.z = trained.encode_demonstrations(for_encoder(spec, pool), self.instruction)
        self.x = untrained.encode_queries([d.query for d in pool])
        self.q = trained.encode_queries([pool[i].query for i in self.asked], self.instruction)
        spreads = np.mean([[s.std(1).mean(), t.std(1).mean()] for _, s, t in self.similarities()], axis=0)
        self.a, self.b = 1 / np.maximum(spreads, 1e-6)

    def similarities(self) -> Iterator[tuple[list[int], FloatArray, FloatArray]]:
        """Of some that are asked, with the whole pool, by either encoder."""
        step = max(1, CELLS // len(self.x))
        for start in range(0, len(self.asked), step):
            some = self.asked[start : start + step]
            yield some, self.q[start : start + step] @ self.z.T, self.x[some] @ self.x.T

    def weights(self, share: float) -> tuple[float, float]:
        return float((1 - share) * self.a), float(share * self.b)

    def ranker(self, share: float) -> DenseRanker:
        encoder = MixedEncoder(self.trained, self.untrained, *self.weights(share))
        return DenseRanker(encoder, index_vectors(encoder.join(self.z, self.x), encoder), self.instruction)


def mix(spec: TaskSpec, pool: Sequence[Demonstration], trained: Encoder, untrained: Encoder, seed: int = 0) -> Mixture:
    """Rank a pool by both encoders; the share of each is the one whose neighbours have the outputs most alike.

    What training taught may help on a task it has not seen or mislead there, and no LM has judged the pool. But the
    pool knows its outputs: up to `ASKED` demonstrations are asked for their neighbours among the others, under each
    share, and the neighbours' outputs are compared with their own (the same label; the words shared by free text).
    Of equal shares the more even one is taken.
    """
    both = _Both(spec, pool, trained, untrained, seed)
    alike = _likeness(spec, pool)
    inputs = np.array([d.query.content_hash for d in pool])
    nearest = min(NEIGHBOURS, len(pool)) - 1
    found: dict[float, list[float]] = {share: [] for share in SHARES}
    for some, by_trained, by_untrained in both.similarities():
        own = inputs[some][:, None] == inputs[None, :]
        for share in SHARES:
            a, b = both.weights(share)
            sims = a * by_trained + b * by_untrained
            sims[own] = -np.inf
            near = np.argpartition(-sims, nearest, axis=1)[:, : nearest + 1]
            for i, row, similar in zip(some, near, np.take_along_axis(sims, near, axis=1), strict=True):
                found[share] += [alike(i, int(j)) for j in row[np.isfinite(similar)]]
    likeness = {share: float(np.mean(values)) if values else 0.0 for share, values in found.items()}
    best = max(SHARES, key=lambda share: (round(likeness[share], 9), -abs(share - 0.5)))
    return Mixture(both.ranker(best), best, both.weights(best), likeness)


@dataclass(frozen=True, slots=True)
class JudgedMixture:
    """The share of the untrained encoder that an LM chose for a task, and what it said of each."""

    share: float
    weights: tuple[float, float]  # of the trained encoder's similarity and of the untrained one's
    worth: Mapping[float, float]  # share -> mean of what `judge` said
    margin: float  # one standard error of the paired difference between the best share and the trained encoder alone

    def as_json(self) -> dict[str, Any]:
        worth = {str(share): value for share, value in self.worth.items()}
        return {"share": self.share, "weights": list(self.weights), "worth": worth, "margin": self.margin}


def mix_by_judge(
    spec: TaskSpec,
    pool: Sequence[Demonstration],
    trained: Encoder,
    untrained: Encoder,
    judge: Callable[[DenseRanker], FloatArray],
    seed: int = 0,
) -> JudgedMixture:
    """Let an LM choose the share of the untrained encoder on a task that the other one was trained on.

    Training can wear away what the sentence encoder knew, and on few lists it may teach a task less than that. `judge`
    tells for each of some queries that were held back from training, (n,), how well the LM answers with the
    demonstrations of a ranker. The trained encoder stays alone unless another of `JUDGED` does better by more than one
    standard error of the paired difference (the rule of Breiman et al. 1984 for preferring the plainer of two).
    """
    both = _Both(spec, pool, trained, untrained, seed)
    said = {share: np.asarray(judge(both.ranker(share)), dtype=np.float64) for share in JUDGED}
    worth = {share: float(values.mean()) for share, values in said.items()}
    best = max(JUDGED, key=lambda share: (round(worth[share], 9), -share))
    gain = said[best] - said[JUDGED[0]]
    margin = float(gain.std(ddof=1) / np.sqrt(len(gain))) if len(gain) > 1 else float("inf")
    share = best if gain.mean() > margin else JUDGED[0]
    return JudgedMixture(share, both.weights(share), worth, margin if best != JUDGED[0] else 0.0)


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
