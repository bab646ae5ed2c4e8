"""What the LM's log-likelihoods say: how much one demonstration helps a query, and which option answers it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from udr.errors import DataError, PromptTooLong
from udr.prompt import render
from udr.tasks.spec import Normalisation, TaskSpec
from udr.types import Demonstration, LMScorer, LogLikelihoods, Progress, Query

__all__ = ["Pair", "Shortcut", "choose_options", "normalise", "requests_of", "score_pairs"]

Pair = tuple[Demonstration, Demonstration]  # a candidate and the query that it is to help
Shortcut = Literal["none", "first_token", "halving"]


def normalise(found: LogLikelihoods, how: Normalisation, prior: LogLikelihoods | None = None) -> NDArray[np.float64]:
    """One number an option, in nats: the sum, the mean per token, or the sum less the option's own prior (PMI).

    PMI: Holtzman et al. 2021, "Surface form competition", arXiv 2104.08315.
    """
    nats = found.nats.astype(np.float64)
    if how == "mean":
        return nats / np.maximum(found.tokens, 1)
    if how == "pmi":
        if prior is None:
            raise DataError("pmi normalisation needs the options' prior")
        return nats - prior.nats
    return nats


def _log_softmax(values: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = values - values.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result


def score_pairs(
    spec: TaskSpec,
    scorer: LMScorer,
    pairs: Sequence[Pair],
    progress: Progress | None = None,
    gold_only: bool = False,
    shortcut: Shortcut = "none",
) -> NDArray[np.float64]:
    """log s(z) of each (z, query) pair, (n,) nats ≤ 0.

    Generation: log p(y | z, x). Classification and multiple choice: log of p(y | z, x) normalised over the options
    (Li et al. 2023, equations 2 and 3). `gold_only` is the released code's variant: mean log-probability of y alone.
    Pairs are visited sorted by demonstration, so that a scorer can share its text; a killed run loses one call.

    Cheaper, where there are options: `first_token` compares them by their first tokens that tell them apart;
    `halving` asks for the gold option alone first, and for the others only where it stood in the better half of its
    query's candidates. The rest keep their order, below every one that was asked in full.
    """
    everything = range(len(pairs))
    if spec.kind == "generation" or gold_only:
        how: Normalisation = "mean" if gold_only else "sum"
        return _gold(spec, scorer, pairs, everything, _Told(progress, len(pairs)), how)
    if shortcut == "halving":
        return _halving(spec, scorer, pairs, progress)
    return _shares(spec, scorer, pairs, everything, _Told(progress, len(pairs)), shortcut == "first_token")


def requests_of(
    spec: TaskSpec,
    scorer: LMScorer,
    pairs: Sequence[Pair],
    gold_only: bool = False,
    shortcut: Shortcut = "none",
) -> tuple[list[str], list[str]]:
    """The contexts and continuations that `score_pairs` asks about, but for priors; of halving any half is taken."""
    contexts = [render(spec, [z], x.query) for z, x in pairs]
    gold = [spec.verbalise(x.output) for _, x in pairs]
    if spec.kind == "generation" or gold_only:
        return contexts, gold
    kept = range(0, len(pairs), 2 if shortcut == "halving" else 1)
    options = _options(spec, scorer, [pairs[i][1].query for i in kept], shortcut == "first_token")
    asked = [(contexts[i], o) for i, own in zip(kept, options, strict=True) for o in own]
    asked += list(zip(contexts, gold, strict=True)) if shortcut == "halving" else []
    return [c for c, _ in asked], [o for _, o in asked]


class _Told:
    """Counts the pairs of all stages."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0
        self.more(0)

    def more(self, count: int) -> None:
        self.done += count
        if self.progress:
            self.progress(self.done, self.total)


def _chunks(scorer: LMScorer, pairs: Sequence[Pair], rows: Sequence[int]) -> Iterator[list[int]]:
    order = sorted(rows, key=lambda i: (pairs[i][0].id, pairs[i][1].id))
    for start in range(0, len(order), scorer.prompts_per_call):
        yield order[start : start + scorer.prompts_per_call]


@contextmanager
def _naming(spec: TaskSpec, pairs: Sequence[Pair], chunk: Sequence[int], counts: Sequence[int]) -> Iterator[None]:
    """Say of which pair a request was that is too long; `counts` are the requests of each."""
    try:
        yield
    except PromptTooLong as error:
        if error.request is None:
            raise
        z, x = pairs[chunk[int(np.searchsorted(np.cumsum(counts), error.request, side="right"))]]
        said = str(error).partition(": ")[2]
        raise PromptTooLong(f"task {spec.name}: demonstration {z.id} with query {x.id}: {said}") from None


def _gold(
    spec: TaskSpec, scorer: LMScorer, pairs: Sequence[Pair], rows: Sequence[int], told: _Told, how: Normalisation
) -> NDArray[np.float64]:
    """Log-probability of the gold output, (n,); zero for pairs that are not among `rows`."""
    scores = np.zeros(len(pairs))
    for chunk in _chunks(scorer, pairs, rows):
        contexts = [render(spec, [pairs[i][0]], pairs[i][1].query) for i in chunk]
        with _naming(spec, pairs, chunk, [1] * len(chunk)):
            found = scorer.loglikelihood(contexts, [spec.verbalise(pairs[i][1].output) for i in chunk])
        scores[chunk] = normalise(found, how)
        told.more(len(chunk))
    return scores


def _shares(
    spec: TaskSpec, scorer: LMScorer, pairs: Sequence[Pair], rows: Sequence[int], told: _Told, shorten: bool = False
) -> NDArray[np.float64]:
    """Log of the gold option's share of all options, (n,); zero for pairs that are not among `rows`."""
    scores = np.zeros(len(pairs))
    for chunk in _chunks(scorer, pairs, rows):
        contexts = [render(spec, [pairs[i][0]], pairs[i][1].query) for i in chunk]
        queries = [pairs[i][1] for i in chunk]
        with _naming(spec, pairs, chunk, [len(spec.options(q.choices)) for q in queries]):
            values = _option_scores(spec, scorer, contexts, [q.query for q in queries], shorten)
        for i, query, own in zip(chunk, queries, values, strict=True):
            gold = spec.options(query.choices).index(spec.verbalise(query.output))
            scores[i] = _log_softmax(own)[gold]
        told.more(len(chunk))
    return scores


def _halving(spec: TaskSpec, scorer: LMScorer, pairs: Sequence[Pair], progress: Progress | None) -> NDArray[np.float64]:
    """The gold option of all pairs, then all options of the better half of each query's."""
    of_query: dict[str, list[int]] = {}
    for i, (_, query) in enumerate(pairs):
        of_query.setdefault(query.id, []).append(i)
    told = _Told(progress, len(pairs) + sum((len(own) + 1) // 2 for own in of_query.values()))
    gold = _gold(spec, scorer, pairs, range(len(pairs)), told, "sum")  # of one text: any normalisation ranks the same
    halves = []
    for own in of_query.values():
        best_first = sorted(own, key=lambda i: (-gold[i], pairs[i][0].id))
        halves.append((best_first[: (len(own) + 1) // 2], best_first[(len(own) + 1) // 2 :]))
    scores = _shares(spec, scorer, pairs, [i for kept, _ in halves for i in kept], told)
    for kept, dropped in halves:
        for i in dropped:
            scores[i] = scores[kept].min() - (gold[kept].min() - gold[i])
    return scores


def choose_options(
    spec: TaskSpec,
    scorer: LMScorer,
    contexts: Sequence[str],
    queries: Sequence[Query],
    progress: Progress | None = None,
) -> list[int]:
    """The option the LM prefers after each finished prompt: argmax of the normalised log-likelihood."""
    chosen: list[int] = []
    if progress:
        progress(0, len(contexts))
    for start in range(0, len(contexts), scorer.prompts_per_call):
        part = slice(start, start + scorer.prompts_per_call)
        values = _option_scores(spec, scorer, contexts[part], queries[part])
        chosen.extend(int(v.argmax()) for v in values)
        if progress:
            progress(len(chosen), len(contexts))
    return chosen


def _options(spec: TaskSpec, scorer: LMScorer, queries: Sequence[Query], shorten: bool) -> list[tuple[str, ...]]:
    """The options of every query, whole or as far as they must be read to be told apart."""
    options = [tuple(spec.options(q.choices)) for q in queries]
    if not shorten:
        return options
    short = {own: scorer.beginnings(spec.template.answer_prefix, own) for own in dict.fromkeys(options)}
    return [short[own] for own in options]


def _option_scores(
    spec: TaskSpec, scorer: LMScorer, contexts: Sequence[str], queries: Sequence[Query], shorten: bool = False
) -> list[NDArray[np.float64]]:
    """Normalised score of every option of every query, a (number of options,) array each."""
    options = _options(spec, scorer, queries, shorten)
    flat = [(c, o) for c, own in zip(contexts, options, strict=True) for o in own]
    found = scorer.loglikelihood([c for c, _ in flat], [o for _, o in flat])
    prior = None
    if spec.normalisation == "pmi":
        bare = spec.template.answer_prefix
        known = {o: i for i, o in enumerate(dict.fromkeys(o for _, o in flat))}
        alone = scorer.loglikelihood([bare] * len(known), list(known))
        at = [known[o] for _, o in flat]
        prior = LogLikelihoods(alone.nats[at], alone.tokens[at])
    values = normalise(found, spec.normalisation, prior)
    ends = np.cumsum([len(o) for o in options])
    return np.split(values, ends[:-1])
