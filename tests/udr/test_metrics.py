"""Each metric against a hand-worked value and against plain loops or a second implementation."""

from __future__ import annotations

import sys
from collections import Counter
from typing import get_args

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st

from udr.errors import ConfigError, DataError, MissingDependencyError, UDRError, UnknownNameError
from udr.metrics import METRICS, corpus_score, make_scorer, per_example
from udr.tasks.spec import Metric

words = st.lists(st.sampled_from("abcd"), min_size=0, max_size=7)
sentence = words.map(" ".join)
references = st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=7).map(" ".join), min_size=1, max_size=3)
rows = st.lists(st.tuples(sentence, references, sentence), min_size=1, max_size=6)


def lcs(a: list[str], b: list[str]) -> int:
    """Longest common subsequence by the recurrence."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + lcs(a[:-1], b[:-1])
    return max(lcs(a[:-1], b), lcs(a, b[:-1]))


def sari_by_loops(source: str, prediction: str, refs: list[str]) -> float:
    """SARI with reference counts as fractions r(g) = count over all references / number of references."""

    def grams(text: str, n: int) -> list[tuple[str, ...]]:
        tokens = text.split()
        return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else 1.0

    def f1(p: float, r: float) -> float:
        return 2 * p * r / (p + r) if p + r else 0.0

    total = 0.0
    for n in (1, 2, 3, 4):
        s, p = Counter(grams(source, n)), Counter(grams(prediction, n))
        r = {g: c / len(refs) for g, c in Counter(g for ref in refs for g in grams(ref, n)).items()}
        add_hits = sum(1 for g in p if g not in s and g in r)
        add = f1(
            ratio(add_hits, sum(1 for g in p if g not in s)),
            ratio(add_hits, sum(1 for g in r if g not in s)),
        )
        keep_precision, kept, keep_hits, to_keep = 0.0, 0, 0.0, 0.0
        delete_precision, deleted = 0.0, 0
        for g in s:
            k, d = min(s[g], p[g]), max(s[g] - p[g], 0)
            if k:
                kept += 1
                keep_precision += min(k, r.get(g, 0.0)) / k
            if d:
                deleted += 1
                delete_precision += max(d - r.get(g, 0.0), 0.0) / d
            keep_hits += min(k, r.get(g, 0.0))
            to_keep += min(s[g], r.get(g, 0.0))
        keep = f1(ratio(keep_precision, kept), ratio(keep_hits, to_keep))
        total += (add + keep + ratio(delete_precision, deleted)) / 3
    return total / 4


def macro_f1_by_loops(predicted: list[str], wanted: list[str]) -> float:
    """Macro-F1 from precision and recall of each label that occurs."""
    labels = set(predicted) | set(wanted)
    total = 0.0
    for label in labels:
        hits = sum(p == w == label for p, w in zip(predicted, wanted, strict=True))
        precision = hits / predicted.count(label) if label in predicted else 0.0
        recall = hits / wanted.count(label) if label in wanted else 0.0
        total += 2 * precision * recall / (precision + recall) if hits else 0.0
    return 100 * total / len(labels)


def test_every_metric_a_task_may_name_exists_and_no_other() -> None:
    assert set(METRICS) == set(get_args(Metric))


@pytest.mark.parametrize("metric", METRICS)
def test_a_perfect_answer_scores_one_and_a_strange_one_less(metric: str) -> None:
    gold = "return the red cubes ;return the number of #1"
    scores = per_example(metric, [gold, "zebra"], [[gold], [gold]], ["the red cubes : how many ?"] * 2)
    assert scores.dtype == np.float64
    assert scores.shape == (2,)
    assert scores[0] == pytest.approx(1.0)
    assert scores[1] < 0.5
    assert corpus_score(metric, [gold], [[gold]], ["the red cubes : how many ?"]) == pytest.approx(100.0)


@pytest.mark.parametrize("metric", METRICS)
@given(rows=rows)
@settings(max_examples=25, deadline=None)
def test_scores_stay_in_range(metric: str, rows: list[tuple[str, list[str], str]]) -> None:
    predictions, refs, inputs = map(list, zip(*rows, strict=True))
    scores = per_example(metric, predictions, refs, inputs)
    assert scores.shape == (len(rows),)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert 0 <= corpus_score(metric, predictions, refs, inputs) <= 100


@pytest.mark.parametrize("metric", sorted(set(METRICS) - {"macro_f1", "bleu", "bleu_1", "bleu_3", "bleu_4"}))
@given(rows=rows)
@settings(max_examples=15, deadline=None)
def test_number_of_the_table_is_a_hundred_times_the_mean(metric: str, rows: list[tuple[str, list[str], str]]) -> None:
    predictions, refs, inputs = map(list, zip(*rows, strict=True))
    expected = 100 * per_example(metric, predictions, refs, inputs).mean()
    assert corpus_score(metric, predictions, refs, inputs) == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS)
@given(data=st.data(), rows=rows)
@settings(max_examples=15, deadline=None)
def test_scorer_of_a_resampled_set_equals_scoring_its_texts(
    metric: str, data: st.DataObject, rows: list[tuple[str, list[str], str]]
) -> None:
    predictions, refs, inputs = map(list, zip(*rows, strict=True))
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=8))
    expected = corpus_score(
        metric, [predictions[i] for i in chosen], [refs[i] for i in chosen], [inputs[i] for i in chosen]
    )
    assert make_scorer(metric, predictions, refs, inputs)(np.array(chosen)) == pytest.approx(expected)


def test_exact_match_folds_whitespace_and_nothing_else() -> None:
    scores = per_example("exact_match", [" a  b\n", "ab", "A b", "c"], [["a b"], ["a b"], ["a b"], ["x", "c"]])
    assert scores.tolist() == [1, 0, 0, 1]


def test_accuracy_is_the_share_of_right_answers() -> None:
    assert corpus_score("accuracy", ["x", "y", "y"], [["x"], ["y"], ["x"]]) == pytest.approx(200 / 3)


def test_macro_f1_weighs_labels_equally() -> None:
    # a: P = 3/4, R = 1 -> 6/7; b: never predicted -> 0
    score = corpus_score("macro_f1", ["a", "a", "a", "a"], [["a"], ["a"], ["a"], ["b"]])
    assert score == pytest.approx(100 * (6 / 7) / 2)
    assert per_example("macro_f1", ["a", "a"], [["a"], ["b"]]).tolist() == [1, 0]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=1, max_size=12))
def test_macro_f1_equals_loops_over_labels(pairs: list[tuple[str, str]]) -> None:
    predicted, wanted = [p for p, _ in pairs], [w for _, w in pairs]
    assert corpus_score("macro_f1", predicted, [[w] for w in wanted]) == pytest.approx(
        macro_f1_by_loops(predicted, wanted)
    )


def test_macro_f1_of_a_resample_averages_over_the_labels_it_holds() -> None:
    assert make_scorer("macro_f1", ["a", "b"], [["a"], ["a"]])(np.array([0, 0])) == pytest.approx(100.0)


def test_macro_f1_takes_any_reference_as_right() -> None:
    assert corpus_score("macro_f1", ["b", "a"], [["a", "b"], ["a"]]) == pytest.approx(100.0)


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("return cubes ;return the  number of  #1", "1#) return cubes 2#) return the number of #1", True),
        (" return cubes 2#) return colors of #1", "return cubes ;return colors of #1", True),  # the prompt ends in 1#)
        ("Cubes @@SEP@@ colors of @@1@@", "return cubes ;return colors of #1", True),
        ("return cubes ;return highest of #3 ,  # 4", "return cubes; return highest of #3, #4", True),
        ("return cubes ;return colors of #1", "return cubes ;return colors of #2", False),
        ("return cubes ;return spheres", "return spheres ;return cubes", False),
        ("return cubes", "return cubes ;return colors of #1", False),
        ("return cubes return", "return cubes", False),
        ("return 1 cube", "return 2 cube", False),
    ],
)
def test_lf_em_ignores_marks_and_spaces_but_not_words(prediction: str, reference: str, same: bool) -> None:
    assert per_example("lf_em", [prediction], [[reference]]).tolist() == [float(same)]


def test_rouge_l_by_hand_takes_the_best_reference() -> None:
    # L("the cat sat", "the big cat") = 2: P = R = 2/3
    scores = per_example("rouge_l", ["The cat sat."] * 2, [["the big cat"], ["dogs bark", "the big cat", "no"]])
    assert scores == pytest.approx([2 / 3, 2 / 3])


@given(a=st.lists(st.sampled_from("abc"), min_size=1, max_size=6), b=st.lists(st.sampled_from("abc"), max_size=6))
@settings(max_examples=50, deadline=None)
def test_rouge_l_equals_the_subsequence_recurrence(a: list[str], b: list[str]) -> None:
    expected = 2 * lcs(a, b) / (len(a) + len(b))
    assert per_example("rouge_l", [" ".join(b)], [[" ".join(a)]])[0] == pytest.approx(expected)


def test_bleu_1_by_hand_clips_and_pools_counts() -> None:
    # clipped: the 1, cat 1 of 4; a 1 of 1 -> 3/5; both sides have 5 words, so no brevity penalty
    assert corpus_score("bleu_1", ["the cat the cat", "a"], [["the cat sat"], ["a dog"]]) == pytest.approx(60.0)


def test_short_answers_pay_the_brevity_penalty() -> None:
    refs = [["the cat sat down"]]
    assert corpus_score("bleu_1", ["the cat"], refs) == pytest.approx(100 * np.exp(1 - 4 / 2))
    # both n-gram lengths that two words have are perfect, so effective order leaves the penalty alone
    assert per_example("bleu", ["the cat"], refs)[0] == pytest.approx(np.exp(1 - 4 / 2))


def test_bleu_3_by_hand() -> None:
    # 5 words against 5: 1-grams 4/5, 2-grams 2/4, 3-grams 1/3
    score = corpus_score("bleu_3", ["a b c x d"], [["a b c d e"]])
    assert score == pytest.approx(100 * (4 / 5 * 2 / 4 * 1 / 3) ** (1 / 3))


@pytest.mark.parametrize(("metric", "order"), [("bleu", 4), ("bleu_1", 1), ("bleu_3", 3), ("bleu_4", 4)])
@given(rows=rows)
@settings(max_examples=25, deadline=None)
def test_bleu_equals_sacrebleu_on_the_set_and_on_each_answer(
    metric: str, order: int, rows: list[tuple[str, list[str], str]]
) -> None:
    predictions, refs = [p for p, _, _ in rows], [r for _, r, _ in rows]
    streams = [[r[i] if i < len(r) else None for r in refs] for i in range(3)]  # uneven numbers of references
    theirs = sacrebleu.BLEU(max_ngram_order=order).corpus_score(predictions, streams).score  # type: ignore[arg-type]
    assert corpus_score(metric, predictions, refs) == pytest.approx(theirs)
    single = sacrebleu.BLEU(max_ngram_order=order, effective_order=True)
    each = [single.sentence_score(p, r).score / 100 for p, r in zip(predictions, refs, strict=True)]
    assert per_example(metric, predictions, refs) == pytest.approx(each)


def test_sari_equals_the_published_example() -> None:
    refs = [
        "About 95 species are currently known.",
        "About 95 species are now accepted.",
        "95 species are now accepted.",
    ]
    score = corpus_score("sari", ["About 95 you now get in."], [refs], ["About 95 species are currently accepted."])
    assert score == pytest.approx(26.953601953601954)  # documented in Hugging Face evaluate, metrics/sari


def test_sari_by_hand() -> None:
    # Copying "a b c d" when "a b" is wanted: add 1 (nothing to do), delete 1 (nothing deleted),
    # keep: F1(2/4, 1) = 2/3, F1(1/3, 1) = 1/2, then P = 0 twice -> 7/24.
    assert per_example("sari", ["a b c d"], [["a b"]], ["a b c d"])[0] == pytest.approx((1 + 1 + 7 / 24) / 3)


@given(source=sentence, prediction=sentence, refs=references)
@settings(max_examples=200, deadline=None)
def test_sari_equals_loops_with_fractional_counts(source: str, prediction: str, refs: list[str]) -> None:
    expected = sari_by_loops(source, prediction, refs)
    assert per_example("sari", [prediction], [refs], [source])[0] == pytest.approx(expected)


def test_sari_ignores_case_and_splits_punctuation() -> None:
    plain = per_example("sari", ["a small dog ."], [["the small dog ."]], ["the little dog ."])
    assert per_example("sari", ["A small DOG."], [["The small dog."]], ["The little dog."]) == pytest.approx(plain)


def test_unknown_metric_lists_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="rouge_l"):
        corpus_score("rouge-l", ["a"], [["a"]])


@pytest.mark.parametrize(
    ("metric", "predictions", "refs", "inputs", "error"),
    [
        ("accuracy", ["a"], [["a"], ["b"]], (), ConfigError),
        ("accuracy", ["a"], [["a"]], ("x", "y"), ConfigError),
        ("sari", ["a"], [["a"]], (), ConfigError),
        ("accuracy", ["a"], ["a"], (), ConfigError),
        ("accuracy", ["a"], [[]], (), DataError),
        ("accuracy", [], [], (), DataError),
        ("bleu", [], [], (), DataError),
    ],
)
def test_what_cannot_be_scored_is_refused(
    metric: str, predictions: list[str], refs: list[list[str]], inputs: tuple[str, ...], error: type[UDRError]
) -> None:
    with pytest.raises(error):
        corpus_score(metric, predictions, refs, inputs)


@pytest.mark.parametrize(
    ("metric", "module", "package"),
    [
        ("bleu", "sacrebleu", "sacrebleu"),
        ("sari", "sacrebleu.tokenizers.tokenizer_13a", "sacrebleu"),
        ("rouge_l", "rouge_score.rouge_scorer", "rouge-score"),
    ],
)
def test_absent_package_names_what_to_install(
    metric: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"{package} is not installed.*udr\[eval\]"):
        corpus_score(metric, ["a"], [["a"]], ["a"])
