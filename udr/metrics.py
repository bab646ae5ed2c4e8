"""How answers are judged: one score for each answer, one number for the table.

A metric of `METRICS` takes predictions (n), references (n lists, the gold answer first) and inputs (n), and returns
scores (n,) in 0..1. `corpus_score` gives the number of the table in 0..100: the mean of those scores, save for macro-F1
and BLEU, which are computed over the set. `make_scorer` gives the same number for any resampled set, without reading
the texts again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udr.errors import ConfigError, DataError, MissingDependencyError, UnknownNameError
from udr.types import IntArray

__all__ = ["METRICS", "MetricFunction", "Scores", "corpus_score", "make_scorer", "per_example"]

Scores = NDArray[np.float64]  # (n,) in 0..1
References = Sequence[Sequence[str]]
MetricFunction = Callable[[Sequence[str], References, Sequence[str]], Scores]
SetScorer = Callable[[IntArray], float]  # indices of examples, repeats included -> the number of the table, 0..100
Ngrams = Counter[tuple[str, ...]]


def exact_match(predictions: Sequence[str], references: References, inputs: Sequence[str]) -> Scores:
    """Score 1 where the prediction is one of the references, whitespace folded; case counts."""
    return _scores(_fold(p) in {_fold(r) for r in refs} for p, refs in zip(predictions, references, strict=True))


def lf_em(predictions: Sequence[str], references: References, inputs: Sequence[str]) -> Scores:
    """Score 1 where the steps of a BREAK decomposition equal those of a reference.

    An approximation from below of LF-EM (Hasson and Berant 2021, Question Decomposition with Dependency Graphs, arXiv
    2104.08647), which turns both sides into logical forms with a parser and rules and compares the graphs. Here the
    steps are compared in order as words: case, spaces, the word `return` that opens a step and the way steps and
    back-references are marked (`1#)`, `;`, `@@SEP@@`; `#1`, `@@1@@`) do not count, but synonyms and another order
    of independent steps do. Numbers stand below published LF-EM and compare systems only with one another.
    """
    return _scores(_steps(p) in {_steps(r) for r in refs} for p, refs in zip(predictions, references, strict=True))


def rouge_l(predictions: Sequence[str], references: References, inputs: Sequence[str]) -> Scores:
    """Score by ROUGE-L F1 against the best reference, no stemming.

    Longest common subsequence L: P = L/|prediction|, R = L/|reference|, F1 = 2PR/(P + R). Lin 2004, ROUGE: A Package
    for Automatic Evaluation of Summaries; by the package rouge-score, whose words are runs of a-z and 0-9.

    Raises:
        MissingDependencyError: rouge-score is not installed.
    """
    scorer = _load("rouge_score.rouge_scorer", "rouge-score").RougeScorer(["rougeL"], use_stemmer=False)
    pairs = zip(predictions, references, strict=True)
    return _scores(scorer.score_multi(list(refs), p)["rougeL"].fmeasure for p, refs in pairs)


def bleu(predictions: Sequence[str], references: References, inputs: Sequence[str], *, order: int = 4) -> Scores:
    """Score by sentence BLEU up to `order`-grams, exponential smoothing, effective order, 13a words, case counts.

    Effective order leaves out the n-gram lengths that the prediction is too short to have. Papineni et al. 2002, BLEU:
    a Method for Automatic Evaluation; Post 2018, A Call for Clarity in Reporting BLEU Scores, arXiv 1804.08771.

    Raises:
        MissingDependencyError: sacrebleu is not installed.
    """
    # Without a match sacrebleu gives 0; a perfect sentence may come out at 1 + 4e-16.
    return np.minimum(_scores(s.score / 100 for s in _sentence_bleus(predictions, references, order)), 1.0)


def sari(predictions: Sequence[str], references: References, inputs: Sequence[str]) -> Scores:
    """Score a simplification by what it adds to, keeps of and deletes from its input.

    SARI = (F1_add + F1_keep + P_delete) / 3, each averaged over n-grams of 1 to 4 words. Xu et al. 2016, Optimizing
    Statistical Machine Translation for Text Simplification, TACL 4, section 4. Words are lower-case 13a tokens. As in
    tensor2tensor and Hugging Face evaluate, 0/0 counts as 1 (nothing to do and nothing done is right) and the recall
    of keep is over all n-grams to keep; the authors' script takes 0 and a mean over n-gram types, and reads a little
    lower.

    Raises:
        MissingDependencyError: sacrebleu, whose tokenizer is used, is not installed.
    """
    tokenizer = _load("sacrebleu.tokenizers.tokenizer_13a", "sacrebleu").Tokenizer13a()

    def words(text: str) -> list[str]:
        return str(tokenizer(text.lower())).split()

    rows = zip(inputs, predictions, references, strict=True)
    return _scores(_sari_sentence(words(x), words(p), [words(r) for r in refs]) for x, p, refs in rows)


METRICS: dict[str, MetricFunction] = {
    "accuracy": exact_match,
    "macro_f1": exact_match,  # for pairing examples; the number of the table is over the set
    "exact_match": exact_match,
    "lf_em": lf_em,
    "rouge_l": rouge_l,
    "bleu": partial(bleu, order=4),
    "bleu_1": partial(bleu, order=1),
    "bleu_3": partial(bleu, order=3),
    "bleu_4": partial(bleu, order=4),
    "sari": sari,
}


def per_example(metric: str, predictions: Sequence[str], references: References, inputs: Sequence[str] = ()) -> Scores:
    """Score each prediction by itself: what a paired test of two systems compares.

    For macro_f1 this is 0/1 correctness and for BLEU the sentence score, so their mean is not the number of the table.

    Args:
        metric: a name of METRICS.
        predictions: n answers.
        references: n lists of right answers, the gold answer first.
        inputs: n inputs; only sari reads them, and others may leave them out.

    Returns:
        Scores (n,) float64 in 0..1.

    Raises:
        UnknownNameError: no such metric.
        ConfigError: lengths differ, or sari without inputs.
        DataError: an example without a reference.
        MissingDependencyError: the metric's package is not installed.
    """
    _check(metric, predictions, references, inputs)
    return METRICS[metric](predictions, references, inputs)


def make_scorer(
    metric: str, predictions: Sequence[str], references: References, inputs: Sequence[str] = ()
) -> SetScorer:
    """Prepare the number of the table for any choice of the examples.

    The texts are read once; each call then sums counts, so `significance.bootstrap_interval` can call it 1000 times.

    Returns:
        A function of indices (any length, repeats count) that gives the score in 0..100.

    Raises:
        As `per_example`; the function raises DataError for no indices.
    """
    _check(metric, predictions, references, inputs)
    if metric in _SET_METRICS:
        return _refuse_nothing(_SET_METRICS[metric](predictions, references))
    scores = METRICS[metric](predictions, references, inputs)
    return _refuse_nothing(lambda indices: 100 * float(scores[indices].mean()))


def corpus_score(metric: str, predictions: Sequence[str], references: References, inputs: Sequence[str] = ()) -> float:
    """Give the number of the table, 0..100.

    Raises:
        As `per_example`; DataError for no predictions.
    """
    return make_scorer(metric, predictions, references, inputs)(np.arange(len(predictions), dtype=np.int64))


def _macro_f1_scorer(predictions: Sequence[str], references: References) -> SetScorer:
    """Macro-F1 over the labels that a set predicts or wants: mean of 2·TP / (predicted + wanted)."""
    predicted = [_fold(p) for p in predictions]
    folded = [[_fold(r) for r in refs] for refs in references]
    wanted = [p if p in refs else refs[0] for p, refs in zip(predicted, folded, strict=True)]
    codes = {label: i for i, label in enumerate(dict.fromkeys([*predicted, *wanted]))}
    p, w = (np.array([codes[label] for label in predicted]), np.array([codes[label] for label in wanted]))

    def score(indices: IntArray) -> float:
        count = partial(np.bincount, minlength=len(codes))
        hits = count(p[indices][p[indices] == w[indices]])
        claims = count(p[indices]) + count(w[indices])
        return 100 * float(np.mean(2 * hits[claims > 0] / claims[claims > 0]))

    return score


def _bleu_scorer(predictions: Sequence[str], references: References, order: int) -> SetScorer:
    """Corpus BLEU from each sentence's n-gram counts and lengths, which add up over a set."""
    sentences = _sentence_bleus(predictions, references, order)
    counts = np.array([[*s.counts, *s.totals, s.sys_len, s.ref_len] for s in sentences], dtype=np.int64)
    compute: Any = _load("sacrebleu", "sacrebleu").BLEU.compute_bleu

    def score(indices: IntArray) -> float:
        *ngrams, predicted, wanted = counts[indices].sum(axis=0).tolist()
        result = compute(ngrams[:order], ngrams[order:], predicted, wanted, smooth_method="exp", max_ngram_order=order)
        return min(float(result.score), 100.0)

    return score


_SET_METRICS: dict[str, Callable[[Sequence[str], References], SetScorer]] = {
    "macro_f1": _macro_f1_scorer,
    "bleu": partial(_bleu_scorer, order=4),
    "bleu_1": partial(_bleu_scorer, order=1),
    "bleu_3": partial(_bleu_scorer, order=3),
    "bleu_4": partial(_bleu_scorer, order=4),
}


def _check(metric: str, predictions: Sequence[str], references: References, inputs: Sequence[str]) -> None:
    if metric not in METRICS:
        raise UnknownNameError("metric", metric, METRICS)
    if len(references) != len(predictions):
        raise ConfigError(f"{metric}: {len(predictions)} predictions but {len(references)} lists of references")
    if len(inputs) != len(predictions) and (inputs or metric == "sari"):
        raise ConfigError(f"{metric}: {len(predictions)} predictions but {len(inputs)} inputs")
    for row, refs in enumerate(references):
        if isinstance(refs, str):  # a string is a sequence of strings too, and would score each letter
            raise ConfigError(f"{metric}: references of row {row} are one string; expected a list of strings")
        if not refs:
            raise DataError(f"{metric}: row {row} has no reference")


def _refuse_nothing(score: SetScorer) -> SetScorer:
    def checked(indices: IntArray) -> float:
        if not len(indices):
            raise DataError("nothing to score: the set is empty")
        return score(indices)

    return checked


def _scores(values: Iterable[float]) -> Scores:
    return np.fromiter(values, dtype=np.float64)


def _load(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise MissingDependencyError(package, "eval") from None


def _fold(text: str) -> str:
    return " ".join(text.split())


def _steps(text: str) -> tuple[str, ...]:
    """Split a decomposition into bare steps: `1#) return flights 2#) return #1 from Denver` -> two of them."""
    text = re.sub(r"@@\s*(\d+)\s*@@|#\s+(\d+)\b", r"#\1\2", text.casefold())
    parts = re.split(r";|@@sep@@|\b\d+#\)", text)
    steps = (re.sub(r"^return\b", "", _fold(re.sub(r"\s*([,?])", r"\1 ", part))).strip() for part in parts)
    return tuple(step for step in steps if step)


def _sentence_bleus(predictions: Sequence[str], references: References, order: int) -> list[Any]:
    """Give sacrebleu's BLEUScore of each sentence, with its counts and lengths."""
    metric = _load("sacrebleu", "sacrebleu").BLEU(max_ngram_order=order, effective_order=True)
    return [metric.sentence_score(p, list(refs)) for p, refs in zip(predictions, references, strict=True)]


def _sari_sentence(source: list[str], prediction: list[str], references: list[list[str]]) -> float:
    parts = []
    for n in range(1, 5):
        wanted = sum((_ngrams(r, n) for r in references), Counter())
        # Counts of source and prediction are multiplied so that they compare with the sum over the references.
        parts.append(_sari_ngrams(_ngrams(source, n, len(references)), _ngrams(prediction, n, len(references)), wanted))
    return float(np.mean(parts))


def _sari_ngrams(source: Ngrams, prediction: Ngrams, wanted: Ngrams) -> tuple[float, float, float]:
    """Give F1_add, F1_keep, P_delete for n-grams of one length."""
    kept, to_keep = source & prediction, source & wanted
    deleted, well_deleted = source - prediction, (source - prediction) - wanted
    added, to_add = set(prediction) - set(source), set(wanted) - set(source)
    well_kept = kept & wanted
    keep_precision = _ratio(sum(well_kept[g] / kept[g] for g in well_kept), len(kept))
    keep_recall = _ratio(well_kept.total(), to_keep.total())
    delete_precision = _ratio(sum(well_deleted[g] / deleted[g] for g in well_deleted), len(deleted))
    add = _f1(_ratio(len(added & to_add), len(added)), _ratio(len(added & to_add), len(to_add)))
    return add, _f1(keep_precision, keep_recall), delete_precision


def _ngrams(words: list[str], n: int, times: int = 1) -> Ngrams:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    return Counter({gram: times * count for gram, count in counts.items()})


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
