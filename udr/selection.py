"""Which of a query's candidates become demonstrations, and in what order they stand.

Pure functions on the k candidates of one query: `relevance` (k,) says how near each stands to the query, and the result
is a list of positions into the candidates, best first, without repeats, at most n long. Ties go to the lower position.

`mmr` and `dpp` weigh relevance against the cosine between candidates. So that raw inner products can be weighed too,
relevance is first divided by the mean squared norm of the vectors: nothing changes for unit vectors, and scaling an
encoder's output by a constant never changes a selection.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from udr.errors import ConfigError, DataError, UnknownNameError

__all__ = [
    "COMPARE_VECTORS",
    "ORDERS",
    "SELECTIONS",
    "TAG",
    "balanced",
    "balanced_tags",
    "coverage",
    "dpp",
    "mmr",
    "order",
    "select",
    "tags_in",
    "top_k",
]

_Floats = NDArray[np.float64]
TAG = "label:"  # how the metadata keys of tags begin
_DEPENDENT = 1e-9  # what is left of a unit vector's square when it is, up to rounding, made of those selected


def top_k(relevance: ArrayLike, n: int) -> list[int]:
    """Take the n most relevant.

    Args:
        relevance: (k,) any scale.
        n: how many; more than k gives all.

    Raises:
        ConfigError: relevance is not a vector, or n is negative.
        DataError: a relevance is not finite.
    """
    return _best_first(_check_relevance(relevance, n))[:n]


def mmr(relevance: ArrayLike, vectors: ArrayLike, n: int, diversity: float = 0.3) -> list[int]:
    """Take what is relevant and unlike what was taken.

    Maximal marginal relevance: next = argmax_i (1 − λ) · relevance_i − λ · max_{j taken} cos(v_i, v_j), λ = diversity.
    Carbonell and Goldstein 1998, The Use of MMR, Diversity-Based Reranking for Reordering Documents, SIGIR.

    Args:
        relevance: (k,) cosine or inner product with the query.
        vectors: (k, d) of the candidates.
        n: how many; more than k gives all.
        diversity: λ in 0..1; 0 is top_k.

    Raises:
        ConfigError: shapes do not fit, or n or diversity is out of range.
        DataError: a number is not finite.
    """
    if not 0 <= diversity <= 1:
        raise ConfigError(f"diversity must be between 0 and 1, got {diversity}")
    scores = _check_relevance(relevance, n)
    scores, cosines = _on_one_scale(scores, vectors)
    nearest = np.full(len(scores), -np.inf)  # cosine to the nearest taken
    taken: list[int] = []
    for _ in range(min(n, len(scores))):
        gain = (1 - diversity) * scores - diversity * nearest if taken else scores.copy()
        gain[taken] = -np.inf
        taken.append(int(gain.argmax()))
        nearest = np.maximum(nearest, cosines[taken[-1]])
    return taken


def dpp(relevance: ArrayLike, vectors: ArrayLike, n: int, scale: float = 0.1) -> list[int]:
    """Take a set that is relevant and spread out: greedily the largest determinant of a kernel.

    K_ij = w_i · S_ij · w_j with S = (1 + cos) / 2, r = (1 + relevance) / 2 and w = exp(r / (2 · scale)), as in the
    code of Ye et al. 2023, Compositional Exemplars for In-context Learning (CEIL), arXiv 2302.05698. The next one is
    argmax_i log det K_{taken + i}, found by growing a Cholesky factor one row a step, O(n · k) each: Chen et al. 2018,
    Fast Greedy MAP Inference for Determinantal Point Process, arXiv 1709.05135. Weights stay in the exponent:
    log d_i² of K is r_i / scale + log d_i² of S, so nothing overflows. When no candidate adds volume any more
    (copies, or more than d + 1 taken), the rest follows by relevance.

    Args:
        relevance: (k,) cosine or inner product with the query.
        vectors: (k, d) of the candidates.
        n: how many; more than k gives all.
        scale: above 0; small favours relevance, large favours spread. The authors' value is 0.1.

    Raises:
        ConfigError: shapes do not fit, n is negative, or scale is not above 0.
        DataError: a number is not finite.
    """
    if not 0 < scale < np.inf:
        raise ConfigError(f"scale must be above 0, got {scale}")
    scores, cosines = _on_one_scale(_check_relevance(relevance, n), vectors)
    similarity = (1 + cosines) / 2
    factor = np.zeros((min(n, len(scores)), len(scores)))  # rows of the Cholesky factor, one for each taken
    left = similarity.diagonal().copy()  # squared length of what the taken do not span
    taken: list[int] = []
    while len(taken) < len(factor) and (left > _DEPENDENT).any():
        logs = np.log(left, out=np.full_like(left, -np.inf), where=left > _DEPENDENT)
        best = int(((1 + scores) / 2 / scale + logs).argmax())
        row = (similarity[best] - factor[: len(taken), best] @ factor[: len(taken)]) / np.sqrt(left[best])
        factor[len(taken)] = row
        left -= row**2
        left[best] = 0.0
        taken.append(best)
    rest = [i for i in _best_first(scores) if i not in taken]
    return (taken + rest)[:n]


def coverage(
    relevance: ArrayLike, query_tokens: AbstractSet[str], candidate_tokens: Sequence[AbstractSet[str]], n: int
) -> list[int]:
    """Take candidates that together hold the words of the query.

    Greedy set cover: next is who holds most words that nobody taken holds yet, ties by relevance. When no candidate
    adds a word, all words count as open again, as in Set-BSR: Gupta et al. 2023, Coverage-based Example Selection
    for In-Context Learning, arXiv 2305.14907. Candidates without any word of the query come last.

    Args:
        relevance: (k,) any scale.
        query_tokens: words of the query.
        candidate_tokens: (k) sets of words.
        n: how many; more than k gives all.

    Raises:
        ConfigError: lengths differ, or n is negative.
        DataError: a relevance is not finite.
    """
    scores = _check_relevance(relevance, n)
    _check_length("candidate_tokens", candidate_tokens, len(scores))
    useful = [query_tokens & tokens for tokens in candidate_tokens]
    remaining = _best_first(scores)  # max() keeps the first of equals: the most relevant
    taken: list[int] = []
    uncovered = set(query_tokens)
    while remaining and len(taken) < n:
        best = max(remaining, key=lambda i: len(useful[i] & uncovered))
        if not useful[best] & uncovered:
            uncovered = set(query_tokens)
            best = max(remaining, key=lambda i: len(useful[i]))
        uncovered -= useful[best]
        remaining.remove(best)
        taken.append(best)
    return taken


def balanced(relevance: ArrayLike, labels: Sequence[str], n: int) -> list[int]:
    """Take equally many of each label.

    Rounds: each label gives its best candidate not yet taken, the most relevant first, until n are taken. The counts
    of two labels differ by at most one as long as both have candidates.

    Args:
        relevance: (k,) any scale.
        labels: (k) label of each candidate.
        n: how many; more than k gives all.

    Raises:
        ConfigError: lengths differ, or n is negative.
        DataError: a relevance is not finite.
    """
    scores = _check_relevance(relevance, n)
    _check_length("labels", labels, len(scores))
    seen: Counter[str] = Counter()
    rounds = []
    best_first = _best_first(scores)
    for i in best_first:
        rounds.append(seen[labels[i]])
        seen[labels[i]] += 1
    return [best_first[j] for j in np.argsort(rounds, kind="stable")[:n]]


def balanced_tags(relevance: ArrayLike, tags: Sequence[Collection[str]], n: int) -> list[int]:
    """Take candidates so that each of their tags, of which one may have several or none, is shown about equally often.

    One after another: the candidate of which some tag was taken least often, and of those the most relevant. No tag is
    a tag of its own. With one tag each it is `balanced`.

    Args:
        relevance: (k,) any scale.
        tags: (k) tags of each candidate.
        n: how many; more than k gives all.

    Raises:
        ConfigError: lengths differ, or n is negative.
        DataError: a relevance is not finite.
    """
    scores = _check_relevance(relevance, n)
    _check_length("tags", tags, len(scores))
    left = _best_first(scores)
    taken: list[int] = []
    shown: Counter[str | None] = Counter()
    while left and len(taken) < n:
        best = min(left, key=lambda i: min(shown[tag] for tag in tags[i] or (None,)))  # the first of equals
        left.remove(best)
        taken.append(best)
        shown.update(tags[best] or (None,))
    return taken


def tags_in(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Tags that stand in a demonstration's metadata, as `label:NAME` with a confidence each."""
    return tuple(key.removeprefix(TAG) for key in metadata if key.startswith(TAG))


class _Given(NamedTuple):
    """What a caller of `select` has at hand."""

    name: str
    relevance: ArrayLike
    n: int
    vectors: ArrayLike | None
    labels: Sequence[str] | None
    query_text: str
    candidate_texts: Sequence[str]
    tags: Sequence[Collection[str]] | None


def _need_vectors(given: _Given) -> ArrayLike:
    if given.vectors is None:
        raise ConfigError(f"selection {given.name} needs the candidates' vectors")
    return given.vectors


def _need_labels(given: _Given) -> Sequence[str]:
    if given.labels is None:
        raise ConfigError(f"selection {given.name} needs the candidates' labels")
    return given.labels


def _need_tags(given: _Given) -> Sequence[Collection[str]]:
    if given.tags is None:
        raise ConfigError(f"selection {given.name} needs the candidates' tags")
    return given.tags


def _cover_words(given: _Given) -> list[int]:
    texts = [_words(text) for text in given.candidate_texts]
    return coverage(given.relevance, _words(given.query_text), texts, given.n)


SELECTIONS: dict[str, Callable[[_Given], list[int]]] = {
    "top_k": lambda given: top_k(given.relevance, given.n),
    "mmr": lambda given: mmr(given.relevance, _need_vectors(given), given.n),
    "dpp": lambda given: dpp(given.relevance, _need_vectors(given), given.n),
    "coverage": _cover_words,
    "balanced": lambda given: balanced(given.relevance, _need_labels(given), given.n),
    "balanced_tags": lambda given: balanced_tags(given.relevance, _need_tags(given), given.n),
}

COMPARE_VECTORS = ("mmr", "dpp")


def select(
    name: str,
    relevance: ArrayLike,
    n: int,
    vectors: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    query_text: str = "",
    candidate_texts: Sequence[str] = (),
    tags: Sequence[Collection[str]] | None = None,
) -> list[int]:
    """Call the selection of that name with what it needs of the arguments.

    Args:
        name: a name of SELECTIONS.
        relevance: (k,) similarity to the query.
        n: how many; more than k gives all.
        vectors: (k, d), for mmr and dpp.
        labels: (k), for balanced.
        query_text: for coverage.
        candidate_texts: (k), for coverage.
        tags: (k), for balanced_tags.

    Returns:
        Positions into the candidates, best first.

    Raises:
        UnknownNameError: no such selection.
        ConfigError: something the selection needs is missing, or shapes do not fit.
        DataError: a number is not finite.
    """
    if name not in SELECTIONS:
        raise UnknownNameError("selection", name, SELECTIONS)
    return SELECTIONS[name](_Given(name, relevance, n, vectors, labels, query_text, candidate_texts, tags))


ORDERS: dict[str, Callable[[list[int], Sequence[str], int], list[int]]] = {
    "ascending": lambda positions, labels, seed: positions[::-1],
    "descending": lambda positions, labels, seed: positions,
    "random": lambda positions, labels, seed: np.random.default_rng(seed).permutation(positions).tolist(),
    "interleaved": lambda positions, labels, seed: _alternate(positions, labels)[::-1],
}


def order(positions: Sequence[int], labels: Sequence[str] = (), how: str = "ascending", seed: int = 0) -> list[int]:
    """Put selected candidates into the order in which they stand in the prompt.

    ascending: worst first, the best next to the query; descending: best first; random: by `seed`; interleaved: as few
    neighbours of one label as can be, and otherwise ascending, the best last.

    Args:
        positions: what a selection returned, best first.
        labels: (k) label of each candidate, not of each position; only interleaved reads them.
        how: a name of ORDERS.
        seed: for random.

    Raises:
        UnknownNameError: no such order.
        ConfigError: interleaved, and a position without a label.
    """
    if how not in ORDERS:
        raise UnknownNameError("order", how, ORDERS)
    if how == "interleaved" and any(not 0 <= p < len(labels) for p in positions):
        raise ConfigError(f"interleaved needs a label for each candidate; got {len(labels)} labels")
    return ORDERS[how](list(positions), labels, seed)


def _alternate(positions: list[int], labels: Sequence[str]) -> list[int]:
    """Reorder so that equal labels seldom meet: the first stays, then the best of another label than the last.

    A label that makes up more than half of what is left must come next, or it would be left over at the end.
    """
    waiting: dict[str, list[int]] = defaultdict(list)
    for position in positions:
        waiting[labels[position]].append(position)
    rank = {position: i for i, position in enumerate(positions)}
    result: list[int] = []
    while waiting:
        left = len(positions) - len(result)
        others = [label for label in waiting if not result or label != labels[result[-1]]]
        urgent = [label for label in others if result and 2 * len(waiting[label]) > left]
        label = min(urgent or others or waiting, key=lambda name: rank[waiting[name][0]])
        result.append(waiting[label].pop(0))
        if not waiting[label]:
            del waiting[label]
    return result


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _best_first(scores: _Floats) -> list[int]:
    positions: list[int] = np.argsort(-scores, kind="stable").tolist()
    return positions


def _check_relevance(relevance: ArrayLike, n: int) -> _Floats:
    scores = np.asarray(relevance, dtype=np.float64)
    if scores.ndim != 1:
        raise ConfigError(f"relevance must have shape (k,), got {scores.shape}")
    if n < 0:
        raise ConfigError(f"n must not be negative, got {n}")
    if not np.isfinite(scores).all():
        raise DataError("relevance holds NaN or infinity")
    return scores


def _check_length(name: str, values: Sequence[object], k: int) -> None:
    if len(values) != k:
        raise ConfigError(f"{name} must have one entry for each of the {k} candidates, got {len(values)}")


def _on_one_scale(scores: _Floats, vectors: ArrayLike) -> tuple[_Floats, _Floats]:
    """Give relevance (k,) on the scale of cosines, and the cosines (k, k) between candidates."""
    v = np.asarray(vectors, dtype=np.float64)
    if v.ndim != 2 or len(v) != len(scores):
        raise ConfigError(f"vectors must have shape ({len(scores)}, d), got {v.shape}")
    if not np.isfinite(v).all():
        raise DataError("vectors hold NaN or infinity")
    norms = np.linalg.norm(v, axis=1, keepdims=True)  # (k, 1)
    unit = v / np.where(norms > 0, norms, 1.0)
    size = float(np.mean(norms**2)) if len(v) else 0.0
    return scores / (size or 1.0), unit @ unit.T
