"""What the LM's log-likelihoods say: how much one demonstration helps a query, and which option answers it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from udr.errors import DataError
from udr.prompt import render
from udr.tasks.spec import Normalisation, TaskSpec
from udr.types import Demonstration, LMScorer, LogLikelihoods, Progress, Query

__all__ = ["choose_options", "normalise", "score_pairs"]


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
    pairs: Sequence[tuple[Demonstration, Demonstration]],
    progress: Progress | None = None,
    gold_only: bool = False,
) -> NDArray[np.float64]:
    """log s(z) of each (z, query) pair, (n,) nats ≤ 0.

    Generation: log p(y | z, x). Classification and multiple choice: log of p(y | z, x) normalised over the options
    (Li et al. 2023, equations 2 and 3). `gold_only` is the released code's variant: mean log-probability of y alone.
    Pairs are visited sorted by demonstration, so that a scorer can share its text; a killed run loses one call.
    """
    scores = np.zeros(len(pairs))
    order = sorted(range(len(pairs)), key=lambda i: (pairs[i][0].id, pairs[i][1].id))
    if progress:
        progress(0, len(pairs))
    for start in range(0, len(order), scorer.prompts_per_call):
        chunk = order[start : start + scorer.prompts_per_call]
        contexts = [render(spec, [pairs[i][0]], pairs[i][1].query) for i in chunk]
        if spec.kind == "generation" or gold_only:
            found = scorer.loglikelihood(contexts, [spec.verbalise(pairs[i][1].output) for i in chunk])
            scores[chunk] = normalise(found, "mean") if gold_only else found.nats
        else:
            queries = [pairs[i][1] for i in chunk]
            for i, query, values in zip(
                chunk, queries, _option_scores(spec, scorer, contexts, [q.query for q in queries]), strict=True
            ):
                gold = spec.options(query.choices).index(spec.verbalise(query.output))
                scores[i] = _log_softmax(values)[gold]
        if progress:
            progress(start + len(chunk), len(pairs))
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


def _option_scores(
    spec: TaskSpec, scorer: LMScorer, contexts: Sequence[str], queries: Sequence[Query]
) -> list[NDArray[np.float64]]:
    """Normalised score of every option of every query, a (number of options,) array each."""
    options = [spec.options(q.choices) for q in queries]
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
