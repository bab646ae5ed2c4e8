"""Evaluation: answers with each retriever's demonstrations, and the table against computation by hand."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udr.errors import DataError
from udr.evaluation import Answer, answer_queries, build_table, read_answers, write_answers
from udr.fakes import FakeEncoder, FakeLM
from udr.prompt import render
from udr.retriever import BM25Ranker, NoRanker, RandomRanker, Retriever, build_dense_ranker
from udr.tasks.spec import TaskSpec
from udr.types import Demonstration

LM = FakeLM()


class Watched(FakeLM):
    """Remembers the prompts it was given."""

    def __init__(self, context_length: int = 2048) -> None:
        super().__init__(context_length)
        self.prompts: list[str] = []

    def generate(self, prompts: Sequence[str], max_new_tokens: int) -> list[str]:
        self.prompts += prompts
        return super().generate(prompts, max_new_tokens)


# answers


def test_a_classification_is_answered_by_the_label_of_the_likeliest_word(
    sentiment: TaskSpec, reviews: list[Demonstration]
) -> None:
    queries = [
        Demonstration("q1", "a joy from the last", "1", references=("ok", "1")),
        Demonstration("q2", "a bore", "0"),
    ]
    retriever = Retriever(sentiment, reviews, BM25Ranker(reviews))
    answers = answer_queries(retriever, queries, LM, budget=500, k=2)
    assert [a.prediction for a in answers] == ["1", "0"]  # the labels of the data, not the words of the verbaliser
    assert [a.query_id for a in answers] == ["q1", "q2"]
    assert [a.input for a in answers] == [q.input for q in queries]
    assert [a.references for a in answers] == [("1", "ok"), ("0",)]
    for query, answer in zip(queries, answers, strict=True):
        (found,) = retriever.retrieve([query.query], 2)
        best_last = [f.demonstration for f in found][::-1]
        assert answer.demonstrations == tuple(d.id for d in best_last)
        assert answer.tokens == len(LM.encode(render(sentiment, best_last, query.query)))


def test_a_choice_is_answered_by_one_of_the_rows_own_choices(choosing: TaskSpec) -> None:
    pool = [
        Demonstration("1", "which fruit is yellow", "banana", ("apple", "banana")),
        Demonstration("2", "which bird is black", "crow", ("crow", "swan")),
    ]
    queries = [
        Demonstration("q", "which fruit is not red", "banana", ("plum", "apple", "banana")),
        Demonstration("r", "which bird is it", "crow", ("crow", "banana")),
    ]
    answers = answer_queries(Retriever(choosing, pool, BM25Ranker(pool)), queries, LM, budget=500, k=1)
    assert [a.prediction for a in answers] == ["banana", "crow"]


def test_generation_takes_as_many_demonstrations_as_fit_beside_the_answer(copying: TaskSpec) -> None:
    pool = [Demonstration(f"{i}", f"say word {i}", f"word {i}") for i in range(30)]
    lm = Watched()
    retriever = Retriever(copying, pool, RandomRanker(len(pool)))
    (answer,) = answer_queries(retriever, [Demonstration("q", "say word 7", "word 7")], lm, budget=80, k=2)
    each = len(LM.encode("say word 1\tword 1\n"))
    assert len(answer.demonstrations) == (80 - 8 - len(LM.encode("say word 7\t"))) // each > 2
    assert answer.tokens == len(LM.encode(lm.prompts[0])) <= 80 - copying.max_new_tokens
    (few,) = answer_queries(retriever, [Demonstration("q", "x", "y")], lm, budget=800, k=2, k_generation=3)
    assert len(few.demonstrations) == 3


def test_a_query_that_exceeds_the_budget_is_asked_without_demonstrations(
    sentiment: TaskSpec, copying: TaskSpec, reviews: list[Demonstration]
) -> None:
    query = Demonstration("q", "joy " * 40, "1")
    for spec, prediction in ((sentiment, {"0", "1"}), (copying, {""})):
        pool = [Demonstration(d.id, d.input, d.output) for d in reviews]
        (answer,) = answer_queries(Retriever(spec, pool, BM25Ranker(pool)), [query], LM, budget=30)
        assert answer.demonstrations == ()
        assert answer.prediction in prediction
        assert answer.tokens == len(LM.encode(render(spec, [], query.query))) > 30


def test_a_query_that_exceeds_the_lms_context_is_cut_at_its_end(copying: TaskSpec, sentiment: TaskSpec) -> None:
    query = Demonstration("q", "start " + "joy " * 400, "1")
    pool = [Demonstration("1", "joy", "1")]
    lm = Watched(context_length=100)
    (answer,) = answer_queries(Retriever(copying, pool, BM25Ranker(pool)), [query], lm, budget=1000)
    assert 70 < answer.tokens <= 100 - copying.max_new_tokens
    assert lm.prompts[0].startswith("start joy")
    assert lm.prompts[0].endswith("\t")
    (answer,) = answer_queries(Retriever(sentiment, pool, BM25Ranker(pool)), [query], lm, budget=1000)
    assert 80 < answer.tokens < 100
    assert answer.prediction in ("0", "1")


def test_prompts_never_exceed_the_lms_context_even_under_a_larger_budget(copying: TaskSpec) -> None:
    pool = [Demonstration(f"{i}", f"say word {i}", f"word {i}") for i in range(50)]
    lm = Watched(context_length=120)
    queries = [Demonstration(f"q{i}", f"say {i}", "x") for i in range(3)]
    answers = answer_queries(Retriever(copying, pool, RandomRanker(50)), queries, lm, budget=10**6)
    assert all(len(a.demonstrations) > 3 and a.tokens <= 120 - copying.max_new_tokens for a in answers)


def test_selection_and_order_reach_the_prompt(sentiment: TaskSpec, reviews: list[Demonstration]) -> None:
    query = Demonstration("q", "the film was a joy", "1")
    pool = [d for d in reviews if d.input != query.input]
    retriever = Retriever(sentiment, pool, build_dense_ranker(sentiment, pool, FakeEncoder()))
    (plain,) = answer_queries(retriever, [query], LM, budget=500, k=2)
    (turned,) = answer_queries(retriever, [query], LM, budget=500, k=2, arrange="descending")
    assert turned.demonstrations == plain.demonstrations[::-1]
    (balanced,) = answer_queries(retriever, [query], LM, budget=500, k=2, selection="balanced")
    labels = {d.id: d.output for d in pool}
    assert {labels[i] for i in balanced.demonstrations} == {"0", "1"}


def test_better_demonstrations_give_better_answers(sentiment: TaskSpec) -> None:
    words = {"0": ["bore", "dull", "flop"], "1": ["joy", "gem", "delight"]}
    pool = [Demonstration(f"{y}{i}", f"{w} number {i}", y) for y in words for w in words[y] for i in range(6)]
    queries = [Demonstration(f"q{y}{w}", f"{w} indeed", y) for y in words for w in words[y]]
    right = {}
    for name, ranker in [("none", NoRanker()), ("random", RandomRanker(len(pool))), ("bm25", BM25Ranker(pool))]:
        answers = answer_queries(Retriever(sentiment, pool, ranker), queries, LM, budget=500, k=3)
        right[name] = sum(a.prediction == a.references[0] for a in answers)
    assert right["bm25"] == 6 > right["random"]
    assert right["none"] == 3


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)


@given(st.lists(st.builds(Answer, texts, texts, texts, st.just(("a", "b")), st.just(()), st.integers(0)), min_size=1))
def test_written_answers_read_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, answers: list[Answer]
) -> None:
    path = tmp_path_factory.getbasetemp() / "answers.jsonl"
    write_answers(path, answers)
    assert read_answers(path) == answers


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\r", "\n", "\x1c"])
def test_answers_with_odd_line_breaks_read_back(tmp_path: Path, mark: str) -> None:
    given = [Answer("1", f"x{mark}x", f"y{mark}y", ("y",), (), 1), Answer("2", "x", "y", ("y",), (), 1)]
    write_answers(tmp_path / "answers.jsonl", given)
    assert read_answers(tmp_path / "answers.jsonl") == given


@pytest.mark.parametrize("line", ["{", "[]", '{"query_id": "1"}'])
def test_a_line_that_is_no_answer_is_refused_with_file_and_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "answers.jsonl"
    write_answers(path, [Answer("1", "x", "y", ("y",), ("a",), 3)])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"answers\.jsonl:2: not an answer"):
        read_answers(path)


# the table


def spec(name: str, family: str, kind: str = "generation", metric: str = "exact_match") -> TaskSpec:
    verbaliser = {"0": "no", "1": "yes"} if kind == "classification" else {}
    return TaskSpec(name=name, family=family, kind=kind, metric=metric, verbaliser=verbaliser)  # type: ignore[arg-type]


def answers(right: str, gold: str = "1") -> list[Answer]:
    """One answer a letter: `+` right, `-` wrong."""
    return [Answer(str(i), "x", gold if mark == "+" else "no", (gold,), (), 1) for i, mark in enumerate(right)]


SPECS = [spec("a", "one"), spec("b", "one", "classification", "accuracy"), spec("c", "two")]
ANSWERS = {
    "random": {"a": answers("---+"), "b": answers("+-+-+"), "c": answers("++")},
    "bm25": {"a": answers("--++"), "b": answers("+----"), "c": answers("+-")},
    "udr": {"a": answers("++++"), "b": answers("++++-"), "c": answers("++")},
}


def exact_p(a: Sequence[float], b: Sequence[float]) -> float:
    """Share of all sign patterns whose sum of differences is as large as the one observed."""
    differences = np.array([x - y for x, y in zip(a, b, strict=True) if x != y])
    patterns = list(itertools.product([-1, 1], repeat=len(differences)))
    observed = abs(differences.sum()) - 1e-12
    return sum(abs(np.dot(p, differences)) >= observed for p in patterns) / len(patterns)


def marks(text: str) -> list[float]:
    return [float(m == "+") for m in text]


def test_the_table_holds_the_numbers_computed_by_hand() -> None:
    table = build_table(SPECS, ANSWERS, draws=200)
    assert table.tasks == ("a", "b", "c")
    assert table.methods == ("random", "bm25", "udr")
    assert table.families == {"a": "one", "b": "one", "c": "two"}
    assert table.kinds == {"a": "generation", "b": "classification", "c": "generation"}
    expected = {
        "random": [25, 60, 100, 42.5, 100, 62.5, 60, 185 / 3],
        "bm25": [50, 20, 50, 35, 50, 50, 20, 40],
        "udr": [100, 80, 100, 90, 100, 100, 80, 280 / 3],
    }
    rows = ["a", "b", "c", "family: one", "family: two", "kind: generation", "kind: classification", "average"]
    for method, scores in expected.items():
        assert list(table.scores[method]) == rows
        assert list(table.scores[method].values()) == pytest.approx(scores)


def test_the_last_method_is_tested_against_the_best_other_one() -> None:
    table = build_table(SPECS, ANSWERS, draws=100)
    rows = ["a", "b", "c", "family: one", "family: two", "kind: generation", "kind: classification", "average"]
    best = ["bm25", "random", "random", "random", "random", "random", "random", "random"]
    assert dict(table.best_baseline) == dict(zip(rows, best, strict=True))
    expected = {
        "a": exact_p(marks("++++"), marks("--++")),
        "b": exact_p(marks("++++-"), marks("+-+-+")),
        "c": 1.0,
        # each task weighs alike: differences are divided by the number of its queries
        "average": exact_p(
            [m / 4 for m in marks("++++")] + [m / 5 for m in marks("++++-")] + [m / 2 for m in marks("++")],
            [m / 4 for m in marks("---+")] + [m / 5 for m in marks("+-+-+")] + [m / 2 for m in marks("++")],
        ),
    }
    assert dict(table.p_values) == pytest.approx(expected)
    assert expected["a"] == 0.5
    assert expected["b"] == 1.0


def test_one_method_alone_is_tested_against_nothing() -> None:
    table = build_table(SPECS, {"udr": ANSWERS["udr"]}, draws=100)
    assert table.p_values == {}
    assert table.best_baseline == {}
    assert table.scores["udr"]["average"] == pytest.approx(280 / 3)
    assert table.markdown(intervals=False).splitlines()[-1] == "| average | **93.3** |  |"


def test_intervals_hold_the_score_narrow_with_more_queries_and_repeat() -> None:
    few, many = (build_table([SPECS[0]], {"udr": {"a": answers("+-" * n)}}, draws=500) for n in (5, 100))
    for table in (few, many):
        for row, score in table.scores["udr"].items():
            low, high = table.intervals["udr"][row]
            assert 0 <= low < score < high <= 100
    width = [np.ptp(t.intervals["udr"]["average"]) for t in (few, many)]
    assert width[1] < 0.4 * width[0]
    normal = 2 * 1.96 * 100 * (0.25 / 200) ** 0.5
    assert width[1] == pytest.approx(normal, rel=0.2)
    again = build_table([SPECS[0]], {"udr": {"a": answers("+-" * 5)}}, draws=500)
    assert again.intervals == few.intervals
    certain = build_table([SPECS[0]], {"udr": {"a": answers("+++")}}, draws=100)
    assert certain.intervals["udr"]["a"] == (100, 100)


def test_an_interval_of_the_average_weighs_each_task_alike() -> None:
    specs = [spec("small", "f"), spec("large", "f")]
    given = {"udr": {"small": answers("+-" * 4), "large": answers("+" * 400)}}
    low, high = build_table(specs, given, draws=800).intervals["udr"]["average"]
    # the small task alone varies and counts one half: its standard error is 50 · sqrt(0.25 / 8)
    assert high - low == pytest.approx(2 * 1.96 * 50 * (0.25 / 8) ** 0.5, rel=0.25)


def test_markdown_has_a_row_a_task_then_families_kinds_and_the_average() -> None:
    expected = """\
| | random | bm25 | udr | p |
|---|---|---|---|---|
| a | 25.0 | 50.0 | **100.0** | 0.500 |
| b | 60.0 | 20.0 | **80.0** | 1.000 |
| c | **100.0** | 50.0 | **100.0** | 1.000 |
| family: one | 42.5 | 35.0 | **90.0** |  |
| family: two | **100.0** | 50.0 | **100.0** |  |
| kind: generation | 62.5 | 50.0 | **100.0** |  |
| kind: classification | 60.0 | 20.0 | **80.0** |  |
| average | 61.7 | 40.0 | **93.3** | PPP |"""
    table = build_table(SPECS, ANSWERS, draws=100)
    assert table.markdown(intervals=False) == expected.replace("PPP", f"{table.p_values['average']:.3f}")
    low, high = table.intervals["bm25"]["family: one"]
    assert high > low > 0
    assert "| family: one | 42.5 (" in table.markdown()
    assert f"| 35.0 ({low:.0f}–{high:.0f}) | **90.0** (" in table.markdown()


def test_the_table_is_json(tmp_path: Path) -> None:
    table = build_table(SPECS, ANSWERS, draws=100)
    back = json.loads(json.dumps(table.as_json()))
    assert back["scores"]["udr"]["a"] == 100
    assert back["methods"] == ["random", "bm25", "udr"]


def test_set_metrics_are_computed_over_the_set() -> None:
    given = [
        Answer("1", "x", "the cat sat on the mat", ("the cat sat on the mat",), (), 1),
        Answer("2", "x", "a dog", ("a bird flew over it",), (), 1),
    ]
    table = build_table([spec("t", "f", metric="bleu")], {"udr": {"t": given}}, draws=50)
    import sacrebleu

    expected = sacrebleu.corpus_bleu([a.prediction for a in given], [[a.references[0] for a in given]]).score
    assert table.scores["udr"]["t"] == pytest.approx(expected)


def test_methods_that_answered_different_queries_are_refused() -> None:
    other = {**ANSWERS["bm25"], "a": answers("--+")}
    with pytest.raises(DataError, match="task a: the methods answered different queries"):
        build_table(SPECS, {"bm25": other, "udr": ANSWERS["udr"]})
    turned = {**ANSWERS["bm25"], "a": ANSWERS["bm25"]["a"][::-1]}
    with pytest.raises(DataError, match="different queries"):
        build_table(SPECS, {"bm25": turned, "udr": ANSWERS["udr"]})


def test_a_demonstration_that_does_not_fit_gives_way_to_the_next(sentiment: TaskSpec) -> None:
    long = Demonstration("long", "the film was a joy " + "and long " * 40, "1")
    pool = [long, *(Demonstration(f"{i}", f"the film was number {i}", "0") for i in range(6))]
    query = Demonstration("q", "the film was a joy and long", "1")
    retriever = Retriever(sentiment, pool, BM25Ranker(pool))
    assert retriever.retrieve([query.query], 1)[0][0].demonstration == long
    (answer,) = answer_queries(retriever, [query], LM, budget=80, k=3)
    assert len(answer.demonstrations) == 3
    assert "long" not in answer.demonstrations
